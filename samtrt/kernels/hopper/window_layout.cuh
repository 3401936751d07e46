// What a block of window_attention.cu works on, and where it lies in shared memory.

constexpr int TAIL = HEAD_DIM - 64;  // columns beyond one swizzled row of 128 bytes: 0 or 16
constexpr int KEYS = WINDOW * WINDOW;
constexpr int COLUMNS = (KEYS + 7) / 8 * 8;  // of the scores
constexpr int STEPS = (KEYS + 15) / 16;      // of weights · V
// Table rows: 2·WINDOW of rel_pos_h, 2·WINDOW of rel_pos_w, both from the last to the first.
constexpr int HALF = 2 * WINDOW;
constexpr int RELATIVE = (2 * HALF + 7) / 8 * 8;
constexpr int PLACES = 32;  // columns: a one at the key's row, a one at 16 + its column

constexpr int CONSUMERS = 2;  // warpgroups
constexpr int HELPERS = 3;    // warps
constexpr int HELPER_THREADS = HELPERS * WARP;
constexpr int STAGES = 2;
constexpr int TILE = 64;
constexpr int FEW = 8;  // queries at most that the helpers take
constexpr int THREADS = (CONSUMERS + 1) * WARPGROUP;

// A stage in shared memory; outputs replace the queries.
constexpr int VALUE_ROWS = STEPS * 16;
constexpr int KEY_OFFSET = COLUMNS * 128;
constexpr int VALUE_OFFSET = KEY_OFFSET + COLUMNS * 128;
constexpr int QUERY_TAIL = VALUE_OFFSET + VALUE_ROWS * 128;
constexpr int KEY_TAIL = QUERY_TAIL + COLUMNS * 2 * TAIL;
constexpr int VALUE_TAIL = KEY_TAIL + COLUMNS * 2 * TAIL;
constexpr int STAGE_BYTES = (VALUE_TAIL + VALUE_ROWS * 2 * TAIL + 1023) / 1024 * 1024;
// Behind the stages.
constexpr int TABLE_OFFSET = STAGES * STAGE_BYTES;
constexpr int PLACES_OFFSET = TABLE_OFFSET + RELATIVE * 128;
constexpr int TABLE_TAIL = PLACES_OFFSET + COLUMNS * 2 * PLACES;
constexpr int SCRATCH_OFFSET = TABLE_TAIL + RELATIVE * 2 * TAIL;
constexpr int SCRATCH_ROW = 36;  // elements; 18 words apart, eight rows meet few bank conflicts
constexpr int SCRATCH_BYTES = 16 * 2 * SCRATCH_ROW;  // a warp
constexpr int FEW_OFFSET = SCRATCH_OFFSET + CONSUMERS * 4 * SCRATCH_BYTES;

struct Unit {
    int x, y, image, head;
    int inner_w, queries;  // of the part inside the grid
    bool leaves_grid, leaves_right;

    __device__ Unit(int4 entry, int height, int width)
        : x(entry.x), y(entry.y), image(entry.z), head(entry.w) {
        inner_w = min(WINDOW, width - x);
        queries = inner_w * min(WINDOW, height - y);
        leaves_grid = queries < KEYS;
        leaves_right = inner_w < WINDOW;
    }
    // Queries beyond whole tiles: a few are left to the helpers, more are a tile.
    __device__ int first_left() const { return queries / TILE * TILE; }
    __device__ bool few_are_left() const { return queries % TILE - 1 < FEW && queries % TILE > 0; }
    __device__ int tiles() const { return (queries + TILE - 1 - FEW) / TILE; }
};

// Where 16-byte column `column` of row `row` lies in a tile of HEAD_DIM columns, whose columns beyond
// 64 lie apart.
__device__ inline u32 head_offset(u32 tile, u32 tail, u32 row, u32 column) {
    return column < 8 ? tile + swizzled_128(row, column) : tail + swizzled_32(row, column - 8);
}
