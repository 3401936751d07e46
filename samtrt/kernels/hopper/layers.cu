// Linear layers that follow each other in one launch: proj, lin1, lin2 and the next block's qkv.
// Each needs of the one before it only the same rows, so no multiprocessor waits for the last tile
// of a layer: `done` counts the finished tiles of each layer's row blocks, and a tile starts when
// the row block before it is complete.
//
// Each block has a list of tiles, made in advance (linear.py, layers_schedule). The lists are in one
// common order in which a tile comes after those it needs; all blocks are resident, so none waits
// forever. The two warpgroups take tiles in turn, as PINGPONG in linear.cu.

constexpr int MAX_LAYERS = 4;

struct Chain {  // linear.py, _Chain
    Layer layers[MAX_LAYERS];
    const int4* schedule;  // [blocks, units]: layer, row, column; layer -1 after the last
    u32* done;             // [layers, row blocks], zeros at first
    int units, row_blocks, count;
};

// Waits until the layer before has finished these rows.
__device__ inline void await_rows(const Chain& chain, int layer, int row) {
    if (layer == 0) return;
    const u32 needed = (chain.layers[layer - 1].columns + BLOCK_N - 1) / BLOCK_N;
    const u32* done = &chain.done[(layer - 1) * chain.row_blocks + row / BLOCK_M];
    while (load_acquire(done) < needed) {
    }
}

extern "C" __global__ void __launch_bounds__(3 * WARPGROUP, 1)
    layers(const __grid_constant__ Chain chain) {
    extern __shared__ __align__(1024) char memory[];
    const Shared shared = shared_layout(memory);
    const int warpgroup = __shfl_sync(~0u, threadIdx.x / WARPGROUP, 0);
    const int4* units = chain.schedule + blockIdx.x * chain.units;

    if (threadIdx.x == 0) {
        for (int i = 0; i < chain.count; ++i) {
            prefetch(chain.layers[i].a);
            prefetch(chain.layers[i].weight);
            prefetch(chain.layers[i].out);
        }
        initialise(shared);
    }
    __syncthreads();
    dependents_launch();

    int step = 0;
    if (warpgroup == 0) {
        registers_shrink<24>();
        if (threadIdx.x < WARP && elect_one()) {
            for (int i = 0; i < chain.units; ++i) {
                const int4 unit = __ldg(&units[i]);
                if (unit.x < 0) break;
                const Layer& layer = chain.layers[unit.x];
                if (i == 0 && unit.x == 0) {
                    fetch_first(layer, shared, unit.y, unit.z, step);
                } else {
                    if (i == 0) dependency_wait();
                    await_rows(chain, unit.x, unit.y);
                    fence_async_proxy_global();
                    fetch(layer, shared, unit.y, unit.z, 0, step);
                }
            }
        }
        return;
    }
    registers_grow<240>();
    const Lane lane = lane_of(warpgroup - 1);
    if (lane.consumer == 1) named_arrive(1, 2 * WARPGROUP);
    dependency_wait();

    int buffer = 0;
    for (int i = 0; i < chain.units; ++i) {
        const int4 unit = __ldg(&units[i]);
        if (unit.x < 0) break;
        const Layer& layer = chain.layers[unit.x];
        const int steps = steps_of(layer), row = unit.y, column = unit.z;
        if ((i & 1) == lane.consumer) {
            await_rows(chain, unit.x, row);
            float sums[PARTS][SUMS], scale[PARTS][2];
            // (a copy of the product each: joined branches before it would serialise it)
            if (layer.epilogue == RESIDUAL) {
                begin<RESIDUAL>(sums, scale, layer, row, column, lane);
                named_sync(1 + lane.consumer, 2 * WARPGROUP);
                multiply(sums, shared, step, steps, lane.consumer);
                store<RESIDUAL>(sums, scale, layer, shared, row, column, lane, buffer);
                store_statistics(sums, layer, row, column, lane);
            } else {
                begin<NORMALISED>(sums, scale, layer, row, column, lane);
                named_sync(1 + lane.consumer, 2 * WARPGROUP);
                multiply(sums, shared, step, steps, lane.consumer);
                if (layer.epilogue == NORMALISED_GELU)
                    store<NORMALISED_GELU>(sums, scale, layer, shared, row, column, lane, buffer);
                else
                    store<NORMALISED>(sums, scale, layer, shared, row, column, lane, buffer);
            }
            if (unit.x + 1 < chain.count) {
                named_sync(3 + lane.consumer, WARPGROUP);  // all statistics are written
                if (lane.thread == 0) {
                    store_wait<0>();
                    add_release(&chain.done[unit.x * chain.row_blocks + row / BLOCK_M], 1);
                }
            }
        }
        step += steps;
    }
}
