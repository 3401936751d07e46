// What a block of window_attention.cu works on, and where it lies in shared memory.

constexpr int TAIL = HEAD_DIM - 64;  // columns beyond one swizzled row of 128 bytes: 0 or 16
constexpr u32 KEYS = WINDOW * WINDOW;
constexpr u32 COLUMNS = (KEYS + 7) / 8 * 8;  // of the scores
constexpr u32 STEPS = (KEYS + 15) / 16;      // of weights · V
// Table rows: 2·WINDOW of rel_pos_h, 2·WINDOW of rel_pos_w, both from the last to the first.
constexpr int HALF = 2 * WINDOW;
constexpr u32 RELATIVE = (2 * HALF + 7) / 8 * 8;
constexpr int PLACES = 32;  // columns: a one at the key's row, a one at 16 + its column

constexpr int CONSUMERS = 2;  // warpgroups
constexpr int HELPERS = 3;    // warps
constexpr int HELPER_THREADS = HELPERS * WARP;
constexpr int STAGES = 2;
constexpr u32 TILE = 64;
constexpr u32 FEW = 8;  // queries at most that the helpers take
constexpr int THREADS = (CONSUMERS + 1) * WARPGROUP;
constexpr int FILLING_THREADS = THREADS - WARP;  // all but the copying thread's warp

// A stage in shared memory; outputs replace the queries.
constexpr u32 VALUE_ROWS = STEPS * 16;
constexpr int KEY_OFFSET = COLUMNS * 128;
constexpr int VALUE_OFFSET = KEY_OFFSET + COLUMNS * 128;
constexpr int QUERY_TAIL = VALUE_OFFSET + VALUE_ROWS * 128;
constexpr int KEY_TAIL = QUERY_TAIL + COLUMNS * 2 * TAIL;
constexpr int VALUE_TAIL = KEY_TAIL + COLUMNS * 2 * TAIL;
static_assert(VALUE_OFFSET == 2 * KEY_OFFSET && VALUE_TAIL - KEY_TAIL == KEY_TAIL - QUERY_TAIL);
constexpr int STAGE_BYTES = (VALUE_TAIL + VALUE_ROWS * 2 * TAIL + 1023) / 1024 * 1024;
// Behind the stages.
constexpr int TABLE_OFFSET = STAGES * STAGE_BYTES;
constexpr int PLACES_OFFSET = TABLE_OFFSET + RELATIVE * 128;
constexpr int TABLE_TAIL = PLACES_OFFSET + COLUMNS * 2 * PLACES;
constexpr int SCRATCH_OFFSET = TABLE_TAIL + RELATIVE * 2 * TAIL;
constexpr int SCRATCH_ROW = 36;  // elements; 18 words apart, eight rows meet few bank conflicts
constexpr int SCRATCH_BYTES = 16 * 2 * SCRATCH_ROW;  // a warp
static_assert(SCRATCH_OFFSET % 128 == 0 && SCRATCH_BYTES % 128 == 0);
constexpr int FEW_OFFSET = SCRATCH_OFFSET + CONSUMERS * 4 * SCRATCH_BYTES;

struct Unit {
    int x, y, image, head;
    u32 inner_w, queries;  // of the part inside the grid
    bool leaves_grid, leaves_right;

    __device__ Unit(int4 entry, int height, int width)
        : x(entry.x), y(entry.y), image(entry.z), head(entry.w) {
        inner_w = min(WINDOW, width - x);
        queries = inner_w * min(WINDOW, height - y);
        leaves_grid = queries < KEYS;
        leaves_right = inner_w < WINDOW;
    }
    // Queries beyond whole tiles: a few are left to the helpers, more are a tile.
    __device__ u32 first_left() const { return queries / TILE * TILE; }
    __device__ bool few_are_left() const { return queries % TILE - 1 < FEW; }  // (0 - 1 is large)
    __device__ u32 tiles() const { return (queries + TILE - 1 - FEW) / TILE; }
    // query * by_inner_w() >> 16 is query / inner_w: for numbers as small as these, exactly.
    __device__ u32 by_inner_w() const { return 65536 * reciprocal_approximate(inner_w) + 1; }
};

// An e4m3 output [images, height, width, heads, HEAD_DIM].
struct Quantised {
    u8* out;
    int height, width, heads;

    // The row of a unit's query.
    __device__ u8* row(const Unit& unit, u32 query) const {
        const u32 y = query * unit.by_inner_w() >> 16, x = query - y * unit.inner_w;
        const u32 token = (unit.image * height + unit.y + y) * width + unit.x + x;
        return out + u64(token * heads + unit.head) * HEAD_DIM;
    }
};

// Where 16-byte column `column` of row `row` lies in a tile of HEAD_DIM columns, whose columns beyond
// 64 lie apart.
__device__ inline u32 head_offset(u32 tile, u32 tail, u32 row, u32 column) {
    return column < 8 ? tile + swizzled_128(row, column) : tail + swizzled_32(row, column - 8);
}
