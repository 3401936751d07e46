// Window attention: window_partition, Attention.forward without its linears, window_unpartition
// (segment_anything/modeling/image_encoder.py), straight from and to tensors over the grid.
//
//     x, pad_hw = window_partition(x, window_size)             the copy engine's boxes
//     attn = (q * self.scale) @ k.transpose(-2, -1)            wgmma, all keys of a window at once
//     attn = add_decomposed_rel_pos(attn, q, rel_pos_h, …)     two more products, see below
//     attn = attn.softmax(dim=-1)                              in registers
//     x = (attn @ v)                                           wgmma, weights from registers
//     x = window_unpartition(x, window_size, pad_hw, (H, W))   the copy engine's boxes
//
// One block a multiprocessor works through its list of units (a head of a window). Two warpgroups
// take tiles of 64 queries in turn, so that one's softmax runs while the other's products do. Of the
// third, a warp moves units in and out of two stages of shared memory; the helpers, its other warps,
// take the few queries beyond whole tiles (4 of 196).
//
// A padded token of Meta's is zeros after norm1, so its key and value are the qkv bias: the copy
// engine reads zeros beyond the grid, the helpers write the bias over them.
//
// Compile-time constants: HEAD_DIM (64 or 80), WINDOW (1…14).

constexpr int TAIL = HEAD_DIM - 64;  // columns beyond one swizzled row of 128 bytes: 0 or 16
constexpr int KEYS = WINDOW * WINDOW;
constexpr int COLUMNS = (KEYS + 7) / 8 * 8;  // of the scores
constexpr int STEPS = (KEYS + 15) / 16;      // of weights · V
// Table rows: 2·WINDOW of rel_pos_h, 2·WINDOW of rel_pos_w, both from the last to the first.
constexpr int HALF = 2 * WINDOW;
constexpr int RELATIVE = (2 * HALF + 7) / 8 * 8;
constexpr int PLACES = 32;  // columns: a one at the key's row, a one at 16 + its column

constexpr int CONSUMERS = 2;  // warpgroups
constexpr int HELPERS = 3;    // warps
constexpr int HELPER_THREADS = HELPERS * WARP;
constexpr int STAGES = 2;
constexpr int TILE = 64;
constexpr int FEW = 8;  // queries at most that the helpers take
constexpr int THREADS = (CONSUMERS + 1) * WARPGROUP;

// A stage in shared memory; outputs replace the queries.
constexpr int VALUE_ROWS = STEPS * 16;
constexpr int KEY_OFFSET = COLUMNS * 128;
constexpr int VALUE_OFFSET = KEY_OFFSET + COLUMNS * 128;
constexpr int QUERY_TAIL = VALUE_OFFSET + VALUE_ROWS * 128;
constexpr int KEY_TAIL = QUERY_TAIL + COLUMNS * 2 * TAIL;
constexpr int VALUE_TAIL = KEY_TAIL + COLUMNS * 2 * TAIL;
constexpr int STAGE_BYTES = (VALUE_TAIL + VALUE_ROWS * 2 * TAIL + 1023) / 1024 * 1024;
// Behind the stages.
constexpr int TABLE_OFFSET = STAGES * STAGE_BYTES;
constexpr int PLACES_OFFSET = TABLE_OFFSET + RELATIVE * 128;
constexpr int TABLE_TAIL = PLACES_OFFSET + COLUMNS * 2 * PLACES;
constexpr int SCRATCH_OFFSET = TABLE_TAIL + RELATIVE * 2 * TAIL;
constexpr int SCRATCH_ROW = 36;  // elements; 18 words apart, eight rows meet few bank conflicts
constexpr int SCRATCH_BYTES = 16 * 2 * SCRATCH_ROW;  // a warp
constexpr int FEW_OFFSET = SCRATCH_OFFSET + CONSUMERS * 4 * SCRATCH_BYTES;

#ifdef SAMTRT_BF16
constexpr u32 ONE = 0x3f80;
#else
constexpr u32 ONE = 0x3c00;
#endif

// What the helpers tell each other about the few queries that they take.
struct Few {
    float products[FEW][68];                        // query × table row
    float top[HELPERS][FEW], sum[HELPERS][FEW];     // warp × query
    alignas(16) u16 weights[FEW][VALUE_ROWS + 8];   // query × key; the rows meet different banks
};

struct Barriers {
    u64 keys[STAGES];    // queries and keys have arrived
    u64 values[STAGES];  // values have arrived
    u64 padded[STAGES];  // the bias is written; only for windows that leave the grid
    u64 done[STAGES];    // the unit's outputs are written, its keys and values free
    u64 scores[CONSUMERS];  // the other warpgroup has its scores: this one's products may run
};

constexpr int BARRIERS_OFFSET = FEW_OFFSET + sizeof(Few);

static_assert(BARRIERS_OFFSET + sizeof(Barriers) <= 227 * 1024, "the stages do not fit");

struct Unit {
    int x, y, image, head;
    int inner_w, queries;  // of the part inside the grid
    bool leaves_grid, leaves_right;

    __device__ Unit(int4 entry, int height, int width)
        : x(entry.x), y(entry.y), image(entry.z), head(entry.w) {
        inner_w = min(WINDOW, width - x);
        queries = inner_w * min(WINDOW, height - y);
        leaves_grid = queries < KEYS;
        leaves_right = inner_w < WINDOW;
    }
    // Queries beyond whole tiles: a few are left to the helpers, more are a tile.
    __device__ int first_left() const { return queries / TILE * TILE; }
    __device__ bool few_are_left() const { return queries % TILE - 1 < FEW && queries % TILE > 0; }
    __device__ int tiles() const { return (queries + TILE - 1 - FEW) / TILE; }
};

// Where 16-byte column `column` of row `row` lies in a swizzled tile with rows of 64 or 32 bytes.
__device__ inline u32 swizzled_64(u32 row, u32 column) {
    return row * 64 + ((column ^ (row >> 1 & 3)) << 4);
}
__device__ inline u32 swizzled_32(u32 row, u32 column) {
    return row * 32 + ((column ^ (row >> 2 & 1)) << 4);
}

// The same in a tile of HEAD_DIM columns, whose columns beyond 64 lie apart.
__device__ inline u32 head_offset(u32 tile, u32 tail, u32 row, u32 column) {
    return column < 8 ? tile + swizzled_128(row, column) : tail + swizzled_32(row, column - 8);
}

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

__device__ inline float quad_max(float x) {
    x = fmaxf(x, __shfl_xor_sync(0xffffffff, x, 1));
    return fmaxf(x, __shfl_xor_sync(0xffffffff, x, 2));
}

__device__ inline float quad_sum(float x) {
    x += __shfl_xor_sync(0xffffffff, x, 1);
    return x + __shfl_xor_sync(0xffffffff, x, 2);
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
                    s[4 * (BLOCKS - 1) + i] = __int_as_float(0xff800000);
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

// One warpgroup: TILE queries of a unit, from query `first`.
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
    u32 by_inner_w = 65536 / unit.inner_w + 1;
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

// Rows of a fragment's four 8 × 8 matrices: two below each other, then the next 16 bytes.
__device__ inline void load_fragment(u32 (&fragment)[4], const char* tile, const char* tail, int row,
                                     int column, int lane) {
    const char* place = column < 8 ? tile + swizzled_128(row + lane % 16, column + lane / 16)
                                   : tail + swizzled_32(row + lane % 16, column - 8 + lane / 16);
    load_matrix_x4(shared_address(place), fragment[0], fragment[1], fragment[2], fragment[3]);
}

// The helpers: the few queries beyond whole tiles. Everything is transposed, so that queries are the
// short side of mma's m16n8k16: keys · Qᵀ, Vᵀ · weightsᵀ.
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
        top[i] = __int_as_float(0xff800000);
    }
#pragma unroll
    for (int m = 0; m < MINE; ++m)
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            int key = 16 * (HELPERS * m + warp) + row + i / 2 * 8;
            if (key < KEYS)
                s[m][i] += relative_h[i % 2][key / WINDOW] + relative_w[i % 2][key % WINDOW];
            else
                s[m][i] = __int_as_float(0xff800000);
            top[i % 2] = fmaxf(top[i % 2], s[m][i]);
        }
#pragma unroll
    for (int i = 0; i < 2; ++i) {
        for (int distance = 4; distance < WARP; distance *= 2)
            top[i] = fmaxf(top[i], __shfl_xor_sync(0xffffffff, top[i], distance));
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
            total[i] += __shfl_xor_sync(0xffffffff, total[i], distance);
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

// The helpers: the bias over the keys and values of a unit that lie beyond the grid.
__device__ inline void write_padding(char* stage, const Unit& unit, const u16* bias, int heads,
                                     int height, int thread) {
    constexpr int CHUNKS = HEAD_DIM / 8, ROWS = HELPER_THREADS / CHUNKS;
    if (thread >= ROWS * CHUNKS) return;
    int chunk = thread % CHUNKS;
    int inner_h = min(WINDOW, height - unit.y);
    const u16* key = bias + (heads + unit.head) * HEAD_DIM + 8 * chunk;
    uint4 key_bias = __ldg(reinterpret_cast<const uint4*>(key));
    uint4 value_bias = __ldg(reinterpret_cast<const uint4*>(key + heads * HEAD_DIM));
    for (int row = thread / CHUNKS; row < KEYS; row += ROWS) {
        if (row / WINDOW < inner_h && row % WINDOW < unit.inner_w) continue;
        *reinterpret_cast<uint4*>(stage + head_offset(KEY_OFFSET, KEY_TAIL, row, chunk)) = key_bias;
        *reinterpret_cast<uint4*>(stage + head_offset(VALUE_OFFSET, VALUE_TAIL, row, chunk)) =
            value_bias;
    }
}

// Once a block, by `threads` threads: the table, the places, and zeros where there are no keys.
__device__ inline void fill_constants(char* shared, const u16* table, int thread, int threads) {
    constexpr int CHUNKS = HEAD_DIM / 8;
    const uint4* chunks = reinterpret_cast<const uint4*>(table);
    for (int i = thread; i < RELATIVE * CHUNKS; i += threads)
        *reinterpret_cast<uint4*>(
            shared + head_offset(TABLE_OFFSET, TABLE_TAIL, i / CHUNKS, i % CHUNKS)) =
            __ldg(chunks + i);
    for (int i = thread; i < COLUMNS * PLACES / 8; i += threads) {
        int key = i / (PLACES / 8), first = i % (PLACES / 8) * 8;
        u32 word[4];
#pragma unroll
        for (int j = 0; j < 4; ++j) {
            int y = key < KEYS ? key / WINDOW : -1, x = key < KEYS ? 16 + key % WINDOW : -1;
            int column = first + 2 * j;
            word[j] = (column == y || column == x ? ONE : 0) |
                      (column + 1 == y || column + 1 == x ? ONE << 16 : 0);
        }
        *reinterpret_cast<uint4*>(shared + PLACES_OFFSET + swizzled_64(key, first / 8)) =
            make_uint4(word[0], word[1], word[2], word[3]);
    }
    uint4 zero = make_uint4(0, 0, 0, 0);
    for (int i = thread; i < STAGES * (VALUE_ROWS - KEYS) * CHUNKS; i += threads) {
        int row = KEYS + i / CHUNKS % (VALUE_ROWS - KEYS), column = i % CHUNKS;
        char* stage = shared + i / (CHUNKS * (VALUE_ROWS - KEYS)) * STAGE_BYTES;
        if (row < COLUMNS)
            *reinterpret_cast<uint4*>(stage + head_offset(KEY_OFFSET, KEY_TAIL, row, column)) = zero;
        *reinterpret_cast<uint4*>(stage + head_offset(VALUE_OFFSET, VALUE_TAIL, row, column)) = zero;
    }
}

// Boxes of WINDOW × WINDOW tokens, or (edge) of a window that the right side of the grid cuts;
// the first 64 columns of a head, or its tail.
struct Maps {
    const TensorMap &full, &full_tail, &edge, &edge_tail;

    __device__ void load(char* tile, char* tail, const Unit& unit, int column, bool edge_box,
                         u64* barrier) const {
        copy_4d(tile, edge_box ? edge : full, column, unit.x, unit.y, unit.image, barrier);
        if constexpr (TAIL > 0)
            copy_4d(tail, edge_box ? edge_tail : full_tail, column + 64, unit.x, unit.y, unit.image,
                    barrier);
    }
    __device__ void store(const char* tile, const char* tail, const Unit& unit, int column) const {
        bool edge_box = unit.leaves_right;
        store_4d(edge_box ? edge : full, tile, column, unit.x, unit.y, unit.image);
        if constexpr (TAIL > 0)
            store_4d(edge_box ? edge_tail : full_tail, tail, column + 64, unit.x, unit.y, unit.image);
    }
};

__device__ inline void load_queries(char* stage, const Maps& qkv, const Unit& unit, u64* barrier) {
    qkv.load(stage, stage + QUERY_TAIL, unit, unit.head * HEAD_DIM, unit.leaves_right, barrier);
}

__device__ inline void load_keys(char* stage, const Maps& qkv, const Unit& unit, int heads,
                                 u64* barrier) {
    int query_tokens = unit.leaves_right ? unit.inner_w * WINDOW : KEYS;
    barrier_expect(barrier, (query_tokens + KEYS) * HEAD_DIM * 2);
    qkv.load(stage + KEY_OFFSET, stage + KEY_TAIL, unit, (heads + unit.head) * HEAD_DIM, false,
             barrier);
}

__device__ inline void load_values(char* stage, const Maps& qkv, const Unit& unit, int heads,
                                   u64* barrier) {
    barrier_expect(barrier, KEYS * HEAD_DIM * 2);
    qkv.load(stage + VALUE_OFFSET, stage + VALUE_TAIL, unit, (2 * heads + unit.head) * HEAD_DIM,
             false, barrier);
}

// schedule: [blocks, units] of {x, y, image, head}, a head of -1 ends a block's list.
extern "C" __global__ void __launch_bounds__(THREADS, 1) window_attention(
    const __grid_constant__ TensorMap qkv_full, const __grid_constant__ TensorMap qkv_full_tail,
    const __grid_constant__ TensorMap qkv_edge, const __grid_constant__ TensorMap qkv_edge_tail,
    const __grid_constant__ TensorMap out_full, const __grid_constant__ TensorMap out_full_tail,
    const __grid_constant__ TensorMap out_edge, const __grid_constant__ TensorMap out_edge_tail,
    const u16* bias, const u16* table, const int4* schedule, int units, int height, int width,
    int heads, float scale_log2e) {
    extern __shared__ __align__(1024) char shared[];
    Barriers& barriers = *reinterpret_cast<Barriers*>(shared + BARRIERS_OFFSET);
    Maps qkv{qkv_full, qkv_full_tail, qkv_edge, qkv_edge_tail};
    int warpgroup = threadIdx.x / WARPGROUP, warp = threadIdx.x / WARP;
    bool is_copying = threadIdx.x == CONSUMERS * WARPGROUP;
    schedule += blockIdx.x * units;
    auto entry_at = [&](int i) {
        return i < units ? __ldg(schedule + i) : make_int4(0, 0, 0, -1);
    };
    dependents_launch();

    // The copying thread's warp starts the first copies while the others lay out the constants.
    if (is_copying) {
        for (int i = 0; i < STAGES; ++i) {
            barrier_init(&barriers.keys[i], 1);
            barrier_init(&barriers.values[i], 1);
            barrier_init(&barriers.padded[i], HELPER_THREADS);
            barrier_init(&barriers.done[i], CONSUMERS * 4 + HELPERS);
        }
        for (int i = 0; i < CONSUMERS; ++i) barrier_init(&barriers.scores[i], 4);
        barrier_init_fence();
        prefetch(qkv_full);
        prefetch(qkv_full_tail);
        prefetch(qkv_edge);
        prefetch(qkv_edge_tail);
        int4 entries[STAGES];
        for (int i = 0; i < STAGES; ++i) entries[i] = entry_at(i);
        dependency_wait();
        for (int i = 0; i < STAGES; ++i) {
            if (entries[i].w < 0) break;
            Unit unit(entries[i], height, width);
            char* stage = shared + i * STAGE_BYTES;
            load_keys(stage, qkv, unit, heads, &barriers.keys[i]);
            load_queries(stage, qkv, unit, &barriers.keys[i]);
            load_values(stage, qkv, unit, heads, &barriers.values[i]);
        }
    } else if (warp != CONSUMERS * 4) {
        int thread = warp < CONSUMERS * 4 ? threadIdx.x : threadIdx.x - WARP;
        fill_constants(shared, table, thread, THREADS - WARP);
        fence_async_proxy();
    }
    __syncwarp();
    __syncthreads();

    if (warpgroup == CONSUMERS) {
        registers_shrink<136>();
        if (is_copying) {  // unit i goes out, unit i + STAGES comes in
            Maps out{out_full, out_full_tail, out_edge, out_edge_tail};
            int4 entry = entry_at(0);
            for (int i = 0; entry.w >= 0; ++i) {
                int at = i % STAGES;
                char* stage = shared + at * STAGE_BYTES;
                Unit unit(entry, height, width);
                entry = entry_at(i + 1);
                int4 next = entry_at(i + STAGES);
                barrier_wait(&barriers.done[at], i / STAGES % 2);
                out.store(stage, stage + QUERY_TAIL, unit, unit.head * HEAD_DIM);
                store_commit();
                if (next.w < 0) continue;
                Unit next_unit(next, height, width);
                load_keys(stage, qkv, next_unit, heads, &barriers.keys[at]);
                load_values(stage, qkv, next_unit, heads, &barriers.values[at]);
                store_wait_read<0>();
                load_queries(stage, qkv, next_unit, &barriers.keys[at]);
            }
            store_wait_read<0>();
        } else if (warp != CONSUMERS * 4) {
            int thread = threadIdx.x % WARPGROUP - WARP;
            int4 entry = entry_at(0);
            for (int i = 0; entry.w >= 0; ++i) {
                int at = i % STAGES;
                char* stage = shared + at * STAGE_BYTES;
                Unit unit(entry, height, width);
                entry = entry_at(i + 1);
                barrier_wait(&barriers.keys[at], i / STAGES % 2);
                barrier_wait(&barriers.values[at], i / STAGES % 2);
                if (unit.leaves_grid) {
                    write_padding(stage, unit, bias, heads, height, thread);
                    fence_async_proxy();
                    barrier_arrive(&barriers.padded[at]);
                }
                if (unit.few_are_left()) {
                    named_sync(1 + CONSUMERS, HELPER_THREADS);  // all padding is written
                    attend_few(shared, stage, unit, thread, scale_log2e);
                    fence_async_proxy();
                }
                __syncwarp();
                if (threadIdx.x % WARP == 0) barrier_arrive(&barriers.done[at]);
            }
        }
        return;
    }

    registers_grow<184>();
    int turn = 0;  // the warpgroup that takes the next tile
    u32 padded_parities = 0, scores_parity = warpgroup == 0;
    int4 entry = entry_at(0);
    for (int i = 0; entry.w >= 0; ++i) {
        Unit unit(entry, height, width);
        entry = entry_at(i + 1);
        int at = i % STAGES;
        u32 parity = i / STAGES % 2;
        barrier_wait(&barriers.keys[at], parity);
        if (unit.leaves_grid) {
            barrier_wait(&barriers.padded[at], padded_parities >> at & 1);
            padded_parities ^= 1 << at;
        }
        for (int tile = 0; tile < unit.tiles(); ++tile) {
            int next = turn + 1 < CONSUMERS ? turn + 1 : 0;
            if (turn == warpgroup) {
#ifndef NO_TURNS
                barrier_wait(&barriers.scores[warpgroup], scores_parity);
                scores_parity ^= 1;
#endif
                attend(shared, shared + at * STAGE_BYTES, unit, tile * TILE, warpgroup,
                       &barriers.scores[next], &barriers.values[at], parity, scale_log2e);
            }
            turn = next;
        }
        fence_async_proxy();
        __syncwarp();
        if (threadIdx.x % WARP == 0) barrier_arrive(&barriers.done[at]);
    }
}
