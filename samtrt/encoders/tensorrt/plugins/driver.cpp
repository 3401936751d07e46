#include "driver.h"

#include <dlfcn.h>

#include "layer.h"

// cuda.h gives the newest form of some functions under their plain names.
#define SAMTRT_TEXT(name) #name
#define SAMTRT_NAME(name) SAMTRT_TEXT(name)

namespace samtrt {
namespace {

template <class Function>
void find(void* library, Function& function, const char* name) {
    function = reinterpret_cast<Function>(dlsym(library, name));
    if (function == nullptr)
        throw Error(std::string("the NVIDIA driver has no ") + name +
                    ": the plugins need driver 525 (CUDA 12.0) or newer");
}

Driver found() {
    void* library = dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL);
    if (library == nullptr) throw Error("no NVIDIA driver: libcuda.so.1 cannot be loaded");
    Driver driver;
    find(library, driver.context_get_current, SAMTRT_NAME(cuCtxGetCurrent));
    find(library, driver.context_push, SAMTRT_NAME(cuCtxPushCurrent));
    find(library, driver.context_pop, SAMTRT_NAME(cuCtxPopCurrent));
    find(library, driver.memory_allocate, SAMTRT_NAME(cuMemAlloc));
    find(library, driver.memory_free, SAMTRT_NAME(cuMemFree));
    find(library, driver.memory_copy_to_device, SAMTRT_NAME(cuMemcpyHtoD));
    find(library, driver.module_load, SAMTRT_NAME(cuModuleLoadData));
    find(library, driver.module_unload, SAMTRT_NAME(cuModuleUnload));
    find(library, driver.module_function, SAMTRT_NAME(cuModuleGetFunction));
    find(library, driver.function_set, SAMTRT_NAME(cuFuncSetAttribute));
    find(library, driver.map_encode, SAMTRT_NAME(cuTensorMapEncodeTiled));
    find(library, driver.launch, SAMTRT_NAME(cuLaunchKernelEx));
    find(library, driver.error_name, SAMTRT_NAME(cuGetErrorName));
    return driver;
}

}  // namespace

const Driver& driver() {
    static const Driver driver = found();
    return driver;
}

void check(CUresult result, const std::string& call) {
    if (result == CUDA_SUCCESS) return;
    const char* name = nullptr;
    driver().error_name(result, &name);
    throw Error(call + " failed: " + (name ? name : std::to_string(int(result))));
}

}  // namespace samtrt
