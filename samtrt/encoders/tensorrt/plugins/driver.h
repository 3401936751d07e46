// The CUDA driver, found when it is first needed: the library itself loads where there is no GPU.
#pragma once

#include <cuda.h>

#include <string>

namespace samtrt {

struct Driver {
    decltype(&cuCtxGetCurrent) context_get_current;
    decltype(&cuCtxPushCurrent) context_push;
    decltype(&cuCtxPopCurrent) context_pop;
    decltype(&cuMemAlloc) memory_allocate;
    decltype(&cuMemFree) memory_free;
    decltype(&cuMemcpyHtoD) memory_copy_to_device;
    decltype(&cuModuleLoadData) module_load;
    decltype(&cuModuleUnload) module_unload;
    decltype(&cuModuleGetFunction) module_function;
    decltype(&cuFuncSetAttribute) function_set;
    decltype(&cuTensorMapEncodeTiled) map_encode;
    decltype(&cuLaunchKernelEx) launch;
    decltype(&cuGetErrorName) error_name;
};

// Throws Error where there is no driver, or an older one than 12.0.
const Driver& driver();

// Throws Error where a call of the driver failed.
void check(CUresult result, const std::string& call);

}  // namespace samtrt
