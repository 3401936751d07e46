"""The TensorRT network at the real models' sizes."""

import subprocess
import sys

import pytest
import torch
import trt_reader
from oracle import meta_encoder, relative_l2
from tensor_cores import TensorCores

from samtrt.checkpoints.config import EncoderConfig
from samtrt.checkpoints.parameters import random_parameters
from samtrt.encoders.tensorrt.builder import DTYPES, INPUT, OUTPUT, define_network
from samtrt.encoders.tensorrt.library import shared_log

pytestmark = pytest.mark.slow

# ViT-B's width on 64×64 tokens: windows of 14 on a grid padded to 70, and a global block.
THREE_BLOCKS_OF_VIT_B = EncoderConfig(768, 3, 12, (1,))


@torch.inference_mode()
@pytest.mark.parametrize(
    ("precision", "attentions"), [("fp32", ["fused", "plain"]), ("fp16", ["fused"])]
)
def test_vit_b_width_equals_meta(trt, precision, attentions):
    cfg, dtype = THREE_BLOCKS_OF_VIT_B, DTYPES[precision]
    x = torch.randn(1, 3, cfg.img_size, cfg.img_size, generator=torch.Generator().manual_seed(2))
    meta = meta_encoder(cfg)
    reference = meta(x)
    bar = 1e-5
    if precision != "fp32":
        with TensorCores():
            bar = 2 * relative_l2(meta.to(dtype)(x.to(dtype)), reference)
    tensors = random_parameters(cfg).encoder()
    for attention in attentions:
        builder = trt.Builder(shared_log(trt))
        network = define_network(trt, builder, cfg, tensors, precision, attention)
        with TensorCores():
            output = trt_reader.evaluate(trt, network.definition, {INPUT: x})[OUTPUT]
        assert relative_l2(output, reference) <= bar, attention


BUILD_VIT_H = """
import resource, time
import numpy as np
from samtrt.encoders.tensorrt.builder import build_engine
from samtrt.checkpoints.shapes import parameter_shapes
from samtrt.checkpoints.config import vit_h

block = np.random.default_rng(0).standard_normal(1 << 20, dtype=np.float32) * np.float32(0.02)
tensors = {
    # Each another one: TensorRT stores equal weights once.
    name.removeprefix("image_encoder."): np.resize(np.roll(block, 997 * index), shape).copy()
    for index, (name, shape) in enumerate(parameter_shapes(vit_h()).items())
    if name.startswith("image_encoder.")
}
start = time.process_time()
engine = build_engine(vit_h(), tensors, precision="fp16", progress=False)
seconds = time.process_time() - start
print(len(engine), seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
"""


def test_vit_h_builds_in_full_depth(trt):
    """FP16 by TensorRT-RTX without a GPU: under 100 s of one core and 8 GB, parameters included."""
    if trt.__name__ != "tensorrt_rtx":
        pytest.skip("TensorRT needs a GPU to build, and takes longer there")
    result = subprocess.run(
        [sys.executable, "-c", BUILD_VIT_H], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr[-2000:]
    size, seconds, peak = map(float, result.stdout.split())
    print(f"ViT-H fp16: {size / 1e9:.2f} GB, {seconds:.1f} s of one core, peak {peak / 1e9:.2f} GB")
    assert 1.2e9 < size < 1.5e9  # 637 million parameters of two bytes
    assert seconds < 100
    assert peak < 8e9
