#include "resident.h"

#include <algorithm>
#include <cstring>
#include <map>
#include <mutex>
#include <utility>

#include "sha256.h"

namespace samtrt {
namespace {

constexpr size_t ALIGNMENT = 256;  // of a constant; the copy engine needs 16 bytes

CUcontext current_context() {
    CUcontext context = nullptr;
    check(driver().context_get_current(&context), "cuCtxGetCurrent");
    if (context == nullptr) throw Error("no CUDA context is current");
    return context;
}

// Meanwhile another context is the current one. Where that fails, as at the end of a process, the
// driver frees what was in it.
template <class Function>
void inside(CUcontext context, Function function) {
    CUcontext before;
    if (driver().context_push(context) != CUDA_SUCCESS) return;
    function();
    driver().context_pop(&before);
}

std::shared_ptr<Module> shared_module(CUcontext context, const Code& code, uint32_t shared_bytes) {
    static std::mutex loading;
    static std::map<std::pair<CUcontext, Digest>, std::weak_ptr<Module>> loaded;
    const auto key = std::make_pair(context, sha256(code.image.data(), code.image.size()));
    std::lock_guard<std::mutex> lock(loading);
    std::shared_ptr<Module> module = loaded[key].lock();
    if (!module) loaded[key] = module = std::make_shared<Module>(context, code, shared_bytes);
    return module;
}

void encode(CUtensorMap* encoded, const Map& map, CUdeviceptr address) {
    const uint32_t rank = uint32_t(map.sizes.size());
    const CUtensorMapSwizzle swizzle = map.box[0] == 64   ? CU_TENSOR_MAP_SWIZZLE_128B
                                       : map.box[0] == 32 ? CU_TENSOR_MAP_SWIZZLE_64B
                                                          : CU_TENSOR_MAP_SWIZZLE_32B;
    const std::vector<uint32_t> steps(rank, 1);
    check(driver().map_encode(
              encoded, CU_TENSOR_MAP_DATA_TYPE_FLOAT16, rank, reinterpret_cast<void*>(address),
              reinterpret_cast<const cuuint64_t*>(map.sizes.data()),
              reinterpret_cast<const cuuint64_t*>(map.strides.data()), map.box.data(), steps.data(),
              CU_TENSOR_MAP_INTERLEAVE_NONE, swizzle, CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
              CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE),
          "cuTensorMapEncodeTiled");
}

}  // namespace

Module::Module(CUcontext context, const Code& code, uint32_t shared_bytes) : context_(context) {
    check(driver().module_load(&module_, code.image.data()), "loading " + code.function);
    const char* name = code.function.c_str();
    check(driver().module_function(&function, module_, name), "finding " + code.function);
    check(driver().function_set(function, CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES,
                                int(shared_bytes)),
          "shared memory of " + code.function);
}

Module::~Module() {
    inside(context_, [&] { driver().module_unload(module_); });
}

Resident::Resident(std::shared_ptr<const Layer> layer)
    : layer_(std::move(layer)), context_(current_context()) {
    for (size_t i = 0; i < layer_->codes.size(); ++i) {
        uint32_t shared_bytes = 0;
        for (const Launch& launch : layer_->launches)
            if (launch.code == i) shared_bytes = std::max(shared_bytes, launch.shared_bytes);
        modules_.push_back(shared_module(context_, layer_->codes[i], shared_bytes));
    }
    size_t total = 0;
    for (size_t i = 0; i < layer_->constant_count(); ++i) {
        offsets_.push_back(total);
        total += (layer_->constant(i).size() + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
    }
    if (total == 0) return;
    check(driver().memory_allocate(&memory_, total), "memory for constants");
    for (size_t i = 0; i < offsets_.size(); ++i) {
        const Bytes& content = layer_->constant(i);
        const CUresult copied = driver().memory_copy_to_device(memory_ + offsets_[i], content.data(),
                                                               content.size());
        if (copied != CUDA_SUCCESS) driver().memory_free(memory_);
        check(copied, "copying constants");
    }
}

Resident::~Resident() {
    if (memory_ != 0) inside(context_, [&] { driver().memory_free(memory_); });
}

void Resident::launch(int batch, const void* const* inputs, void* const* outputs, void* workspace,
                      CUstream stream) const {
    if (batch < 1 || size_t(batch) > layer_->launches.size())
        throw Error("a batch of " + std::to_string(batch) + ", expected 1 to " +
                    std::to_string(layer_->launches.size()));
    const Launch& launch = layer_->launches[batch - 1];
    auto address = [&](Place place) {
        if (place.source == Source::CONSTANT) return memory_ + offsets_[place.index];
        const void* address = place.source == Source::INPUT    ? inputs[place.index]
                              : place.source == Source::OUTPUT ? outputs[place.index]
                                                               : workspace;
        return reinterpret_cast<CUdeviceptr>(address);
    };
    std::vector<Bytes> arguments;
    std::vector<void*> pointers;
    for (const auto& pieces : launch.arguments) {
        Bytes argument;
        auto append = [&](const void* from, size_t size) {
            const auto* bytes = static_cast<const uint8_t*>(from);
            argument.insert(argument.end(), bytes, bytes + size);
        };
        for (const Piece& piece : pieces) {
            if (piece.kind == Piece::BYTES) {
                append(piece.bytes.data(), piece.bytes.size());
            } else if (piece.kind == Piece::ADDRESS) {
                const CUdeviceptr at = address(piece.place);
                append(&at, sizeof at);
            } else {
                CUtensorMap encoded;
                encode(&encoded, piece.map, address(piece.map.place));
                append(&encoded, sizeof encoded);
            }
        }
        arguments.push_back(std::move(argument));
    }
    for (Bytes& argument : arguments) pointers.push_back(argument.data());

    // As samtrt/kernels/hopper/launch.py: the kernel may start while the one before it drains.
    CUlaunchAttribute dependent{};
    dependent.id = CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION;
    dependent.value.programmaticStreamSerializationAllowed = 1;
    CUlaunchConfig config{};
    config.gridDimX = launch.grid[0], config.gridDimY = launch.grid[1];
    config.gridDimZ = launch.grid[2];
    config.blockDimX = launch.threads, config.blockDimY = config.blockDimZ = 1;
    config.sharedMemBytes = launch.shared_bytes;
    config.hStream = stream;
    config.attrs = &dependent;
    config.numAttrs = 1;
    check(driver().launch(&config, modules_[launch.code]->function, pointers.data(), nullptr),
          "launching " + layer_->codes[launch.code].function);
}

}  // namespace samtrt
