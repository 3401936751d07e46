// A layer of the plugin: machine code, constants, and how the code is launched for each batch size.
//
// It comes from samtrt/encoders/tensorrt/launches.py and is never made here: which tiles, which grid
// and which descriptors is decided once, by the code that also launches the kernels for torch.
#pragma once

#include <cstdint>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

namespace samtrt {

// What is wrong with a layer or with the GPU, for TensorRT's log.
struct Error : std::runtime_error {
    using std::runtime_error::runtime_error;
};

using Bytes = std::vector<uint8_t>;

// Where an address comes from.
enum class Source : uint32_t { INPUT, OUTPUT, CONSTANT, WORKSPACE };

struct Place {
    Source source;
    uint32_t index;
};

// A tensor of fp16 as the copy engine sees it; launch.py, TensorMap.
struct Map {
    Place place;
    std::vector<uint64_t> sizes;    // elements, the contiguous dimension first
    std::vector<uint64_t> strides;  // bytes, of all dimensions but the first
    std::vector<uint32_t> box;      // elements
};

// A part of a kernel's argument.
struct Piece {
    enum Kind : uint32_t { BYTES, ADDRESS, MAP } kind;
    Bytes bytes;
    Place place;
    Map map;
};

struct Launch {
    uint32_t code;
    uint32_t grid[3];
    uint32_t threads, shared_bytes;
    std::vector<std::vector<Piece>> arguments;
};

struct Code {
    std::string function;
    Bytes image;  // cubin
};

struct Output {
    enum Type : uint32_t { FLOAT32, FLOAT16 } type;
    std::vector<int32_t> shape;  // without the batch
};

class Layer {
  public:
    // From the plugin's fields: the description, then what it refers to, codes first.
    // Throws Error where they do not belong together, or a code is not the one that was described.
    explicit Layer(std::vector<Bytes> fields);

    // From what `serialized` gave.
    static Layer deserialized(const uint8_t* data, size_t size);
    Bytes serialized() const;
    size_t serialized_size() const;

    std::vector<Output::Type> inputs;
    std::vector<Output> outputs;
    std::vector<Code> codes;
    std::vector<Launch> launches;  // of batch 1, 2, …
    size_t workspace_bytes = 0;    // of a launch, at most

    // Of an input, or of an output, which are counted after them.
    Output::Type type(size_t tensor) const {
        return tensor < inputs.size() ? inputs[tensor] : outputs[tensor - inputs.size()].type;
    }

    const std::vector<Bytes>& fields() const { return fields_; }
    size_t constant_count() const { return fields_.size() - 1 - codes.size(); }
    const Bytes& constant(size_t index) const { return fields_[1 + codes.size() + index]; }

  private:
    std::vector<Bytes> fields_;
};

}  // namespace samtrt
