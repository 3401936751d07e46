// The layer as a plugin of TensorRT 10 and 11 (IPluginV3).
//
// TensorRT finds the plugin by getCreators when it loads the library. No TensorRT library is linked:
// all that is called are virtual functions.
#include "plugin.h"

#if SAMTRT_PLUGIN_V3

#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "resident.h"

namespace samtrt {
namespace {

using namespace nvinfer1;

// A layer, and where it is resident, shared by a plugin and its clones: TensorRT clones a plugin for
// each execution context, and the constants are there once.
class Shared {
  public:
    explicit Shared(Layer given) : layer(std::make_shared<const Layer>(std::move(given))) {
        for (size_t i = 0; i < layer->fields().size(); ++i) names_.push_back(std::to_string(i));
        for (size_t i = 0; i < layer->fields().size(); ++i) {
            const Bytes& field = layer->fields()[i];
            list_.emplace_back(names_[i].c_str(), field.data(), PluginFieldType::kINT8,
                               int32_t(field.size()));
        }
        fields = {int32_t(list_.size()), list_.data()};
    }
    Shared(const Shared&) = delete;

    std::shared_ptr<Resident> resident() {
        std::lock_guard<std::mutex> lock(loading_);
        std::shared_ptr<Resident> found = resident_.lock();
        if (!found) resident_ = found = std::make_shared<Resident>(layer);
        return found;
    }

    const std::shared_ptr<const Layer> layer;
    PluginFieldCollection fields;  // as the creator takes them

  private:
    std::vector<std::string> names_;
    std::vector<PluginField> list_;
    std::mutex loading_;
    std::weak_ptr<Resident> resident_;
};

class KernelPlugin : public IPluginV3,
                     public IPluginV3OneCore,
                     public IPluginV3OneBuild,
                     public IPluginV3OneRuntime {
  public:
    explicit KernelPlugin(std::shared_ptr<Shared> shared) : shared_(std::move(shared)) {}

    IPluginCapability* getCapabilityInterface(PluginCapabilityType type) noexcept override {
        switch (type) {
            case PluginCapabilityType::kCORE: return static_cast<IPluginV3OneCore*>(this);
            case PluginCapabilityType::kBUILD: return static_cast<IPluginV3OneBuild*>(this);
            case PluginCapabilityType::kRUNTIME: return static_cast<IPluginV3OneRuntime*>(this);
        }
        return nullptr;
    }
    IPluginV3* clone() noexcept override {
        return guarded([&] { return new KernelPlugin(*this); }, static_cast<KernelPlugin*>(nullptr));
    }

    const char* getPluginName() const noexcept override { return NAME; }
    const char* getPluginVersion() const noexcept override { return VERSION; }
    const char* getPluginNamespace() const noexcept override { return ""; }

    int32_t getNbOutputs() const noexcept override { return int32_t(layer().outputs.size()); }
    int32_t getOutputDataTypes(DataType* types, int32_t count, const DataType*,
                               int32_t) const noexcept override {
        if (size_t(count) != layer().outputs.size()) return 1;
        for (int32_t i = 0; i < count; ++i) types[i] = data_type(layer().outputs[i].type);
        return 0;
    }
    int32_t getOutputShapes(const DimsExprs* inputs, int32_t input_count, const DimsExprs*, int32_t,
                            DimsExprs* outputs, int32_t count,
                            IExprBuilder& builder) noexcept override {
        if (size_t(input_count) != layer().inputs.size() || size_t(count) != layer().outputs.size())
            return 1;
        for (int32_t i = 0; i < count; ++i)
            outputs[i] = shape_of(layer().outputs[i], inputs[0], builder);
        return 0;
    }
    bool supportsFormatCombination(int32_t at, const DynamicPluginTensorDesc* all, int32_t,
                                   int32_t) noexcept override {
        return is_taken(all[at].desc, layer().type(at));
    }
    int32_t configurePlugin(const DynamicPluginTensorDesc*, int32_t, const DynamicPluginTensorDesc*,
                            int32_t) noexcept override {
        return 0;
    }
    size_t getWorkspaceSize(const DynamicPluginTensorDesc*, int32_t, const DynamicPluginTensorDesc*,
                            int32_t) const noexcept override {
        return layer().workspace_bytes;
    }

    // Of a context: nothing is left to load when a stream may be recorded into a graph.
    IPluginV3* attachToContext(IPluginResourceContext*) noexcept override {
        return guarded(
            [&] {
                auto plugin = std::make_unique<KernelPlugin>(*this);
                plugin->resident_ = shared_->resident();
                return plugin.release();
            },
            static_cast<KernelPlugin*>(nullptr));
    }
    int32_t onShapeChange(const PluginTensorDesc*, int32_t, const PluginTensorDesc*,
                          int32_t) noexcept override {
        return 0;
    }
    int32_t enqueue(const PluginTensorDesc* descriptions, const PluginTensorDesc*,
                    const void* const* inputs, void* const* outputs, void* workspace,
                    cudaStream_t stream) noexcept override {
        return guarded(
            [&] {
                if (!resident_) resident_ = shared_->resident();  // the builder's, which measures it
                resident_->launch(int(descriptions[0].dims.d[0]), inputs, outputs, workspace, stream);
                return 0;
            },
            1);
    }
    const PluginFieldCollection* getFieldsToSerialize() noexcept override { return &shared_->fields; }

  private:
    const Layer& layer() const { return *shared_->layer; }

    std::shared_ptr<Shared> shared_;
    std::shared_ptr<Resident> resident_;
};

class KernelPluginCreator : public IPluginCreatorV3One {
  public:
    const char* getPluginName() const noexcept override { return NAME; }
    const char* getPluginVersion() const noexcept override { return VERSION; }
    const char* getPluginNamespace() const noexcept override { return ""; }
    // As many fields as a layer has.
    const PluginFieldCollection* getFieldNames() noexcept override { return &names_; }

    // To build, and of an engine's fields: they are the same.
    IPluginV3* createPlugin(const char*, const PluginFieldCollection* given,
                            TensorRTPhase) noexcept override {
        return guarded([&] { return new KernelPlugin(std::make_shared<Shared>(layer_of(*given))); },
                       static_cast<KernelPlugin*>(nullptr));
    }

  private:
    PluginFieldCollection names_{0, nullptr};
};

KernelPluginCreator creator;

}  // namespace
}  // namespace samtrt

SAMTRT_EXPORTED nvinfer1::IPluginCreatorInterface* const* getCreators(int32_t& count) {
    static nvinfer1::IPluginCreatorInterface* const creators[] = {&samtrt::creator};
    count = 1;
    return creators;
}

#endif
