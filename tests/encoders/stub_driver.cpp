// A libcuda.so.1 without a GPU: prints what is copied and launched; a descriptor is its arguments.
#include <cuda.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <sstream>
#include <string>

namespace {

uintptr_t next_memory = 0x700000000000;

void print_hex(const void* data, size_t size) {
    for (size_t i = 0; i < size; ++i) std::printf("%02x", static_cast<const uint8_t*>(data)[i]);
}

}  // namespace

extern "C" {

CUresult cuCtxGetCurrent(CUcontext* context) {
    *context = reinterpret_cast<CUcontext>(1);
    return CUDA_SUCCESS;
}
CUresult cuCtxPushCurrent(CUcontext) { return CUDA_SUCCESS; }
CUresult cuCtxPopCurrent(CUcontext*) { return CUDA_SUCCESS; }
CUresult cuMemAlloc(CUdeviceptr* memory, size_t size) {
    *memory = next_memory;
    next_memory += size;
    return CUDA_SUCCESS;
}
CUresult cuMemFree(CUdeviceptr memory) {
    std::printf("free %llx\n", static_cast<unsigned long long>(memory));
    return CUDA_SUCCESS;
}
CUresult cuMemcpyHtoD(CUdeviceptr to, const void* from, size_t size) {
    std::printf("copy %llx ", static_cast<unsigned long long>(to));
    print_hex(from, size);
    std::printf("\n");
    return CUDA_SUCCESS;
}
CUresult cuModuleLoadData(CUmodule* module, const void* image) {
    *module = reinterpret_cast<CUmodule>(const_cast<void*>(image));
    return CUDA_SUCCESS;
}
CUresult cuModuleUnload(CUmodule) {
    std::printf("unload\n");
    return CUDA_SUCCESS;
}
CUresult cuModuleGetFunction(CUfunction* function, CUmodule module, const char* name) {
    std::printf("function %s\n", name);
    *function = reinterpret_cast<CUfunction>(module);
    return CUDA_SUCCESS;
}
CUresult cuFuncSetAttribute(CUfunction, CUfunction_attribute attribute, int value) {
    std::printf("attribute %d %d\n", attribute, value);
    return CUDA_SUCCESS;
}
CUresult cuTensorMapEncodeTiled(CUtensorMap* map, CUtensorMapDataType type, cuuint32_t rank,
                                void* address, const cuuint64_t* sizes, const cuuint64_t* strides,
                                const cuuint32_t* box, const cuuint32_t* steps,
                                CUtensorMapInterleave interleave, CUtensorMapSwizzle swizzle,
                                CUtensorMapL2promotion l2, CUtensorMapFloatOOBfill fill) {
    auto* bytes = reinterpret_cast<uint8_t*>(map);
    std::memset(bytes, 0, 128);
    const int kinds[] = {int(type), int(rank), int(interleave), int(swizzle), int(l2), int(fill)};
    for (int i = 0; i < 6; ++i) bytes[i] = uint8_t(kinds[i]);
    std::memcpy(bytes + 8, &address, 8);
    std::memcpy(bytes + 16, sizes, 8 * rank);
    std::memcpy(bytes + 48, strides, 8 * (rank - 1));
    std::memcpy(bytes + 72, box, 4 * rank);
    std::memcpy(bytes + 88, steps, 4 * rank);
    return CUDA_SUCCESS;
}
CUresult cuLaunchKernelEx(const CUlaunchConfig* config, CUfunction function, void** arguments, void**) {
    std::printf("launch %u %u %u %u %u %u %u %u:%d ", config->gridDimX, config->gridDimY,
                config->gridDimZ, config->blockDimX, config->blockDimY, config->blockDimZ,
                config->sharedMemBytes, config->attrs[0].id,
                config->attrs[0].value.programmaticStreamSerializationAllowed);
    print_hex(function, 16);
    std::printf("\n");
    std::istringstream sizes(std::getenv("ARGUMENT_SIZES"));
    size_t size;
    for (int i = 0; sizes >> size; ++i) {
        std::printf("argument ");
        print_hex(arguments[i], size);
        std::printf("\n");
    }
    return CUDA_SUCCESS;
}
CUresult cuGetErrorName(CUresult, const char** name) {
    *name = "CUDA_ERROR";
    return CUDA_SUCCESS;
}

}  // extern "C"
