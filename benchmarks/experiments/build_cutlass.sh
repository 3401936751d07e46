#!/bin/sh
# build_cutlass.sh CUTLASS_FOLDER OUTPUT_FOLDER: one library a configuration, all at once.
set -eu
source=$(dirname "$0")/cutlass_linear.cu
cutlass=$1
output=$2
mkdir -p "$output"

# build OPERATION NUMBER TILE_M TILE_N CLUSTER_M CLUSTER_N PINGPONG STREAMK
build() {
    name=$1_$3x$4_c$5$6_p$7_s$8
    nvcc -std=c++17 -O3 -DNDEBUG --expt-relaxed-constexpr -Xcompiler -fPIC -shared -cudart static \
        -gencode=arch=compute_90a,code=sm_90a -I"$cutlass/include" -I"$cutlass/tools/util/include" \
        -DOP="$2" -DTM="$3" -DTN="$4" -DCM="$5" -DCN="$6" -DPING="$7" -DSTREAMK="$8" \
        "$source" -o "$output/$name.so" > "$output/$name.log" 2>&1 || echo "failed: $name" &
}

for tiles in "128 256 2 1 0" "128 256 1 2 0" "256 128 2 1 0" "256 128 1 2 0" "128 128 2 1 1" \
    "64 256 2 1 1" "64 256 1 2 1" "128 192 2 1 0" "256 192 2 1 0" "128 160 2 1 1" "256 160 2 1 0"; do
    # shellcheck disable=SC2086  # the five sizes are five words
    build gelu 0 $tiles 0
done
for tiles in "128 160 2 1 0" "256 160 2 1 0" "128 160 1 2 0" "256 160 1 2 0" "128 160 2 1 1" \
    "64 160 2 1 1" "128 128 2 1 1" "256 160 1 1 0" "256 80 2 1 0"; do
    # shellcheck disable=SC2086
    build residual 1 $tiles 0
done
build residual 1 128 256 2 1 0 1
build residual 1 256 128 2 1 0 1
build residual 1 256 160 2 1 0 1
for tiles in "128 256 2 1 0" "128 192 2 1 0" "128 192 1 2 0" "256 128 2 1 0" "256 192 2 1 0" \
    "128 128 2 1 1" "128 192 2 1 1"; do
    # shellcheck disable=SC2086
    build bias 2 $tiles 0
done
wait
