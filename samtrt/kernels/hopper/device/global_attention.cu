// Attention over the whole grid: Attention.forward without its linears (segment_anything/modeling/
// image_encoder.py).
//
//     attn = (q * self.scale) @ k.transpose(-2, -1)            wgmma, queries from registers
//     attn = add_decomposed_rel_pos(attn, q, rel_pos_h, …)     a product with each table, see below
//     attn = attn.softmax(dim=-1)                              in registers, tile by tile
//     x = (attn @ v)                                           wgmma, weights from registers
//
// A tile is one row of the token grid: 64 queries or 64 keys, with zeros past the row's end. Query
// (y, x) and key (j, i) have the bias q·R_h[y - j + H - 1] + q·R_w[x - i + W - 1]. For a tile of
// queries its first part is one number a query and key tile, its second part the same 64 numbers a
// query for every key tile: those stay in registers.
//
// Persistent. A chunk is some neighbouring rows of queries of one head. Three warpgroups take its
// rows in turn, each with all keys, and share the tiles of keys and values; one thread of a fourth
// fetches those. While one warpgroup computes a softmax, the others' products run.
//
// Compile-time constants: HEAD_DIM (64 or 80); FP8_OUTPUT, where the output is e4m3, each 16 of its
// columns in the order of pack_e4m3.

constexpr int TILE = 64;
constexpr int CONSUMERS = 3;
constexpr int STAGES = 4;             // tiles of keys, and of values, in flight
constexpr int STEPS = HEAD_DIM / 16;  // of q·kᵀ
constexpr int TABLE_ROWS = 128;       // 2 · 64 - 1 and a row of zeros
constexpr int SLICE = TILE + 8;       // rows of R_h that a tile needs, from a multiple of 8 on
constexpr int TILE_BYTES = TILE * HEAD_DIM * 2;
constexpr int TABLE_BYTES = TABLE_ROWS * HEAD_DIM * 2;
constexpr int COLUMNS = TILE + 16;    // of q·R_w that a warp's queries meet
constexpr int PITCH = COLUMNS + 4;    // floats; eight rows in different banks
// The row maximum grows only when a thread's sum of exponentials passes this. fp16 ends at 65504.
constexpr float LARGE_SUM = 32768.0f;

// The protocol (tests/kernels/test_hopper_protocols.py explores a model of it), all mbarriers:
//
//   tables_full            one phase: an arrival and the bytes, by the fetching thread. All wait.
//   q_full[consumer]       a phase a row of queries: an arrival and the bytes, by the fetching thread,
//                          which has waited for the phase before of q_empty[consumer].
//   q_empty[consumer]      one arrival a warp of that warpgroup, when it has its queries in registers.
//   k_full, v_full[stage]  a phase a tile: an arrival and the bytes, by the fetching thread, which has
//                          waited for the stage's phase before of k_empty or v_empty.
//   k_empty, v_empty[stage]  one arrival a warp of all three warpgroups, when its product has read the
//                          tile; a warpgroup that has no row takes no product, but waits and arrives.
//
// Each warp waits for every phase of what is full before it arrives at what is empty in that phase, with
// all its lanes. So `full` n + 1 needs every warp past `full` n, and `empty` n + 1 needs `full` n + 1:
// nobody is a phase ahead or mistakes a parity. The scores past a chunk's last tile are the one product
// that waits for no tile; nothing uses them. `relative` is each warp's own.
struct Shared {
    alignas(1024) char table_h[TABLE_BYTES];
    char table_w[TABLE_BYTES];
    char q[CONSUMERS][TILE_BYTES];
    char k[STAGES][TILE_BYTES];
    char v[STAGES][TILE_BYTES];
    float relative[CONSUMERS][TILE][PITCH];  // q·R_w, then q·R_h
    u64 tables_full, q_full[CONSUMERS], q_empty[CONSUMERS];
    u64 k_full[STAGES], k_empty[STAGES], v_full[STAGES], v_empty[STAGES];
};

// A tile or table lies as columns 0 … 63 (rows of 128 bytes) and then, of heads of 80, 64 … 79
// (rows of 32). Both operands' contiguous dimension is the head's, "K-major".
struct Tile {
    u64 main, tail;

    __device__ Tile(const char* tile, int rows)
        : main(descriptor<SWIZZLE_128>(tile)), tail(descriptor<SWIZZLE_32>(tile + rows * 128)) {}
    __device__ Tile(u64 main, u64 tail) : main(main), tail(tail) {}

    __device__ Tile moved(u32 bytes) const { return {advance(main, bytes), advance(tail, bytes)}; }
    // The rows from one on, a multiple of 8.
    __device__ Tile rows_from(int row) const {
        return {advance(main, row * 128), advance(tail, row * 32)};
    }
    __device__ u64 k_step(int step) const { return step < 4 ? advance(main, 32 * step) : tail; }
};

// Values lie as blocks of 16 columns (rows of 32 bytes), so that one product covers any head.
__device__ inline u64 value_blocks(const char* tile) {
    constexpr u64 stride = TILE * 32;
    return descriptor<SWIZZLE_32>(tile) + ((stride / 16 - 1) << 16);
}

// The k-steps of q as A operands in registers: four 8 × 8 matrices each.
__device__ inline void load_queries(u32 (&q)[STEPS][4], const char* tile, int warp, int lane) {
    const int row = 16 * warp + lane % 16, half = lane / 16;
#pragma unroll
    for (int step = 0; step < STEPS; ++step) {
        const u32 offset = step < 4 ? swizzled_128(row, 2 * step + half)
                                    : TILE * 128 + swizzled_32(row, half);
        load_matrix_x4(shared_address(tile) + offset, q[step][0], q[step][1], q[step][2],
                       q[step][3]);
    }
}

// q · tileᵀ
template <int COUNT>
__device__ inline void multiply(float (&sums)[COUNT], const u32 (&q)[STEPS][4], Tile tile) {
#pragma unroll
    for (int step = 0; step < STEPS; ++step) wgmma(sums, q[step], tile.k_step(step), step > 0);
}

// Keeps an operand's registers from being used again while a product still reads them.
__device__ inline void keep(u32 (&fragments)[TILE / 16][4]) {
#pragma unroll
    for (int i = 0; i < TILE / 4; ++i) asm volatile("" : "+r"(fragments[i / 4][i % 4])::"memory");
}

// Sums of 16 rows of a warp, times a factor, to `rows` of shared memory: those from column `first`.
template <int COUNT>
__device__ inline void store(float (*rows)[PITCH], const float (&sums)[COUNT], float factor,
                             int first, int lane) {
#pragma unroll
    for (int i = 0; i < COUNT; i += 4) {
        if (static_cast<u32>(2 * i - first) >= COLUMNS) continue;
        const int column = 2 * i - first + 2 * (lane % 4);
        float2* upper = reinterpret_cast<float2*>(&rows[lane / 4][column]);
        float2* lower = reinterpret_cast<float2*>(&rows[lane / 4 + 8][column]);
        *upper = {sums[i] * factor, sums[i + 1] * factor};
        *lower = {sums[i + 2] * factor, sums[i + 3] * factor};
    }
}

// Exponentials of a tile's scores as A operands, and their sums in each of the thread's two rows.
__device__ inline void exponentials(const float (&s)[TILE / 2], const float (&rel_w)[TILE / 2],
                                    u32 (&p)[TILE / 16][4], float scale, const float (&offset)[2],
                                    float (&sum)[2]) {
    float partial[2][2];
#pragma unroll
    for (int i = 0; i < TILE / 2; i += 2) {
        const int row = i / 2 % 2;
        const float e0 = exp2_approximate(s[i] * scale + (rel_w[i] + offset[row]));
        const float e1 = exp2_approximate(s[i + 1] * scale + (rel_w[i + 1] + offset[row]));
        partial[row][0] = i < 4 ? e0 : partial[row][0] + e0;
        partial[row][1] = i < 4 ? e1 : partial[row][1] + e1;
        p[i / 8][i / 2 % 4] = pack(e0, e1);
    }
    for (int row = 0; row < 2; ++row) sum[row] = partial[row][0] + partial[row][1];
}

__device__ inline float load_shared(u32 address) {
    float value;
    asm volatile("ld.shared.f32 %0, [%1];" : "=f"(value) : "r"(address) : "memory");
    return value;
}

// Rows [y, end) of queries of one head.
struct Chunk {
    u32 image, head, y, end;
};

// All chunks: `parts` of each head, of `rows` each; a head's last may have fewer.
struct Chunks {
    u32 count, parts, rows, height, heads;

    __device__ Chunk operator[](u32 index) const {
        const u32 pair = index / parts, y = index % parts * rows;
        return {pair / heads, pair % heads, y, min(y + rows, height)};
    }
};

// Where a tile of keys or values lies, counted from the block's first, and its barriers' parity.
struct Place {
    u32 stage, parity;

    __device__ Place(u32 tile) : stage(tile % STAGES), parity(tile / STAGES & 1) {}
};

__device__ inline void produce(Shared& shared, const TensorMap& qkv, const TensorMap& qkv_tail,
                               const TensorMap& values, const TensorMap& table_h,
                               const TensorMap& table_h_tail, const TensorMap& table_w,
                               const TensorMap& table_w_tail, Chunks chunks) {
    const u32 height = chunks.height, heads = chunks.heads;
    barrier_expect(&shared.tables_full, 2 * TABLE_BYTES);
    copy_2d(shared.table_h, table_h, 0, 0, &shared.tables_full);
    copy_2d(shared.table_w, table_w, 0, 0, &shared.tables_full);
    if (STEPS > 4) {
        copy_2d(shared.table_h + TABLE_ROWS * 128, table_h_tail, 64, 0, &shared.tables_full);
        copy_2d(shared.table_w + TABLE_ROWS * 128, table_w_tail, 64, 0, &shared.tables_full);
    }
    dependency_wait();
    dependents_launch();

    auto fetch = [&](char* to, u32 channel, u32 y, u32 image, u64* full) {
        barrier_expect(full, TILE_BYTES);
        copy_4d(to, qkv, channel, 0, y, image, full);
        if (STEPS > 4) copy_4d(to + TILE * 128, qkv_tail, channel + 64, 0, y, image, full);
    };
    u32 tile = 0, q_parities = ~0u;
#pragma unroll 1
    for (u32 index = blockIdx.x; index < chunks.count; index += gridDim.x) {
        const Chunk chunk = chunks[index];
#pragma unroll 1
        for (u32 y = chunk.y; y < chunk.end; y += CONSUMERS) {
#pragma unroll 1
            for (u32 i = 0; i < min(chunk.end - y, CONSUMERS); ++i) {
                barrier_wait(&shared.q_empty[i], q_parities >> i & 1);
                q_parities ^= 1 << i;
                fetch(shared.q[i], chunk.head * HEAD_DIM, y + i, chunk.image, &shared.q_full[i]);
            }
#pragma unroll 1
            for (u32 j = 0; j < height; ++j, ++tile) {
                const Place at(tile);
                barrier_wait(&shared.k_empty[at.stage], at.parity ^ 1);
                fetch(shared.k[at.stage], (heads + chunk.head) * HEAD_DIM, j, chunk.image,
                      &shared.k_full[at.stage]);
                barrier_wait(&shared.v_empty[at.stage], at.parity ^ 1);
                barrier_expect(&shared.v_full[at.stage], TILE_BYTES);
                copy_4d(shared.v[at.stage], values, 0, 0, chunk.image * height + j,
                        (2 * heads + chunk.head) * STEPS, &shared.v_full[at.stage]);
            }
        }
    }
}

__device__ inline void consume(Shared& shared, void* __restrict__ out, u32 consumer, int width,
                               Chunks chunks, float scale) {
    const u32 height = chunks.height, heads = chunks.heads;
    const Tile keys(shared.k[0], TILE);
    const u64 values = value_blocks(shared.v[0]);
    // A stage is free again when each warp has said so.
    auto release = [&](u64& barrier) {
        if (threadIdx.x % WARP == 0) barrier_arrive(&barrier);
    };
    barrier_wait(&shared.tables_full, 0);
    dependency_wait();

    u32 tile = 0, q_parity = 0;
    auto attend = [&](const Chunk& chunk, u32 y) {
        // (anew: what follows from the thread's number would take registers from before the loops)
        const int thread = anew(threadIdx.x % WARPGROUP);
        const int warp = thread / WARP, lane = thread % WARP;
        const int x = 16 * warp + lane / 4;  // of the thread's first query; the second's is x + 8
        float(*const relative)[PITCH] = &shared.relative[consumer][16 * warp];
        u32 q[STEPS][4];
        barrier_wait(&shared.q_full[consumer], q_parity);
        q_parity ^= 1;
        load_queries(q, shared.q[consumer], warp, lane);
        __syncwarp();
        release(shared.q_empty[consumer]);

        float rel_w[TILE / 2];
#pragma unroll 1
        for (int first = 0; first < TABLE_ROWS; first += TILE) {
            float part[TILE / 2];
            wgmma_fence();
            multiply(part, q, Tile(shared.table_w, TABLE_ROWS).rows_from(first));
            wgmma_commit();
            wgmma_wait<0>();
            keep(part);
            store(relative, part, scale, 16 * warp - first, lane);
        }
        __syncwarp();
#pragma unroll
        for (int n = 0; n < TILE / 2; ++n) {
            const int i = n / 4 * 8 + lane % 4 * 2 + n % 2, row = lane / 4 + n / 2 % 2 * 8;
            // Keys past the row's end get -inf here, so that no score needs a mask later. (What is
            // read for them may lie before the row, but in shared memory.)
            const float bias = relative[row][row - i + width - 1];
            rel_w[n] = i < width ? bias : minus_infinity();
        }
        __syncwarp();
        const u32 slice = y & ~7;
        {
            float part[SLICE / 2];
            wgmma_fence();
            multiply(part, q, Tile(shared.table_h, TABLE_ROWS).rows_from(slice));
            wgmma_commit();
            wgmma_wait<0>();
            keep(part);
            store(relative, part, scale, 0, lane);
            __syncwarp();
        }
        u32 rel_h = shared_address(&relative[lane / 4][y - slice + height - 1]);

        float s[TILE / 2], attended[HEAD_DIM / 2] = {}, total[2] = {}, top[2] = {-1e30f, -1e30f};
        u32 p[TILE / 16][4] = {};
        keep(attended);
        const Place first(tile);
        barrier_wait(&shared.k_full[first.stage], first.parity);
        wgmma_fence();
        multiply(s, q, keys.moved(first.stage * TILE_BYTES));
        wgmma_commit();
#pragma unroll 1
        for (u32 j = 0; j < height; ++j, ++tile) {
            const Place at(tile), next(tile + 1), before(tile - 1);
            // This tile's scores and the product with the values before run meanwhile.
            barrier_wait(&shared.v_full[at.stage], at.parity);
            if (j + 1 < height) barrier_wait(&shared.k_full[next.stage], next.parity);
            wgmma_wait<0>();
            keep(s);
            keep(attended);
            keep(p);
            release(shared.k_empty[at.stage]);
            if (j > 0) release(shared.v_empty[before.stage]);

            // Exponentials relative to the old maximum; anew in the rare case that it is too small.
            const float bias[2] = {load_shared(rel_h), load_shared(rel_h + 4 * 8 * PITCH)};
            rel_h -= 4;
            float sum[2];
#pragma unroll 1
            for (bool is_anew = false;; is_anew = true) {
                const float offset[2] = {bias[0] - top[0], bias[1] - top[1]};
                exponentials(s, rel_w, p, scale, offset, sum);
                if (is_anew || __all_sync(~0u, sum[0] + sum[1] <= LARGE_SUM)) break;
                float rescale[2];
#pragma unroll
                for (int row = 0; row < 2; ++row) {
                    float largest = top[row] - bias[row];
#pragma unroll
                    for (int n = 2 * row; n < TILE / 2; n += n % 2 ? 3 : 1)
                        largest = fmaxf(largest, s[n] * scale + rel_w[n]);
                    const float new_top = quad_max(largest) + bias[row];
                    rescale[row] = exp2_approximate(top[row] - new_top);
                    top[row] = new_top;
                    total[row] *= rescale[row];
                }
#pragma unroll
                for (int n = 0; n < HEAD_DIM / 2; ++n) attended[n] *= rescale[n / 2 % 2];
            }
            total[0] += sum[0];
            total[1] += sum[1];

            // Past the last tile the scores are made of anything and not used: ptxas would
            // serialise all products if these stood under a condition.
            const u64 value = advance(values, at.stage * TILE_BYTES);
            wgmma_fence();
#pragma unroll
            for (int k = 0; k < TILE / 16; ++k)
                wgmma<1>(attended, p[k], advance(value, 16 * 32 * k), 1);
            multiply(s, q, keys.moved(next.stage * TILE_BYTES));
            wgmma_commit();
        }
        wgmma_wait<0>();
        keep(s);
        keep(attended);
        release(shared.v_empty[Place(tile - 1).stage]);
        constexpr int WORDS = FP8_OUTPUT ? HEAD_DIM / 4 : HEAD_DIM / 2;  // of a head's row
        u32* to = static_cast<u32*>(out) +
                  (((chunk.image * height + y) * width + x) * heads + chunk.head) * WORDS + lane % 4;

#pragma unroll
        for (int row = 0; row < 2; ++row) {
            const float factor = reciprocal_approximate(quad_sum(total[row]));
            if (x + 8 * row >= width) continue;
#pragma unroll
            for (int n = 2 * row; n < HEAD_DIM / 2; n += FP8_OUTPUT ? 8 : 4) {
                const float* o = attended + n;
                if (FP8_OUTPUT)
                    to[n / 8 * 4] = pack_e4m3(o[0] * factor, o[1] * factor, o[4] * factor, o[5] * factor);
                else
                    to[n / 4 * 4] = pack(o[0] * factor, o[1] * factor);
            }
            to += 8 * heads * WORDS;
        }
    };

#pragma unroll 1
    for (u32 index = blockIdx.x; index < chunks.count; index += gridDim.x) {
        const Chunk chunk = chunks[index];
#pragma unroll 1
        for (u32 first = chunk.y; first < chunk.end; first += CONSUMERS) {
            if (first + consumer < chunk.end) {
                attend(chunk, first + consumer);
                continue;
            }
            // No row is left for this warpgroup; the others' tiles wait for it all the same.
#pragma unroll 1
            for (u32 j = 0; j < height; ++j, ++tile) {
                const Place at(tile);
                barrier_wait(&shared.k_full[at.stage], at.parity);
                __syncwarp();
                release(shared.k_empty[at.stage]);
                barrier_wait(&shared.v_full[at.stage], at.parity);
                __syncwarp();
                release(shared.v_empty[at.stage]);
            }
        }
    }
}

// count, parts, rows: see Chunks.
extern "C" __global__ void __launch_bounds__((CONSUMERS + 1) * WARPGROUP, 1) global_attention(
    const __grid_constant__ TensorMap qkv, const __grid_constant__ TensorMap qkv_tail,
    const __grid_constant__ TensorMap values, const __grid_constant__ TensorMap table_h,
    const __grid_constant__ TensorMap table_h_tail, const __grid_constant__ TensorMap table_w,
    const __grid_constant__ TensorMap table_w_tail, void* __restrict__ out, u32 count, u32 parts,
    u32 rows, u32 height, int width, u32 heads, float scale) {
    extern __shared__ __align__(1024) char memory[];
    Shared& shared = *reinterpret_cast<Shared*>(memory);
    if (threadIdx.x == 0) {
        barrier_init(&shared.tables_full, 1);
#pragma unroll 1
        for (int i = 0; i < CONSUMERS; ++i) {
            barrier_init(&shared.q_full[i], 1);
            barrier_init(&shared.q_empty[i], WARPGROUP / WARP);
        }
#pragma unroll 1
        for (int stage = 0; stage < STAGES; ++stage) {
            barrier_init(&shared.k_full[stage], 1);
            barrier_init(&shared.v_full[stage], 1);
            barrier_init(&shared.k_empty[stage], CONSUMERS * WARPGROUP / WARP);
            barrier_init(&shared.v_empty[stage], CONSUMERS * WARPGROUP / WARP);
        }
        barrier_init_fence();
    }
    __syncthreads();

    // The same in all threads of a warp; the compiler must know, so that what loops count and
    // products' descriptors are in uniform registers.
    const u32 role = __shfl_sync(~0u, threadIdx.x / WARPGROUP, 0);
    const Chunks chunks{count, parts, rows, height, heads};
    if (role == CONSUMERS) {
        registers_shrink<32>();
        if (threadIdx.x % WARPGROUP / WARP == 0 && elect_one())
            produce(shared, qkv, qkv_tail, values, table_h, table_h_tail, table_w, table_w_tail,
                    chunks);
    } else {
        registers_grow<160>();
        consume(shared, out, role, width, chunks, scale);
    }
}
