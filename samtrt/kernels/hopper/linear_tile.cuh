// One tile of a linear layer with what stands around it in Block.forward (segment_anything/modeling/
// image_encoder.py): out = epilogue(a · weightᵀ), a [M, K] and weight [N, K] row-major. One warp
// fetches, two warpgroups multiply; linear.cu says which tiles.
//
// NORMALISED (qkv, lin1): a is the residual stream as it is. The LayerNorm's weight is in `weight`,
// whose rows are centred, so its mean drops out (Σ (x - mean) w = Σ x (w - mean w)), its bias is in
// `bias`, and what is left of it is the row's 1 / σ, known from the statistics that the layers
// before have written. RESIDUAL (proj, lin2): adds what `residual` holds and writes the statistics.
//
// Nothing but the product stands between a kernel's start and its first epilogue: the sums begin
// at zero, the residual comes through the stages behind the operands.
enum Epilogue { NORMALISED, NORMALISED_GELU, RESIDUAL };

struct Layer {  // linear.py, _Layer
    TensorMap a, weight, out, residual;
    const float* bias;
    float2* statistics;  // read, or written where there is a residual
    int residual_rows, rows, columns, inner;
    float eps;
};

static_assert(sizeof(Layer) == 576, "linear.py says otherwise");
static_assert(!PINGPONG || EPILOGUE != RESIDUAL, "one stage must hold a warpgroup's residual");

constexpr int BLOCK_K = 64;  // 128 bytes, the widest swizzle
constexpr int BLOCK_M = PINGPONG ? WG_ROWS : 2 * WG_ROWS;
constexpr int PARTS = WG_ROWS / 64;  // products of 64 rows a warpgroup
constexpr int SUMS = BLOCK_N / 2;    // a thread and product
constexpr int A_BYTES = BLOCK_M * BLOCK_K * 2;
constexpr int W_BYTES = BLOCK_N * BLOCK_K * 2;
constexpr int STAGE_BYTES = A_BYTES + W_BYTES;
// The output leaves in chunks of columns: through buffers of each warpgroup, or from where the
// residual came in.
constexpr int CHUNKS = BLOCK_N / CHUNK;
constexpr int CHUNK_BYTES = WG_ROWS * CHUNK * 2;
constexpr int RESIDUAL_BYTES = CHUNKS * CHUNK_BYTES;  // a warpgroup's, in a stage of its own
constexpr int RESIDUAL_STAGES = EPILOGUE == RESIDUAL ? 2 : 0;
// Of the row statistics' parts, those that each of the four threads which hold a row reads.
constexpr int OWN_PARTS = (STATISTICS + 3) / 4;

static_assert(RESIDUAL_STAGES == 0 || RESIDUAL_BYTES <= STAGE_BYTES, "the residual does not fit");

__device__ inline int steps_of(const Layer& layer) { return (layer.inner + BLOCK_K - 1) / BLOCK_K; }

// Shared memory of a block: the stages, the chunks, each warpgroup's bias, the barriers.
struct Shared {
    char* stages;
    char* chunks;
    float (*bias)[BLOCK_N];
    u64* full;
    u64* empty;
};

__device__ inline Shared shared_layout(char* memory) {
    char* chunks = memory + STAGES * STAGE_BYTES;
    char* bias = chunks + 2 * BUFFERS * CHUNK_BYTES;
    u64* full = reinterpret_cast<u64*>(bias + 2 * BLOCK_N * sizeof(float));
    return {memory, chunks, reinterpret_cast<float(*)[BLOCK_N]>(bias), full, full + STAGES};
}

__device__ inline void initialise(const Shared& shared) {
    for (int stage = 0; stage < STAGES; ++stage) {
        barrier_init(&shared.full[stage], 1);
        barrier_init(&shared.empty[stage], (PINGPONG ? 1 : 2) * WARPGROUP / WARP);
    }
    barrier_init_fence();
}

// ---- the fetching thread ----------------------------------------------------------------------

__device__ inline void fetch_weight(const Layer& layer, const Shared& shared, int stage, int column,
                                    int k) {
    barrier_expect(&shared.full[stage], STAGE_BYTES);
    copy_2d(shared.stages + stage * STAGE_BYTES + A_BYTES, layer.weight, k * BLOCK_K, column,
            &shared.full[stage]);
}

__device__ inline void fetch_a(const Layer& layer, const Shared& shared, int stage, int row, int k) {
    copy_2d(shared.stages + stage * STAGE_BYTES, layer.a, k * BLOCK_K, row, &shared.full[stage]);
}

// What is added to a tile: a stage for each warpgroup's rows, whose tensor's rows may repeat.
__device__ inline void fetch_residual(const Layer& layer, const Shared& shared, int row, int column,
                                      int& step) {
    for (int consumer = 0; consumer < 2; ++consumer, ++step) {
        const int stage = step % STAGES;
        if (step >= STAGES) barrier_wait(&shared.empty[stage], (step / STAGES - 1) & 1);
        barrier_expect(&shared.full[stage], RESIDUAL_BYTES);
        const int from = (row + consumer * WG_ROWS) % layer.residual_rows;
        for (int chunk = 0; chunk < CHUNKS; ++chunk)
            copy_2d(shared.stages + stage * STAGE_BYTES + chunk * CHUNK_BYTES, layer.residual,
                    column + chunk * CHUNK, from, &shared.full[stage]);
    }
}

// All of a tile from step `k` on; `step` counts stages over all tiles of the block.
__device__ inline void fetch(const Layer& layer, const Shared& shared, int row, int column, int k,
                             int& step) {
    for (const int steps = steps_of(layer); k < steps; ++k, ++step) {
        const int stage = step % STAGES;
        if (step >= STAGES) barrier_wait(&shared.empty[stage], (step / STAGES - 1) & 1);
        fetch_weight(layer, shared, stage, column, k);
        fetch_a(layer, shared, stage, row, k);
    }
    if (EPILOGUE == RESIDUAL) fetch_residual(layer, shared, row, column, step);
}

// A block's first tile: weights are no kernel's output, so they are fetched before the wait for
// the kernels that come before.
__device__ inline void fetch_first(const Layer& layer, const Shared& shared, int row, int column,
                                   int& step) {
    const int early = min(STAGES, steps_of(layer));
    for (int k = 0; k < early; ++k) fetch_weight(layer, shared, k, column, k);
    dependency_wait();
    for (int k = 0; k < early; ++k) fetch_a(layer, shared, k, row, k);
    step = early;
    fetch(layer, shared, row, column, early, step);
}

// ---- arithmetic -------------------------------------------------------------------------------

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

// A row's statistics: the parts' (sum, Σ (x - part's mean)²), shared out among the four threads that
// hold the row.
struct RowStatistics {
    float2 part[OWN_PARTS];

    __device__ void load(const Layer& layer, int row) {
#pragma unroll
        for (int i = 0; i < OWN_PARTS; ++i) {
            const int index = 4 * i + threadIdx.x % 4;
            const bool is_part = index < STATISTICS && row < layer.rows;
            part[i] = is_part ? __ldcg(&layer.statistics[index * layer.rows + row])
                              : make_float2(0.0f, 0.0f);
        }
    }

    // 1 / σ, the parts merged as in Chan et al. 1979.
    __device__ float inverse_deviation(const Layer& layer) const {
        const float width = layer.inner / STATISTICS;
        const float by_width = 1.0f / width, by_channels = by_width / STATISTICS;
        float sum = 0.0f, squares = 0.0f;
#pragma unroll
        for (int i = 0; i < OWN_PARTS; ++i) sum += part[i].x;
        const float mean = over_quad(sum) * by_channels;
#pragma unroll
        for (int i = 0; i < OWN_PARTS; ++i)
            if (4 * i + threadIdx.x % 4 < STATISTICS)
                squares += part[i].y + width * square(part[i].x * by_width - mean);
        return rsqrtf(over_quad(squares) * by_channels + layer.eps);
    }
};

// ---- the multiplying warpgroups ---------------------------------------------------------------

// What a thread is in its warpgroup, and what it holds of each product of 64 rows: two rows, 8
// apart, of which it has columns `column` and `column` + 1 of each 8.
struct Lane {
    int consumer, thread, row, column;
};

__device__ inline Lane lane_of(int consumer) {
    const int thread = threadIdx.x % WARPGROUP, lane = thread % WARP;
    return {consumer, thread, thread / WARP * 16 + lane / 4, lane % 4 * 2};
}

// Where the epilogue finds the bias of a tile's columns.
__device__ inline void copy_bias(const Layer& layer, const Shared& shared, int column,
                                 const Lane& lane) {
    for (int i = lane.thread; i < BLOCK_N; i += WARPGROUP)
        shared.bias[lane.consumer][i] = column + i < layer.columns ? __ldg(layer.bias + column + i) : 0;
}

// One warpgroup's rows of one tile, added to `sums`. `step` as in fetch.
__device__ inline void multiply(float (&sums)[PARTS][SUMS], const Shared& shared, int step, int steps,
                                int consumer) {
    auto release = [&](int stage) {
        if (threadIdx.x % WARP == 0) barrier_arrive(&shared.empty[stage]);
    };
    const int first_row = PINGPONG ? 0 : consumer * WG_ROWS;
#pragma unroll
    for (int part = 0; part < PARTS; ++part) keep(sums[part]);
    int stage = step % STAGES;
    u32 parity = step / STAGES & 1;
    int previous = stage;
    for (int k = 0; k < steps; ++k) {
        barrier_wait(&shared.full[stage], parity);
        const char* at = shared.stages + stage * STAGE_BYTES;
        const u64 a = descriptor<SWIZZLE_128>(at + first_row * BLOCK_K * 2);
        const u64 w = descriptor<SWIZZLE_128>(at + A_BYTES);
        wgmma_fence();
#pragma unroll
        for (int inner = 0; inner < BLOCK_K / 16; ++inner)
#pragma unroll
            for (int part = 0; part < PARTS; ++part)
                wgmma(sums[part], advance(a, part * 64 * BLOCK_K * 2 + inner * 32),
                      advance(w, inner * 32), 1);
        wgmma_commit();
        if (k > 0) {
            wgmma_wait<1>();
            release(previous);
        }
        previous = stage;
        if (++stage == STAGES) stage = 0, parity ^= 1;
    }
    // The tensor cores are the other warpgroup's as soon as the last product is issued.
    if (PINGPONG) named_arrive(1 + (consumer ^ 1), 2 * WARPGROUP);
    wgmma_wait<0>();
    release(previous);
#pragma unroll
    for (int part = 0; part < PARTS; ++part) keep(sums[part]);
}

// A chunk's 16-byte column `column` of row `row`, in bytes, as the copy engine swizzles it.
__device__ inline u32 chunk_offset(u32 row, u32 column) {
    if (CHUNK == 64) return row * 128 + ((column ^ (row & 7)) << 4);
    return row * 64 + ((column ^ ((row >> 1) & 3)) << 4);
}

// Bias of a chunk's columns that the thread holds.
struct ChunkBias {
    float2 of[CHUNK / 8];

    __device__ ChunkBias(const Shared& shared, int chunk, const Lane& lane) {
#pragma unroll
        for (int j = 0; j < CHUNK / 8; ++j)
            of[j] = *reinterpret_cast<const float2*>(
                &shared.bias[lane.consumer][chunk * CHUNK + j * 8 + lane.column]);
    }
};

// Where a thread's row address lies for two neighbouring 8 × 8 blocks of a chunk, from block `j` on.
__device__ inline u32 chunk_address(const char* chunk, int part, int j, const Lane& lane) {
    const u32 row = part * 64 + lane.thread / WARP * 16 + lane.thread % 16;
    return shared_address(chunk) + chunk_offset(row, j + lane.thread % WARP / 16);
}

// A warpgroup's chunk, written to shared memory, goes out.
__device__ inline void send(const Layer& layer, const char* chunk, int row, int column,
                            const Lane& lane) {
    fence_async_proxy();
    named_sync(3 + lane.consumer, WARPGROUP);
    if (lane.thread == 0) {
        if (row < layer.rows && column < layer.columns) store_2d(layer.out, chunk, column, row);
        store_commit();
    }
}

// out = sums / σ + bias, or its GELU. `buffer` counts the warpgroup's chunks.
template <Epilogue KIND>
__device__ inline void store(float (&sums)[PARTS][SUMS], const RowStatistics (&statistics)[PARTS][2],
                             const Layer& layer, const Shared& shared, int row, int column,
                             const Lane& lane, int& buffer) {
    float scale[PARTS][2];
#pragma unroll
    for (int part = 0; part < PARTS; ++part)
#pragma unroll
        for (int half = 0; half < 2; ++half)
            scale[part][half] = statistics[part][half].inverse_deviation(layer);
#pragma unroll
    for (int chunk = 0; chunk < CHUNKS; ++chunk) {
        // The buffer's last store has left it.
        if (lane.thread == 0) store_wait_read<BUFFERS - 1>();
        named_sync(3 + lane.consumer, WARPGROUP);
        const ChunkBias bias(shared, chunk, lane);
        char* to = shared.chunks + (lane.consumer * BUFFERS + buffer) * CHUNK_BYTES;
#pragma unroll
        for (int part = 0; part < PARTS; ++part)
#pragma unroll
            for (int j = 0; j < CHUNK / 8; j += 2) {
                u32 packed[2][2];
#pragma unroll
                for (int i = 0; i < 2; ++i)
#pragma unroll
                    for (int half = 0; half < 2; ++half) {
                        const float* sum = &sums[part][(chunk * CHUNK + (j + i) * 8) / 2 + 2 * half];
                        float left = sum[0] * scale[part][half] + bias.of[j + i].x;
                        float right = sum[1] * scale[part][half] + bias.of[j + i].y;
                        if (KIND == NORMALISED_GELU) left = gelu(left), right = gelu(right);
                        packed[i][half] = pack(left, right);
                    }
                store_matrix_x4(chunk_address(to, part, j, lane), packed[0][0], packed[0][1],
                                packed[1][0], packed[1][1]);
            }
        send(layer, to, row, column + chunk * CHUNK, lane);
        if (++buffer == BUFFERS) buffer = 0;
    }
}

// What the next norm needs to know of a row, of this tile's columns: one pass, about a value of the
// row itself, so that little cancels.
struct RowSums {
    float pivot, sum = 0.0f, squares = 0.0f;

    __device__ void add(float x) {
        const float difference = x - pivot;
        sum += difference;
        squares += difference * difference;
    }

    // By the four threads that hold the row.
    __device__ void store(const Layer& layer, int row, int column) {
        sum = over_quad(sum), squares = over_quad(squares);
        if (threadIdx.x % 4 == 0 && row < layer.rows)
            layer.statistics[column / BLOCK_N * layer.rows + row] =
                make_float2(sum + BLOCK_N * pivot, fmaxf(squares - sum * sum / BLOCK_N, 0.0f));
    }
};

// out = sums + bias + residual, in the residual's place, and its statistics. `step` is the stage
// after the tile's last operands.
__device__ inline void store_sum(const float (&sums)[PARTS][SUMS], const Layer& layer,
                                 const Shared& shared, int row, int column, const Lane& lane,
                                 int step) {
    step += lane.consumer;
    barrier_wait(&shared.full[step % STAGES], step / STAGES & 1);
    char* stage = shared.stages + step % STAGES * STAGE_BYTES;
    named_sync(3 + lane.consumer, WARPGROUP);  // the bias is there
    RowSums rows[PARTS][2];
#pragma unroll
    for (int chunk = 0; chunk < CHUNKS; ++chunk) {
        const ChunkBias bias(shared, chunk, lane);
        char* at = stage + chunk * CHUNK_BYTES;
#pragma unroll
        for (int part = 0; part < PARTS; ++part)
#pragma unroll
            for (int j = 0; j < CHUNK / 8; j += 2) {
                const u32 place = chunk_address(at, part, j, lane);
                u32 packed[2][2];
                load_matrix_x4(place, packed[0][0], packed[0][1], packed[1][0], packed[1][1]);
#pragma unroll
                for (int i = 0; i < 2; ++i)
#pragma unroll
                    for (int half = 0; half < 2; ++half) {
                        const float* sum =
                            &sums[part][(chunk * CHUNK + (j + i) * 8) / 2 + 2 * half];
                        u32& pair = packed[i][half];
                        pair = pack(sum[0] + bias.of[j + i].x + unpack_low(pair),
                                    sum[1] + bias.of[j + i].y + unpack_high(pair));
                        // The statistics are of what is stored.
                        RowSums& own = rows[part][half];
                        if (chunk + j + i == 0)
                            own.pivot = __shfl_sync(~0u, unpack_low(pair), threadIdx.x & 28);
                        own.add(unpack_low(pair));
                        own.add(unpack_high(pair));
                    }
                store_matrix_x4(place, packed[0][0], packed[0][1], packed[1][0], packed[1][1]);
            }
        send(layer, at, row, column + chunk * CHUNK, lane);
    }
#pragma unroll
    for (int part = 0; part < PARTS; ++part)
#pragma unroll
        for (int half = 0; half < 2; ++half)
            rows[part][half].store(layer, row + part * 64 + half * 8 + lane.row, column);
}

// The stages that held a tile's residual are free: the other warpgroup's as far as this one is
// concerned, its own when the stores have left it.
__device__ inline void release_residual(const Shared& shared, const Lane& lane, int step) {
    if (lane.thread != 0) return;
    barrier_arrive(&shared.empty[(step + (lane.consumer ^ 1)) % STAGES], WARPGROUP / WARP);
    store_wait_read<0>();
    barrier_arrive(&shared.empty[(step + lane.consumer) % STAGES], WARPGROUP / WARP);
}
