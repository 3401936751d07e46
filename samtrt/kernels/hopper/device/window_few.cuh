// The queries of a window beyond whole tiles, by the helpers of window_attention.cu. Everything is
// transposed, so that queries are the short side of mma's m16n8k16: keys · Qᵀ, Vᵀ · weightsᵀ.

// What the helpers tell each other about the few queries that they take.
struct Few {
    float products[FEW][68];                       // query × table row
    float top[HELPERS][FEW], sum[HELPERS][FEW];    // warp × query
    alignas(16) u16 weights[FEW][VALUE_ROWS + 8];  // query × key; the rows meet different banks
};

// Each round's scores in the place of the round before: in a loop that is not unrolled, s[0] is the
// scores of every round in turn.
template <int ROUNDS>
__device__ inline void shift(float (&s)[ROUNDS][4]) {
#pragma unroll
    for (int round = 1; round < ROUNDS; ++round)
#pragma unroll
        for (int i = 0; i < 4; ++i) s[round - 1][i] = s[round][i];
}

__device__ inline void attend_few(char* shared, char* stage, const Unit& unit,
                                  const Quantised& quantised, u32 thread, float scale_log2e) {
    constexpr int ROUNDS = (STEPS + HELPERS - 1) / HELPERS;  // steps of 16 keys a warp, at most
    Few& few = *reinterpret_cast<Few*>(shared + FEW_OFFSET);
    thread = anew(thread);
    u32 lane = thread % WARP, warp = thread / WARP, row = lane / 4, pair = lane % 4;
    u32 first = unit.first_left();

    // Right operands: the queries' columns 8j … 8j + 7.
    u32 queries[HEAD_DIM / 8];
#pragma unroll
    for (int j = 0; j < HEAD_DIM / 8; j += 4) {
        u32 words[4];
        u32 column = j < 8 ? j + lane / 8 : j + lane / 8 % 2;
        u32 place = head_offset(0, QUERY_TAIL, first + lane % 8, column);
        load_matrix_x4(shared_address(stage) + place, words[0], words[1], words[2], words[3]);
#pragma unroll
        for (int i = 0; i < 4; ++i)
            if (j + i < HEAD_DIM / 8) queries[j + i] = words[i];
    }
    // Left operands: 16 rows, whose swizzle is that of the first 16.
    u32 tile_place = swizzled_128(lane % 16, lane / 16);
    u32 tail_place = swizzled_32(lane % 16, lane / 16);
    auto multiply_queries = [&](float(&d)[4], const char* tile, const char* tail, u32 from) {
        u32 place = shared_address(tile) + tile_place + 128 * from;
#pragma unroll
        for (int k = 0; k < HEAD_DIM / 16; ++k) {
            u32 a[4];
            if (k == 4) place = shared_address(tail) + tail_place + 32 * from;
            load_matrix_x4(k < 4 ? place ^ 32 * k : place, a[0], a[1], a[2], a[3]);
            multiply_16x8x16(d, a, queries[2 * k], queries[2 * k + 1]);
        }
    };

#pragma unroll 1
    for (u32 from = 16 * warp; from < RELATIVE; from += 16 * HELPERS) {
        float products[4] = {};
        multiply_queries(products, shared + TABLE_OFFSET, shared + TABLE_TAIL, from);
#pragma unroll
        for (int i = 0; i < 4; ++i)
            few.products[2 * pair + i % 2][from + row + i / 2 * 8] = products[i];
    }
    named_sync(1 + CONSUMERS, HELPER_THREADS);

    const float *relative_h[2], *relative_w[2];
    float top[2], total[2] = {};
    u32 by_inner_w = unit.by_inner_w();
#pragma unroll
    for (int i = 0; i < 2; ++i) {
        u32 query = min(first + 2 * pair + i, unit.queries - 1);
        u32 y = query * by_inner_w >> 16, x = query - y * unit.inner_w;
        relative_h[i] = few.products[2 * pair + i] + WINDOW - 1 - y;
        relative_w[i] = few.products[2 * pair + i] + HALF + WINDOW - 1 - x;
        top[i] = minus_infinity();
    }
    // Scores, all rounds by all warps: what lies beyond the keys is read, but not used.
    float s[ROUNDS][4] = {};
#pragma unroll 1
    for (u32 round = 0, from = 16 * warp; round < ROUNDS; ++round, from += 16 * HELPERS) {
        float products[4] = {};
        multiply_queries(products, stage + KEY_OFFSET, stage + KEY_TAIL, from);
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            u32 key = from + row + i / 2 * 8;
            float relative = relative_h[i % 2][key / WINDOW] + relative_w[i % 2][key % WINDOW];
            products[i] = key < KEYS ? products[i] + relative : minus_infinity();
            top[i % 2] = fmaxf(top[i % 2], products[i]);
        }
        shift(s);
#pragma unroll
        for (int i = 0; i < 4; ++i) s[ROUNDS - 1][i] = products[i];
    }
#pragma unroll
    for (int i = 0; i < 2; ++i) {
#pragma unroll
        for (int distance = 4; distance < WARP; distance *= 2)
            top[i] = fmaxf(top[i], __shfl_xor_sync(~0u, top[i], distance));
        if (row == 0) few.top[warp][2 * pair + i] = top[i];
    }
    named_sync(1 + CONSUMERS, HELPER_THREADS);

#pragma unroll
    for (int i = 0; i < 2; ++i)
        for (int other = 0; other < HELPERS; ++other)
            top[i] = fmaxf(top[i], few.top[other][2 * pair + i]);
#pragma unroll 1
    for (u32 from = 16 * warp; from < 16 * STEPS; from += 16 * HELPERS) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            float p = exp2_approximate((s[0][i] - top[i % 2]) * scale_log2e);
            total[i % 2] += p;
            few.weights[2 * pair + i % 2][from + row + i / 2 * 8] = pack(p, 0);
        }
        shift(s);
    }
#pragma unroll
    for (int i = 0; i < 2; ++i) {
#pragma unroll
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
#pragma unroll 1
    for (u32 column = 2 * warp; column < HEAD_DIM / 8; column += 2 * HELPERS) {
        float out[4] = {};
        u32 weight = shared_address(&few.weights[lane % 8][lane / 8 * 8]);
        // Rows 16 apart are swizzled alike.
        u32 value = shared_address(stage) + head_offset(VALUE_OFFSET, VALUE_TAIL,
                                                        lane % 8 + lane / 16 * 8,
                                                        column + lane / 8 % 2);
        u32 step_bytes = 16 * (column < 8 ? 128 : 32);
#pragma unroll 1
        for (int k = 0; k < STEPS; k += 2) {
            u32 weights[4], values[4];
            // (Beyond the last step: read, but not used.)
            load_matrix_x4(weight, weights[0], weights[1], weights[2], weights[3]);
            weight += 2 * 16 * 2;
#pragma unroll
            for (int i = 0; i < 2; ++i) {
                if (k + i >= STEPS) break;
                load_matrix_x4_transposed(value, values[0], values[1], values[2], values[3]);
                multiply_16x8x16(out, values, weights[2 * i], weights[2 * i + 1]);
                value += step_bytes;
            }
        }
#pragma unroll
        for (int i = 0; i < 2; ++i) {
            if constexpr (FP8_OUTPUT) {
                if (first + 2 * pair + i >= unit.queries) continue;
                // Columns `row` and `row` + 8 of 16.
                u8* to = quantised.row(unit, first + 2 * pair + i) + 8 * column + row / 2 * 4 + row % 2;
                to[0] = pack_e4m3(out[i] * share[i], 0);
                to[2] = pack_e4m3(out[i + 2] * share[i], 0);
                continue;
            }
            u32 place = head_offset(0, QUERY_TAIL, first + 2 * pair + i, column) + 2 * row;
            *reinterpret_cast<u16*>(stage + place) = pack(out[i] * share[i], 0);
            *reinterpret_cast<u16*>(stage + (place ^ 16)) = pack(out[i + 2] * share[i], 0);
        }
    }
}
