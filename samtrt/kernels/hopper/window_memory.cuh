// What stands in the shared memory of window_attention.cu: units come and go by the copy engine, the
// rest is written by threads.

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

#ifdef SAMTRT_BF16
constexpr u32 ONE = 0x3f80;
#else
constexpr u32 ONE = 0x3c00;
#endif

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
