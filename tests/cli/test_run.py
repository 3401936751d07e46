"""run.py as its users call it: masks, overlay and report; bad input is one line and no file."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from oracle import meta_sam, tiny_config
from PIL import Image
from scripts import EXAMPLES, call_script, load_script

from samtrt.building.build import BuildOptions, build_encoder
from samtrt.checkpoints.parameters import Parameters, random_parameters, save_parameters
from samtrt.cli.parts.segment import Mask, StageTimes, segment
from samtrt.cli.run import DEMO_POINT
from samtrt.decoders.export import export_decoder
from samtrt.decoders.prompts import Prompt
from samtrt.decoders.protocol import check_fits
from samtrt.decoders.torch import TorchDecoder
from samtrt.encoders.load import encoder_from_parameters
from samtrt.errors import EngineError, InputError
from samtrt.pictures.drawing import FOREGROUND_COLOR, draw_overlay
from samtrt.pictures.reading import load_image, save_png

HEIGHT, WIDTH = 90, 120
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def parameters() -> Parameters:
    return random_parameters(tiny_config(), 5)


@pytest.fixture(scope="module")
def model(parameters: Parameters, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with parameters, a CPU engine and an exported decoder, as `make run` leaves it."""
    folder = tmp_path_factory.mktemp("model")
    save_parameters(parameters, folder)
    options = BuildOptions(backend="cpu", precision="fp32", skip_parity_gate=True)
    build_encoder(parameters, folder / "engine", [], options)
    export_decoder(parameters, folder / "mask_decoder.onnx")
    return folder


@pytest.fixture(scope="module")
def picture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("pictures") / "picture.png"
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    channels = [128 + 100 * np.sin(x / (7 + c)) * np.cos(y / (5 + 2 * c)) for c in range(3)]
    save_png(path, np.stack(channels, axis=-1).astype(np.uint8))
    return path


@pytest.fixture
def run(model: Path, picture: Path, tmp_path: Path) -> Run:
    """Calls the script in this process: exit status, stdout, stderr."""
    script = load_script("run")

    def call(*flags: object, image: Path = picture) -> tuple[int, str, str]:
        defaults = ["--engine", model / "engine", "--image", image, "--output", tmp_path / "m.png"]
        return call_script(script, *defaults, *flags)

    return call


def metas_masks(
    parameters: Parameters, image: np.ndarray, **prompt: Any
) -> tuple[np.ndarray, np.ndarray]:
    """Meta's predictor on the same parameters."""
    sam = meta_sam(parameters.encoder_config, parameters=parameters)
    from segment_anything import SamPredictor

    predictor = SamPredictor(sam)
    predictor.set_image(image)
    masks, scores, _ = predictor.predict(**prompt)
    return masks, scores


PROMPTS: list[tuple[list[object], dict[str, Any]]] = [
    (
        ["--point-coords", 80, 46, "--point-labels", 1],
        {"point_coords": np.array([[80, 46]]), "point_labels": np.array([1])},
    ),
    (
        ["--point-coords", 80, 46, 90, 50.5, "--point-labels", 1, 0],
        {"point_coords": np.array([[80, 46], [90, 50.5]]), "point_labels": np.array([1, 0])},
    ),
    (["--box", 10, 20, 100, 80], {"box": np.array([10, 20, 100, 80])}),
    (
        ["--box", 10, 20, 100, 80, "--point-coords", 30, 40, "--point-labels", 0],
        {
            "box": np.array([10, 20, 100, 80]),
            "point_coords": np.array([[30, 40]]),
            "point_labels": np.array([0]),
        },
    ),
]


@pytest.mark.parametrize(("flags", "prompt"), PROMPTS, ids=["point", "points", "box", "both"])
def test_mask_equals_metas_predictor(
    run: Run,
    parameters: Parameters,
    picture: Path,
    tmp_path: Path,
    flags: list[object],
    prompt: dict[str, Any],
) -> None:
    status, out, err = run(*flags)
    assert (status, err) == (0, "")
    masks, scores = metas_masks(parameters, load_image(picture), multimask_output=False, **prompt)
    written = np.array(Image.open(tmp_path / "m.png"))
    assert written.shape == (HEIGHT, WIDTH) and set(np.unique(written)) <= {0, 255}
    assert 0 < masks[0].mean() < 1  # a mask that says something
    assert ((written > 0) != masks[0]).mean() < 1e-3  # rounding at the edge
    assert f"{scores[0]:.3f}" in out and f"{(written > 0).sum():,} px" in out


def test_multimask_writes_all_and_the_best(
    run: Run, parameters: Parameters, picture: Path, tmp_path: Path
) -> None:
    status, out, _ = run("--point-coords", 80, 46, "--point-labels", 1, "--multimask")
    assert status == 0
    masks, scores = metas_masks(
        parameters,
        load_image(picture),
        point_coords=np.array([[80, 46]]),
        point_labels=np.array([1]),
    )
    for i, expected in enumerate(masks, 1):
        written = np.array(Image.open(tmp_path / f"m_{i}.png")) > 0
        assert (written != expected).mean() < 1e-3
        assert f"{scores[i - 1]:.3f}" in out
    best = tmp_path / f"m_{1 + scores.argmax()}.png"
    assert (tmp_path / "m.png").read_bytes() == best.read_bytes()
    overlay = load_image(tmp_path / "m_overlay.png")
    assert overlay.shape[1] > 3 * WIDTH  # side by side


def test_report_names_every_stage_box_and_file(run: Run, tmp_path: Path) -> None:
    _, out, _ = run("--box", 10, 20, 100, 80)
    for stage in ("read picture", "load engine", "image encoder", "mask decoder", "upscale"):
        assert stage in out
    rows, columns = np.nonzero(np.array(Image.open(tmp_path / "m.png")))
    assert f"{columns.min()} {rows.min()} {columns.max()} {rows.max()}" in out
    assert f"written  {tmp_path / 'm.png'}\n" in out
    assert f"written  {tmp_path / 'm_overlay.png'}\n" in out
    assert "cpu backend, fp32" in out and "ONNX Runtime" in out
    assert "its masks mean nothing" in out


def test_decoder_from_a_parameter_folder(run: Run, model: Path, tmp_path: Path) -> None:
    flags = ["--point-coords", 80, 46]
    assert run(*flags)[0] == 0
    onnx = (tmp_path / "m.png").read_bytes()
    status, out, _ = run(*flags, "--decoder", model)
    assert status == 0 and "torch, fp32" in out
    assert (tmp_path / "m.png").read_bytes() == onnx


def test_a_parameter_folder_has_both(run: Run, model: Path, picture: Path, tmp_path: Path) -> None:
    """As on the console: its engine, and its own decoder."""
    assert run("--point-coords", 80, 46)[0] == 0
    expected = (tmp_path / "m.png").read_bytes()
    flags = ["--image", picture, "--params", model, "--output", tmp_path / "p.png"]
    status, out, err = call_script(load_script("run"), *flags, "--point-coords", 80, 46)
    assert (status, err) == (0, "") and "torch, fp32" in out
    assert (tmp_path / "p.png").read_bytes() == expected


def test_picture_kinds(run: Run, tmp_path: Path) -> None:
    """Sizes and modes that break naive code end in a mask of the picture's size."""
    kinds = {
        "one": Image.new("RGB", (1, 1)),
        "long": Image.new("RGB", (20_000, 10), "gray"),
        "grey": Image.new("L", (30, 20)),
        "alpha": Image.new("RGBA", (30, 20)),
        "deep": Image.fromarray(np.full((20, 30), 40_000, np.uint16)),
    }
    for name, image in kinds.items():
        image.save(tmp_path / f"{name}.png")
        status, _, err = run("--point-coords", 0, 0, image=tmp_path / f"{name}.png")
        assert (status, err) == (0, ""), name
        for file in ("m.png", "m_overlay.png"):
            assert Image.open(tmp_path / file).size == image.size


ONE_POINT = ["--point-coords", 80, 46, "--point-labels", 1]
BAD_PROMPTS: list[tuple[list[object], str]] = [
    (["--point-coords", 80, 46, 90, 50, "--point-labels", 1], "2 points and 1 labels"),
    (["--point-coords", 80, 46, "--point-labels", 1, 0], "1 points and 2 labels"),
    (["--point-labels", 1], "0 points and 1 labels"),
    (["--point-coords", 80, 46, "--point-labels", 2], "has the label 2; expected 1"),
    (["--point-coords", 80, 46, "--point-labels", -1], "has the label -1; expected 1"),
    (["--point-coords", 80], "1 point coordinates; expected x and y"),
    (["--point-coords", 120, 46], "point 120 46 is outside the picture"),
    (["--point-coords", 80, -1], "point 80 -1 is outside the picture"),
    (["--point-coords", "nan", 46], "point nan 46 is outside the picture"),
    (["--box", 100, 20, 10, 80], "has no area; expected x0 y0 x1 y1 with x0 < x1"),
    (["--box", 10, 20, 10, 80], "has no area"),
    (["--box", 10, 80, 100, 20], "has no area"),
    (["--box", 10, 20, 130, 80], "reaches outside the picture; the picture has 120×90"),
    (["--box", -1, 20, 100, 80], "reaches outside the picture"),
    (["--box", 0, 0, "inf", 80], "reaches outside the picture"),
    ([], "nothing is asked for"),
]


@pytest.mark.parametrize(("flags", "message"), BAD_PROMPTS)
def test_bad_prompt(run: Run, tmp_path: Path, flags: list[object], message: str) -> None:
    assert_refused(run(*flags), message)
    assert list(tmp_path.iterdir()) == []


def assert_refused(result: tuple[int, str, str], message: str) -> None:
    status, out, err = result
    assert status == 1 and out == ""
    assert err.startswith("error: ") and err.count("\n") == 1
    assert message in err


def test_bad_pictures(run: Run, tmp_path: Path) -> None:
    assert_refused(run(*ONE_POINT, image=tmp_path / "absent.jpg"), "no picture at")
    (tmp_path / "empty.jpg").touch()
    assert_refused(run(*ONE_POINT, image=tmp_path / "empty.jpg"), "is empty")
    (tmp_path / "text.jpg").write_text("not a picture")
    assert_refused(run(*ONE_POINT, image=tmp_path / "text.jpg"), "is not a picture")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty.jpg", "text.jpg"]


def test_bad_outputs(run: Run, tmp_path: Path) -> None:
    assert_refused(run(*ONE_POINT, "--output", tmp_path / "m.jpg"), "ends in .png")
    (tmp_path / "file").touch()
    assert_refused(run(*ONE_POINT, "--output", tmp_path / "file" / "m.png"), "cannot write")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_disk_full(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "m.png").write_bytes(b"earlier")

    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(Image.Image, "save", full)
    assert_refused(run(*ONE_POINT), "No space left on device")
    assert [path.name for path in tmp_path.iterdir()] == ["m.png"]
    assert (tmp_path / "m.png").read_bytes() == b"earlier"


def test_decoder_of_another_parameter_set(run: Run, tmp_path: Path) -> None:
    save_parameters(random_parameters(tiny_config(), 6), tmp_path / "other")
    assert_refused(run(*ONE_POINT, "--decoder", tmp_path / "other"), "another parameter set")
    assert not (tmp_path / "m.png").exists()


def test_decoder_of_another_frame(parameters: Parameters) -> None:
    """A decoder that does not say its parameters is still held against the input size."""
    encoder = encoder_from_parameters(parameters, "cpu", precision="fp32")
    decoder = TorchDecoder.from_parameters(random_parameters(tiny_config(img_size=256), 5))
    with pytest.raises(EngineError, match="pictures of 256² pixels and the encoder for 128²"):
        segment(np.zeros((20, 30, 3), np.uint8), Prompt.from_numbers([3, 4]), encoder, decoder)


def test_single_mask_decoder(parameters: Parameters) -> None:
    """Such a decoder's one mask is taken as it is, and three are not to be had."""

    class SingleMask(TorchDecoder):
        num_masks = 1

        def __call__(self, *given: Any) -> tuple[torch.Tensor, torch.Tensor]:
            check_fits(self, given[0].img_size, given[2])
            masks, ious = super().all_masks(*given[:2])
            return masks[:, 2:3], ious[:, 2:3]

    encoder = encoder_from_parameters(parameters, "cpu", precision="fp32")
    image = np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)
    prompt = Prompt.from_numbers([3, 4])
    (mask,) = segment(image, prompt, encoder, SingleMask.from_parameters(parameters))
    second = segment(image, prompt, encoder, TorchDecoder.from_parameters(parameters), True)[1]
    assert mask.score == second.score and (mask.pixels == second.pixels).all()
    with pytest.raises(InputError, match="was exported with --return-single-mask"):
        segment(
            image, prompt, encoder, SingleMask.from_parameters(parameters), multimask_output=True
        )


def test_missing_engine_and_decoder(run: Run, model: Path, tmp_path: Path) -> None:
    missing = tmp_path / "nowhere"
    assert_refused(run(*ONE_POINT, "--decoder", missing / "d.onnx"), "no mask decoder at")
    refused = run(*ONE_POINT, "--engine", missing, "--decoder", model / "mask_decoder.onnx")
    assert_refused(refused, "no engine in")


@pytest.mark.slow
def test_no_arguments_on_what_the_repository_ships(tmp_path: Path) -> None:
    """The demo checkpoint through all four scripts; the default point lies on its mask."""
    checkpoint = EXAMPLES / "sam_models" / "sam_demo.pth"
    params, engine = tmp_path / "params", tmp_path / "params" / "engine"
    steps: dict[str, list[object]] = {
        "params_convert": ["--checkpoint", checkpoint, "--output-dir", params],
        "build": ["--params", params, "--backend", "cpu", "--skip-parity-gate"],
        "export_decoder": ["--params", params],
        "run": ["--engine", engine, "--output", tmp_path / "m.png"],
    }
    for name, flags in steps.items():
        script = load_script(name)
        status, out, err = call_script(script, *flags)
        assert status == 0, err
    assert "mean nothing" not in out  # it was trained
    mask = np.array(Image.open(tmp_path / "m.png")) > 0
    x, y = DEMO_POINT
    assert mask[y, x] and 0.01 < mask.mean() < 0.3


def test_as_a_command(picture: Path, tmp_path: Path) -> None:
    """The script itself: status 1, one line on stderr, no traceback."""
    script = str(EXAMPLES / "run.py")
    command = [sys.executable, script, "--image", str(picture), "--box", "9", "9", "9", "9"]
    result = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert_refused((result.returncode, result.stdout, result.stderr), "has no area")


def test_overlay_draws_mask_outline_and_prompt() -> None:
    image = np.full((200, 300, 3), 200, np.uint8)
    mask = np.zeros((200, 300), bool)
    mask[50:150, 100:200] = True
    plain = draw_overlay(image, mask).astype(int)
    assert (plain[100, 150] - image[100, 150]).tolist() != [0, 0, 0]  # tinted inside
    assert plain[100, 150, 2] > plain[100, 150, 0]  # with blue
    assert (plain[10, 10] < 200).all()  # darker outside
    edge, inside = plain[100, 100], plain[100, 150]
    assert np.abs(edge - inside).sum() > 60  # the outline
    drawn = draw_overlay(image, mask, [(150, 100)], [1], (90, 40, 210, 160)).astype(int)
    assert np.abs(drawn[100, 146] - plain[100, 146]).sum() > 60  # the point's ring
    near = drawn[94:107, 144:157].reshape(-1, 3)
    assert (np.abs(near - FOREGROUND_COLOR).sum(axis=1) < 30).any()
    assert np.abs(drawn[41, 150] - plain[41, 150]).sum() > 60  # the box


def test_empty_mask() -> None:
    mask = Mask(np.zeros((3, 4), bool), 0.5)
    assert mask.area == 0 and mask.box is None
    draw_overlay(np.zeros((3, 4, 3), np.uint8), mask.pixels)


def test_stages_are_timed(parameters: Parameters) -> None:
    encoder = encoder_from_parameters(parameters, "cpu", precision="fp32")
    times = StageTimes()
    image = np.zeros((20, 30, 3), np.uint8)
    prompt = Prompt.from_numbers([3, 4])
    masks = segment(image, prompt, encoder, TorchDecoder.from_parameters(parameters), True, times)
    assert [mask.pixels.shape for mask in masks] == [(20, 30)] * 3
    assert len(times.seconds) == 4 and all(seconds > 0 for seconds in times.seconds.values())
