// Attention over the whole grid: Attention.forward without its linears (segment_anything/modeling/
// image_encoder.py).
//
//     attn = (q * self.scale) @ k.transpose(-2, -1)            wgmma, queries from registers
//     attn = add_decomposed_rel_pos(attn, q, rel_pos_h, …)     one product with each table, see below
//     attn = attn.softmax(dim=-1)                              in registers, tile by tile
//     x = (attn @ v)                                           wgmma, weights from registers
//
// A tile is one row of the token grid: 64 queries or 64 keys, with zeros past the row's end. Query
// (y, x) and key (j, i) have the bias q·R_h[y - j + H - 1] + q·R_w[x - i + W - 1]. For a tile of
// queries its first part is one number a query and key tile, its second part the same 64 numbers a
// query for every key tile: those stay in registers.
//
// Persistent. An item is two tiles of queries of one head a block, one for each of two warpgroups;
// the third warpgroup's first warp fetches. The blocks of a cluster take neighbouring queries and
// share the keys and values they fetch. Within a warpgroup the next tile's q·kᵀ runs during the
// softmax, and the product with the values during the next one's.
//
// Compile-time constants: HEAD_DIM (64 or 80), CLUSTER (1 or 2 blocks).

constexpr int TILE = 64;
constexpr int CONSUMERS = 2;
constexpr int STAGES = 4;             // tiles of keys, and of values, in flight
constexpr int STEPS = HEAD_DIM / 16;  // of q·kᵀ
constexpr int TABLE_ROWS = 128;       // 2 · 64 - 1 and a row of zeros
constexpr int SLICE = TILE + 8;       // rows of R_h that a tile needs, from a multiple of 8 on
constexpr int TILE_BYTES = TILE * HEAD_DIM * 2;
constexpr int TABLE_BYTES = TABLE_ROWS * HEAD_DIM * 2;
constexpr int PITCH = TABLE_ROWS + 4;  // floats; eight rows in different banks
// The row maximum grows only when a thread's sum of exponentials passes this. fp16 ends at 65504.
constexpr float LARGE_SUM = 32768.0f;

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

// A tile or table lies as columns 0 … 63 (rows of 128 bytes) and then, of heads of 80, 64 … 79 (rows
// of 32). Both operands' contiguous dimension is the head's, "K-major".
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

// Sums of 16 rows of a warp, times a factor, to `rows` of shared memory.
template <int COUNT>
__device__ inline void store(float (*rows)[PITCH], const float (&sums)[COUNT], float factor,
                             int lane) {
#pragma unroll
    for (int i = 0; i < COUNT; i += 4) {
        const int column = 2 * i + 2 * (lane % 4);
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

struct Item {
    int image, head, y;
};

// `y` is the grid row of the block's first warpgroup.
__device__ inline Item item_at(int index, int groups, int heads) {
    const int group = index % groups, pair = index / groups;
    const int rank = CLUSTER > 1 ? cluster_rank() : 0;
    return {pair / heads, pair % heads, (group * CLUSTER + rank) * CONSUMERS};
}

__device__ inline void produce(Shared& shared, const TensorMap& qkv, const TensorMap& qkv_tail,
                               const TensorMap& values, const TensorMap& table_h,
                               const TensorMap& table_h_tail, const TensorMap& table_w,
                               const TensorMap& table_w_tail, int height, int heads, int groups,
                               int items) {
    constexpr u16 everyone = (1 << CLUSTER) - 1;
    const u32 rank = CLUSTER > 1 ? cluster_rank() : 0;
    barrier_expect(&shared.tables_full, 2 * TABLE_BYTES);
    copy_2d(shared.table_h, table_h, 0, 0, &shared.tables_full);
    copy_2d(shared.table_w, table_w, 0, 0, &shared.tables_full);
    if (STEPS > 4) {
        copy_2d(shared.table_h + TABLE_ROWS * 128, table_h_tail, 64, 0, &shared.tables_full);
        copy_2d(shared.table_w + TABLE_ROWS * 128, table_w_tail, 64, 0, &shared.tables_full);
    }
    dependency_wait();
    dependents_launch();

    u32 tile = 0, round = 0;
    for (int index = blockIdx.x / CLUSTER; index < items; index += gridDim.x / CLUSTER, ++round) {
        const Item item = item_at(index, groups, heads);
        const int q_channel = item.head * HEAD_DIM, k_channel = (heads + item.head) * HEAD_DIM;
        const int v_block = (2 * heads + item.head) * STEPS;
        for (int i = 0; i < CONSUMERS; ++i) {
            barrier_wait(&shared.q_empty[i], (round & 1) ^ 1);
            barrier_expect(&shared.q_full[i], TILE_BYTES);
            copy_4d(shared.q[i], qkv, q_channel, 0, item.y + i, item.image, &shared.q_full[i]);
            if (STEPS > 4)
                copy_4d(shared.q[i] + TILE * 128, qkv_tail, q_channel + 64, 0, item.y + i, item.image,
                        &shared.q_full[i]);
        }
#pragma unroll 1
        for (int j = 0; j < height; ++j, ++tile) {
            const u32 stage = tile % STAGES, parity = (tile / STAGES & 1) ^ 1;
            u64* full = &shared.k_full[stage];
            barrier_wait(&shared.k_empty[stage], parity);
            barrier_expect(full, TILE_BYTES);
            if (rank == 0) {
                copy_4d_multicast(shared.k[stage], qkv, k_channel, 0, j, item.image, full,
                                  everyone);
                if (STEPS > 4)
                    copy_4d_multicast(shared.k[stage] + TILE * 128, qkv_tail, k_channel + 64, 0, j,
                                      item.image, full, everyone);
            }
            full = &shared.v_full[stage];
            barrier_wait(&shared.v_empty[stage], parity);
            barrier_expect(full, TILE_BYTES);
            if (rank == CLUSTER - 1)
                copy_4d_multicast(shared.v[stage], values, 0, 0, item.image * height + j, v_block,
                                  full, everyone);
        }
    }
}

__device__ inline void consume(Shared& shared, void* __restrict__ out, int consumer, int height,
                               int width, int heads, int groups, int items, float scale) {
    const int thread = threadIdx.x % WARPGROUP, warp = thread / WARP, lane = thread % WARP;
    const int x = 16 * warp + lane / 4;  // of the thread's first query; the second's is x + 8
    float(*const relative)[PITCH] = &shared.relative[consumer][16 * warp];
    const Tile keys(shared.k[0], TILE);
    const u64 values = value_blocks(shared.v[0]);
    // A stage is free again when each warp of each block that shares it has said so.
    auto release = [&](u64& barrier) {
        if (lane < CLUSTER) {
            if (CLUSTER == 1)
                barrier_arrive(&barrier);
            else
                barrier_arrive_at(&barrier, lane);
        }
    };
    barrier_wait(&shared.tables_full, 0);
    dependency_wait();

    u32 round = 0, parity = 0;  // of the queries, of the ring of key tiles
    for (int index = blockIdx.x / CLUSTER; index < items; index += gridDim.x / CLUSTER) {
        const Item item = item_at(index, groups, heads);
        const int y = item.y + consumer;
        u32 q[STEPS][4];
        barrier_wait(&shared.q_full[consumer], round);
        round ^= 1;
        load_queries(q, shared.q[consumer], warp, lane);
        __syncwarp();
        if (lane == 0) barrier_arrive(&shared.q_empty[consumer]);

        float rel_w[TILE / 2];
        const int slice = y & ~7;
        {
            float all_w[TABLE_ROWS / 2], all_h[SLICE / 2];
            wgmma_fence();
            multiply(all_w, q, Tile(shared.table_w, TABLE_ROWS));
            wgmma_commit();
            multiply(all_h, q, Tile(shared.table_h, TABLE_ROWS).rows_from(slice));
            wgmma_commit();
            wgmma_wait<1>();
            keep(all_w);
            store(relative, all_w, scale, lane);
            __syncwarp();
#pragma unroll
            for (int n = 0; n < TILE / 2; ++n) {
                const int i = n / 4 * 8 + lane % 4 * 2 + n % 2, row = lane / 4 + n / 2 % 2 * 8;
                const int distance = 16 * warp + row - i + width - 1;
                const float bias = relative[row][max(distance, 0)];
                // Keys past the row's end get -inf here, so that no score needs a mask later.
                rel_w[n] = i < width ? bias : minus_infinity();
            }
            __syncwarp();
            wgmma_wait<0>();
            keep(all_h);
            store(relative, all_h, scale, lane);
            __syncwarp();
        }
        u32 rel_h = shared_address(&relative[lane / 4][y - slice + height - 1]);

        float attended[HEAD_DIM / 2] = {}, total[2] = {}, top[2] = {-1e30f, -1e30f};

        // q·kᵀ of a tile; the caller waits for it.
        auto scores = [&](float(&s)[TILE / 2], int stage, bool exists, u32 ring) {
            // Past the last tile the product is made of anything and not used: no branch stands
            // around products in flight, and every step has the same ones to wait for.
            if (exists) barrier_wait(&shared.k_full[stage], ring);
            wgmma_fence();
            multiply(s, q, keys.moved(stage * TILE_BYTES));
            wgmma_commit();
        };

        // At its start this tile's scores are there, and p·v of the one before is in flight.
        auto step = [&](float(&s)[TILE / 2], float(&s_next)[TILE / 2], u32(&p)[TILE / 16][4],
                        u32(&p_before)[TILE / 16][4], int stage, bool is_first, bool is_last) {
            const float bias[2] = {load_shared(rel_h - 4 * stage),
                                   load_shared(rel_h + 4 * (8 * PITCH - stage))};
            const int next = (stage + 1) % STAGES;
            scores(s_next, next, !is_last, next ? parity : parity ^ 1);

            // Exponentials relative to the old maximum; anew in the rare case that it is too small.
            float sum[2], offset[2] = {bias[0] - top[0], bias[1] - top[1]};
            exponentials(s, rel_w, p, scale, offset, sum);
            if (!__all_sync(~0u, sum[0] + sum[1] <= LARGE_SUM)) {
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
                    offset[row] = bias[row] - new_top;
                    total[row] *= rescale[row];
                }
                exponentials(s, rel_w, p, scale, offset, sum);
                wgmma_wait<0>();
                keep(attended);
#pragma unroll
                for (int n = 0; n < HEAD_DIM / 2; ++n) attended[n] *= rescale[n / 2 % 2];
            }
            total[0] += sum[0];
            total[1] += sum[1];

            wgmma_wait<1>();
            keep(attended);
            keep(p_before);
            if (!is_first) release(shared.v_empty[(stage + STAGES - 1) % STAGES]);
            barrier_wait(&shared.v_full[stage], parity);
            wgmma_fence();
#pragma unroll
            for (int k = 0; k < TILE / 16; ++k)
                wgmma<1>(attended, p[k], advance(values, stage * TILE_BYTES + 16 * 32 * k), 1);
            wgmma_commit();
            wgmma_wait<1>();
            keep(s_next);
            if (!is_last) release(shared.k_empty[next]);
        };

        float s_even[TILE / 2], s_odd[TILE / 2];
        u32 p_even[TILE / 16][4], p_odd[TILE / 16][4] = {};
        keep(attended);
        scores(s_even, 0, true, parity);
        wgmma_wait<0>();
        keep(s_even);
        release(shared.k_empty[0]);
#pragma unroll 1
        for (int j = 0; j < height; j += STAGES) {
#pragma unroll
            for (int stage = 0; stage < STAGES; stage += 2) {
                step(s_even, s_odd, p_even, p_odd, stage, j + stage == 0, false);
                step(s_odd, s_even, p_odd, p_even, stage + 1, false,
                     stage == STAGES - 2 && j + STAGES == height);
            }
            rel_h -= 4 * STAGES;
            parity ^= 1;
        }
        wgmma_wait<0>();
        keep(attended);
        release(shared.v_empty[STAGES - 1]);

#pragma unroll
        for (int row = 0; row < 2; ++row) {
            const float factor = reciprocal_approximate(quad_sum(total[row]));
            if (x + 8 * row >= width) continue;
            const long long token = (item.image * height + y) * width + x + 8 * row;
            u32* to = static_cast<u32*>(out) + (token * heads + item.head) * (HEAD_DIM / 2);
#pragma unroll
            for (int n = 2 * row; n < HEAD_DIM / 2; n += 4)
                to[n / 4 * 4 + lane % 4] = pack(attended[n] * factor, attended[n + 1] * factor);
        }
    }
}

extern "C" __global__ void __launch_bounds__((CONSUMERS + 1) * WARPGROUP, 1) global_attention(
    const __grid_constant__ TensorMap qkv, const __grid_constant__ TensorMap qkv_tail,
    const __grid_constant__ TensorMap values, const __grid_constant__ TensorMap table_h,
    const __grid_constant__ TensorMap table_h_tail, const __grid_constant__ TensorMap table_w,
    const __grid_constant__ TensorMap table_w_tail, void* __restrict__ out, int images, int height,
    int width, int heads, float scale) {
    extern __shared__ char memory[];
    Shared& shared = *reinterpret_cast<Shared*>(
        memory + (1024 - shared_address(memory) % 1024) % 1024);
    if (threadIdx.x == 0) {
        barrier_init(&shared.tables_full, 1);
        for (int i = 0; i < CONSUMERS; ++i) {
            barrier_init(&shared.q_full[i], 1);
            barrier_init(&shared.q_empty[i], WARPGROUP / WARP);
        }
        for (int stage = 0; stage < STAGES; ++stage) {
            barrier_init(&shared.k_full[stage], 1);
            barrier_init(&shared.v_full[stage], 1);
            barrier_init(&shared.k_empty[stage], CLUSTER * CONSUMERS * WARPGROUP / WARP);
            barrier_init(&shared.v_empty[stage], CLUSTER * CONSUMERS * WARPGROUP / WARP);
        }
        barrier_init_fence();
    }
    if (CLUSTER > 1)
        cluster_sync();
    else
        __syncthreads();

    const int groups = height / (CLUSTER * CONSUMERS);
    const int items = images * heads * groups, role = threadIdx.x / WARPGROUP;
    if (role == CONSUMERS) {
        registers_shrink<40>();
        if (threadIdx.x % WARPGROUP / WARP == 0 && elect_one())
            produce(shared, qkv, qkv_tail, values, table_h, table_h_tail, table_w, table_w_tail,
                    height, heads, groups, items);
        __syncwarp();
    } else {
        registers_grow<232>();
        consume(shared, out, role, height, width, heads, groups, items, scale);
    }
    // The other block may still signal this one's barriers.
    if (CLUSTER > 1) cluster_sync();
}
