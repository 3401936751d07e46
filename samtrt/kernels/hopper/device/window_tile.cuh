// A tile of window_attention.cu: 64 queries against all keys of their window, by one warpgroup.

// A descriptor of unknown origin: moving it on is one addition to it, not a new constant.
template <Swizzle SWIZZLE>
__device__ inline u64 opaque_descriptor(const void* pointer) {
    u64 value = descriptor<SWIZZLE>(pointer);
    asm("" : "+l"(value));
    return value;
}

// Descriptors of rows of HEAD_DIM columns.
struct Rows {
    u64 tile, tail;

    __device__ Rows(const char* tile, const char* tail)
        : tile(opaque_descriptor<SWIZZLE_128>(tile)), tail(opaque_descriptor<SWIZZLE_32>(tail)) {}
};

// D = A · (B's rows from FIRST)ᵀ over HEAD_DIM, both operands K-major in shared memory.
template <int FIRST, int COUNT>
__device__ inline void multiply_heads(float (&d)[COUNT], const Rows& a, const Rows& b) {
#pragma unroll
    for (int k = 0; k < 4; ++k)
        wgmma(d, advance(a.tile, 32 * k), advance(b.tile, 128 * FIRST + 32 * k), k > 0);
    if constexpr (TAIL > 0) wgmma(d, a.tail, advance(b.tail, 32 * FIRST), 1);
}

// From products with every table row to a query's own: column j of a fragment becomes
// products[query, FIRST + shift(query) + j], zero beyond the window. A warp, through its scratch.
template <int FIRST>
__device__ inline void gather(u32 (&fragment)[4], const float (&products)[RELATIVE / 2], u16* scratch,
                              u32 lane, u32 shift_low, u32 shift_high) {
    constexpr int BLOCK = FIRST / 8;
    u32 row = lane / 4, pair = lane % 4;
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
        u32 column = 2 * pair + 8 * (i / 2);
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

    __device__ void multiply_keys(const Rows& queries, const Rows& keys) {
        multiply_heads<FIRST>(s, queries, keys);
    }

    // Adding rel_h[query, key row] + rel_w[query, key column] is a product with two ones a key.
    __device__ void add_relative(const u32 (&relative_h)[4], const u32 (&relative_w)[4],
                                 u64 places) {
        wgmma(s, relative_h, advance(places, 2 * PLACES * FIRST), 1);
        wgmma(s, relative_w, advance(places, 2 * PLACES * FIRST + 32), 1);
    }

    // The maxima of a thread's two rows.
    __device__ void raise(float (&top)[4], u32 lane) {
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
    __device__ void multiply_values(float (&out)[32], float (&out_tail)[8], const Rows& values) {
        wgmma_fence();
#pragma unroll
        for (int k = 0; k < PART_STEPS; ++k) {
            wgmma<1>(out, weights[k], advance(values.tile, 128 * (FIRST + 16 * k)),
                     FIRST + k > 0);
            if constexpr (TAIL > 0)
                wgmma<1>(out_tail, weights[k], advance(values.tail, 32 * (FIRST + 16 * k)),
                         FIRST + k > 0);
        }
        wgmma_commit();
    }
};

// TILE queries of a unit, from query `first`. Arrives at `next_turn` when its scores are there.
__device__ inline void attend(char* shared, char* stage, const Unit& unit,
                              const Quantised& quantised, u32 first, u32 warpgroup, u64* next_turn, u64* values_arrived, u32 parity,
                              float scale_log2e) {
    u32 thread = anew(threadIdx.x), lane = thread % WARP, warp = thread / WARP % 4;
    first = __reduce_or_sync(~0u, first);  // the warp's, into a uniform register
    Rows queries(stage + first * 128, stage + QUERY_TAIL + first * 32);
    Rows table(shared + TABLE_OFFSET, shared + TABLE_TAIL);
    Rows keys(stage + KEY_OFFSET, stage + KEY_TAIL);
    constexpr int A = (STEPS + 2) / 3, B = (STEPS - A + 1) / 2;
    Part<0, A> part_a;
    Part<A, B> part_b;
    Part<A + B, STEPS - A - B> part_c;
    float products[RELATIVE / 2];
    wgmma_fence();
    multiply_heads<0>(products, queries, table);
    wgmma_commit();
    part_a.multiply_keys(queries, keys);
    part_b.multiply_keys(queries, keys);
    part_c.multiply_keys(queries, keys);
    wgmma_commit();

    // Meanwhile: which table rows a query meets. Table row WINDOW - 1 - y + j is for key row j.
    u32 by_inner_w = unit.by_inner_w();
    u32 row = first + 16 * warp + lane / 4;
    u32 row_low = min(row, unit.queries - 1), row_high = min(row + 8, unit.queries - 1);
    u32 y_low = row_low * by_inner_w >> 16, y_high = row_high * by_inner_w >> 16;
    u32 x_low = row_low - y_low * unit.inner_w, x_high = row_high - y_high * unit.inner_w;
    wgmma_wait<1>();
    keep(products);
    u32 relative_h[4], relative_w[4];
    u16* scratch = reinterpret_cast<u16*>(shared + SCRATCH_OFFSET + thread / WARP * SCRATCH_BYTES);
    gather<0>(relative_h, products, scratch, lane, WINDOW - 1 - y_low, WINDOW - 1 - y_high);
    gather<HALF>(relative_w, products, scratch, lane, WINDOW - 1 - x_low, WINDOW - 1 - x_high);
    wgmma_fence();
    u64 places = opaque_descriptor<SWIZZLE_64>(shared + PLACES_OFFSET);
    part_a.add_relative(relative_h, relative_w, places);
    part_b.add_relative(relative_h, relative_w, places);
    part_c.add_relative(relative_h, relative_w, places);
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
    Rows values(stage + VALUE_OFFSET, stage + VALUE_TAIL);
    part_a.multiply_values(out, out_tail, values);
    part_b.exponentials(total, offset, scale_log2e);
    part_b.multiply_values(out, out_tail, values);
    part_c.exponentials(total, offset, scale_log2e);
    part_c.multiply_values(out, out_tail, values);
    float sum_low = quad_sum(total[0] + total[1]), sum_high = quad_sum(total[2] + total[3]);
    wgmma_wait<0>();
    keep(out);
    if constexpr (TAIL > 0) keep(out_tail);

    // Into the place of the queries, or (FP8_OUTPUT) straight to memory. Rows that the window does not have go to the scratch.
    named_sync(1 + warpgroup, WARPGROUP);
    thread = anew(threadIdx.x), lane = thread % WARP, warp = thread / WARP % 4;
    if (first + 16 * warp >= unit.queries) return;
    scratch = reinterpret_cast<u16*>(shared + SCRATCH_OFFSET + thread / WARP * SCRATCH_BYTES);
    float low = reciprocal_approximate(sum_low), high = reciprocal_approximate(sum_high);
    if constexpr (FP8_OUTPUT) {
        row = first + 16 * warp + lane / 4;
#pragma unroll
        for (int half = 0; half < 2; ++half, row += 8) {
            if (row >= unit.queries) break;
            const float factor = half ? high : low;
            u32* to = reinterpret_cast<u32*>(quantised.row(unit, row)) + lane % 4;
#pragma unroll
            for (int i = 0; i < HEAD_DIM / 16; ++i) {
                const float* o = (i < 4 ? out + 8 * i : out_tail) + 2 * half;
                to[4 * i] = pack_e4m3(o[0] * factor, o[1] * factor, o[4] * factor, o[5] * factor);
            }
        }
        return;
    }
    row = first + 16 * warp + lane % 16;
    // The swizzle is an exclusive or: columns 2i, 2i + 1 of a row lie at the place of 0, 1 ^ 32i.
    u32 nowhere = shared_address(scratch), base = shared_address(stage);
    bool exists = row < COLUMNS;
    u32 place = exists ? base + swizzled_128(row, lane / 16) : nowhere;
    u32 tail_place = exists ? base + QUERY_TAIL + swizzled_32(row, lane / 16) : nowhere;
#pragma unroll
    for (int i = 0; i < HEAD_DIM / 16; ++i) {
        const float* o = i < 4 ? out + 8 * i : out_tail;
        store_matrix_x4(i < 4 ? place ^ 32 * i : tail_place, pack(o[0] * low, o[1] * low),
                        pack(o[2] * high, o[3] * high), pack(o[4] * low, o[5] * low),
                        pack(o[6] * high, o[7] * high));
    }
}
