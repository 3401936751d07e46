"""Image encoders of SAM's family, from the file that their project ships to the output.

The oracle is Meta's encoder with what each project does to it written out here; where the
project's own package is installed, it too.
"""

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import trt_reader
from family_references import FAMILY, cellpose, deep_encoder, expected, plain, with_taps
from oracle import meta_encoder_of, relative_l2, tiny_config, to_torch
from torch import Tensor

import samtrt
from samtrt.building.build import BuildOptions, build_encoder
from samtrt.checkpoints.config import EncoderConfig
from samtrt.checkpoints.family import at_size
from samtrt.checkpoints.meta import read_checkpoint
from samtrt.checkpoints.parameters import (
    Parameters,
    load_parameters,
    random_parameters,
    save_parameters,
)
from samtrt.encoders.load import encoder_from_parameters
from samtrt.encoders.tensorrt.builder import INPUT, OUTPUT, define_network
from samtrt.encoders.tensorrt.library import shared_log
from samtrt.errors import CheckpointError
from samtrt.modeling.heads import split_taps
from samtrt.reports.peers import import_segment_anything
from samtrt.sam import load_sam

pytestmark = pytest.mark.usefixtures("one_thread")

PREFIX = "image_encoder."


def encoder_state(parameters: Parameters, prefix: str) -> dict[str, Tensor]:
    return {prefix + name: tensor for name, tensor in to_torch(parameters.encoder()).items()}


def picture(side: int = 128, count: int = 2) -> Tensor:
    return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(side))


@pytest.mark.parametrize("name", FAMILY)
def test_the_cpu_computes_as_the_oracle(name: str) -> None:
    config = FAMILY[name]
    parameters = random_parameters(config, decoder=False)
    x = picture(config.img_size)
    output = encoder_from_parameters(parameters, "cpu", precision="fp32")(x)
    assert output.shape == (2, *config.output_shape)
    assert relative_l2(output, expected(name, parameters, x)) < 1e-5
    half = encoder_from_parameters(parameters, "cpu", precision="bf16")(x)
    assert 0 <= relative_l2(half, expected(name, parameters, x)) < 0.03


@pytest.mark.parametrize("attention", ["fused", "plain"])
@pytest.mark.parametrize("name", FAMILY)
def test_the_network_is_the_oracles(trt: Any, name: str, attention: Any) -> None:
    config = FAMILY[name]
    parameters = random_parameters(config, decoder=False)
    log = shared_log(trt)
    log.errors.clear()
    network = define_network(trt, trt.Builder(log), config, parameters.encoder(), "fp32", attention)
    assert not log.errors
    x = picture(config.img_size)
    output = trt_reader.evaluate(trt, network.definition, {INPUT: x})[OUTPUT]
    assert relative_l2(output, expected(name, parameters, x)) < 1e-5


@pytest.mark.parametrize("name", FAMILY)
def test_from_parameters_to_a_checked_engine(tmp_path: Path, name: str) -> None:
    """Folder, build, parity gate, engine: the gate looks at the output where there are no masks."""
    config = FAMILY[name]
    parameters = random_parameters(config, decoder=False)
    save_parameters(parameters, tmp_path / "parameters")
    assert load_parameters(tmp_path / "parameters").encoder_config == config
    image = np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8)
    info = build_encoder(
        load_parameters(tmp_path / "parameters"), tmp_path / "engine", [image],
        BuildOptions("cpu", "fp32", max_batch_size=2),
    )  # fmt: skip
    assert info.parity.status == "passed" and info.parity.mean_mask_iou is None
    assert "output off by" in str(info.parity)
    x = picture(config.img_size)
    for folder in ("engine", "parameters"):
        encoder = samtrt.load_image_encoder(tmp_path / folder, "cpu", precision="fp32")
        assert relative_l2(encoder(x), expected(name, parameters, x)) < 1e-5
    with pytest.raises(CheckpointError, match="an image encoder alone"):
        load_sam(tmp_path / "parameters", device="cpu")


def saved_cellpose(prefix: str = "") -> tuple[dict[str, Tensor], Parameters]:
    """What ``torch.save(model.state_dict())`` writes: tables as SAM ViT-L has them, of windows of
    five tokens and a grid of sixteen, where eight are needed."""
    config = FAMILY["readout"]
    parameters = random_parameters(config, decoder=False)
    state = encoder_state(parameters, f"{prefix}encoder.")
    generator = torch.Generator().manual_seed(3)
    for block, rows in enumerate((9, 31, 9)):
        for axis in "hw":
            name = f"{prefix}encoder.blocks.{block}.attn.rel_pos_{axis}"
            state[name] = torch.randn(rows, 16, generator=generator)
    for kind in ("weight", "bias"):
        state[f"{prefix}out.{kind}"] = state.pop(f"{prefix}encoder.out.{kind}")
    state[f"{prefix}W2"] = torch.eye(192).reshape(192, 3, 8, 8)
    state |= {f"{prefix}diam_mean": torch.ones(1), f"{prefix}diam_labels": torch.ones(1)}
    return state, parameters


@pytest.mark.parametrize("prefix", ["", "module."])
def test_cellpose_sam(tmp_path: Path, prefix: str) -> None:
    state, parameters = saved_cellpose(prefix)
    torch.save(state, tmp_path / "cpsam")
    found = read_checkpoint(tmp_path / "cpsam")
    assert found.encoder_config == parameters.encoder_config
    assert "Cellpose-SAM" in found.note and not found.has_decoder
    # Meta's get_rel_pos interpolates its own tables, of the lengths that the file has.
    tables = {
        name.removeprefix(f"{prefix}encoder."): tensor.numpy()
        for name, tensor in state.items()
        if "rel_pos" in name
    }
    full = {f"{PREFIX}{name}": tensor for name, tensor in (parameters.encoder() | tables).items()}
    given = Parameters(parameters.encoder_config, full)
    x = picture(64)
    output = encoder_from_parameters(found, "cpu", precision="fp32")(x)
    assert output.shape == (2, 3, 64, 64)
    assert relative_l2(output, cellpose(given, x)) < 1e-5


def test_cellposes_own_package_agrees(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """``cellpose`` is not among the tests' requirements; with 4.2.1 (torch 2.13, CPU) the output
    differed by 9.6e-7 in relative L2. A SAM of three narrow blocks stands in for ViT-L."""
    import_segment_anything()
    vit: Any = pytest.importorskip("cellpose.vit")
    from oracle import meta_sam

    tiny = meta_sam(tiny_config(img_size=1024, window_size=14))
    monkeypatch.setattr(vit, "sam_model_registry", {"vit_l": lambda _: tiny})
    torch.manual_seed(0)
    model = vit.CPSAM(ps=8, bsize=256).eval()
    model.save_model(tmp_path / "cpsam")
    found = read_checkpoint(tmp_path / "cpsam")
    assert found.encoder_config.output_shape == (3, 256, 256)
    x = picture(256, 1)
    with torch.no_grad():
        theirs, _ = model(x)
    output = encoder_from_parameters(found, "cpu", precision="fp32")(x)
    assert relative_l2(output, theirs) < 1e-5


CELLVIT = random_parameters(tiny_config(depth=4, taps=(0, 1, 2, 3)), seed=4, decoder=False)


def saved_cellvit(path: Path) -> Path:
    """As its trainer writes it: ``model_state_dict`` beside the architecture and the config."""
    state = encoder_state(CELLVIT, "encoder.")
    for name in (
        "decoder0.0.block.0.weight",
        "nuclei_binary_map_decoder.x",
        "classifier_head.weight",
    ):
        state[name] = torch.ones(2)
    torch.save(
        {"arch": "CellViTSAM", "epoch": 3, "config": {"data.num_classes": 6},
         "model_state_dict": state},
        path,
    )  # fmt: skip
    return path


def test_cellvit_sam(tmp_path: Path) -> None:
    found = read_checkpoint(saved_cellvit(tmp_path / "CellViT-SAM-B-x40.pth"))
    assert found.encoder_config == CELLVIT.encoder_config and "CellViT-SAM" in found.note
    assert found.sha256 == CELLVIT.sha256
    x = picture()
    output = encoder_from_parameters(found, "cpu", precision="fp32")(x)
    embedding, *taps = split_taps(output, found.encoder_config)
    reference, blocks = with_taps(found, x)
    assert relative_l2(embedding, reference) < 1e-5 and len(taps) == len(blocks) == 4
    for tap, block in zip(taps, blocks, strict=True):
        assert relative_l2(tap, block) < 1e-5


def test_cellvit_sam_on_smaller_pictures(tmp_path: Path) -> None:
    """Position embeddings are cut off: ``self.pos_embed[:, :token_size, :token_size, :]``."""
    found = at_size(read_checkpoint(saved_cellvit(tmp_path / "a.pth")), 64)
    assert found.encoder_config.img_size == 64
    config, tensors = plain(CELLVIT)
    tensors["pos_embed"] = tensors["pos_embed"][:, :4, :4]
    x = picture(64)
    small = EncoderConfig(**{**vars(config), "img_size": 64})
    with torch.no_grad():
        reference = meta_encoder_of(small, tensors)(x)
    output = encoder_from_parameters(found, "cpu", precision="fp32")(x)
    assert relative_l2(split_taps(output, found.encoder_config)[0], reference) < 1e-5
    with pytest.raises(CheckpointError, match="at most 128"):
        at_size(CELLVIT, 256)


DEEP = random_parameters(tiny_config(strided_chans=(24, 40)), seed=5, decoder=False)


@pytest.mark.parametrize(
    "prefix", ["model.sam_model.", "sam_model.", "model.vision_tower_high.", ""]
)
def test_deep_encoder(tmp_path: Path, prefix: str) -> None:
    state = encoder_state(DEEP, prefix)
    if prefix:
        state["model.layers.0.self_attn.q_proj.weight"] = torch.ones(2)
    torch.save(state, tmp_path / "deepseek.bin")
    found = read_checkpoint(tmp_path / "deepseek.bin")
    assert found.encoder_config == DEEP.encoder_config and found.sha256 == DEEP.sha256
    x = picture()
    output = encoder_from_parameters(found, "cpu", precision="fp32")(x)
    assert output.shape == (2, 40, 2, 2)
    assert relative_l2(output, deep_encoder(DEEP, x)) < 1e-5


@pytest.mark.parametrize("side", [64, 80, 128, 160])
def test_deep_encoder_at_other_sizes(side: int) -> None:
    """``get_abs_pos`` of sam_vary_sdpa.py: bicubic, antialiased; tables by ``get_rel_pos``."""
    found = at_size(DEEP, side)
    grid = side // 16
    assert found.encoder_config.output_shape == (40, -(-grid // 4), -(-grid // 4))
    tensors = DEEP.encoder()
    positions = torch.from_numpy(tensors["pos_embed"]).permute(0, 3, 1, 2)
    if grid != 8:
        positions = F.interpolate(
            positions, size=(grid, grid), mode="bicubic", antialias=True, align_corners=False
        )
    tensors["pos_embed"] = positions.permute(0, 2, 3, 1).numpy()
    config = EncoderConfig(**{**vars(DEEP.encoder_config), "img_size": side})
    given = Parameters(config, {f"{PREFIX}{name}": tensor for name, tensor in tensors.items()})
    x = picture(side)
    output = encoder_from_parameters(found, "cpu", precision="fp32")(x)
    assert relative_l2(output, deep_encoder(given, x)) < 1e-5


def test_the_command_says_what_it_found(tmp_path: Path) -> None:
    torch.save(encoder_state(DEEP, "sam_model."), tmp_path / "deep.bin")
    script = Path(__file__).parents[2] / "examples/sam/params_convert.py"
    command = [sys.executable, script, "--checkpoint", tmp_path / "deep.bin", "--img-size", "160",
               "--output-dir", tmp_path / "deep"]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "output       40 × 3 × 3 of a picture" in done.stdout
    assert "note         DeepEncoder" in done.stdout
    assert load_parameters(tmp_path / "deep").encoder_config.img_size == 160


@pytest.mark.parametrize("side", [0, -16, 100])
def test_sizes_that_cannot_be(side: int) -> None:
    with pytest.raises(CheckpointError, match="expected a multiple of 16"):
        at_size(DEEP, side)
    with pytest.raises(CheckpointError, match="only the image encoders"):
        at_size(random_parameters(tiny_config()), 64)


@pytest.mark.parametrize(
    "changes",
    [
        {"taps": (3,)},
        {"taps": (1, 0)},
        {"taps": (1, 1)},
        {"taps": (1,), "readout_chans": 3},
        {"strided_chans": (8,), "readout_chans": 3},
    ],
)
def test_ends_that_cannot_be(changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"expected blocks below|not two"):
        tiny_config(**changes)


def refused(path: Path, state: dict[str, Tensor]) -> str:
    torch.save(state, path)
    with pytest.raises(CheckpointError) as caught:
        read_checkpoint(path)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_what_is_not_whole_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.pth"
    state, _ = saved_cellpose()
    assert "W2, which puts" in refused(path, state | {"W2": state["W2"] + 1})
    assert "not a whole Cellpose-SAM" in refused(path, state | {"W2": torch.ones(3)})
    less = {name: tensor for name, tensor in state.items() if name != "encoder.pos_embed"}
    assert "has no encoder.pos_embed" in refused(path, less)
    less = {name: tensor for name, tensor in state.items() if name != "encoder.neck.2.weight"}
    assert "missing image_encoder.neck.2.weight" in refused(path, less)
    cellvit = encoder_state(random_parameters(tiny_config(), decoder=False), "encoder.")
    cellvit["nuclei_binary_map_decoder.x"] = torch.ones(2)
    assert "3 blocks, expected a CellViT-SAM's" in refused(path, cellvit)
    deep = encoder_state(DEEP, "")
    del deep["net_2.weight"]
    assert "unexpected image_encoder.net_3.weight" in refused(path, deep)
    with_decoder = to_torch(random_parameters(tiny_config(strided_chans=(8,))).tensors)
    assert "does not end in what its mask decoder takes" in refused(path, with_decoder)


def test_taps_are_part_of_the_hash() -> None:
    other = random_parameters(tiny_config(depth=4, taps=(0, 1, 3)), seed=4, decoder=False)
    assert other.tensors.keys() == CELLVIT.tensors.keys() and other.sha256 != CELLVIT.sha256
