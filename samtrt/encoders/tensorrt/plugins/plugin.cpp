#include "plugin.h"

#include <string>

namespace samtrt {
namespace {

using namespace nvinfer1;

ILoggerFinder* logger_finder = nullptr;

}  // namespace

void log(const std::exception& error) {
    ILogger* logger = logger_finder ? logger_finder->findLogger() : nullptr;
    if (logger) logger->log(ILogger::Severity::kERROR, (std::string("samtrt: ") + error.what()).c_str());
}

Layer layer_of(const PluginFieldCollection& given) {
    std::vector<Bytes> fields;
    for (int32_t i = 0; i < given.nbFields; ++i) {
        const PluginField& field = given.fields[i];
        if (field.type != PluginFieldType::kINT8 || field.length < 0)
            throw Error("a plugin layer takes fields of bytes only");
        const auto* from = static_cast<const uint8_t*>(field.data);
        fields.emplace_back(from, from + field.length);
    }
    return Layer(std::move(fields));
}

DimsExprs shape_of(const Output& output, const DimsExprs& first_input, IExprBuilder& builder) {
    DimsExprs dims{};
    dims.nbDims = int32_t(output.shape.size()) + 1;
    dims.d[0] = first_input.d[0];
    for (size_t i = 0; i < output.shape.size(); ++i) dims.d[i + 1] = builder.constant(output.shape[i]);
    return dims;
}

bool is_taken(const PluginTensorDesc& tensor, Output::Type type) {
    return tensor.format == TensorFormat::kLINEAR && tensor.type == data_type(type);
}

DataType data_type(Output::Type type) {
    return type == Output::FLOAT16 ? DataType::kHALF : DataType::kFLOAT;
}

}  // namespace samtrt

// TensorRT's IPluginRegistry::loadLibrary asks for this and for the creators.
SAMTRT_EXPORTED void setLoggerFinder(nvinfer1::ILoggerFinder* finder) {
    samtrt::logger_finder = finder;
}
// Of the sources: an engine's sidecar names it.
SAMTRT_EXPORTED const char* samtrt_plugins_sha256() { return SAMTRT_SOURCES_SHA256; }
// Of the headers that it was compiled with.
SAMTRT_EXPORTED int samtrt_plugins_tensorrt_major() { return NV_TENSORRT_MAJOR; }
