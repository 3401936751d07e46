// The layer as a TensorRT plugin (IPluginV2DynamicExt: TensorRT 8.6 and 10).
//
// TensorRT finds the plugin by getPluginCreators when it loads the library. No TensorRT library is
// linked: all that is called are virtual functions.
#include <NvInferRuntime.h>

#include <cstring>
#include <memory>
#include <string>

#include "layer.h"
#include "resident.h"

namespace samtrt {
namespace {

using namespace nvinfer1;

constexpr char NAME[] = "SamtrtKernel", VERSION[] = "1";
ILoggerFinder* logger_finder = nullptr;

void log(const std::exception& error) {
    ILogger* logger = logger_finder ? logger_finder->findLogger() : nullptr;
    if (logger) logger->log(ILogger::Severity::kERROR, (std::string("samtrt: ") + error.what()).c_str());
}

// What a function gives, or `otherwise` where it throws: TensorRT knows no exceptions.
template <class Function, class Value>
Value guarded(Function function, Value otherwise) noexcept {
    try {
        return function();
    } catch (const std::exception& error) {
        log(error);
        return otherwise;
    }
}

DataType data_type(Output::Type type) {
    return type == Output::FLOAT16 ? DataType::kHALF : DataType::kFLOAT;
}

class KernelPlugin : public IPluginV2DynamicExt {
  public:
    explicit KernelPlugin(std::shared_ptr<const Layer> layer) : layer_(std::move(layer)) {}

    IPluginV2DynamicExt* clone() const noexcept override {
        return guarded([&] { return new KernelPlugin(*this); }, static_cast<KernelPlugin*>(nullptr));
    }
    void destroy() noexcept override { delete this; }

    const char* getPluginType() const noexcept override { return NAME; }
    const char* getPluginVersion() const noexcept override { return VERSION; }
    void setPluginNamespace(const char* name) noexcept override { namespace_ = name; }
    const char* getPluginNamespace() const noexcept override { return namespace_.c_str(); }

    int32_t getNbOutputs() const noexcept override { return int32_t(layer_->outputs.size()); }
    DataType getOutputDataType(int32_t index, const DataType*, int32_t) const noexcept override {
        return data_type(layer_->outputs[index].type);
    }
    DimsExprs getOutputDimensions(int32_t index, const DimsExprs* inputs, int32_t,
                                  IExprBuilder& builder) noexcept override {
        const auto& shape = layer_->outputs[index].shape;
        DimsExprs dims{};
        dims.nbDims = int32_t(shape.size()) + 1;
        dims.d[0] = inputs[0].d[0];
        for (size_t i = 0; i < shape.size(); ++i) dims.d[i + 1] = builder.constant(shape[i]);
        return dims;
    }
    bool supportsFormatCombination(int32_t at, const PluginTensorDesc* all, int32_t input_count,
                                   int32_t) noexcept override {
        const auto type = at < input_count ? layer_->inputs[at] : layer_->outputs[at - input_count].type;
        return all[at].format == TensorFormat::kLINEAR && all[at].type == data_type(type);
    }

    void configurePlugin(const DynamicPluginTensorDesc*, int32_t, const DynamicPluginTensorDesc*,
                         int32_t) noexcept override {}
    size_t getWorkspaceSize(const PluginTensorDesc*, int32_t, const PluginTensorDesc*,
                            int32_t) const noexcept override {
        return layer_->workspace_bytes;
    }

    int32_t initialize() noexcept override {
        return guarded([&] { resident_ = std::make_shared<Resident>(layer_); return 0; }, 1);
    }
    // (its clones, one a context, keep it)
    void terminate() noexcept override { resident_.reset(); }

    int32_t enqueue(const PluginTensorDesc* descriptions, const PluginTensorDesc*,
                    const void* const* inputs, void* const* outputs, void* workspace,
                    cudaStream_t stream) noexcept override {
        return guarded(
            [&] {
                if (!resident_) resident_ = std::make_shared<Resident>(layer_);
                resident_->launch(int(descriptions[0].dims.d[0]), inputs, outputs, workspace, stream);
                return 0;
            },
            1);
    }

    size_t getSerializationSize() const noexcept override { return layer_->serialized_size(); }
    void serialize(void* buffer) const noexcept override {
        guarded(
            [&] {
                const Bytes content = layer_->serialized();
                std::memcpy(buffer, content.data(), content.size());
                return 0;
            },
            1);
    }

  private:
    std::shared_ptr<const Layer> layer_;
    std::shared_ptr<Resident> resident_;
    std::string namespace_;
};

class KernelPluginCreator : public IPluginCreator {
  public:
    const char* getPluginName() const noexcept override { return NAME; }
    const char* getPluginVersion() const noexcept override { return VERSION; }
    // As many fields as a layer has: a description, codes and constants, in that order.
    const PluginFieldCollection* getFieldNames() noexcept override { return &names_; }
    void setPluginNamespace(const char* name) noexcept override { namespace_ = name; }
    const char* getPluginNamespace() const noexcept override { return namespace_.c_str(); }

    IPluginV2* createPlugin(const char*, const PluginFieldCollection* given) noexcept override {
        return made([&] {
            std::vector<Bytes> fields;
            for (int32_t i = 0; i < given->nbFields; ++i) {
                const PluginField& field = given->fields[i];
                if (field.type != PluginFieldType::kINT8 || field.length < 0)
                    throw Error("a plugin layer takes fields of bytes only");
                const auto* from = static_cast<const uint8_t*>(field.data);
                fields.emplace_back(from, from + field.length);
            }
            return Layer(std::move(fields));
        });
    }
    IPluginV2* deserializePlugin(const char*, const void* data, size_t size) noexcept override {
        return made([&] { return Layer::deserialized(static_cast<const uint8_t*>(data), size); });
    }

  private:
    template <class Function>
    IPluginV2* made(Function layer) noexcept {
        return guarded(
            [&] {
                auto plugin = std::make_unique<KernelPlugin>(std::make_shared<const Layer>(layer()));
                plugin->setPluginNamespace(namespace_.c_str());
                return plugin.release();
            },
            static_cast<KernelPlugin*>(nullptr));
    }

    PluginFieldCollection names_{0, nullptr};
    std::string namespace_;
};

KernelPluginCreator creator;

}  // namespace
}  // namespace samtrt

#define SAMTRT_EXPORTED extern "C" __attribute__((visibility("default")))

// TensorRT's IPluginRegistry::loadLibrary asks for these two.
SAMTRT_EXPORTED void setLoggerFinder(nvinfer1::ILoggerFinder* finder) {
    samtrt::logger_finder = finder;
}
SAMTRT_EXPORTED nvinfer1::IPluginCreator* const* getPluginCreators(int32_t& count) {
    static nvinfer1::IPluginCreator* const creators[] = {&samtrt::creator};
    count = 1;
    return creators;
}
// Of the sources: an engine's sidecar names it.
SAMTRT_EXPORTED const char* samtrt_plugins_sha256() { return SAMTRT_SOURCES_SHA256; }
// Of the headers that it was compiled with.
SAMTRT_EXPORTED int samtrt_plugins_tensorrt_major() { return NV_TENSORRT_MAJOR; }
