// One linear layer a launch. Persistent: block b computes tiles b, b + blocks, …. PINGPONG: the two
// warpgroups take tiles of WG_ROWS rows in turn, and while one is in its epilogue the tensor cores
// work for the other. Otherwise both take one half of a tile of 2 · WG_ROWS rows.
//
// Nothing but the product stands between a kernel's start and its first epilogue: what is added comes
// through a stage behind the operands, the statistics arrive during the product.

// A warpgroup's tiles.
__device__ inline void consume(const Layer& layer, const Shared& shared, const Lane& lane) {
    const int steps = steps_of(layer);
    if (PINGPONG && lane.consumer == 1) named_arrive(1, 2 * WARPGROUP);
    Ring ring;
    bool is_mine = !PINGPONG || lane.consumer == 0;
#pragma unroll 1
    for (u32 index = blockIdx.x; index < layer.tiles; index += gridDim.x) {
        if (!is_mine) {
            ring.skip(steps);
            is_mine = true;
            continue;
        }
        if (PINGPONG) is_mine = false;
        const Tile tile = tile_at(layer, index);
        int row = tile.row + (PINGPONG ? 0 : lane.consumer * WG_ROWS);
        Columns columns;
        columns.load(layer, tile.column, lane.thread);
        float sums[PARTS][SUMS] = {};
#pragma unroll
        for (int part = 0; part < PARTS; ++part) keep(sums[part]);  // (zero before the wait)
        dependency_wait();
        dependents_launch();
        RowStatistics statistics[PARTS][2];
        if (EPILOGUE != RESIDUAL)
#pragma unroll
            for (int part = 0; part < PARTS; ++part)
#pragma unroll
                for (int half = 0; half < 2; ++half)
                    statistics[part][half].load(layer, row + part * PART_ROWS + half * 8 + lane.row);
        if (PINGPONG) named_sync(1 + lane.consumer, 2 * WARPGROUP);
        multiply(sums, shared, ring, steps, lane.consumer);

        columns.store(shared.columns[lane.consumer], lane.thread);
        float scale[PARTS][2];
        char* place = shared.places + lane.consumer * PART_BYTES;
        if (!PINGPONG) {
            if (lane.consumer == 1) release_others_place(shared, ring);
            barrier_wait(&shared.full[ring.stage], ring.parity);
            place = shared.stages + ring.stage * STAGE_BYTES;
        }
        if (EPILOGUE != RESIDUAL) {
#pragma unroll
            for (int part = 0; part < PARTS; ++part)
#pragma unroll
                for (int half = 0; half < 2; ++half)
                    scale[part][half] = statistics[part][half].inverse_deviation(layer);
        }
        // A loop that shifts the registers, so that its code is there once.
#pragma unroll 1
        for (int part = 0; part < PARTS; ++part, row += PART_ROWS) {
            // The bias is there, the place's last stores have left it.
            if (PLACES > 0 && lane.thread == 0) store_wait_read<0>();
            if (PLACES > 0 || part == 0) named_sync(3 + lane.consumer, WARPGROUP);
            RowSums rows[2];
            finish(sums[0], scale[0], rows, shared.columns[lane.consumer], place,
                   Quantised(layer, row, tile.column, lane), lane);
            if (STORES_16_BITS) send(layer, place, row, tile.column, lane);
            if (EPILOGUE == RESIDUAL) {
                rows[0].store(layer, row + lane.row, tile.column);
                rows[1].store(layer, row + lane.row + 8, tile.column);
            }
            if (!PINGPONG) place += PART_BYTES;
#pragma unroll
            for (int next = 1; next < PARTS; ++next) {
#pragma unroll
                for (int i = 0; i < SUMS; ++i) sums[next - 1][i] = sums[next][i];
                scale[next - 1][0] = scale[next][0], scale[next - 1][1] = scale[next][1];
            }
        }
        if (!PINGPONG) {
            release_place(shared, lane, ring);
            if (lane.consumer == 0) release_others_place(shared, ring);
        }
    }
    // The last chunks have left shared memory before the next kernel's block may take it.
    if (lane.thread == 0) store_wait_read<0>();
}

extern "C" __global__ void __launch_bounds__(3 * WARPGROUP, 1)
    linear(const __grid_constant__ Layer layer) {
    extern __shared__ __align__(1024) char memory[];
    const Shared shared = shared_layout(memory);
    // (a shuffle tells the compiler that it is the same for the warp)
    const int warpgroup = __shfl_sync(~0u, threadIdx.x / WARPGROUP, 0);
    if (threadIdx.x == 0) {
        prefetch(layer.a);
        prefetch(layer.weight);
        if (STORES_16_BITS) prefetch(layer.out);
        initialise(shared);
    }
    __syncthreads();
    if (warpgroup == 0) {
        registers_shrink<EPILOGUE == RESIDUAL ? 40 : 24>();
        if (threadIdx.x < WARP && elect_one()) fetch(layer, shared);
    } else {
        registers_grow<EPILOGUE == RESIDUAL ? 232 : 240>();
        consume(layer, shared, lane_of(warpgroup - 1));
    }
}
