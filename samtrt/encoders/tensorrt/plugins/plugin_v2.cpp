// The layer as a plugin of TensorRT 8.6 and 9 (IPluginV2DynamicExt; 10 deprecates it).
//
// TensorRT finds the plugin by getPluginCreators when it loads the library. No TensorRT library is
// linked: all that is called are virtual functions.
#include "plugin.h"

#if !SAMTRT_PLUGIN_V3

#include <cstring>
#include <memory>
#include <string>

#include "resident.h"

namespace samtrt {
namespace {

using namespace nvinfer1;

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
        return shape_of(layer_->outputs[index], inputs[0], builder);
    }
    bool supportsFormatCombination(int32_t at, const PluginTensorDesc* all, int32_t,
                                   int32_t) noexcept override {
        return is_taken(all[at], layer_->type(at));
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
    // As many fields as a layer has.
    const PluginFieldCollection* getFieldNames() noexcept override { return &names_; }
    void setPluginNamespace(const char* name) noexcept override { namespace_ = name; }
    const char* getPluginNamespace() const noexcept override { return namespace_.c_str(); }

    IPluginV2* createPlugin(const char*, const PluginFieldCollection* given) noexcept override {
        return made([&] { return layer_of(*given); });
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

SAMTRT_EXPORTED nvinfer1::IPluginCreator* const* getPluginCreators(int32_t& count) {
    static nvinfer1::IPluginCreator* const creators[] = {&samtrt::creator};
    count = 1;
    return creators;
}

#endif
