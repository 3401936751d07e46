// Drives the plugins' library as TensorRT does, with its headers and without itself: a creator's plugin
// is copied, asked, written down, read again, and run through the driver that is found.
//
//     harness LIBRARY LAYER BATCH INPUT… / OUTPUT… / WORKSPACE         addresses
//
// Prints what plugin_harness.cpp prints. Where an answer is not what the plugin should give: aborted.
#include <NvInferRuntime.h>
#include <dlfcn.h>

#include <cstdlib>
#include <cstring>
#include <deque>
#include <fstream>
#include <iostream>
#include <iterator>
#include <memory>

#include "layer.h"

using namespace nvinfer1;
using samtrt::Bytes;

namespace {

void expect(bool holds, const char* what) {
    if (holds) return;
    std::cerr << "not so: " << what << std::endl;
    std::abort();
}
#define EXPECT(condition) expect(condition, #condition)

struct Refused {};  // (the log says why)

template <class Pointer>
Pointer made(Pointer pointer) {
    if (pointer == nullptr) throw Refused();
    return pointer;
}

class Log : public ILogger {
    void log(Severity severity, const char* message) noexcept override {
        EXPECT(severity == Severity::kERROR && std::strncmp(message, "samtrt: ", 8) == 0);
        std::cout << "error: " << message + 8 << std::endl;
    }
};
class LogFinder : public ILoggerFinder {
    ILogger* findLogger() override { return &log_; }
    Log log_;
};

using Number = std::conditional_t<NV_TENSORRT_MAJOR < 10, int32_t, int64_t>;

// A dimension that is known, or the batch.
class Dimension : public IDimensionExpr {
  public:
    explicit Dimension(Number value) : value_(value) { mImpl = &value_; }

  private:
    struct Value : apiv::VDimensionExpr {
        explicit Value(Number given) : value(given) {}
        bool isConstant() const noexcept override { return true; }
        Number getConstantValue() const noexcept override { return value; }
#if NV_TENSORRT_MAJOR >= 10
        bool isSizeTensor() const noexcept override { return false; }
#endif
        Number value;
    } value_;
};
class Expressions : public IExprBuilder {
  public:
    Expressions() { mImpl = &made_; }

  private:
    struct Made : apiv::VExprBuilder {
        const IDimensionExpr* constant(Number value) noexcept override { return &all.emplace_back(value); }
        const IDimensionExpr* operation(DimensionOperation, const IDimensionExpr&,
                                        const IDimensionExpr&) noexcept override {
            std::abort();
        }
#if NV_TENSORRT_MAJOR >= 10
        const IDimensionExpr* declareSizeTensor(int32_t, const IDimensionExpr&,
                                                const IDimensionExpr&) override {
            std::abort();
        }
#endif
        std::deque<Dimension> all;
    } made_;
};

PluginTensorDesc tensor(DataType type, Dims dims = {}, TensorFormat format = TensorFormat::kLINEAR) {
    return {dims, type, format, 1};
}

DataType other(DataType type) { return type == DataType::kHALF ? DataType::kFLOAT : DataType::kHALF; }

DataType type_of(samtrt::Output::Type type) {
    return type == samtrt::Output::FLOAT16 ? DataType::kHALF : DataType::kFLOAT;
}

// What the plugin is asked about, and what is true of it.
struct Case {
    samtrt::Layer layer;
    Dimension batch{-1};
    std::vector<DimsExprs> inputs = std::vector<DimsExprs>(layer.inputs.size());
    std::vector<DataType> types;  // of inputs and outputs
    Expressions expressions;

    explicit Case(samtrt::Layer given) : layer(std::move(given)) {
        for (auto& each : inputs) each.nbDims = 1, each.d[0] = &batch;
        for (size_t i = 0; i < layer.inputs.size() + layer.outputs.size(); ++i)
            types.push_back(type_of(i < layer.inputs.size()
                                        ? layer.inputs[i]
                                        : layer.outputs[i - layer.inputs.size()].type));
    }
    int32_t input_count() const { return int32_t(layer.inputs.size()); }
    int32_t output_count() const { return int32_t(layer.outputs.size()); }

    void look(const DimsExprs& found, int32_t output) const {
        const auto& shape = layer.outputs[output].shape;
        EXPECT(found.nbDims == int32_t(shape.size()) + 1 && found.d[0] == &batch);
        for (size_t i = 0; i < shape.size(); ++i) EXPECT(found.d[i + 1]->getConstantValue() == shape[i]);
    }
    // Takes each tensor in its type and as it lies, and no other.
    template <class Description, class Supports>
    void look_at_formats(Supports supports) const {
        for (size_t at = 0; at < types.size(); ++at) {
            std::vector<Description> all(types.size());
            const auto asked = [&](PluginTensorDesc given) {
                if constexpr (std::is_same_v<Description, PluginTensorDesc>)
                    all[at] = given;
                else
                    all[at].desc = given;
                return supports(int32_t(at), all.data());
            };
            EXPECT(asked(tensor(types[at])));
            EXPECT(!asked(tensor(other(types[at]))));
            EXPECT(!asked(tensor(types[at], {}, TensorFormat::kCHW32)));
        }
    }
};

struct Places {
    std::vector<void*> inputs, outputs, workspace;
};

PluginFieldCollection collected(const std::vector<PluginField>& fields) {
    return {int32_t(fields.size()), fields.data()};
}

std::vector<PluginField> fields_of(const std::vector<Bytes>& contents) {
    std::vector<PluginField> fields;
    for (const Bytes& content : contents)
        fields.emplace_back("", content.data(), PluginFieldType::kINT8, int32_t(content.size()));
    return fields;
}

void launch(void* library, const std::vector<Bytes>& contents, int batch, const Places& places);

#if NV_TENSORRT_MAJOR >= 10

template <class Capability>
Capability& capability(IPluginV3& plugin, PluginCapabilityType type, const char* kind) {
    IPluginCapability* found = plugin.getCapabilityInterface(type);
    EXPECT(found != nullptr && std::strcmp(found->getInterfaceInfo().kind, kind) == 0);
    return *static_cast<Capability*>(found);
}

void launch(void* library, const std::vector<Bytes>& contents, int batch, const Places& places) {
    using Creators = IPluginCreatorInterface* const* (*)(int32_t&);
    const auto creators = reinterpret_cast<Creators>(dlsym(library, "getCreators"));
    EXPECT(creators != nullptr && dlsym(library, "getPluginCreators") == nullptr);
    int32_t count = 0;
    IPluginCreatorInterface* const found = creators(count)[0];
    EXPECT(count == 1 && std::strcmp(found->getInterfaceInfo().kind, "PLUGIN CREATOR_V3ONE") == 0);
    auto& creator = *static_cast<IPluginCreatorV3One*>(found);
    EXPECT(creator.getPluginName() == std::string("SamtrtKernel"));
    EXPECT(creator.getPluginVersion() == std::string("1"));
    EXPECT(creator.getPluginNamespace() == std::string() && creator.getFieldNames() != nullptr);

    // The network's, which its owner may delete before the builder's copy is used.
    const auto fields = fields_of(contents);
    const auto given = collected(fields);
    std::unique_ptr<IPluginV3> first(made(creator.createPlugin("x", &given, TensorRTPhase::kBUILD)));
    std::unique_ptr<IPluginV3> builders(made(first->clone()));
    first.reset();
    auto& core = capability<IPluginV3OneCore>(*builders, PluginCapabilityType::kCORE, "PLUGIN_V3ONE_CORE");
    EXPECT(core.getPluginName() == std::string("SamtrtKernel"));
    EXPECT(core.getPluginVersion() == std::string("1") && core.getPluginNamespace() == std::string());
    auto& build =
        capability<IPluginV3OneBuild>(*builders, PluginCapabilityType::kBUILD, "PLUGIN_V3ONE_BUILD");
    Case known{samtrt::Layer(contents)};
    const int32_t inputs = known.input_count(), outputs = known.output_count();
    EXPECT(build.getNbOutputs() == outputs);
    std::vector<DataType> types(outputs);
    EXPECT(build.getOutputDataTypes(types.data(), outputs, known.types.data(), inputs) == 0);
    EXPECT(std::equal(types.begin(), types.end(), known.types.begin() + inputs));
    std::vector<DimsExprs> shapes(outputs);
    EXPECT(build.getOutputShapes(known.inputs.data(), inputs, nullptr, 0, shapes.data(), outputs,
                                 known.expressions) == 0);
    for (int32_t i = 0; i < outputs; ++i) known.look(shapes[i], i);
    EXPECT(build.getOutputShapes(known.inputs.data(), inputs + 1, nullptr, 0, shapes.data(), outputs,
                                 known.expressions) != 0);
    known.look_at_formats<DynamicPluginTensorDesc>([&](int32_t at, const DynamicPluginTensorDesc* all) {
        return build.supportsFormatCombination(at, all, inputs, outputs);
    });
    EXPECT(build.configurePlugin(nullptr, inputs, nullptr, outputs) == 0);
    std::cout << "workspace " << build.getWorkspaceSize(nullptr, inputs, nullptr, outputs) << std::endl;

    // The engine's fields, as they stand in its file.
    auto& written = capability<IPluginV3OneRuntime>(*builders, PluginCapabilityType::kRUNTIME,
                                                    "PLUGIN_V3ONE_RUNTIME");
    const PluginFieldCollection* serialised = written.getFieldsToSerialize();
    std::vector<Bytes> stored;
    for (int32_t i = 0; i < serialised->nbFields; ++i) {
        const PluginField& field = serialised->fields[i];
        EXPECT(field.type == PluginFieldType::kINT8 && field.name == std::to_string(i));
        const auto* from = static_cast<const uint8_t*>(field.data);
        stored.emplace_back(from, from + field.length);
    }
    EXPECT(stored == contents);
    builders.reset();
    const auto read = fields_of(stored);
    const auto again = collected(read);
    std::unique_ptr<IPluginV3> engines(made(creator.createPlugin("x", &again, TensorRTPhase::kRUNTIME)));
    const auto attached = [&] {
        auto& runtime = capability<IPluginV3OneRuntime>(*engines, PluginCapabilityType::kRUNTIME,
                                                        "PLUGIN_V3ONE_RUNTIME");
        return std::unique_ptr<IPluginV3>(made(runtime.attachToContext(nullptr)));
    };
    // Two contexts; what they need is there once, and stays where the engine's own plugin goes.
    std::unique_ptr<IPluginV3> other_context = attached(), context = attached();
    engines.reset();
    other_context.reset();
    auto& runtime = capability<IPluginV3OneRuntime>(*context, PluginCapabilityType::kRUNTIME,
                                                    "PLUGIN_V3ONE_RUNTIME");
    const PluginTensorDesc description = tensor(known.types[0], Dims{1, {batch}});
    EXPECT(runtime.setTactic(0) == 0);
    EXPECT(runtime.onShapeChange(&description, inputs, nullptr, outputs) == 0);
    std::cout << "ready" << std::endl;
    if (runtime.enqueue(&description, nullptr, places.inputs.data(), places.outputs.data(),
                        places.workspace[0], nullptr) != 0)
        throw Refused();
}

#else

struct Destroyed {
    void operator()(IPluginV2DynamicExt* plugin) const { plugin->destroy(); }
};
using Plugin = std::unique_ptr<IPluginV2DynamicExt, Destroyed>;

Plugin owned(IPluginV2* plugin) { return Plugin(static_cast<IPluginV2DynamicExt*>(made(plugin))); }

void launch(void* library, const std::vector<Bytes>& contents, int batch, const Places& places) {
    using Creators = IPluginCreator* const* (*)(int32_t&);
    const auto creators = reinterpret_cast<Creators>(dlsym(library, "getPluginCreators"));
    EXPECT(creators != nullptr && dlsym(library, "getCreators") == nullptr);
    int32_t count = 0;
    IPluginCreator& creator = *creators(count)[0];
    EXPECT(count == 1 && creator.getPluginName() == std::string("SamtrtKernel"));
    EXPECT(creator.getPluginVersion() == std::string("1"));
    EXPECT(creator.getPluginNamespace() == std::string() && creator.getFieldNames() != nullptr);

    const auto fields = fields_of(contents);
    const auto given = collected(fields);
    Plugin first = owned(creator.createPlugin("x", &given));
    Plugin builders(made(first->clone()));
    first.reset();
    EXPECT(builders->getPluginType() == std::string("SamtrtKernel"));
    EXPECT(builders->getPluginVersion() == std::string("1"));
    Case known{samtrt::Layer(contents)};
    const int32_t inputs = known.input_count(), outputs = known.output_count();
    EXPECT(builders->getNbOutputs() == outputs);
    for (int32_t i = 0; i < outputs; ++i) {
        EXPECT(builders->getOutputDataType(i, known.types.data(), inputs) == known.types[inputs + i]);
        known.look(
            builders->getOutputDimensions(i, known.inputs.data(), inputs, known.expressions), i);
    }
    known.look_at_formats<PluginTensorDesc>([&](int32_t at, const PluginTensorDesc* all) {
        return builders->supportsFormatCombination(at, all, inputs, outputs);
    });
    builders->configurePlugin(nullptr, inputs, nullptr, outputs);
    std::cout << "workspace " << builders->getWorkspaceSize(nullptr, inputs, nullptr, outputs)
              << std::endl;

    Bytes stored(builders->getSerializationSize());
    builders->serialize(stored.data());
    builders.reset();
    Plugin engines = owned(creator.deserializePlugin("x", stored.data(), stored.size()));
    if (engines->initialize() != 0) throw Refused();
    Plugin other_context(made(engines->clone())), context(made(engines->clone()));
    other_context.reset();
    const PluginTensorDesc description = tensor(known.types[0], Dims{1, {batch}});
    std::cout << "ready" << std::endl;
    const int32_t failed =
        context->enqueue(&description, nullptr, places.inputs.data(), places.outputs.data(),
                         places.workspace[0], nullptr);
    context.reset();
    engines->terminate();
    if (failed != 0) throw Refused();
}

#endif

// As Layer::serialized, of which nothing is known here but that.
std::vector<Bytes> contents_of(const char* path) {
    std::ifstream file(path, std::ios::binary);
    uint32_t count = 0;
    file.read(reinterpret_cast<char*>(&count), sizeof count);
    std::vector<Bytes> contents(count);
    for (Bytes& content : contents) {
        uint64_t size = 0;
        file.read(reinterpret_cast<char*>(&size), sizeof size);
        content.resize(size);
        file.read(reinterpret_cast<char*>(content.data()), std::streamsize(size));
    }
    EXPECT(file.good());
    return contents;
}

}  // namespace

int main(int count, char** arguments) {
    void* library = dlopen(arguments[1], RTLD_NOW | RTLD_LOCAL);
    if (library == nullptr) std::cerr << dlerror() << std::endl;
    EXPECT(library != nullptr);
    LogFinder finder;
    reinterpret_cast<void (*)(ILoggerFinder*)>(dlsym(library, "setLoggerFinder"))(&finder);
    Places places;
    std::vector<void*>* lists[] = {&places.inputs, &places.outputs, &places.workspace};
    int kind = 0;
    for (int i = 4; i < count; ++i) {
        if (std::strcmp(arguments[i], "/") == 0)
            ++kind;
        else
            lists[kind]->push_back(reinterpret_cast<void*>(std::strtoull(arguments[i], nullptr, 0)));
    }
    try {
        launch(library, contents_of(arguments[2]), std::atoi(arguments[3]), places);
    } catch (const Refused&) {
        return 1;
    }
}
