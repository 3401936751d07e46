// One tile of a linear layer with what stands around it in Block.forward (segment_anything/modeling/
// image_encoder.py): out = epilogue(a · weightᵀ), a [M, K] and weight [N, K] row-major. One warp
// fetches, two warpgroups multiply; linear.cu says which tiles.
//
// NORMALISED (qkv, lin1): a is the residual stream as it is. The LayerNorm's weight is in `weight`,
// whose rows are centred, so its mean drops out (Σ (x - mean) w = Σ x (w - mean w)), its bias is in
// `bias`, and what is left of it is the row's 1 / σ, known from the statistics that the layers
// before have written. RESIDUAL (proj, lin2): adds what `residual` holds and writes the statistics.
enum Epilogue { NORMALISED, NORMALISED_GELU, RESIDUAL };

struct Layer {  // linear.py, _Layer
    TensorMap a, weight, out;
    const float* bias;
    const u32* residual;
    float2* statistics;  // read, or written where there is a residual
    int residual_rows, rows, columns, inner;
    float eps;
};

static_assert(sizeof(Layer) == 448, "linear.py says otherwise");

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

__device__ inline int steps_of(const Layer& layer) { return (layer.inner + BLOCK_K - 1) / BLOCK_K; }

// Shared memory of a block: the stages, the chunks, the barriers.
struct Shared {
    char* stages;
    char* chunks;
    u64* full;
    u64* empty;
};

__device__ inline Shared shared_layout(char* memory) {
    char* chunks = memory + STAGES * STAGE_BYTES;
    u64* full = reinterpret_cast<u64*>(chunks + 2 * BUFFERS * CHUNK_BYTES);
    return {memory, chunks, full, full + STAGES};
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

// All of a tile from step `k` on; `step` counts stages over all tiles of the block.
__device__ inline void fetch(const Layer& layer, const Shared& shared, int row, int column, int k,
                             int& step) {
    for (const int steps = steps_of(layer); k < steps; ++k, ++step) {
        const int stage = step % STAGES;
        if (step >= STAGES) barrier_wait(&shared.empty[stage], (step / STAGES - 1) & 1);
        fetch_weight(layer, shared, stage, column, k);
        fetch_a(layer, shared, stage, row, k);
    }
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

// σ of a row from its parts' (sum, Σ (x - part's mean)²), merged as in Chan et al. 1979. The four
// threads that hold the row share the work.
__device__ inline float deviation(const Layer& layer, int row) {
    constexpr int OWN = (STATISTICS + 3) / 4;
    const float width = layer.inner / STATISTICS;
    const float by_width = 1.0f / width, by_channels = by_width / STATISTICS;
    float2 part[OWN];
    float sum = 0.0f, squares = 0.0f;
#pragma unroll
    for (int i = 0; i < OWN; ++i) {
        const int index = 4 * i + threadIdx.x % 4;
        const bool is_part = index < STATISTICS && row < layer.rows;
        part[i] = is_part ? __ldcg(&layer.statistics[index * layer.rows + row])
                          : make_float2(0.0f, 0.0f);
        sum += part[i].x;
    }
    const float mean = over_quad(sum) * by_channels;
#pragma unroll
    for (int i = 0; i < OWN; ++i)
        if (4 * i + threadIdx.x % 4 < STATISTICS)
            squares += part[i].y + width * square(part[i].x * by_width - mean);
    return sqrtf(over_quad(squares) * by_channels + layer.eps);
}

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

// Where the sums begin, so that the epilogue has little left: with a residual that and the bias,
// without one the bias times σ, since the sums will be divided by it. `scale` gets 1 / σ.
template <Epilogue KIND>
__device__ inline void begin(float (&sums)[PARTS][SUMS], float (&scale)[PARTS][2],
                             const Layer& layer, int row, int column, const Lane& lane) {
    const float* bias = layer.bias + column + lane.column;
    const int limit = layer.columns - column - lane.column;  // columns not below it are outside
#pragma unroll
    for (int part = 0; part < PARTS; ++part)
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            const int own_row = row + part * 64 + half * 8 + lane.row;
            float factor = 1.0f;
            if (KIND != RESIDUAL) {
                factor = deviation(layer, own_row);
                scale[part][half] = 1.0f / factor;
            }
            const u64 from = u64(own_row % layer.residual_rows) * layer.columns + column + lane.column;
#pragma unroll
            for (int j = 0; j < BLOCK_N; j += 8) {
                float2 added = make_float2(0.0f, 0.0f);
                // (what has a residual fills its tiles)
                if (KIND == RESIDUAL || j < limit)
                    added = __ldg(reinterpret_cast<const float2*>(bias + j));
                added.x *= factor, added.y *= factor;
                if (KIND == RESIDUAL) {
                    const u32 old =
                        own_row < layer.rows ? __ldcg(&layer.residual[(from + j) / 2]) : 0;
                    added.x += unpack_low(old), added.y += unpack_high(old);
                }
                sums[part][j / 2 + 2 * half] = added.x;
                sums[part][j / 2 + 2 * half + 1] = added.y;
            }
        }
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

// The epilogue's arithmetic and the stores. `buffer` counts the warpgroup's chunks.
template <Epilogue KIND>
__device__ inline void store(float (&sums)[PARTS][SUMS], const float (&scale)[PARTS][2],
                             const Layer& layer, const Shared& shared, int row, int column,
                             const Lane& lane, int& buffer) {
#pragma unroll
    for (int chunk = 0; chunk < CHUNKS; ++chunk) {
        // The buffer's last store has left it.
        if (lane.thread == 0) store_wait_read<BUFFERS - 1>();
        named_sync(3 + lane.consumer, WARPGROUP);
        char* to = shared.chunks + (lane.consumer * BUFFERS + buffer) * CHUNK_BYTES;
#pragma unroll
        for (int part = 0; part < PARTS; ++part) {
            u32 packed[CHUNK / 8][2];
#pragma unroll
            for (int j = 0; j < CHUNK / 8; ++j) {
                const int first = chunk * CHUNK + j * 8;
#pragma unroll
                for (int half = 0; half < 2; ++half) {
                    float& left = sums[part][first / 2 + 2 * half];
                    float& right = sums[part][first / 2 + 2 * half + 1];
                    if (KIND != RESIDUAL) left *= scale[part][half], right *= scale[part][half];
                    if (KIND == NORMALISED_GELU) left = gelu(left), right = gelu(right);
                    packed[j][half] = pack(left, right);
                    if (KIND == RESIDUAL) {  // the statistics are of what is stored
                        left = unpack_low(packed[j][half]);
                        right = unpack_high(packed[j][half]);
                    }
                }
            }
#pragma unroll
            for (int j = 0; j < CHUNK / 8; j += 2) {
                const u32 at = part * 64 + lane.thread / WARP * 16 + lane.thread % 16;
                store_matrix_x4(
                    shared_address(to) + chunk_offset(at, j + lane.thread % WARP / 16),
                    packed[j][0], packed[j][1], packed[j + 1][0], packed[j + 1][1]);
            }
        }
        fence_async_proxy();
        named_sync(3 + lane.consumer, WARPGROUP);
        if (lane.thread == 0) {
            if (row < layer.rows && column + chunk * CHUNK < layer.columns)
                store_2d(layer.out, to, column + chunk * CHUNK, row);
            store_commit();
        }
        if (++buffer == BUFFERS) buffer = 0;
    }
}

// What the next norm needs to know of the rows, of this tile's columns.
__device__ inline void store_statistics(const float (&sums)[PARTS][SUMS], const Layer& layer, int row,
                                        int column, const Lane& lane) {
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
            const int own_row = row + part * 64 + half * 8 + lane.row;
            if (lane.column == 0 && own_row < layer.rows)
                layer.statistics[column / BLOCK_N * layer.rows + own_row] =
                    make_float2(sum, squares);
        }
}
