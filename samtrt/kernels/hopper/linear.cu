// One linear layer a launch. Persistent: block b computes tiles b, b + blocks, …. PINGPONG: the two
// warpgroups take tiles of WG_ROWS rows in turn, and while one is in its epilogue the tensor cores
// work for the other. Otherwise both take one half of a tile of 2 · WG_ROWS rows.

struct Tile {
    int row, column;
};

// Tiles run down GROUP_M row blocks before they move right: what a wave reads stays in L2.
__device__ inline Tile tile_at(int index, int blocks_m, int blocks_n) {
    const int group = GROUP_M * blocks_n;
    const int first = index / group * GROUP_M;
    const int height = min(blocks_m - first, GROUP_M);
    const int within = index % group;
    return {(first + within % height) * BLOCK_M, within / height * BLOCK_N};
}

extern "C" __global__ void __launch_bounds__(3 * WARPGROUP, 1)
    linear(const __grid_constant__ Layer layer) {
    extern __shared__ __align__(1024) char memory[];
    const Shared shared = shared_layout(memory);
    // (a shuffle tells the compiler that it is the same for the warp)
    const int warpgroup = __shfl_sync(~0u, threadIdx.x / WARPGROUP, 0);
    const int blocks_m = (layer.rows + BLOCK_M - 1) / BLOCK_M;
    const int blocks_n = (layer.columns + BLOCK_N - 1) / BLOCK_N;
    const int tiles = blocks_m * blocks_n;

    if (threadIdx.x == 0) {
        prefetch(layer.a);
        prefetch(layer.weight);
        prefetch(layer.out);
        initialise(shared);
    }
    __syncthreads();

    int step = 0;
    if (warpgroup == 0) {
        registers_shrink<24>();
        if (threadIdx.x < WARP && elect_one()) {
            for (int index = blockIdx.x; index < tiles; index += gridDim.x) {
                const Tile tile = tile_at(index, blocks_m, blocks_n);
                if (index == blockIdx.x)
                    fetch_first(layer, shared, tile.row, tile.column, step);
                else
                    fetch(layer, shared, tile.row, tile.column, 0, step);
            }
        }
        return;
    }
    registers_grow<240>();
    const Lane lane = lane_of(warpgroup - 1);
    const int steps = steps_of(layer);
    if (PINGPONG && lane.consumer == 1) named_arrive(1, 2 * WARPGROUP);

    int turn = 0, buffer = 0;
    for (int index = blockIdx.x; index < tiles;
         index += gridDim.x, step += steps + RESIDUAL_STAGES, ++turn) {
        if (PINGPONG && (turn & 1) != lane.consumer) continue;
        Tile tile = tile_at(index, blocks_m, blocks_n);
        if (!PINGPONG) tile.row += lane.consumer * WG_ROWS;
        copy_bias(layer, shared, tile.column, lane);
        dependency_wait();
        dependents_launch();
        float sums[PARTS][SUMS] = {};
        RowStatistics statistics[PARTS][2];  // on their way during the product
        if (EPILOGUE != RESIDUAL)
#pragma unroll
            for (int part = 0; part < PARTS; ++part)
#pragma unroll
                for (int half = 0; half < 2; ++half)
                    statistics[part][half].load(layer, tile.row + part * 64 + half * 8 + lane.row);
        if (PINGPONG) named_sync(1 + lane.consumer, 2 * WARPGROUP);
        multiply(sums, shared, step, steps, lane.consumer);
        if constexpr (EPILOGUE == RESIDUAL) {
            store_sum(sums, layer, shared, tile.row, tile.column, lane, step + steps);
            release_residual(shared, lane, step + steps);
        } else {
            store<Epilogue(EPILOGUE)>(sums, statistics, layer, shared, tile.row, tile.column, lane,
                                      buffer);
        }
    }
    // The last chunks have left shared memory before the next kernel's block may take it.
    if (lane.thread == 0) store_wait_read<0>();
}
