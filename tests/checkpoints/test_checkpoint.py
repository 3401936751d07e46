"""Checkpoints: Meta's layout in, a parameter folder out, and one clear line for anything else."""

import argparse
import errno
import gzip
import json
import pickle
import subprocess
import sys
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
import torch
from oracle import tiny_config, to_torch
from PIL import Image

from samtrt import files
from samtrt.checkpoints.config import EncoderConfig, vit_b, vit_h, vit_l
from samtrt.checkpoints.meta import read_checkpoint
from samtrt.checkpoints.parameters import (
    Parameters,
    load_parameters,
    random_parameters,
    save_parameters,
)
from samtrt.checkpoints.shapes import infer_encoder_config, parameter_shapes
from samtrt.errors import CheckpointError, SamtrtError
from samtrt.reports.peers import meta_sam

CONVERT = Path(__file__).parents[2] / "examples/sam/params_convert.py"
TINY = random_parameters(tiny_config())


def write_checkpoint(path: Path, **changes: torch.Tensor | None) -> Path:
    """A tiny checkpoint with some tensors replaced, added, or (None) left out."""
    state = {**to_torch(TINY.tensors), **changes}
    torch.save({name: tensor for name, tensor in state.items() if tensor is not None}, path)
    return path


def convert(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(CONVERT), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("config", [vit_b(), vit_l(), vit_h(), tiny_config()], ids=str)
def test_layout_is_metas(config: EncoderConfig) -> None:
    with torch.device("meta"):
        state = meta_sam(config).state_dict()
    shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
    assert parameter_shapes(config) == shapes
    assert infer_encoder_config(shapes) == config


@pytest.mark.parametrize(
    "config",
    [
        tiny_config(embed_dim=160, num_heads=2),  # head dim 80
        tiny_config(mlp_dim=48, out_chans=64),
        tiny_config(patch_size=8, depth=5, global_attn_indexes=(0, 4)),
        tiny_config(global_attn_indexes=()),
    ],
)
def test_sizes_are_inferred(config: EncoderConfig) -> None:
    assert infer_encoder_config(parameter_shapes(config)) == config


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
def test_checkpoint_to_folder_and_back(tmp_path: Path, legacy: bool) -> None:
    path = tmp_path / "sam.pth"
    torch.save(to_torch(TINY.tensors), path, _use_new_zipfile_serialization=not legacy)
    save_parameters(read_checkpoint(path), tmp_path / "sam")
    loaded = load_parameters(tmp_path / "sam")
    assert loaded.encoder_config == tiny_config()
    assert loaded.source_sha256 == files.sha256_of(path)
    assert loaded.sha256 == TINY.sha256
    assert loaded.tensors.keys() == TINY.tensors.keys()
    for name, tensor in loaded.tensors.items():
        np.testing.assert_array_equal(tensor, TINY.tensors[name])


def test_half_precision_checkpoints(tmp_path: Path) -> None:
    state = {name: tensor.half() for name, tensor in to_torch(TINY.tensors).items()}
    torch.save(state, tmp_path / "half.pth")
    assert {t.dtype for t in read_checkpoint(tmp_path / "half.pth").tensors.values()} == {
        np.dtype(np.float16)
    }
    state = {name: tensor.bfloat16() for name, tensor in state.items()}
    torch.save(state, tmp_path / "bfloat16.pth")
    tensors = read_checkpoint(tmp_path / "bfloat16.pth").tensors
    for name, tensor in tensors.items():
        assert tensor.dtype == np.float32
        np.testing.assert_array_equal(tensor, state[name].float().numpy())


def test_parts() -> None:
    assert "blocks.0.attn.qkv.weight" in TINY.encoder()
    assert not [name for name in TINY.decoder() if name.startswith("image_encoder.")]
    assert len(TINY.encoder()) + len(TINY.decoder()) == len(TINY.tensors)


def test_random_parameters_are_seeded_and_nowhere_zero() -> None:
    assert random_parameters(tiny_config()).sha256 == TINY.sha256
    assert random_parameters(tiny_config(), seed=1).sha256 != TINY.sha256
    assert all(tensor.any() for tensor in TINY.tensors.values())


def test_hash_depends_on_names_shapes_and_values() -> None:
    tensors = dict(TINY.tensors)
    name = "image_encoder.blocks.0.attn.proj.weight"
    for change in (tensors[name].T, tensors[name].reshape(-1), tensors[name] + 1):
        assert Parameters(TINY.encoder_config, {**tensors, name: change}).sha256 != (TINY.sha256)


class Exploit:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return Path.touch, (Path("exploited"),)


def test_missing_checkpoint_says_where_to_get_it(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no checkpoint at .*sam_vit_h_4b8939\.pth"):
        read_checkpoint(tmp_path / "none.pth")


@pytest.mark.parametrize("kept", [0, 100, 0.5, 0.999])
@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
def test_truncated(tmp_path: Path, kept: float, legacy: bool) -> None:
    path = tmp_path / "sam.pth"
    torch.save(to_torch(TINY.tensors), path, _use_new_zipfile_serialization=not legacy)
    content = path.read_bytes()
    path.write_bytes(content[: int(kept if kept > 1 else kept * len(content))])
    with pytest.raises(CheckpointError, match="truncated or damaged"):
        read_checkpoint(path)


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
def test_pickle_with_code_is_not_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, legacy: bool
) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "evil.pth"
    torch.save({"weight": Exploit()}, path, _use_new_zipfile_serialization=not legacy)
    with pytest.raises(CheckpointError, match="can run code"):
        read_checkpoint(path)
    path.write_bytes(pickle.dumps(Exploit()))
    with pytest.raises(CheckpointError):
        read_checkpoint(path)
    assert not Path("exploited").exists()


@pytest.mark.parametrize(
    "state",
    [{"layer1.0.conv1.weight": torch.ones(3)}, {"model": {"weight": torch.ones(3)}}, [1, 2], {}],
    ids=["another model", "nested", "list", "empty"],
)
def test_another_model(tmp_path: Path, state: object) -> None:
    torch.save(state, tmp_path / "other.pth")
    with pytest.raises(CheckpointError, match=r"not a (SAM checkpoint|state_dict)"):
        read_checkpoint(tmp_path / "other.pth")


def test_all_faulty_keys_are_listed_at_once(tmp_path: Path) -> None:
    path = write_checkpoint(
        tmp_path / "sam.pth",
        **{
            "mask_decoder.iou_token.weight": None,
            "image_encoder.blocks.1.norm2.bias": None,
            "image_encoder.extra": torch.ones(2),
            "prompt_encoder.no_mask_embed.weight": torch.ones(1, 255),
        },
    )
    with pytest.raises(CheckpointError) as caught:
        read_checkpoint(path)
    message = str(caught.value)
    assert "missing mask_decoder.iou_token.weight" in message
    assert "missing image_encoder.blocks.1.norm2.bias" in message
    assert "unexpected image_encoder.extra" in message
    assert "no_mask_embed.weight has shape [1, 255], expected [1, 256]" in message


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_not_finite(tmp_path: Path, value: float) -> None:
    name = "image_encoder.blocks.2.mlp.lin1.weight"
    weight = torch.from_numpy(TINY.tensors[name].copy())
    weight[3, 4] = value
    with pytest.raises(CheckpointError, match=rf"{name} holds NaN or inf"):
        read_checkpoint(write_checkpoint(tmp_path / "sam.pth", **{name: weight}))


@pytest.mark.parametrize("dtype", [torch.int64, torch.float64, torch.complex64])
def test_wrong_dtype(tmp_path: Path, dtype: torch.dtype) -> None:
    name = "image_encoder.neck.1.bias"
    path = write_checkpoint(tmp_path / "sam.pth", **{name: torch.ones(256, dtype=dtype)})
    with pytest.raises(CheckpointError, match=rf"{name} has dtype {str(dtype)[6:]}"):
        read_checkpoint(path)


@pytest.mark.parametrize("part", ["tensor", "config", "truncated", "missing", "json"])
def test_altered_folder(tmp_path: Path, part: str) -> None:
    save_parameters(TINY, tmp_path)
    weights, config = tmp_path / "parameters.safetensors", tmp_path / "config.json"
    if part == "tensor":
        content = bytearray(weights.read_bytes())
        content[-5] ^= 1
        weights.write_bytes(content)
    elif part == "config":
        record = json.loads(config.read_text())
        record["encoder"]["global_attn_indexes"] = [0]
        config.write_text(json.dumps(record))
    elif part == "truncated":
        weights.write_bytes(weights.read_bytes()[:-1])
    elif part == "missing":
        weights.unlink()
    else:
        config.write_text("{")
    with pytest.raises(CheckpointError, match=r"altered after|is damaged|is missing"):
        load_parameters(tmp_path)


def test_disk_full_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("samtrt.checkpoints.parameters.write_tensors", full)
    with pytest.raises(SamtrtError, match="No space left on device"):
        save_parameters(TINY, tmp_path / "sam")
    assert list((tmp_path / "sam").iterdir()) == []


def test_script(tmp_path: Path) -> None:
    path = write_checkpoint(tmp_path / "sam.pth")
    done = convert("--checkpoint", path, "--output-dir", tmp_path / "sam")
    assert done.returncode == 0, done.stderr
    assert "3 blocks of 32 channels, 2 heads" in done.stdout
    assert load_parameters(tmp_path / "sam").sha256 == TINY.sha256

    blocked = tmp_path / "file"
    blocked.touch()
    for arguments, message in (
        (("--checkpoint", tmp_path / "none.pth"), "no checkpoint at"),
        (("--checkpoint", path, "--output-dir", blocked / "sam"), "cannot write"),
    ):
        done = convert(*arguments)
        assert done.returncode == 1
        assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
        assert message in done.stderr


@pytest.mark.parametrize(
    ("content", "named"),
    [
        (b"<!DOCTYPE html><html><title>404</title></html>", "a web page"),
        (b"\n <html>", "a web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\n", "Git LFS pointer"),
        (b'{"error": "not found"}', "JSON text"),
        (gzip.compress(b"x" * 999, mtime=0), "gzip data"),
        (safetensors.numpy.save({"a": np.ones(3, np.float32)})[:-1], "truncated or damaged"),
        (b"no checkpoint", "truncated or damaged"),
        (b"", "empty"),
    ],
    ids=lambda value: value[:8] if isinstance(value, bytes) else "",
)
def test_not_a_checkpoint(tmp_path: Path, content: bytes, named: str) -> None:
    path = tmp_path / "sam.pth"
    path.write_bytes(content)
    message = refused(path)
    assert named in message and "download it again" in message and "run code" not in message


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_a_picture_in_a_checkpoints_place(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "photo"
    Image.new("RGB", (9, 9)).save(path, kind)
    assert "photo is a picture, not a checkpoint; give the model's file" in refused(path)


def refused(path: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        read_checkpoint(path)
    assert "\n" not in str(caught.value)
    return str(caught.value)


STATE = to_torch(TINY.tensors)


@pytest.mark.parametrize(
    "saved",
    [
        {"model": STATE, "optimizer": {"state": {}, "param_groups": []}, "epoch": 3},
        {"state_dict": STATE, "best": 0.5},
        {"model_state": {f"module.{name}": tensor for name, tensor in STATE.items()}},
        {f"module.{name}": tensor for name, tensor in STATE.items()},
        {f"sam.{name}": tensor for name, tensor in STATE.items()},
        {**STATE, "epoch": 3, "note": "x"},
        OrderedDict(STATE),
        {name: torch.nn.Parameter(tensor) for name, tensor in STATE.items()},
        {name: tensor.t().contiguous().t() if tensor.ndim == 2 else tensor
         for name, tensor in STATE.items()},
    ],
    ids=["model", "state_dict", "both", "module", "sam", "epoch", "ordered", "grad", "turned"],
)  # fmt: skip
def test_what_training_programs_save_is_read(tmp_path: Path, saved: object) -> None:
    torch.save(saved, tmp_path / "sam.pth")
    assert read_checkpoint(tmp_path / "sam.pth").sha256 == TINY.sha256


@pytest.mark.parametrize(
    ("saved", "named"),
    [
        ({"model": STATE, "state_dict": STATE}, "model, state_dict"),
        ({"ema": STATE, "optimizer": {"state": 1}}, "ema, optimizer"),
        (
            {**{f"sam.{n}": t for n, t in STATE.items()}, "head.weight": torch.ones(2)},
            "head.weight",
        ),
        ({**STATE, "optimizer": {"lr": 1}}, "optimizer"),
        ({1: torch.ones(2)}, "a dict"),
        (torch.ones(2), "a Tensor"),
        ({"a\nb": [1]}, r"'a\nb'"),
    ],
)
def test_what_is_ambiguous_is_named(tmp_path: Path, saved: object, named: str) -> None:
    torch.save(saved, tmp_path / "sam.pth")
    assert named in refused(tmp_path / "sam.pth")


def test_every_flipped_bit_is_seen(tmp_path: Path) -> None:
    path = write_checkpoint(tmp_path / "sam.pth")
    content = path.read_bytes()
    generator = np.random.default_rng(0)
    for position in generator.integers(0, len(content), 60):
        flipped = bytearray(content)
        flipped[position] ^= 1 << int(generator.integers(8))
        path.write_bytes(flipped)
        try:
            assert read_checkpoint(path).sha256 == TINY.sha256  # in what only pads
        except CheckpointError as error:
            assert "\n" not in str(error)
    at = content.index(TINY.tensors["mask_decoder.iou_token.weight"].tobytes())
    path.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
    assert "truncated or damaged" in refused(path)


def test_a_checkpoint_without_checksums_is_read(tmp_path: Path) -> None:
    torch.serialization.set_crc32_options(False)
    try:
        path = write_checkpoint(tmp_path / "sam.pth")
    finally:
        torch.serialization.set_crc32_options(True)
    assert read_checkpoint(path).sha256 == TINY.sha256


WEIGHT = "image_encoder.blocks.0.mlp.lin1.weight"


@pytest.mark.parametrize(
    "make",
    [
        lambda: torch.zeros(1).expand(1 << 20, 1 << 20),
        lambda: torch.zeros(4).as_strided((1 << 30,), (0,)),
        lambda: torch.ones(2, 2).to_sparse(),
        lambda: torch.empty(1 << 40, device="meta"),
        lambda: torch.quantize_per_tensor(torch.ones(8), 0.1, 0, torch.qint8),
    ],
    ids=["expanded", "stride 0", "sparse", "meta", "quantized"],
)
@pytest.mark.filterwarnings("ignore")
def test_tensors_larger_than_their_values_are_refused(
    tmp_path: Path, make: Callable[[], torch.Tensor]
) -> None:
    path = write_checkpoint(tmp_path / "sam.pth", **{WEIGHT: make()})
    assert f"parameter {WEIGHT} is not stored value by value" in refused(path)


def test_one_storage_under_many_names_is_refused(tmp_path: Path) -> None:
    big = torch.ones(1 << 22)
    path = write_checkpoint(tmp_path / "sam.pth", **{f"extra{i}": big for i in range(20)})
    assert "claim" in refused(path)


def rewritten(path: Path, change: Callable[[str, bytes], bytes], compression: int = 0) -> None:
    """The zip file with its parts changed and its checksums right."""
    with zipfile.ZipFile(path) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in parts.items():
            archive.writestr(name, change(name, content))


def test_a_declared_size_beyond_the_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "sam.pth"
    torch.save({"image_encoder.pos_embed": torch.ones(1000)}, path)
    rewritten(path, lambda name, part: part.replace(b"M\xe8\x03", b"J\x00\x00\x00\x7f"))
    assert "truncated or damaged" in refused(path)


def test_a_compressed_zip_file_is_refused(tmp_path: Path) -> None:
    path = write_checkpoint(tmp_path / "sam.pth")
    rewritten(path, lambda name, part: part, zipfile.ZIP_DEFLATED)
    assert "not as torch.save writes them" in refused(path)


@pytest.mark.filterwarnings("ignore")
def test_other_zip_files_are_named(tmp_path: Path) -> None:
    path = tmp_path / "sam.pth"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("sam_vit_b.pth", b"x")
    assert "a zip file without a checkpoint's parts" in refused(path)
    torch.jit.script(torch.nn.Linear(2, 2)).save(path)
    assert "a TorchScript program" in refused(path)


def test_objects_are_named(tmp_path: Path) -> None:
    torch.save({"model": STATE, "args": argparse.Namespace(lr=1)}, tmp_path / "sam.pth")
    assert "(argparse.Namespace) and was not opened" in refused(tmp_path / "sam.pth")


@pytest.mark.parametrize(
    "name",
    [
        "patch_embed.proj.weight",
        "pos_embed",
        "neck.0.weight",
        "blocks.0.attn.rel_pos_h",
        "blocks.0.mlp.lin1.weight",
    ],
)
def test_sizes_that_cannot_be_are_refused(tmp_path: Path, name: str) -> None:
    full = f"image_encoder.{name}"
    shape = TINY.tensors[full].shape
    for changed in ((0,) * len(shape), (), (3,), (1, *shape), tuple(2 * side for side in shape)):
        refused(write_checkpoint(tmp_path / "sam.pth", **{full: torch.ones(changed)}))


def test_a_missing_file_of_a_folder_is_named(tmp_path: Path) -> None:
    for name in ("parameters.safetensors", "config.json"):
        save_parameters(TINY, tmp_path)
        (tmp_path / name).unlink()
        with pytest.raises(CheckpointError, match=f"{name} is missing"):
            load_parameters(tmp_path)


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"encoder": {**tiny_config().to_json(), "window_size": 6}}, "altered after"),
        ({"encoder": {**tiny_config().to_json(), "depth": 10**9}}, "encoder.depth"),
        ({"encoder": {**tiny_config().to_json(), "patch_size": 0}}, "encoder.patch_size"),
        ({"encoder": {**tiny_config().to_json(), "layer_norm_eps": 1e-3}}, "altered after"),
        ({"encoder": []}, "encoder"),
        ({"sha256": "x"}, "sha256"),
        ({"source_sha256": 3}, "source_sha256"),
        ({"note": None}, "note"),
        ({"surplus": 1}, "surplus"),
    ],
    ids=str,
)
def test_an_altered_record_is_refused(
    tmp_path: Path, change: dict[str, object], field: str
) -> None:
    save_parameters(TINY, tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(CheckpointError, match=field) as caught:
        load_parameters(tmp_path)
    assert "\n" not in str(caught.value)
