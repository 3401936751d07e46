// A layer on a GPU: its machine code loaded, its constants there.
#pragma once

#include <memory>
#include <vector>

#include "driver.h"
#include "layer.h"

namespace samtrt {

// A module in a context; layers of the same code share it.
class Module {
  public:
    Module(CUcontext context, const Code& code, uint32_t shared_bytes);
    ~Module();
    Module(const Module&) = delete;

    CUfunction function;

  private:
    CUcontext context_;
    CUmodule module_;
};

class Resident {
  public:
    // In the current context. Throws Error. Never while a stream is recorded into a graph.
    explicit Resident(std::shared_ptr<const Layer> layer);
    ~Resident();
    Resident(const Resident&) = delete;

    // Queues the layer's launch for a batch, which may itself be recorded into a graph. Throws Error.
    void launch(int batch, const void* const* inputs, void* const* outputs, void* workspace,
                CUstream stream) const;

  private:
    std::shared_ptr<const Layer> layer_;
    CUcontext context_;
    std::vector<std::shared_ptr<Module>> modules_;  // of the layer's codes
    CUdeviceptr memory_ = 0;
    std::vector<size_t> offsets_;  // of the constants
};

}  // namespace samtrt
