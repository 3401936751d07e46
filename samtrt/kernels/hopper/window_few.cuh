// The queries of a window beyond whole tiles, by the helpers of window_attention.cu. Everything is
// transposed, so that queries are the short side of mma's m16n8k16: keys · Qᵀ, Vᵀ · weightsᵀ.

// What the helpers tell each other about the few queries that they take.
struct Few {
    float products[FEW][68];                       // query × table row
    float top[HELPERS][FEW], sum[HELPERS][FEW];    // warp × query
    alignas(16) u16 weights[FEW][VALUE_ROWS + 8];  // query × key; the rows meet different banks
};

// Rows of a fragment's four 8 × 8 matrices: two below each other, then the next 16 bytes.
__device__ inline void load_fragment(u32 (&fragment)[4], const char* tile, const char* tail, int row,
                                     int column, int lane) {
    const char* place = column < 8 ? tile + swizzled_128(row + lane % 16, column + lane / 16)
                                   : tail + swizzled_32(row + lane % 16, column - 8 + lane / 16);
    load_matrix_x4(shared_address(place), fragment[0], fragment[1], fragment[2], fragment[3]);
}

__device__ inline void attend_few(char* shared, char* stage, const Unit& unit, int thread,
                                  float scale_log2e) {
    constexpr int MINE = (STEPS + HELPERS - 1) / HELPERS;  // steps of 16 keys a warp, at most
    Few& few = *reinterpret_cast<Few*>(shared + FEW_OFFSET);
    thread = anew(thread);
    int lane = thread % WARP, warp = thread / WARP, row = lane / 4, pair = lane % 4;
    int first = unit.first_left();

    // Right operands: the queries' columns 8j … 8j + 7.
    u32 queries[HEAD_DIM / 8];
#pragma unroll
    for (int j = 0; j < HEAD_DIM / 8; j += 4) {
        u32 words[4];
        int column = min(j + lane / 8, HEAD_DIM / 8 - 1);
        u32 place = head_offset(0, QUERY_TAIL, first + lane % 8, column);
        load_matrix_x4(shared_address(stage) + place, words[0], words[1], words[2], words[3]);
#pragma unroll
        for (int i = 0; i < 4; ++i)
            if (j + i < HEAD_DIM / 8) queries[j + i] = words[i];
    }
    auto multiply_queries = [&](float(&d)[4], const char* tile, const char* tail, int from) {
#pragma unroll
        for (int k = 0; k < HEAD_DIM / 16; ++k) {
            u32 a[4];
            load_fragment(a, tile, tail, from, 2 * k, lane);
            multiply_16x8x16(d, a, queries[2 * k], queries[2 * k + 1]);
        }
    };

    for (int from = 16 * warp; from < RELATIVE; from += 16 * HELPERS) {
        float products[4] = {};
        multiply_queries(products, shared + TABLE_OFFSET, shared + TABLE_TAIL, from);
#pragma unroll
        for (int i = 0; i < 4; ++i)
            few.products[2 * pair + i % 2][from + row + i / 2 * 8] = products[i];
    }
    float s[MINE][4] = {};
#pragma unroll
    for (int m = 0; m < MINE; ++m)
        if (HELPERS * m + warp < STEPS)
            multiply_queries(s[m], stage + KEY_OFFSET, stage + KEY_TAIL, 16 * (HELPERS * m + warp));
    named_sync(1 + CONSUMERS, HELPER_THREADS);

    const float *relative_h[2], *relative_w[2];
    float top[2], total[2] = {};
#pragma unroll
    for (int i = 0; i < 2; ++i) {
        int query = min(first + 2 * pair + i, unit.queries - 1);
        int y = query / unit.inner_w, x = query % unit.inner_w;
        relative_h[i] = few.products[2 * pair + i] + WINDOW - 1 - y;
        relative_w[i] = few.products[2 * pair + i] + HALF + WINDOW - 1 - x;
        top[i] = minus_infinity();
    }
#pragma unroll
    for (int m = 0; m < MINE; ++m)
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            int key = 16 * (HELPERS * m + warp) + row + i / 2 * 8;
            if (key < KEYS)
                s[m][i] += relative_h[i % 2][key / WINDOW] + relative_w[i % 2][key % WINDOW];
            else
                s[m][i] = minus_infinity();
            top[i % 2] = fmaxf(top[i % 2], s[m][i]);
        }
#pragma unroll
    for (int i = 0; i < 2; ++i) {
        for (int distance = 4; distance < WARP; distance *= 2)
            top[i] = fmaxf(top[i], __shfl_xor_sync(~0u, top[i], distance));
        if (row == 0) few.top[warp][2 * pair + i] = top[i];
    }
    named_sync(1 + CONSUMERS, HELPER_THREADS);

#pragma unroll
    for (int i = 0; i < 2; ++i)
        for (int other = 0; other < HELPERS; ++other)
            top[i] = fmaxf(top[i], few.top[other][2 * pair + i]);
#pragma unroll
    for (int m = 0; m < MINE; ++m)
        if (HELPERS * m + warp < STEPS)
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                float p = exp2_approximate((s[m][i] - top[i % 2]) * scale_log2e);
                total[i % 2] += p;
                few.weights[2 * pair + i % 2][16 * (HELPERS * m + warp) + row + i / 2 * 8] = pack(p, 0);
            }
#pragma unroll
    for (int i = 0; i < 2; ++i) {
        for (int distance = 4; distance < WARP; distance *= 2)
            total[i] += __shfl_xor_sync(~0u, total[i], distance);
        if (row == 0) few.sum[warp][2 * pair + i] = total[i];
    }
    named_sync(1 + CONSUMERS, HELPER_THREADS);

    // A warp: 16 columns of the head, all keys.
    float share[2] = {};
#pragma unroll
    for (int i = 0; i < 2; ++i) {
        for (int other = 0; other < HELPERS; ++other) share[i] += few.sum[other][2 * pair + i];
        share[i] = reciprocal_approximate(share[i]);
    }
    for (int column = 2 * warp; column < HEAD_DIM / 8; column += 2 * HELPERS) {
        float out[4] = {};
#pragma unroll
        for (int k = 0; k < STEPS; k += 2) {
            u32 weights[4], values[4];
            int place = min(16 * k + lane / 8 * 8, VALUE_ROWS - 8);
            load_matrix_x4(shared_address(&few.weights[lane % 8][place]), weights[0], weights[1],
                           weights[2], weights[3]);
#pragma unroll
            for (int i = 0; i < 2 && k + i < STEPS; ++i) {
                int key = 16 * (k + i) + lane % 8 + lane / 16 * 8;
                u32 from = head_offset(VALUE_OFFSET, VALUE_TAIL, key, column + lane / 8 % 2);
                load_matrix_x4_transposed(shared_address(stage) + from, values[0], values[1],
                                          values[2], values[3]);
                multiply_16x8x16(out, values, weights[2 * i], weights[2 * i + 1]);
            }
        }
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            char* place = stage + head_offset(0, QUERY_TAIL, first + 2 * pair + i % 2, column + i / 2);
            reinterpret_cast<u16*>(place)[row] = pack(out[i] * share[i % 2], 0);
        }
    }
}
