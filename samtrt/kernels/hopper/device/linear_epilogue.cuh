// What stands around a linear layer's product in Block.forward (segment_anything/modeling/
// image_encoder.py), on a warpgroup's sums.
//
// NORMALISED (qkv, lin1): a is the residual stream as it is. The LayerNorm's weight is in `weight`,
// whose rows are centred, so its mean drops out (Σ (x - mean) w = Σ x (w - mean w)), its bias is in
// `bias`, and what is left of it is the row's 1 / σ, known from the statistics that the layers
// before have written. RESIDUAL (proj, lin2): adds what `residual` holds and writes the statistics.

// Of the row statistics' parts, those that each of the four threads which hold a row reads.
constexpr int OWN_PARTS = (STATISTICS + 3) / 4;

// Erf GELU, x Φ(x), with Φ(x) = 1 / (1 + 2^(-x q(x²))) and q fitted to the log-odds of the normal
// distribution: off by 2.6e-5 at most, a tenth of fp16's rounding of such values, in nine
// instructions. Beyond GELU_LIMIT, where Φ is 0 or 1, q stays what it is there.
__device__ inline float gelu(float x) {
    const float t = fminf(x * x, GELU_LIMIT);
    const float q = (GELU_2 * t + GELU_1) * t + GELU_0;
    return x * reciprocal_approximate(1.0f + exp2_approximate(q * x));
}

__device__ inline float square(float x) { return x * x; }

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
        const float width = u32(layer.inner) / STATISTICS;
        const float by_width = reciprocal_approximate(width);
        const float by_channels = by_width * (1.0f / STATISTICS);
        float sum = 0.0f, squares = 0.0f;
#pragma unroll
        for (int i = 0; i < OWN_PARTS; ++i) sum += part[i].x;
        const float mean = quad_sum(sum) * by_channels;
#pragma unroll
        for (int i = 0; i < OWN_PARTS; ++i)
            if (4 * i + threadIdx.x % 4 < STATISTICS)
                squares += part[i].y + width * square(part[i].x * by_width - mean);
        return rsqrtf(quad_sum(squares) * by_channels + layer.eps);
    }
};

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
        sum = quad_sum(sum), squares = quad_sum(squares);
        if (threadIdx.x % 4 == 0 && row < layer.rows)
            layer.statistics[u32(column) / BLOCK_N * layer.rows + row] =
                make_float2(sum + BLOCK_N * pivot, fmaxf(squares - sum * sum * (1.0f / BLOCK_N), 0.0f));
    }
};

// The bias of a tile's columns: read early, so that nothing waits for it, and told to the warpgroup
// when it is needed.
struct Bias {
    static constexpr int OWN = (BLOCK_N + WARPGROUP - 1) / WARPGROUP;
    float own[OWN];

    __device__ void load(const Layer& layer, int column, int thread) {
#pragma unroll
        for (int i = 0; i < OWN; ++i) {
            const int from = column + i * WARPGROUP + thread;
            own[i] = from < layer.columns ? __ldg(layer.bias + from) : 0.0f;
        }
    }
    __device__ void store(float (&shared)[BLOCK_N], int thread) const {
#pragma unroll
        for (int i = 0; i < OWN; ++i)
            if (i * WARPGROUP + thread < BLOCK_N) shared[i * WARPGROUP + thread] = own[i];
    }
};

// One part: out = sums / σ + bias, or its GELU; or sums + bias + residual, which lies at `place`, and
// the statistics of that. What goes out is left at `place`.
__device__ inline void finish(const float (&sums)[SUMS], const float (&scale)[2],
                              RowSums (&rows)[2], const float* bias, char* place, const Lane& lane) {
    // The row of which the thread gives the address, and which of two blocks of 8 columns.
    const u32 row = lane.thread / WARP * 16 + lane.thread % 16, right = lane.thread % WARP / 16;
#pragma unroll
    for (int j = 0; j < BLOCK_N / 8; j += 2) {
        const int chunk = 8 * j / CHUNK, block = j % (CHUNK / 8);
        const u32 offset = chunk < CHUNKS ? swizzled_128(row, block + right)
                                          : swizzled_64(row, block + right);
        const u32 address = shared_address(place) + chunk * CHUNK_BYTES + offset;
        u32 packed[2][2];
        if (EPILOGUE == RESIDUAL)
            load_matrix_x4(address, packed[0][0], packed[0][1], packed[1][0], packed[1][1]);
#pragma unroll
        for (int i = 0; i < 2; ++i) {
            const float2 added = *reinterpret_cast<const float2*>(bias + (j + i) * 8 + lane.column);
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                const float* sum = &sums[4 * (j + i) + 2 * half];
                float first = sum[0], second = sum[1];
                if (EPILOGUE == RESIDUAL) {
                    first += added.x + unpack_low(packed[i][half]);
                    second += added.y + unpack_high(packed[i][half]);
                    if (j + i == 0) rows[half].pivot = __shfl_sync(~0u, first, threadIdx.x & 28);
                    rows[half].add(first), rows[half].add(second);
                } else {
                    first = first * scale[half] + added.x, second = second * scale[half] + added.y;
                    if (EPILOGUE == NORMALISED_GELU) first = gelu(first), second = gelu(second);
                }
                packed[i][half] = pack(first, second);
            }
        }
        store_matrix_x4(address, packed[0][0], packed[0][1], packed[1][0], packed[1][1]);
    }
}

// When the warpgroup has written a part, it goes out.
__device__ inline void send(const Layer& layer, const char* place, int row, int column,
                            const Lane& lane) {
    fence_async_proxy();
    named_sync(3 + lane.consumer, WARPGROUP);
    if (lane.thread != 0) return;
    for_each_chunk(layer.out, layer.out_tail, [&](const TensorMap& map, int first, int offset) {
        if (row < layer.rows && column + first < layer.columns)
            store_2d(map, place + offset, column + first, row);
    });
    store_commit();
}

// The stage that is the other warpgroup's place: nothing of it is read here, but each warp waits for
// it, and then arrives, as at any other stage. A warp that arrived without the wait could do so in the
// phase before, which then ends while the other warpgroup still reads; one that did not wait would not
// know whether the next phase's parity is this one's.
__device__ inline void release_others_place(const Shared& shared, Ring& ring) {
    barrier_wait(&shared.full[ring.stage], ring.parity);
    __syncwarp();
    if (threadIdx.x % WARP == 0) barrier_arrive(&shared.empty[ring.stage]);
    ring.advance();
}

// A warpgroup's own place is free when the stores have left it. (One thread arrives for its four warps:
// `send` has shown it that they have all waited for the place.)
__device__ inline void release_place(const Shared& shared, const Lane& lane, Ring& ring) {
    if (lane.thread == 0) {
        store_wait_read<0>();
        barrier_arrive(&shared.empty[ring.stage], WARPGROUP / WARP);
    }
    ring.advance();
}
