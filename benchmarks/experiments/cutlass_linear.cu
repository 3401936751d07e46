// A linear layer of ViT-H with CUTLASS 3 on sm_90a, fp16, sums in fp32; row-major everywhere:
//   out[M, N] = op(a[M, K] weight[N, K]ᵀ)
// OP 0: gelu(product + bias), erf form;  OP 1: product + out, in place;  OP 2: product + bias.
// TM, TN: tile; CM, CN: cluster; PING: pingpong or cooperative consumers; STREAMK: tile scheduler.
#include <cuda_runtime.h>

#include "cute/tensor.hpp"
#include "cutlass/cutlass.h"
#include "cutlass/epilogue/collective/collective_builder.hpp"
#include "cutlass/epilogue/fusion/operations.hpp"
#include "cutlass/gemm/collective/collective_builder.hpp"
#include "cutlass/gemm/device/gemm_universal_adapter.h"
#include "cutlass/gemm/kernel/gemm_universal.hpp"
#include "cutlass/gemm/kernel/tile_scheduler.hpp"
#include "cutlass/util/packed_stride.hpp"

// The same approximation as _gelu of samtrt/kernels/gemm.py.
template <typename T>
struct ErfGelu;

template <>
struct ErfGelu<float> {
    CUTLASS_HOST_DEVICE float operator()(float x) const {
        float a = fabsf(x);
        float p = 5.382975e-06f * a + 4.88906356e-05f;
        p = p * a + 3.8003575e-05f;
        p = p * a + 3.27762632e-03f;
        p = p * a + 2.11410061e-02f;
        p = p * a + 4.98673470e-02f;
        p = p * a + 1.0f;
        p *= p;
        p *= p;
        p *= p;
        p *= p;
#if defined(__CUDA_ARCH__)
        float reciprocal;
        asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(reciprocal) : "f"(p));
#else
        float reciprocal = 1.0f / p;
#endif
        return fmaxf(x, 0.0f) - 0.5f * a * reciprocal;
    }
};

template <int N>
struct ErfGelu<cutlass::Array<float, N>> {
    CUTLASS_HOST_DEVICE cutlass::Array<float, N> operator()(
        cutlass::Array<float, N> const& values) const {
        cutlass::Array<float, N> result;
        ErfGelu<float> gelu;
        CUTLASS_PRAGMA_UNROLL
        for (int i = 0; i < N; ++i) result[i] = gelu(values[i]);
        return result;
    }
};

namespace {

using cute::_1;
using cute::Int;
using cute::Shape;
using Half = cutlass::half_t;
using RowMajor = cutlass::layout::RowMajor;
using ColumnMajor = cutlass::layout::ColumnMajor;
using TileShape = Shape<Int<TM>, Int<TN>, Int<64>>;
using ClusterShape = Shape<Int<CM>, Int<CN>, _1>;

#if PING
using MainloopSchedule = cutlass::gemm::KernelTmaWarpSpecializedPingpong;
using EpilogueSchedule = cutlass::epilogue::TmaWarpSpecialized;
#else
using MainloopSchedule = cutlass::gemm::KernelTmaWarpSpecializedCooperative;
using EpilogueSchedule = cutlass::epilogue::TmaWarpSpecializedCooperative;
#endif

#if STREAMK
using TileScheduler = cutlass::gemm::StreamKScheduler;
#else
using TileScheduler = cutlass::gemm::PersistentScheduler;
#endif

namespace fusion = cutlass::epilogue::fusion;
#if OP == 0
using Fusion = fusion::LinCombPerColBiasEltAct<ErfGelu, Half, float, float, Half, float>;
using Source = void;
#elif OP == 1
using Fusion = fusion::LinearCombination<Half, float, Half, float>;
using Source = Half;
#else
using Fusion = fusion::LinCombPerColBias<Half, float, float, Half, float>;
using Source = void;
#endif

using Epilogue = typename cutlass::epilogue::collective::CollectiveBuilder<
    cutlass::arch::Sm90, cutlass::arch::OpClassTensorOp, TileShape, ClusterShape,
    cutlass::epilogue::collective::EpilogueTileAuto, float, float, Source, RowMajor, 8, Half,
    RowMajor, 8, EpilogueSchedule, Fusion>::CollectiveOp;
using Mainloop = typename cutlass::gemm::collective::CollectiveBuilder<
    cutlass::arch::Sm90, cutlass::arch::OpClassTensorOp, Half, RowMajor, 8, Half, ColumnMajor, 8,
    float, TileShape, ClusterShape,
    cutlass::gemm::collective::StageCountAutoCarveout<
        static_cast<int>(sizeof(typename Epilogue::SharedStorage))>,
    MainloopSchedule>::CollectiveOp;
using Kernel = cutlass::gemm::kernel::GemmUniversal<Shape<int, int, int, int>, Mainloop, Epilogue,
                                                    TileScheduler>;
using Gemm = cutlass::gemm::device::GemmUniversalAdapter<Kernel>;

template <typename Stride>
Stride packed(int rows, int columns) {
    return cutlass::make_cute_packed_stride(Stride{}, cute::make_shape(rows, columns, 1));
}

}  // namespace

// Launches on `stream`. raster_order: 0 CUTLASS's choice, 1 along N, 2 along M. Returns 0, or the
// stage that failed times 1000 plus CUTLASS's status.
extern "C" int run(const void* a, const void* weight, const void* bias, void* out, int m, int n,
                   int k, int multiprocessors, int raster_order, int swizzle, void* workspace,
                   size_t workspace_bytes, cudaStream_t stream) {
    cutlass::KernelHardwareInfo hardware;
    hardware.device_id = 0;
    hardware.sm_count = multiprocessors;
    auto* result = static_cast<Half*>(out);
    typename Gemm::Arguments arguments{
        cutlass::gemm::GemmUniversalMode::kGemm,
        {m, n, k, 1},
        {static_cast<const Half*>(a), packed<typename Kernel::StrideA>(m, k),
         static_cast<const Half*>(weight), packed<typename Kernel::StrideB>(n, k)},
        {{}, nullptr, packed<typename Kernel::StrideC>(m, n), result,
         packed<typename Kernel::StrideD>(m, n)},
        hardware};
    arguments.epilogue.thread.alpha = 1.0f;
#if OP == 1
    arguments.epilogue.thread.beta = 1.0f;
    arguments.epilogue.ptr_C = result;
#else
    arguments.epilogue.thread.beta = 0.0f;
    arguments.epilogue.thread.bias_ptr = static_cast<const float*>(bias);
#endif
    using Order = cutlass::gemm::kernel::detail::RasterOrderOptions;
    arguments.scheduler.raster_order = raster_order == 0   ? Order::Heuristic
                                       : raster_order == 1 ? Order::AlongN
                                                           : Order::AlongM;
    arguments.scheduler.max_swizzle_size = swizzle;

    Gemm gemm;
    if (Gemm::get_workspace_size(arguments) > workspace_bytes) return 1000;
    cutlass::Status status = gemm.can_implement(arguments);
    if (status != cutlass::Status::kSuccess) return 2000 + static_cast<int>(status);
    status = gemm.initialize(arguments, workspace, stream);
    if (status != cutlass::Status::kSuccess) return 3000 + static_cast<int>(status);
    status = gemm.run(stream);
    return status == cutlass::Status::kSuccess ? 0 : 4000 + static_cast<int>(status);
}
