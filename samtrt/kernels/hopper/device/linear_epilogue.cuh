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

// The same of two values in fp16, times a scale, as e4m3, which keeps four bits of it. Φ is
// (1 + tanh(x q ln2 / 2)) / 2, x is cut off where the product is 0.
__device__ inline u32 gelu_e4m3(float low, float high, u32 half_scale) {
    u16 packed;
    asm("{ .reg .b32 x, t, q, least, limit, c;\n"
        "  cvt.rn.f16x2.f32 x, %2, %1;\n"
        "  mov.b32 least, 0xd000d000;  max.f16x2 x, x, least;\n"  // -32
        "  mul.f16x2 t, x, x;\n"
        "  mov.b32 limit, %7;  min.f16x2 t, t, limit;\n"
        "  mov.b32 q, %4;  mov.b32 c, %5;  fma.rn.f16x2 q, q, t, c;\n"
        "  mov.b32 c, %6;  fma.rn.f16x2 q, q, t, c;\n"
        "  mul.f16x2 q, q, x;\n"
        "  tanh.approx.f16x2 q, q;\n"
        "  mul.f16x2 x, x, %3;\n"
        "  fma.rn.f16x2 x, x, q, x;\n"
        "  cvt.rn.satfinite.e4m3x2.f16x2 %0, x; }"
        : "=h"(packed)
        : "f"(low), "f"(high), "r"(half_scale), "n"(GELU_2_HALVES), "n"(GELU_1_HALVES),
          "n"(GELU_0_HALVES), "n"(GELU_LIMIT_HALVES));
    return packed;
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

// The bias of a tile's columns, and their scales: read early, so that nothing waits for them, and told
// to the warpgroup when they are needed.
struct Columns {
    static constexpr int OWN = (BLOCK_N + WARPGROUP - 1) / WARPGROUP;
    float own[OF_COLUMN][OWN];

    __device__ void load(const Layer& layer, int column, int thread) {
#pragma unroll
        for (int i = 0; i < OWN; ++i) {
            const int from = column + i * WARPGROUP + thread;
            const bool exists = from < layer.columns;
            own[0][i] = exists ? __ldg(layer.bias + from) : 0.0f;
            if (FP8_OPERANDS) own[WEIGHT_SCALE][i] = exists ? __ldg(layer.weight_scale + from) : 0.0f;
            if (FP8_OUTPUT) own[OUTPUT_SCALE][i] = exists ? __ldg(layer.quantised_scale + from) : 0.0f;
        }
    }
    __device__ void store(float (&shared)[OF_COLUMN][BLOCK_N], int thread) const {
#pragma unroll
        for (int i = 0; i < OWN; ++i)
            if (i * WARPGROUP + thread < BLOCK_N)
#pragma unroll
                for (int kind = 0; kind < OF_COLUMN; ++kind)
                    shared[kind][i * WARPGROUP + thread] = own[kind][i];
    }
};

// A part's output as e4m3, straight to memory. Of each 32 columns the four threads that hold a row
// have two of each 8; each writes its eight one after another, so that the row's 32 bytes go out as
// one: column 8 j + 2 t + i stands at 8 t + 2 j + i. The next layer's weight has the same order
// (linear.py, in_output_order).
struct Quantised {
    u8* to[2];
    u32 words[2][2];
    int columns_left;

    __device__ Quantised(const Layer& layer, int row, int column, const Lane& lane)
        : columns_left(layer.columns - column) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            const int own = row + lane.row + 8 * half;
            to[half] = own < layer.rows
                           ? layer.quantised + u64(own) * layer.columns + column + 4 * lane.column
                           : nullptr;
        }
    }
    // The two values of a row, as e4m3, that belong to columns 8 · block ….
    __device__ void add(int block, int half, u32 pair) {
        u32& word = words[half][block / 2 % 2];
        word = block % 2 ? word | pair << 16 : pair;
        if (block % 4 == 3 && to[half] && 8 * block < columns_left)
            *reinterpret_cast<uint2*>(to[half] + 8 * (block - 3)) =
                make_uint2(words[half][0], words[half][1]);
    }
};

// One part: out = sums / σ + bias, or its GELU; or sums + bias + residual, which lies at `place`, and
// the statistics of that. What goes out is left at `place`, or (FP8_OUTPUT) has gone.
__device__ inline void finish(const float (&sums)[SUMS], const float (&scale)[2],
                              RowSums (&rows)[2], const float (&columns)[OF_COLUMN][BLOCK_N],
                              char* place, Quantised quantised, const Lane& lane) {
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
            auto of = [&](int kind) {
                const float* from = columns[kind] + (j + i) * 8 + lane.column;
                return *reinterpret_cast<const float2*>(from);
            };
            const float2 added = of(0);
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                const float* sum = &sums[4 * (j + i) + 2 * half];
                float first = sum[0], second = sum[1];
                if (FP8_OPERANDS) first *= of(WEIGHT_SCALE).x, second *= of(WEIGHT_SCALE).y;
                if (EPILOGUE == RESIDUAL) {
                    first += added.x + unpack_low(packed[i][half]);
                    second += added.y + unpack_high(packed[i][half]);
                    if (j + i == 0) rows[half].pivot = __shfl_sync(~0u, first, threadIdx.x & 28);
                    rows[half].add(first), rows[half].add(second);
                } else {
                    first = first * scale[half] + added.x, second = second * scale[half] + added.y;
                    if (EPILOGUE == NORMALISED_GELU && STORES_16_BITS)
                        first = gelu(first), second = gelu(second);
                }
                packed[i][half] = pack(first, second);
                if (FP8_OUTPUT) {
                    const float2 out = of(OUTPUT_SCALE);
                    quantised.add(j + i, half,
                                  EPILOGUE == NORMALISED_GELU
                                      ? gelu_e4m3(first, second, pack(0.5f * out.x, 0.5f * out.y))
                                      : pack_e4m3(first * out.x, second * out.y));
                }
            }
        }
        if (STORES_16_BITS)
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
