// A tile of window_attention.cu: 64 queries against all keys of their window, by one warpgroup.

// D = A · Bᵀ over HEAD_DIM, both operands K-major in shared memory.
template <int COUNT>
__device__ inline void multiply_heads(float (&d)[COUNT], const char* a, const char* a_tail,
                                      const char* b, const char* b_tail) {
    u64 a_tile = descriptor<SWIZZLE_128>(a);
    u64 b_tile = descriptor<SWIZZLE_128>(b);
#pragma unroll
    for (int k = 0; k < 4; ++k) wgmma(d, advance(a_tile, 32 * k), advance(b_tile, 32 * k), k > 0);
    if constexpr (TAIL > 0)
        wgmma(d, descriptor<SWIZZLE_32>(a_tail), descriptor<SWIZZLE_32>(b_tail), 1);
}

// From products with every table row to a query's own: column j of a fragment becomes
// products[query, FIRST + shift(query) + j], zero beyond the window. A warp, through its scratch.
template <int FIRST>
__device__ inline void gather(u32 (&fragment)[4], const float (&products)[RELATIVE / 2], u16* scratch,
                              int lane, int shift_low, int shift_high) {
    constexpr int BLOCK = FIRST / 8;
    int row = lane / 4, pair = lane % 4;
    u32* words = reinterpret_cast<u32*>(scratch);
    __syncwarp();
#pragma unroll
    for (int j = 0; j < 4; ++j) {
        if (BLOCK + j >= RELATIVE / 8) break;
        const float* block = products + 4 * (BLOCK + j);
        words[row * (SCRATCH_ROW / 2) + 4 * j + pair] = pack(block[0], block[1]);
        words[(row + 8) * (SCRATCH_ROW / 2) + 4 * j + pair] = pack(block[2], block[3]);
    }
    __syncwarp();
    const u16* low = scratch + row * SCRATCH_ROW + FIRST % 8 + shift_low;
    const u16* high = scratch + (row + 8) * SCRATCH_ROW + FIRST % 8 + shift_high;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        const u16* source = i % 2 ? high : low;
        int column = 2 * pair + 8 * (i / 2);
        u32 first = column < WINDOW ? source[column] : 0;
        u32 second = column + 1 < WINDOW ? source[column + 1] : 0;
        fragment[i] = first | second << 16;
    }
}

// Scores and weights of a tile for some of the keys, by steps of 16. There are several parts, since
// ptxas frees the registers of a product's result only all together.
template <int FIRST_STEP, int PART_STEPS>
struct Part {
    static constexpr int FIRST = 16 * FIRST_STEP;
    static constexpr int FULL_END = FIRST + 16 * PART_STEPS;
    static constexpr int END = FULL_END < COLUMNS ? FULL_END : COLUMNS;
    static constexpr int BLOCKS = (END - FIRST) / 8;
    float s[4 * BLOCKS];
    u32 weights[PART_STEPS][4];

    __device__ void multiply_keys(const char* queries, const char* queries_tail, const char* stage) {
        multiply_heads(s, queries, queries_tail, stage + KEY_OFFSET + 128 * FIRST,
                       stage + KEY_TAIL + 32 * FIRST);
    }

    // Adding rel_h[query, key row] + rel_w[query, key column] is a product with two ones a key.
    __device__ void add_relative(const u32 (&relative_h)[4], const u32 (&relative_w)[4],
                                 const char* places) {
        u64 ones = descriptor<SWIZZLE_64>(places + 2 * PLACES * FIRST);
        wgmma(s, relative_h, ones, 1);
        wgmma(s, relative_w, advance(ones, 32), 1);
    }

    // The maxima of a thread's two rows.
    __device__ void raise(float (&top)[4], int lane) {
        if constexpr (END > KEYS) {  // columns without keys
#pragma unroll
            for (int i = 0; i < 4; ++i)
                if (END - 8 + 2 * (lane % 4) + i % 2 >= KEYS)
                    s[4 * (BLOCKS - 1) + i] = minus_infinity();
        }
#pragma unroll
        for (int i = 0; i < 4 * BLOCKS; ++i) top[i % 4] = fmaxf(top[i % 4], s[i]);
    }

    // weights = exp2(s · scale + offset), as left operands; total: the rows' sums.
    __device__ void exponentials(float (&total)[4], const float (&offset)[2], float scale) {
#pragma unroll
        for (int j = 0; j < BLOCKS; ++j) {
            float p[4];
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                p[i] = exp2_approximate(fmaf(s[4 * j + i], scale, offset[i / 2]));
                total[i] += p[i];
            }
            weights[j / 2][j % 2 * 2] = pack(p[0], p[1]);
            weights[j / 2][j % 2 * 2 + 1] = pack(p[2], p[3]);
        }
        if constexpr (BLOCKS % 2 != 0) weights[PART_STEPS - 1][2] = weights[PART_STEPS - 1][3] = 0;
    }

    // out (+)= weights · V.
    __device__ void multiply_values(float (&out)[32], float (&out_tail)[8], const char* stage) {
        u64 tile = descriptor<SWIZZLE_128>(stage + VALUE_OFFSET + 128 * FIRST);
        u64 tail = descriptor<SWIZZLE_32>(stage + VALUE_TAIL + 32 * FIRST);
        wgmma_fence();
#pragma unroll
        for (int k = 0; k < PART_STEPS; ++k) {
            wgmma<1>(out, weights[k], advance(tile, 16 * 128 * k), FIRST + k > 0);
            if constexpr (TAIL > 0)
                wgmma<1>(out_tail, weights[k], advance(tail, 16 * 32 * k), FIRST + k > 0);
        }
        wgmma_commit();
    }
};

// TILE queries of a unit, from query `first`. Arrives at `next_turn` when its scores are there.
__device__ inline void attend(char* shared, char* stage, const Unit& unit, int first, int warpgroup,
                              u64* next_turn, u64* values_arrived, u32 parity,
                              float scale_log2e) {
    int thread = anew(threadIdx.x), lane = thread % WARP, warp = thread / WARP % 4;
    char* queries = stage + first * 128;
    char* queries_tail = stage + QUERY_TAIL + first * 32;
    constexpr int A = (STEPS + 2) / 3, B = (STEPS - A + 1) / 2;
    Part<0, A> part_a;
    Part<A, B> part_b;
    Part<A + B, STEPS - A - B> part_c;
    float products[RELATIVE / 2];
    wgmma_fence();
    multiply_heads(products, queries, queries_tail, shared + TABLE_OFFSET, shared + TABLE_TAIL);
    wgmma_commit();
    part_a.multiply_keys(queries, queries_tail, stage);
    part_b.multiply_keys(queries, queries_tail, stage);
    part_c.multiply_keys(queries, queries_tail, stage);
    wgmma_commit();

    // Meanwhile: which table rows a query meets. Table row WINDOW - 1 - y + j is for key row j.
    u32 by_inner_w = 65536 / unit.inner_w + 1;  // (row / inner_w without a division; exact for these)
    int row_low = min(first + 16 * warp + lane / 4, unit.queries - 1);
    int row_high = min(first + 16 * warp + lane / 4 + 8, unit.queries - 1);
    int y_low = row_low * by_inner_w >> 16, y_high = row_high * by_inner_w >> 16;
    int x_low = row_low - y_low * unit.inner_w, x_high = row_high - y_high * unit.inner_w;
    wgmma_wait<1>();
    keep(products);
    u32 relative_h[4], relative_w[4];
    u16* scratch = reinterpret_cast<u16*>(shared + SCRATCH_OFFSET + thread / WARP * SCRATCH_BYTES);
    gather<0>(relative_h, products, scratch, lane, WINDOW - 1 - y_low, WINDOW - 1 - y_high);
    gather<HALF>(relative_w, products, scratch, lane, WINDOW - 1 - x_low, WINDOW - 1 - x_high);
    wgmma_fence();
    part_a.add_relative(relative_h, relative_w, shared + PLACES_OFFSET);
    part_b.add_relative(relative_h, relative_w, shared + PLACES_OFFSET);
    part_c.add_relative(relative_h, relative_w, shared + PLACES_OFFSET);
    wgmma_commit();
    wgmma_wait<0>();
    keep(part_a.s);
    keep(part_b.s);
    keep(part_c.s);
    if (lane == 0) barrier_arrive(next_turn);

    float top[4] = {part_a.s[0], part_a.s[1], part_a.s[2], part_a.s[3]};
    part_a.raise(top, lane);
    part_b.raise(top, lane);
    part_c.raise(top, lane);
    float offset[2] = {-scale_log2e * quad_max(fmaxf(top[0], top[1])),
                       -scale_log2e * quad_max(fmaxf(top[2], top[3]))};
    float out[32], out_tail[8], total[4] = {};
    part_a.exponentials(total, offset, scale_log2e);
    barrier_wait(values_arrived, parity);
    part_a.multiply_values(out, out_tail, stage);
    part_b.exponentials(total, offset, scale_log2e);
    part_b.multiply_values(out, out_tail, stage);
    part_c.exponentials(total, offset, scale_log2e);
    part_c.multiply_values(out, out_tail, stage);
    float sum_low = quad_sum(total[0] + total[1]), sum_high = quad_sum(total[2] + total[3]);
    wgmma_wait<0>();
    keep(out);
    if constexpr (TAIL > 0) keep(out_tail);

    // Into the place of the queries. Rows that the window does not have go to the scratch.
    named_sync(1 + warpgroup, WARPGROUP);
    thread = anew(threadIdx.x), lane = thread % WARP, warp = thread / WARP % 4;
    if (first + 16 * warp >= unit.queries) return;
    scratch = reinterpret_cast<u16*>(shared + SCRATCH_OFFSET + thread / WARP * SCRATCH_BYTES);
    float low = reciprocal_approximate(sum_low), high = reciprocal_approximate(sum_high);
    int row = first + 16 * warp + lane % 16;
    u32 nowhere = shared_address(scratch), base = shared_address(stage);
    bool exists = row < COLUMNS;
#pragma unroll
    for (int i = 0; i < HEAD_DIM / 16; ++i) {
        const float* o = i < 4 ? out + 8 * i : out_tail;
        u32 place = base + head_offset(0, QUERY_TAIL, row, 2 * i + lane / 16);
        store_matrix_x4(exists ? place : nowhere, pack(o[0] * low, o[1] * low),
                        pack(o[2] * high, o[3] * high), pack(o[4] * low, o[5] * low),
                        pack(o[6] * high, o[7] * high));
    }
}
