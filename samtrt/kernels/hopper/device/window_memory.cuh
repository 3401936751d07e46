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

// By one thread: a unit comes in, its keys first. In a stage that is not fresh the queries come
// last, when the thread's stores have read what was in their place.
__device__ inline void load_unit(char* stage, const Maps& qkv, const Unit& unit, int heads,
                                 bool fresh, u64* keys, u64* values) {
    int query_tokens = unit.leaves_right ? unit.inner_w * WINDOW : KEYS;
    barrier_expect(keys, (query_tokens + KEYS) * HEAD_DIM * 2);
    barrier_expect(values, KEYS * HEAD_DIM * 2);
#pragma unroll 1
    for (int i = 0; i < 3; ++i) {
        int matrix = i == 0 ? 1 : (i == 1) == fresh ? 0 : 2;  // of queries, keys and values
        if (matrix == 0) store_wait_read<0>();
        qkv.load(stage + matrix * KEY_OFFSET, stage + QUERY_TAIL + matrix * (KEY_TAIL - QUERY_TAIL),
                 unit, (matrix * heads + unit.head) * HEAD_DIM, matrix == 0 && unit.leaves_right,
                 matrix == 2 ? values : keys);
    }
}

// From where a 16-byte column of a key lies to where that of the value of the same row does.
__device__ inline u32 key_to_value(u32 column) {
    return column < 8 ? VALUE_OFFSET - KEY_OFFSET : VALUE_TAIL - KEY_TAIL;
}

// The helpers: the bias over the keys and values of a unit that lie beyond the grid.
__device__ inline void write_padding(char* stage, const Unit& unit, const u16* bias, int heads,
                                     int height, u32 thread) {
    constexpr u32 CHUNKS = HEAD_DIM / 8, ROWS = 8;  // 8 rows on the swizzle is the same
    static_assert(ROWS * CHUNKS <= HELPER_THREADS);
    if (thread >= ROWS * CHUNKS) return;
    u32 chunk = thread % CHUNKS;
    u32 inner_h = min(WINDOW, height - unit.y);
    const u16* key = bias + (heads + unit.head) * HEAD_DIM + 8 * chunk;
    uint4 key_bias = __ldg(reinterpret_cast<const uint4*>(key));
    uint4 value_bias = __ldg(reinterpret_cast<const uint4*>(key + heads * HEAD_DIM));
    u32 row = thread / CHUNKS, row_bytes = chunk < 8 ? 128 : 32;
    char* to = stage + head_offset(KEY_OFFSET, KEY_TAIL, row, chunk);
#pragma unroll 1
    for (; row < KEYS; row += ROWS) {
        if (row / WINDOW >= inner_h || row % WINDOW >= unit.inner_w) {
            *reinterpret_cast<uint4*>(to) = key_bias;
            *reinterpret_cast<uint4*>(to + key_to_value(chunk)) = value_bias;
        }
        to += ROWS * row_bytes;
    }
}

#ifdef SAMTRT_BF16
constexpr u32 ONE = 0x3f80;
#else
constexpr u32 ONE = 0x3c00;
#endif

// Once a block, by FILLING_THREADS: the table, the places, and zeros where there are no keys.
__device__ inline void fill_constants(char* shared, const u16* table, u32 thread) {
    constexpr u32 CHUNKS = HEAD_DIM / 8, ROWS = 32;  // 32 rows on the swizzle is the same
    static_assert(ROWS * CHUNKS <= FILLING_THREADS && VALUE_ROWS - KEYS <= ROWS);
    u32 chunk = thread % CHUNKS, first = thread / CHUNKS, row_bytes = chunk < 8 ? 128 : 32;
    auto put = [&](u32 offset, uint4 value) { *reinterpret_cast<uint4*>(shared + offset) = value; };
    if (first < ROWS) {
        u32 to = head_offset(TABLE_OFFSET, TABLE_TAIL, first, chunk);
#pragma unroll
        for (u32 row = 0; row < RELATIVE; row += ROWS)
            if (first + row < RELATIVE)
                put(to + row * row_bytes,
                    __ldg(reinterpret_cast<const uint4*>(table) + thread + row * CHUNKS));
    }
    u32 row = KEYS + first;
    if (row < VALUE_ROWS) {
        uint4 zero = make_uint4(0, 0, 0, 0);
        u32 key = head_offset(KEY_OFFSET, KEY_TAIL, row, chunk);
#pragma unroll
        for (u32 stage = 0; stage < STAGES; ++stage) {
            if (row < COLUMNS) put(stage * STAGE_BYTES + key, zero);
            put(stage * STAGE_BYTES + key + key_to_value(chunk), zero);
        }
    }
    // Chunks 0, 1 of the places are for the keys' rows, 2, 3 for their columns.
    constexpr u32 PLACE_CHUNKS = PLACES / 8;
    chunk = thread % PLACE_CHUNKS;
#pragma unroll 1
    for (u32 key = thread / PLACE_CHUNKS; key < COLUMNS; key += FILLING_THREADS / PLACE_CHUNKS) {
        u32 y = key / WINDOW, x = key - y * WINDOW;
        u32 at = (chunk < 2 ? y : x) - chunk % 2 * 8;  // where the one is, if in this chunk
        if (key >= KEYS) at = 8;
        u32 one = at % 2 ? ONE << 16 : ONE;
        put(PLACES_OFFSET + swizzled_64(key, chunk),
            make_uint4(at / 2 == 0 ? one : 0, at / 2 == 1 ? one : 0, at / 2 == 2 ? one : 0,
                       at / 2 == 3 ? one : 0));
    }
}
