// Window attention: window_partition, Attention.forward without its linears, window_unpartition
// (segment_anything/modeling/image_encoder.py), straight from and to tensors over the grid.
//
//     x, pad_hw = window_partition(x, window_size)             the copy engine's boxes
//     attn = (q * self.scale) @ k.transpose(-2, -1)            wgmma, all keys of a window at once
//     attn = add_decomposed_rel_pos(attn, q, rel_pos_h, …)     two more products, see below
//     attn = attn.softmax(dim=-1)                              in registers
//     x = (attn @ v)                                           wgmma, weights from registers
//     x = window_unpartition(x, window_size, pad_hw, (H, W))   the copy engine's boxes
//
// One block a multiprocessor works through its list of units (a head of a window). Two warpgroups
// take tiles of 64 queries in turn, so that one's softmax runs while the other's products do. Of the
// third, a warp moves units in and out of two stages of shared memory; the helpers, its other warps,
// take the few queries beyond whole tiles (4 of 196).
//
// A padded token of Meta's is zeros after norm1, so its key and value are the qkv bias: the copy
// engine reads zeros beyond the grid, the helpers write the bias over them.
//
// Compile-time constants: HEAD_DIM (64 or 80), WINDOW (6 … 14); FP8_OUTPUT, where the output is e4m3,
// each 16 of its columns in the order of pack_e4m3, and goes straight to memory.

// The protocol (tests/kernels/test_hopper_protocols.py explores a model of it). Unit i has stage i % 2,
// a phase of its barriers, in which there arrive
//
//   keys, values  the copying thread, with the bytes it expects, when it has waited for `done` of the
//                 unit before in the stage;
//   padded        every helper's thread, past `keys` and `values`, where the window leaves the grid;
//   done          each of the helpers' warps and of the two warpgroups', past `keys`, with all lanes,
//                 when what it reads is read and what it writes is written.
//
// So keys n + 1 needs every warp past done n, and done n + 1 needs keys n + 1: nobody is a phase ahead.
// Everybody waits for every phase of `keys`, the helpers of `values`, the warpgroups of `padded`: no
// parity is mistaken. (A warpgroup with no tile of a unit does not wait for its values; before the next
// ones the copying thread has waited for the helpers, who do.) The queries' place is written by the
// copying thread alone when its own stores have read it (store_wait_read).
//
//   scores[warpgroup]  a phase a tile of that warpgroup: the other's four warps, when they have the
//                      scores of the tile before, which they took after a wait for scores[other].
//                      Tiles are in one order over all units, so the two alternate.
//
// Named barriers: 1 + warpgroup, its 128 threads, between the last product of a tile and its outputs,
// which replace its queries; 1 + CONSUMERS, the helpers' 96, between the steps of attend_few, where
// everybody has read what a step overwrites before the last barrier; 2 + CONSUMERS, once, all threads,
// of which the copying warp does not wait: the mbarriers are initialised, the constants are there.
struct Barriers {
    u64 keys[STAGES];       // queries and keys have arrived
    u64 values[STAGES];     // values have arrived
    u64 padded[STAGES];     // the bias is written; only for windows that leave the grid
    u64 done[STAGES];       // the unit's outputs are written, its keys and values free
    u64 scores[CONSUMERS];  // the other warpgroup has its scores: this one's products may run

    // By one thread: how many arrive at each.
    __device__ void init() {
        static_assert(sizeof(Barriers) == (4 * STAGES + CONSUMERS) * sizeof(u64));
        u64* barriers = reinterpret_cast<u64*>(this);
#pragma unroll 1
        for (int i = 0; i < 4 * STAGES + CONSUMERS; ++i)
            barrier_init(barriers + i, i < 2 * STAGES   ? 1
                                       : i < 3 * STAGES ? HELPER_THREADS
                                       : i < 4 * STAGES ? CONSUMERS * 4 + HELPERS
                                                        : 4);
        barrier_init_fence();
    }
};

constexpr int BARRIERS_OFFSET = FEW_OFFSET + sizeof(Few);

static_assert(BARRIERS_OFFSET + sizeof(Barriers) <= 227 * 1024, "the stages do not fit");

// A block's units; a head of -1 stands after the last.
struct Schedule {
    const int4* entries;
    u32 first, units;
    int height, width;

    __device__ int4 begin() const { return __ldg(entries + first); }
    __device__ int4 operator[](u32 i) const {
        int4 entry = __ldg(entries + (first + min(i, units - 1)));
        if (i >= units) entry.w = -1;
        return entry;
    }
    __device__ Unit unit(int4 entry) const { return {entry, height, width}; }
};

// By one thread: units come in, and go out again before others come in their place.
__device__ inline void copy(char* shared, Barriers& barriers, const Schedule& schedule,
                            int4 entry, const Maps& qkv, const Maps& out, int heads) {
    dependency_wait();
    dependents_launch();
#pragma unroll 1
    for (u32 i = 0;; ++i) {
        u32 at = i % STAGES;
        if (entry.w >= 0)
            load_unit(shared + at * STAGE_BYTES, qkv, schedule.unit(entry), heads, i < STAGES,
                      &barriers.keys[at], &barriers.values[at]);
        entry = schedule[i + 1];
        if (i + 1 < STAGES) continue;
        u32 done = i + 1 - STAGES;
        int4 going = schedule[done];
        if (going.w < 0) break;
        at = done % STAGES;
        Unit unit = schedule.unit(going);
        char* stage = shared + at * STAGE_BYTES;
        barrier_wait(&barriers.done[at], done / STAGES % 2);
        if (FP8_OUTPUT) continue;  // (there are no stores to wait for)
        out.store(stage, stage + QUERY_TAIL, unit, unit.head * HEAD_DIM);
        store_commit();
    }
    store_wait_read<0>();
}

// By the helpers: padding, and the queries that are no tile.
__device__ inline void help(char* shared, Barriers& barriers, const Schedule& schedule,
                            const u16* bias, const Quantised& quantised, int heads,
                            float scale_log2e) {
    u32 thread = threadIdx.x % WARPGROUP - WARP;
    int4 entry = schedule.begin();
#pragma unroll 1
    for (u32 i = 0; entry.w >= 0; ++i) {
        u32 at = i % STAGES;
        char* stage = shared + at * STAGE_BYTES;
        Unit unit = schedule.unit(entry);
        entry = schedule[i + 1];
        barrier_wait(&barriers.keys[at], i / STAGES % 2);
        barrier_wait(&barriers.values[at], i / STAGES % 2);
        if (unit.leaves_grid) {
            write_padding(stage, unit, bias, heads, schedule.height, thread);
            fence_async_proxy();
            barrier_arrive(&barriers.padded[at]);
        }
        if (unit.few_are_left()) {
            named_sync(1 + CONSUMERS, HELPER_THREADS);  // all padding is written
            attend_few(shared, stage, unit, quantised, thread, scale_log2e);
            fence_async_proxy();
        }
        __syncwarp();
        if (threadIdx.x % WARP == 0) barrier_arrive(&barriers.done[at]);
    }
}

// By the two other warpgroups: tiles in turn.
__device__ inline void consume(char* shared, Barriers& barriers, const Schedule& schedule,
                               const Quantised& quantised, u32 warpgroup, float scale_log2e) {
    u32 tile = warpgroup, next = (warpgroup + 1) % CONSUMERS;
    u32 padded_parities = 0, scores_parity = warpgroup == 0;
    int4 entry = schedule.begin();
#pragma unroll 1
    for (u32 i = 0; entry.w >= 0; ++i) {
        Unit unit = schedule.unit(entry);
        entry = schedule[i + 1];
        u32 at = i % STAGES;
        u32 parity = i / STAGES % 2;
        barrier_wait(&barriers.keys[at], parity);
        if (unit.leaves_grid) {
            barrier_wait(&barriers.padded[at], padded_parities >> at & 1);
            padded_parities ^= 1 << at;
        }
#pragma unroll 1
        for (; tile < unit.tiles(); tile += CONSUMERS) {
            barrier_wait(&barriers.scores[warpgroup], scores_parity);
            scores_parity ^= 1;
            attend(shared, shared + at * STAGE_BYTES, unit, quantised, tile * TILE, warpgroup,
                   &barriers.scores[next], &barriers.values[at], parity, scale_log2e);
        }
        tile -= unit.tiles();  // tiles are taken in turn across units, too
        fence_async_proxy();
        __syncwarp();
        if (threadIdx.x % WARP == 0) barrier_arrive(&barriers.done[at]);
    }
}

// entries: [blocks, units] of {x, y, image, head}, a head of -1 ends a block's list.
extern "C" __global__ void __launch_bounds__(THREADS, 1) window_attention(
    const __grid_constant__ TensorMap qkv_full, const __grid_constant__ TensorMap qkv_full_tail,
    const __grid_constant__ TensorMap qkv_edge, const __grid_constant__ TensorMap qkv_edge_tail,
    const __grid_constant__ TensorMap out_full, const __grid_constant__ TensorMap out_full_tail,
    const __grid_constant__ TensorMap out_edge, const __grid_constant__ TensorMap out_edge_tail,
    const u16* bias, const u16* table, const int4* entries, u32 units, int height, int width,
    int heads, float scale_log2e, u8* quantised_out) {
    extern __shared__ __align__(1024) char shared[];
    Barriers& barriers = *reinterpret_cast<Barriers*>(shared + BARRIERS_OFFSET);
    Maps qkv{qkv_full, qkv_full_tail, qkv_edge, qkv_edge_tail};
    Maps out{out_full, out_full_tail, out_edge, out_edge_tail};
    Schedule schedule{entries, blockIdx.x * units, units, height, width};
    Quantised quantised{quantised_out, height, width, heads};
    u32 warpgroup = threadIdx.x / WARPGROUP, warp = threadIdx.x / WARP;
    bool is_copying = threadIdx.x == CONSUMERS * WARPGROUP;

    // The copying thread starts at once, while the other warps lay out the constants.
    int4 entry;
    if (is_copying) {
        entry = schedule.begin();
        barriers.init();
        prefetch(qkv_full);
        prefetch(qkv_full_tail);
        prefetch(qkv_edge);
        prefetch(qkv_edge_tail);
    } else if (warp != CONSUMERS * 4) {
        u32 thread = warp < CONSUMERS * 4 ? threadIdx.x : threadIdx.x - WARP;
        fill_constants(shared, table, thread);
        fence_async_proxy();
    }
    __syncwarp();
    if (warp == CONSUMERS * 4)
        named_arrive(2 + CONSUMERS, THREADS);
    else
        named_sync(2 + CONSUMERS, THREADS);

    if (warpgroup == CONSUMERS) {
        registers_shrink<136>();
        if (is_copying)
            copy(shared, barriers, schedule, entry, qkv, out, heads);
        else if (warp != CONSUMERS * 4)
            help(shared, barriers, schedule, bias, quantised, heads, scale_log2e);
    } else {
        registers_grow<184>();
        consume(shared, barriers, schedule, quantised, warpgroup, scale_log2e);
    }
}
