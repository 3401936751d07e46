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
