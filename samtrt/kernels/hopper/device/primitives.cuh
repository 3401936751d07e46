// What the kernels here use of Hopper's instruction set, one function an instruction (PTX ISA,
// "Asynchronous copy", "mbarrier", "wgmma"). Self-contained: no toolkit header is read.
// wgmma<N>'s definitions are appended by compiler.py, since their operand lists depend on N.

using u32 = unsigned int;
using u64 = unsigned long long;
using u16 = unsigned short;
using u8 = unsigned char;

#ifdef SAMTRT_BF16
#define ELEMENT "bf16"
#else
#define ELEMENT "f16"
#endif

constexpr int WARP = 32;
constexpr int WARPGROUP = 128;

struct alignas(64) TensorMap {  // CUtensorMap
    char opaque[128];
};

__device__ inline u32 shared_address(const void* pointer) {
    return static_cast<u32>(__cvta_generic_to_shared(pointer));
}

// One thread of a converged warp.
__device__ inline bool elect_one() {
    u32 chosen;
    asm volatile(
        "{ .reg .pred p; elect.sync _|p, 0xffffffff; selp.u32 %0, 1, 0, p; }" : "=r"(chosen));
    return chosen;
}

// Where a role may be delayed without harm: before each operation on a barrier, each copy and each
// product. Nothing in ordinary machine code; with JITTER, a seed, a warp waits there now and then, up
// to 4 µs often and up to 60 µs rarely (benchmarks/stress.py).
__device__ inline void jitter() {
#ifdef JITTER
    u32 x;
    asm volatile("mov.u32 %0, %%clock;" : "=r"(x));
    x = (x ^ (threadIdx.x / WARP * 0x9e3779b9u) ^ (blockIdx.x * 0x7feb352du)) + JITTER;
    x = (x ^ (x >> 16)) * 0x7feb352du;
    x = (x ^ (x >> 15)) * 0x846ca68bu;
    x ^= x >> 16;
    if (x % 8 == 0) __nanosleep(x >> 8 & (x % 256 == 0 ? 0x7fff : 0x7ff));
#endif
}

// ---- mbarrier ---------------------------------------------------------------------------------

__device__ inline void barrier_init(u64* barrier, u32 arrivals) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(barrier)),
                 "r"(arrivals));
}

// After the barriers are initialised: makes them visible to the copy engine.
__device__ inline void barrier_init_fence() {
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}

__device__ inline void barrier_expect(u64* barrier, u32 bytes) {
    jitter();
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(
                     shared_address(barrier)),
                 "r"(bytes)
                 : "memory");
}

__device__ inline void barrier_arrive(u64* barrier, u32 arrivals = 1) {
    jitter();
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(barrier)),
                 "r"(arrivals)
                 : "memory");
}

// Waits until the phase with this parity has completed.
__device__ inline void barrier_wait(u64* barrier, u32 parity) {
    jitter();
    asm volatile(
        "{ .reg .pred done;"
        "  wait_loop: mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;"
        "  @done bra wait_done; bra wait_loop; wait_done: }" ::"r"(shared_address(barrier)),
        "r"(parity)
        : "memory");
}

// Barriers 1…15 among some warps of a block; 0 is __syncthreads.
__device__ inline void named_sync(u32 id, u32 threads) {
    jitter();
    asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

__device__ inline void named_arrive(u32 id, u32 threads) {
    jitter();
    asm volatile("bar.arrive %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

// ---- copy engine (TMA) ------------------------------------------------------------------------

__device__ inline void prefetch(const TensorMap& map) {
    asm volatile("prefetch.tensormap [%0];" ::"l"(&map) : "memory");
}

__device__ inline void copy_2d(void* to, const TensorMap& map, int x, int y, u64* barrier) {
    jitter();
    asm volatile(
        "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes"
        " [%0], [%1, {%3, %4}], [%2];" ::"r"(shared_address(to)),
        "l"(&map), "r"(shared_address(barrier)), "r"(x), "r"(y)
        : "memory");
}

__device__ inline void copy_4d(void* to, const TensorMap& map, int x, int y, int z, int w,
                               u64* barrier) {
    jitter();
    asm volatile(
        "cp.async.bulk.tensor.4d.shared::cluster.global.mbarrier::complete_tx::bytes"
        " [%0], [%1, {%3, %4, %5, %6}], [%2];" ::"r"(shared_address(to)),
        "l"(&map), "r"(shared_address(barrier)), "r"(x), "r"(y), "r"(z), "r"(w)
        : "memory");
}

__device__ inline void store_2d(const TensorMap& map, const void* from, int x, int y) {
    jitter();
    asm volatile("cp.async.bulk.tensor.2d.global.shared::cta.bulk_group [%0, {%2, %3}], [%1];" ::"l"(
                     &map),
                 "r"(shared_address(from)), "r"(x), "r"(y)
                 : "memory");
}

__device__ inline void store_4d(const TensorMap& map, const void* from, int x, int y, int z,
                                int w) {
    jitter();
    asm volatile(
        "cp.async.bulk.tensor.4d.global.shared::cta.bulk_group [%0, {%2, %3, %4, %5}], [%1];" ::"l"(
            &map),
        "r"(shared_address(from)), "r"(x), "r"(y), "r"(z), "r"(w)
        : "memory");
}

__device__ inline void store_commit() { asm volatile("cp.async.bulk.commit_group;" ::: "memory"); }

// Waits until all but the last PENDING stores of this thread have read their source.
template <int PENDING>
__device__ inline void store_wait_read() {
    jitter();
    asm volatile("cp.async.bulk.wait_group.read %0;" ::"n"(PENDING) : "memory");
}

// Between ordinary writes to shared memory and the copy engine's or tensor cores' reads of it.
__device__ inline void fence_async_proxy() {
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

// ---- wgmma ------------------------------------------------------------------------------------

enum Swizzle : u64 { SWIZZLE_128 = 1, SWIZZLE_64 = 2, SWIZZLE_32 = 3 };

// The matrix descriptor of an operand in shared memory whose rows (along the contiguous dimension)
// are as long as the swizzle: eight rows are one atom, atoms follow each other.
template <Swizzle SWIZZLE>
__device__ inline u64 descriptor(const void* pointer) {
    constexpr u64 row_bytes = SWIZZLE == SWIZZLE_128 ? 128 : SWIZZLE == SWIZZLE_64 ? 64 : 32;
    return (static_cast<u64>(shared_address(pointer) & 0x3ffff) >> 4) | (u64(1) << 16) |
           ((8 * row_bytes / 16) << 32) | (u64(SWIZZLE) << 62);
}

// A descriptor moved on by some bytes (a multiple of 16).
__device__ inline u64 advance(u64 descriptor, u32 bytes) { return descriptor + (bytes >> 4); }

__device__ inline void wgmma_fence() {
    jitter();
    asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}

__device__ inline void wgmma_commit() {
    asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}

template <int PENDING>
__device__ inline void wgmma_wait() {
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(PENDING) : "memory");
}

// Keeps the compiler from moving reads or writes of accumulators across an asynchronous product.
template <int COUNT>
__device__ inline void keep(float (&registers)[COUNT]) {
#pragma unroll
    for (int i = 0; i < COUNT; ++i) asm volatile("" : "+f"(registers[i])::"memory");
}

// The same value, of unknown origin: what follows from it is computed where it is used, instead of
// being kept in registers from before a loop.
__device__ inline int anew(int value) {
    asm volatile("" : "+r"(value));
    return value;
}

template <int COUNT>
__device__ inline void registers_grow() {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(COUNT));
}

template <int COUNT>
__device__ inline void registers_shrink() {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(COUNT));
}

// ---- dependent launches -----------------------------------------------------------------------

// Waits until the kernels before this one on the stream have finished and their writes are seen.
__device__ inline void dependency_wait() {
    asm volatile("griddepcontrol.wait;" ::: "memory");
}

// Lets the next kernel's blocks start where there is room (they wait in dependency_wait).
__device__ inline void dependents_launch() {
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
}

// ---- numbers ----------------------------------------------------------------------------------

// Two fp32 as one register of the compute type, the first in the low half.
__device__ inline u32 pack(float low, float high) {
    u32 packed;
    asm("cvt.rn." ELEMENT "x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(high), "f"(low));
    return packed;
}

// Two fp32 as e4m3, the first in the low byte; what is too large becomes the largest, 448.
__device__ inline u32 pack_e4m3(float low, float high) {
    u16 packed;
    asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(packed) : "f"(high), "f"(low));
    return packed;
}

// Four values that a thread has of 16 columns of a row of an accumulator, two of each 8, as e4m3 that
// stand together: column 8 j + 2 t + i at 4 t + 2 j + i (linear.py, quantised_order).
__device__ inline u32 pack_e4m3(float first, float second, float third, float fourth) {
    return pack_e4m3(first, second) | pack_e4m3(third, fourth) << 16;
}

__device__ inline float unpack_low(u32 packed) {
    float value;
#ifdef SAMTRT_BF16
    value = __uint_as_float(packed << 16);
#else
    asm("{ .reg .f16 l, h; mov.b32 {l, h}, %1; cvt.f32.f16 %0, l; }" : "=f"(value) : "r"(packed));
#endif
    return value;
}

__device__ inline float unpack_high(u32 packed) {
    float value;
#ifdef SAMTRT_BF16
    value = __uint_as_float(packed & 0xffff0000u);
#else
    asm("{ .reg .f16 l, h; mov.b32 {l, h}, %1; cvt.f32.f16 %0, h; }" : "=f"(value) : "r"(packed));
#endif
    return value;
}

__device__ inline float exp2_approximate(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

__device__ inline float reciprocal_approximate(float x) {
    float y;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

__device__ inline float minus_infinity() { return __int_as_float(0xff800000); }

// Four threads hold a row of an accumulator.
__device__ inline float quad_max(float x) {
    x = fmaxf(x, __shfl_xor_sync(~0u, x, 1));
    return fmaxf(x, __shfl_xor_sync(~0u, x, 2));
}

__device__ inline float quad_sum(float x) {
    x += __shfl_xor_sync(~0u, x, 1);
    return x + __shfl_xor_sync(~0u, x, 2);
}

// Four 8 × 8 matrices of 16-bit elements from registers to shared memory; lane l gives the address
// of row l % 8 of matrix l / 8.
__device__ inline void store_matrix_x4(u32 address, u32 a, u32 b, u32 c, u32 d) {
    asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(address),
                 "r"(a), "r"(b), "r"(c), "r"(d)
                 : "memory");
}

__device__ inline void load_matrix_x4(u32 address, u32& a, u32& b, u32& c, u32& d) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(a), "=r"(b), "=r"(c), "=r"(d)
                 : "r"(address)
                 : "memory");
}

// The same of the transposed matrices.
__device__ inline void load_matrix_x4_transposed(u32 address, u32& a, u32& b, u32& c, u32& d) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(a), "=r"(b), "=r"(c), "=r"(d)
                 : "r"(address)
                 : "memory");
}

// A warp's product: D (16 × 8) += A (16 × 16) · B (16 × 8).
__device__ inline void multiply_16x8x16(float (&d)[4], const u32 (&a)[4], u32 b_low, u32 b_high) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32." ELEMENT "." ELEMENT ".f32"
                 " {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b_low), "r"(b_high));
}

// Where 16-byte column `column` of row `row` lies in a tile that the copy engine swizzles with
// 128-byte rows, in bytes.
__device__ inline u32 swizzled_128(u32 row, u32 column) {
    return row * 128 + ((column ^ (row & 7)) << 4);
}

// The same with rows of 64 or 32 bytes.
__device__ inline u32 swizzled_64(u32 row, u32 column) {
    return row * 64 + ((column ^ (row >> 1 & 3)) << 4);
}

__device__ inline u32 swizzled_32(u32 row, u32 column) {
    return row * 32 + ((column ^ (row >> 2 & 1)) << 4);
}
