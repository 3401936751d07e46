// What window_attention.cu and global_attention.cu share beside the instructions.

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

// swizzled_128 for tiles with rows of 64 or 32 bytes.
__device__ inline u32 swizzled_64(u32 row, u32 column) {
    return row * 64 + ((column ^ (row >> 1 & 3)) << 4);
}

__device__ inline u32 swizzled_32(u32 row, u32 column) {
    return row * 32 + ((column ^ (row >> 2 & 1)) << 4);
}
