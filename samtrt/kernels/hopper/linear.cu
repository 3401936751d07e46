// A linear layer with what stands around it in Block.forward (segment_anything/modeling/
// image_encoder.py): out = epilogue(a · weightᵀ), a [M, K] and weight [N, K] row-major.
//
// Persistent: block b computes tiles b, b + blocks, …. One warp of the first warpgroup fetches; the
// other two warpgroups multiply. PINGPONG: each takes every other tile of WG_ROWS rows, and while
// one is in its epilogue the tensor cores work for the other. Otherwise both take one half of a tile
// of 2 · WG_ROWS rows.
//
// NORMALISED (qkv, lin1): a is the residual stream as it is. The LayerNorm's weight is in `weight`,
// whose rows are centred, so its mean drops out (Σ (x - mean) w = Σ x (w - mean w)), its bias is in
// `bias`, and what is left of it is the row's 1 / σ, known from the statistics that the layers
// before have written. RESIDUAL (proj, lin2): adds what `residual` holds and writes the statistics.
enum Epilogue { NORMALISED, NORMALISED_GELU, RESIDUAL };

constexpr int BLOCK_K = 64;  // 128 bytes, the widest swizzle
constexpr int BLOCK_M = PINGPONG ? WG_ROWS : 2 * WG_ROWS;
constexpr int PARTS = WG_ROWS / 64;  // products of 64 rows a warpgroup
constexpr int SUMS = BLOCK_N / 2;    // a thread and product
constexpr int A_BYTES = BLOCK_M * BLOCK_K * 2;
constexpr int W_BYTES = BLOCK_N * BLOCK_K * 2;
constexpr int STAGE_BYTES = A_BYTES + W_BYTES;
// The output leaves in chunks of columns, through buffers of each warpgroup.
constexpr int CHUNKS = BLOCK_N / CHUNK;
constexpr int CHUNK_BYTES = WG_ROWS * CHUNK * 2;
constexpr bool HAS_RESIDUAL = EPILOGUE == RESIDUAL;

struct Tile {
    int row, column;
};

// Tiles run down GROUP_M row blocks before they move right: what a wave reads stays in L2.
__device__ inline Tile tile_at(int index, int blocks_m, int blocks_n) {
    int group = GROUP_M * blocks_n;
    int first = index / group * GROUP_M;
    int height = min(blocks_m - first, GROUP_M);
    int within = index % group;
    int m = (first + within % height) * CLUSTER;
    if (CLUSTER > 1) m += cluster_rank();
    return {m * BLOCK_M, within / height * BLOCK_N};
}

// Erf GELU, x Φ(x), with Φ(x) = 1 / (1 + 2^(-x q(x²))) and q fitted to the log-odds of the normal
// distribution: off by 2.6e-5 at most, a tenth of fp16's rounding of such values, in nine
// instructions. Beyond x² = 25, where Φ is 0 or 1, q stays what it is there.
__device__ inline float gelu(float x) {
    const float t = fminf(x * x, 25.0f);
    const float q = (1.01533051e-3f * t - 1.06782307e-1f) * t - 2.30111408f;
    return x * reciprocal_approximate(1.0f + exp2_approximate(q * x));
}

__device__ inline float square(float x) { return x * x; }

// The sum over the four threads that hold a row.
__device__ inline float over_quad(float x) {
    x += __shfl_xor_sync(~0u, x, 1);
    return x + __shfl_xor_sync(~0u, x, 2);
}

// 1 / σ of a row from its parts' (sum, Σ (x - part's mean)²), merged as in Chan et al. 1979. The four
// threads that hold the row share the work.
__device__ inline float inverse_deviation(const float2* statistics, int rows, int row, int channels,
                                          float eps) {
    constexpr int OWN = (STATISTICS + 3) / 4;
    const float width = channels / STATISTICS;
    const float by_width = 1.0f / width, by_channels = by_width / STATISTICS;
    float2 part[OWN];
    float sum = 0.0f, squares = 0.0f;
#pragma unroll
    for (int i = 0; i < OWN; ++i) {
        const int index = 4 * i + threadIdx.x % 4;
        const bool is_part = index < STATISTICS && row < rows;
        part[i] = is_part ? __ldg(&statistics[index * rows + row]) : make_float2(0.0f, 0.0f);
        sum += part[i].x;
    }
    const float mean = over_quad(sum) * by_channels;
#pragma unroll
    for (int i = 0; i < OWN; ++i)
        if (4 * i + threadIdx.x % 4 < STATISTICS)
            squares += part[i].y + width * square(part[i].x * by_width - mean);
    return rsqrtf(over_quad(squares) * by_channels + eps);
}

// A chunk's 16-byte column `column` of row `row`, in bytes, as the copy engine swizzles it.
__device__ inline u32 chunk_offset(u32 row, u32 column) {
    if (CHUNK == 64) return row * 128 + ((column ^ (row & 7)) << 4);
    return row * 64 + ((column ^ ((row >> 1) & 3)) << 4);
}

__device__ void produce(const TensorMap& a_map, const TensorMap& weight_map, char* stages, u64* full,
                        u64* empty, int tiles, int blocks_m, int blocks_n, int steps) {
    const u32 rank = CLUSTER > 1 ? cluster_rank() : 0;
    auto fetch_weight = [&](int stage, int column, int k) {
        barrier_expect(&full[stage], STAGE_BYTES);
        char* to = stages + stage * STAGE_BYTES + A_BYTES;
        if (CLUSTER == 1) {
            copy_2d(to, weight_map, k * BLOCK_K, column, &full[stage]);
        } else {  // each block fetches its share for all of the cluster
            constexpr int share = BLOCK_N / CLUSTER;
            copy_2d_multicast(to + rank * share * BLOCK_K * 2, weight_map, k * BLOCK_K,
                              column + rank * share, &full[stage], (1 << CLUSTER) - 1);
        }
    };
    auto fetch_a = [&](int stage, int row, int k) {
        copy_2d(stages + stage * STAGE_BYTES, a_map, k * BLOCK_K, row, &full[stage]);
    };
    int step = 0;  // over all tiles
    for (int index = blockIdx.x / CLUSTER; index < tiles; index += gridDim.x / CLUSTER) {
        const Tile tile = tile_at(index, blocks_m, blocks_n);
        int k = 0;
        if (step == 0) {
            // Weights are no kernel's output: the first are fetched before the wait.
            const int early = min(STAGES, steps);
            for (; k < early; ++k) fetch_weight(k, tile.column, k);
            dependency_wait();
            for (k = 0; k < early; ++k) fetch_a(k, tile.row, k);
            step = early;
        }
        for (; k < steps; ++k, ++step) {
            const int stage = step % STAGES;
            if (step >= STAGES) barrier_wait(&empty[stage], (step / STAGES - 1) & 1);
            fetch_weight(stage, tile.column, k);
            fetch_a(stage, tile.row, k);
        }
    }
}

// One warpgroup's rows of one tile into `sums`, or onto them where they hold the residual already;
// `step` counts stages over all tiles of the block.
__device__ inline void multiply(float (&sums)[PARTS][SUMS], const char* stages, u64* full,
                                u64* empty, int step, int steps, int first_row) {
    auto release = [&](int stage) {
        if (threadIdx.x % WARP < CLUSTER) {
            if (CLUSTER == 1)
                barrier_arrive(&empty[stage]);
            else
                barrier_arrive_at(&empty[stage], threadIdx.x % WARP);
        }
    };
    int stage = step % STAGES;
    u32 parity = step / STAGES & 1;
    int previous = stage;
    for (int k = 0; k < steps; ++k) {
        barrier_wait(&full[stage], parity);
        const char* at = stages + stage * STAGE_BYTES;
        const u64 a = descriptor<SWIZZLE_128>(at + first_row * BLOCK_K * 2);
        const u64 w = descriptor<SWIZZLE_128>(at + A_BYTES);
        wgmma_fence();
#pragma unroll
        for (int inner = 0; inner < BLOCK_K / 16; ++inner)
#pragma unroll
            for (int part = 0; part < PARTS; ++part)
                wgmma(sums[part], advance(a, part * 64 * BLOCK_K * 2 + inner * 32),
                      advance(w, inner * 32), HAS_RESIDUAL || k + inner > 0);
        wgmma_commit();
        if (k > 0) {
            wgmma_wait<1>();
            release(previous);
        }
        previous = stage;
        if (++stage == STAGES) stage = 0, parity ^= 1;
    }
    // (the caller waits for the last products, then their stage is free too)
    if (PINGPONG) named_arrive(1 + (threadIdx.x / WARPGROUP == 1), 2 * WARPGROUP);
    wgmma_wait<0>();
    release(previous);
#pragma unroll
    for (int part = 0; part < PARTS; ++part) keep(sums[part]);
}

extern "C" __global__ void __launch_bounds__(3 * WARPGROUP, 1)
    linear(const __grid_constant__ TensorMap a_map, const __grid_constant__ TensorMap weight_map,
           const __grid_constant__ TensorMap out_map, const float* bias, const u32* residual,
           const float2* statistics, float2* new_statistics, int residual_rows, int rows,
           int columns, int inner, float eps) {
    extern __shared__ __align__(1024) char shared[];
    char* staging = shared + STAGES * STAGE_BYTES;
    u64* full = reinterpret_cast<u64*>(staging + 2 * BUFFERS * CHUNK_BYTES);
    u64* empty = full + STAGES;

    // (a shuffle tells the compiler that it is the same for the warp)
    const int warpgroup = __shfl_sync(~0u, threadIdx.x / WARPGROUP, 0);
    const int blocks_m = (rows + CLUSTER * BLOCK_M - 1) / (CLUSTER * BLOCK_M);
    const int blocks_n = (columns + BLOCK_N - 1) / BLOCK_N;
    const int tiles = blocks_m * blocks_n;
    const int steps = (inner + BLOCK_K - 1) / BLOCK_K;

    if (threadIdx.x == 0) {
        prefetch(a_map);
        prefetch(weight_map);
        prefetch(out_map);
        for (int stage = 0; stage < STAGES; ++stage) {
            barrier_init(&full[stage], 1);
            barrier_init(&empty[stage], CLUSTER * (PINGPONG ? 1 : 2) * WARPGROUP / WARP);
        }
        barrier_init_fence();
    }
    if (CLUSTER > 1)
        cluster_sync();
    else
        __syncthreads();
    dependents_launch();

    if (warpgroup == 0) {
        registers_shrink<24>();
        if (threadIdx.x < WARP && elect_one())
            produce(a_map, weight_map, shared, full, empty, tiles, blocks_m, blocks_n, steps);
    } else {
        registers_grow<240>();
        const int consumer = warpgroup - 1;
        const int thread = threadIdx.x % WARPGROUP, lane = thread % WARP;
        const int own_row = thread / WARP * 16 + lane / 4;  // of 64; the other is 8 below
        const int own_column = lane % 4 * 2;                // of 8
        char* buffers = staging + consumer * BUFFERS * CHUNK_BYTES;
        if (PINGPONG && consumer == 1) named_arrive(1, 2 * WARPGROUP);
        dependency_wait();

        int step = 0, turn = 0, buffer = 0;
        for (int index = blockIdx.x / CLUSTER; index < tiles;
             index += gridDim.x / CLUSTER, step += steps, ++turn) {
            if (PINGPONG && (turn & 1) != consumer) continue;
            Tile tile = tile_at(index, blocks_m, blocks_n);
            if (!PINGPONG) tile.row += consumer * WG_ROWS;
            float scale[PARTS][2];
            if (!HAS_RESIDUAL) {
#pragma unroll
                for (int part = 0; part < PARTS; ++part)
#pragma unroll
                    for (int half = 0; half < 2; ++half)
                        scale[part][half] = inverse_deviation(
                            statistics, rows, tile.row + part * 64 + half * 8 + own_row, inner, eps);
            }

            float sums[PARTS][SUMS];
            const float* tile_bias = bias + tile.column + own_column;
            if (HAS_RESIDUAL) {  // read while the other warpgroup multiplies
#pragma unroll
                for (int part = 0; part < PARTS; ++part)
#pragma unroll
                    for (int half = 0; half < 2; ++half) {
                        const int row = tile.row + part * 64 + half * 8 + own_row;
                        const u64 from = u64(row % residual_rows) * columns + tile.column;
#pragma unroll
                        for (int j = 0; j < BLOCK_N / 8; ++j) {
                            const u32 old =
                                row < rows ? residual[(from + 8 * j + own_column) / 2] : 0;
                            const float2 added =
                                __ldg(reinterpret_cast<const float2*>(tile_bias + 8 * j));
                            sums[part][4 * j + 2 * half] = unpack_low(old) + added.x;
                            sums[part][4 * j + 2 * half + 1] = unpack_high(old) + added.y;
                        }
                    }
            }
            if (PINGPONG) named_sync(1 + consumer, 2 * WARPGROUP);
            multiply(sums, shared, full, empty, step, steps, PINGPONG ? 0 : consumer * WG_ROWS);

#pragma unroll
            for (int chunk = 0; chunk < CHUNKS; ++chunk) {
                // The buffer's last store has left it.
                if (thread == 0) store_wait_read<BUFFERS - 1>();
                named_sync(3 + consumer, WARPGROUP);
                char* to = buffers + buffer * CHUNK_BYTES;
#pragma unroll
                for (int part = 0; part < PARTS; ++part) {
                    u32 packed[CHUNK / 8][2];
#pragma unroll
                    for (int j = 0; j < CHUNK / 8; ++j) {
                        const int column = chunk * CHUNK + j * 8;
                        float* four = &sums[part][column / 2];
                        float2 added = make_float2(0.0f, 0.0f);
                        if (!HAS_RESIDUAL && tile.column + column + own_column < columns)
                            added = __ldg(reinterpret_cast<const float2*>(tile_bias + column));
#pragma unroll
                        for (int half = 0; half < 2; ++half) {
                            float& left = four[2 * half];
                            float& right = four[2 * half + 1];
                            if (!HAS_RESIDUAL) {
                                left = left * scale[part][half] + added.x;
                                right = right * scale[part][half] + added.y;
                            }
                            if (EPILOGUE == NORMALISED_GELU) left = gelu(left), right = gelu(right);
                            packed[j][half] = pack(left, right);
                            if (HAS_RESIDUAL) {  // the statistics are of what is stored
                                left = unpack_low(packed[j][half]);
                                right = unpack_high(packed[j][half]);
                            }
                        }
                    }
#pragma unroll
                    for (int j = 0; j < CHUNK / 8; j += 2) {
                        const u32 row = part * 64 + thread / WARP * 16 + lane % 16;
                        store_matrix_x4(shared_address(to) + chunk_offset(row, j + lane / 16),
                                        packed[j][0], packed[j][1], packed[j + 1][0],
                                        packed[j + 1][1]);
                    }
                }
                fence_async_proxy();
                named_sync(3 + consumer, WARPGROUP);
                if (thread == 0) {
                    if (tile.row < rows && tile.column + chunk * CHUNK < columns)
                        store_2d(out_map, to, tile.column + chunk * CHUNK, tile.row);
                    store_commit();
                }
                if (++buffer == BUFFERS) buffer = 0;
            }

            if (HAS_RESIDUAL) {
#pragma unroll
                for (int part = 0; part < PARTS; ++part)
#pragma unroll
                    for (int half = 0; half < 2; ++half) {
                        const float (&own)[SUMS] = sums[part];
                        float sum = 0.0f, squares = 0.0f;
#pragma unroll
                        for (int i = 2 * half; i < SUMS; i += 4) sum += own[i] + own[i + 1];
                        sum = over_quad(sum);
                        const float mean = sum * (1.0f / BLOCK_N);
#pragma unroll
                        for (int i = 2 * half; i < SUMS; i += 4)
                            squares += square(own[i] - mean) + square(own[i + 1] - mean);
                        squares = over_quad(squares);
                        const int row = tile.row + part * 64 + half * 8 + own_row;
                        if (lane % 4 == 0 && row < rows)
                            new_statistics[tile.column / BLOCK_N * rows + row] =
                                make_float2(sum, squares);
                    }
            }
        }
    }
    if (CLUSTER > 1) cluster_sync();  // no arrival may meet a block that has left
}
