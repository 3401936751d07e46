// One tile of a linear layer: out = epilogue(a · weightᵀ), a [M, K] and weight [N, K] row-major. One
// warp fetches, two warpgroups multiply; linear.cu says which tiles, linear_epilogue.cuh what follows.
//
// What is executed once a launch is fetched from memory each time, since the kernels of a block push
// each other out of the instruction cache: 128 bytes of it cost some 50 ns. So the code is small:
// loops stay loops.
//
// FP8_OPERANDS: a and weight are e4m3, twice as many of them a stage, and the sums of a column are in
// units of `weight_scale`. FP8_OUTPUT: what comes out is, times `quantised_scale`, e4m3: in place of
// the 16-bit output, or, where there is a residual, beside it. linear_epilogue.cuh, Quantised, has the
// order of its columns.
enum Epilogue { NORMALISED, NORMALISED_GELU, RESIDUAL };

struct Layer {  // linear.py, _Layer
    TensorMap a, weight, out, out_tail, residual, residual_tail;
    const float* bias;
    const float* weight_scale;
    float2* statistics;  // read, or written where there is a residual
    u8* quantised;
    const float* quantised_scale;
    int residual_rows, rows, columns, inner;
    u32 tiles, group, blocks_n;  // tiles run down `group` row blocks before they move right
    float eps;
};

static_assert(sizeof(Layer) == 896, "linear.py says otherwise");
static_assert(!PINGPONG || EPILOGUE != RESIDUAL, "a residual has no place");

constexpr bool STORES_16_BITS = EPILOGUE == RESIDUAL || !FP8_OUTPUT;

static_assert(PINGPONG || STORES_16_BITS, "nothing would keep the bias until all have read it");

constexpr int K_BYTES = 128;  // of a row in a stage, the widest swizzle
constexpr int BLOCK_K = K_BYTES / (FP8_OPERANDS ? 1 : 2);
constexpr int BLOCK_M = PINGPONG ? WG_ROWS : 2 * WG_ROWS;
constexpr int PART_ROWS = 64;              // of a product
constexpr int PARTS = WG_ROWS / PART_ROWS;  // products a warpgroup
constexpr int SUMS = BLOCK_N / 2;          // a thread and product
constexpr int A_BYTES = BLOCK_M * K_BYTES;
constexpr int W_BYTES = BLOCK_N * K_BYTES;
constexpr int STAGE_BYTES = A_BYTES + W_BYTES;
// A part's output leaves in chunks of 64 columns, the last of which may be of 32. Each warpgroup has a
// place for it: for one part at a time, or (!PINGPONG) a stage behind the operands of a tile, for all
// its parts, where a residual has come in.
constexpr int CHUNK = 64;
constexpr int CHUNKS = BLOCK_N / CHUNK;
constexpr int TAIL = BLOCK_N % CHUNK;
constexpr int CHUNK_BYTES = PART_ROWS * CHUNK * 2;
constexpr int PART_BYTES = PART_ROWS * BLOCK_N * 2;
constexpr int PLACES = PINGPONG && STORES_16_BITS ? 2 : 0;
// What there is of each column: the bias, the weight's scale, the output's.
constexpr int OF_COLUMN = 1 + FP8_OPERANDS + FP8_OUTPUT;
constexpr int WEIGHT_SCALE = FP8_OPERANDS, OUTPUT_SCALE = FP8_OPERANDS + FP8_OUTPUT;

static_assert(PINGPONG || PARTS * PART_BYTES <= STAGE_BYTES, "a stage is no place");

__device__ inline int steps_of(const Layer& layer) { return u32(layer.inner + BLOCK_K - 1) / BLOCK_K; }

// Shared memory of a block: the stages, the places, what each warpgroup knows of its columns, the
// barriers.
//
// The protocol (tests/kernels/test_hopper_protocols.py explores a model of it). Stages are used in turn,
// each use a phase of the stage's two mbarriers:
//
//   full[stage]   one arrival and the bytes it expects, by the fetching thread, which has waited for
//                 the stage's phase before to be `empty`.
//   empty[stage]  one arrival a warp that uses the stage: the four of the tile's warpgroup (PINGPONG),
//                 or all eight; a warp has waited for this phase's `full`, and its products have read
//                 the stage. At its own place one thread arrives for its four warps instead, when the
//                 stores have read it.
//
// So nobody is a phase ahead: `full` n + 1 needs `empty` n, which needs every warp past `full` n; and
// `empty` n + 1 needs `full` n + 1. And nobody takes a phase for the one two before, which has the same
// parity: each warp waits for every phase of `full`, or (PINGPONG, the other's tiles) for barrier
// 1 + consumer, at which the other warpgroup arrives past all phases of its tile.
//
// Named barriers, of warpgroup `consumer`:
//
//   1 + consumer  256 threads: itself, before its products, and the other, which arrives when its last
//                 is issued. They alternate, since each arrives after its own wait; the first is free.
//   3 + consumer  128 threads: before a part is finished (the bias is written, and where PINGPONG the
//                 last stores have read the place) and before it is stored (it is written). Where
//                 nothing is stored from shared memory, before the first part only; that all have
//                 read the bias before the next is written, 1 + consumer shows.
struct Shared {
    char* stages;
    char* places;
    float (*columns)[OF_COLUMN][BLOCK_N];
    u64* full;
    u64* empty;
};

__device__ inline Shared shared_layout(char* memory) {
    char* places = memory + STAGES * STAGE_BYTES;
    char* columns = places + PLACES * PART_BYTES;
    u64* full = reinterpret_cast<u64*>(columns + 2 * OF_COLUMN * BLOCK_N * sizeof(float));
    return {memory, places, reinterpret_cast<float(*)[OF_COLUMN][BLOCK_N]>(columns), full,
            full + STAGES};
}

__device__ inline void initialise(const Shared& shared) {
#pragma unroll 1
    for (int stage = 0; stage < STAGES; ++stage) {
        barrier_init(&shared.full[stage], 1);
        barrier_init(&shared.empty[stage], (PINGPONG ? 1 : 2) * WARPGROUP / WARP);
    }
    barrier_init_fence();
}

struct Tile {
    int row, column;
};

__device__ inline Tile tile_at(const Layer& layer, u32 index) {
    const u32 column_block = index / layer.group, across = column_block / layer.blocks_n;
    const u32 row_block = across * layer.group + index % layer.group;
    return {int(row_block * BLOCK_M), int(column_block % layer.blocks_n * BLOCK_N)};
}

// Calls f(map, column, bytes from the part's start) for each chunk of a part.
template <class Function>
__device__ inline void for_each_chunk(const TensorMap& map, const TensorMap& tail_map, Function f) {
#pragma unroll
    for (int chunk = 0; chunk < CHUNKS; ++chunk) f(map, chunk * CHUNK, chunk * CHUNK_BYTES);
    if (TAIL > 0) f(tail_map, CHUNKS * CHUNK, CHUNKS * CHUNK_BYTES);
}

// ---- the fetching thread ----------------------------------------------------------------------

// Stages in turn, over all tiles of a block.
struct Ring {
    u32 stage = 0, parity = 0;

    __device__ void advance() {
        if (++stage == STAGES) stage = 0, parity ^= 1;
    }
    __device__ void skip(u32 stages) {
        parity ^= (stage + stages) / STAGES & 1;
        stage = (stage + stages) % STAGES;
    }
};

__device__ inline void fetch_weight(const Layer& layer, const Shared& shared, u32 stage, int column,
                                    int k) {
    barrier_expect(&shared.full[stage], STAGE_BYTES);
    copy_2d(shared.stages + stage * STAGE_BYTES + A_BYTES, layer.weight, k * BLOCK_K, column,
            &shared.full[stage]);
}

__device__ inline void fetch_a(const Layer& layer, const Shared& shared, u32 stage, int row, int k) {
    copy_2d(shared.stages + stage * STAGE_BYTES, layer.a, k * BLOCK_K, row, &shared.full[stage]);
}

// The warpgroups' places, a stage each, with what is added to the tile: a tensor whose rows may repeat.
__device__ inline void fetch_places(const Layer& layer, const Shared& shared, int row, int column,
                                    Ring& ring) {
#pragma unroll 1
    for (int part = 0; part < 2 * PARTS; ++part) {
        u64* full = &shared.full[ring.stage];
        if (part % PARTS == 0) {
            barrier_wait(&shared.empty[ring.stage], ring.parity ^ 1);
            barrier_expect(full, EPILOGUE == RESIDUAL ? PARTS * PART_BYTES : 0);
        }
        if (EPILOGUE == RESIDUAL) {
            char* to = shared.stages + ring.stage * STAGE_BYTES + part % PARTS * PART_BYTES;
            const u32 from = u32(row + part * PART_ROWS) % u32(layer.residual_rows);
            for_each_chunk(layer.residual, layer.residual_tail,
                           [&](const TensorMap& map, int first, int offset) {
                               copy_2d(to + offset, map, column + first, from, full);
                           });
        }
        if (part % PARTS == PARTS - 1) ring.advance();
    }
}

// All tiles of a block. Of the first, weights come before the wait for the kernels that come before:
// they are no kernel's output.
__device__ inline void fetch(const Layer& layer, const Shared& shared) {
    const int steps = steps_of(layer), early = min(STAGES, steps);
    Ring ring;
#pragma unroll 1
    for (u32 index = blockIdx.x; index < layer.tiles; index += gridDim.x) {
        const Tile tile = tile_at(layer, index);
        const bool is_first = index == blockIdx.x;
        if (is_first) {
#pragma unroll 1
            for (int k = 0; k < early; ++k) fetch_weight(layer, shared, k, tile.column, k);
            dependency_wait();
        }
#pragma unroll 1
        for (int k = 0; k < steps; ++k, ring.advance()) {
            if (!is_first || k >= early) {
                // (passes at once in the first turn)
                barrier_wait(&shared.empty[ring.stage], ring.parity ^ 1);
                fetch_weight(layer, shared, ring.stage, tile.column, k);
            }
            fetch_a(layer, shared, ring.stage, tile.row, k);
        }
        if (!PINGPONG) fetch_places(layer, shared, tile.row, tile.column, ring);
    }
}

// ---- the multiplying warpgroups ---------------------------------------------------------------

// What a thread is in its warpgroup, and what it holds of each product: two rows, 8 apart, of which
// it has columns `column` and `column` + 1 of each 8.
struct Lane {
    int consumer, thread, row, column;
};

__device__ inline Lane lane_of(int consumer) {
    const int thread = threadIdx.x % WARPGROUP, lane = thread % WARP;
    return {consumer, thread, thread / WARP * 16 + lane / 4, lane % 4 * 2};
}

// One warpgroup's rows of one tile, added to `sums`.
__device__ inline void multiply(float (&sums)[PARTS][SUMS], const Shared& shared, Ring& ring, int steps,
                                int consumer) {
    auto release = [&](u32 stage) {
        if (threadIdx.x % WARP == 0) barrier_arrive(&shared.empty[stage]);
    };
    const int first_row = PINGPONG ? 0 : consumer * WG_ROWS;
    u32 previous = ring.stage;
#pragma unroll 1
    for (int k = 0; k < steps; ++k, ring.advance()) {
        barrier_wait(&shared.full[ring.stage], ring.parity);
        const char* at = shared.stages + ring.stage * STAGE_BYTES;
        const u64 a = descriptor<SWIZZLE_128>(at + first_row * K_BYTES);
        const u64 w = descriptor<SWIZZLE_128>(at + A_BYTES);
        wgmma_fence();
#pragma unroll
        for (int inner = 0; inner < K_BYTES; inner += 32)
#pragma unroll
            for (int part = 0; part < PARTS; ++part) {
                const u64 rows = advance(a, part * PART_ROWS * K_BYTES + inner);
                if constexpr (FP8_OPERANDS)
                    wgmma_e4m3(sums[part], rows, advance(w, inner), 1);
                else
                    wgmma(sums[part], rows, advance(w, inner), 1);
            }
        wgmma_commit();
        if (k > 0) {
            wgmma_wait<1>();
            release(previous);
        }
        previous = ring.stage;
    }
    // The tensor cores are the other warpgroup's as soon as the last product is issued.
    if (PINGPONG) named_arrive(1 + (consumer ^ 1), 2 * WARPGROUP);
    wgmma_wait<0>();
    release(previous);
#pragma unroll
    for (int part = 0; part < PARTS; ++part) keep(sums[part]);
}
