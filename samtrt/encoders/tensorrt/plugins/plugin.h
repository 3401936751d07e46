// What the layer's two faces to TensorRT have in common: plugin_v2.cpp until TensorRT 9, plugin_v3.cpp
// since 10.
#pragma once

#include <NvInferRuntime.h>

#include <exception>

#include "layer.h"

// TensorRT-RTX, whose first version is as new as TensorRT 10, counts its own versions.
#if NV_TENSORRT_MAJOR >= 10 || defined(TRT_MAJOR_RTX)
#define SAMTRT_PLUGIN_V3 1
#else
#define SAMTRT_PLUGIN_V3 0
#endif

#define SAMTRT_EXPORTED extern "C" __attribute__((visibility("default")))

namespace samtrt {

constexpr char NAME[] = "SamtrtKernel", VERSION[] = "1";

// To TensorRT's log, if it has given one.
void log(const std::exception& error);

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

// A layer of a creator's fields: a description, codes and constants, in that order.
// Throws Error.
Layer layer_of(const nvinfer1::PluginFieldCollection& given);

// Of an output: the batch of the first input, and what the layer says.
nvinfer1::DimsExprs shape_of(const Output& output, const nvinfer1::DimsExprs& first_input,
                             nvinfer1::IExprBuilder& builder);

// Whether the plugin takes, or gives, a tensor like that.
bool is_taken(const nvinfer1::PluginTensorDesc& tensor, Output::Type type);

nvinfer1::DataType data_type(Output::Type type);

}  // namespace samtrt
