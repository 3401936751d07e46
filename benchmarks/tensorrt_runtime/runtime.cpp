// TensorRT's C++ runtime for ctypes: what samtrt/encoders/tensorrt/runtime.py asks of the bindings.
#include <NvInferRuntime.h>

#include <cstring>

using namespace nvinfer1;

namespace {

using Log = void (*)(int severity, const char* message);
using Report = void (*)(const char* layer, float milliseconds);

struct Logger : ILogger {
    explicit Logger(Log call) : call(call) {}
    void log(Severity severity, const char* message) noexcept override {
        call(int(severity), message);
    }
    Log call;
};

struct Profiler : IProfiler {
    explicit Profiler(Report call) : call(call) {}
    void reportLayerTime(const char* layer, float milliseconds) noexcept override {
        call(layer, milliseconds);
    }
    Report call;
};

auto* engine_of(void* engine) { return static_cast<ICudaEngine*>(engine); }
auto* context_of(void* context) { return static_cast<IExecutionContext*>(context); }

}  // namespace

extern "C" {

// Of objects that live as long as the process: the logger is TensorRT's one.
void* make_runtime(Log log) { return createInferRuntime(*new Logger(log)); }
void* deserialize(void* runtime, const void* data, size_t size) {
    return static_cast<IRuntime*>(runtime)->deserializeCudaEngine(data, size);
}
void* make_context(void* engine) { return engine_of(engine)->createExecutionContext(); }
size_t device_memory(void* engine) { return engine_of(engine)->getDeviceMemorySize(); }

int set_shape(void* context, const char* name, int rank, const int* sizes) {
    Dims dims{};
    dims.nbDims = rank;
    for (int i = 0; i < rank; ++i) dims.d[i] = sizes[i];
    return context_of(context)->setInputShape(name, dims);
}
int set_address(void* context, const char* name, void* address) {
    return context_of(context)->setTensorAddress(name, address);
}
int enqueue(void* context, void* stream) {
    return context_of(context)->enqueueV3(static_cast<cudaStream_t>(stream));
}
void profile(void* context, Report report) {
    context_of(context)->setProfiler(new Profiler(report));
}

void delete_context(void* context) { delete context_of(context); }
void delete_engine(void* engine) { delete engine_of(engine); }
void delete_runtime(void* runtime) { delete static_cast<IRuntime*>(runtime); }

int load_library(const char* path) { return getPluginRegistry()->loadLibrary(path) != nullptr; }
int count_creators() {
    int count = 0;
    getPluginRegistry()->getPluginCreatorList(&count);
    return count;
}
void describe_creator(int index, const char** texts) {
    int count = 0;
    auto* creator = getPluginRegistry()->getPluginCreatorList(&count)[index];
    texts[0] = creator->getPluginName();
    texts[1] = creator->getPluginVersion();
    texts[2] = creator->getPluginNamespace();
}
int version() { return getInferLibVersion(); }

}  // extern "C"
