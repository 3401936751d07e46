"""The console command ``samtrt``, from a checkpoint to masks, as a user runs it."""

import argparse
import ast
import json
import re
import shutil
import subprocess
import sys
import threading
from collections import Counter
from pathlib import Path

import httpx
import numpy as np
import pytest
import torch
from oracle import to_torch
from PIL import Image
from pycocotools import mask as mask_utils
from scripts import EXAMPLES, load_script
from server_support import (
    CONFIG,
    address_of,
    build_model,
    encoded,
    picture,
    tiny_decoder,
    tiny_model,
)

from samtrt.checkpoints import config
from samtrt.checkpoints.parameters import load_parameters, random_parameters
from samtrt.cli import commands, options
from samtrt.cli.parts.segment import segment
from samtrt.console import run_script
from samtrt.decoders.load import load_decoder
from samtrt.decoders.prompts import Prompt
from samtrt.encoders.engine import read_engine_info
from samtrt.encoders.load import load_encoder
from samtrt.hints import SCRIPTS

CLI = Path(commands.__file__).parent


@pytest.fixture(scope="module")
def model() -> Path:
    return tiny_model()


def samtrt(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Runs the command in a process of its own."""
    command = [sys.executable, "-c", "from samtrt.cli.commands import main; main()"]
    return subprocess.run(
        [*command, *map(str, arguments)], capture_output=True, text=True, timeout=120
    )


def assert_one_line_error(
    capsys: pytest.CaptureFixture[str], words: list[str], *arguments: str | Path
) -> None:
    """Runs the command in this process: exit status 1 and one line with the words."""
    capsys.readouterr()
    assert run_script(lambda: commands.run([*map(str, arguments)])) == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("error: ") and printed.err.count("\n") == 1
    for word in words:
        assert word in printed.err


@pytest.mark.parametrize("name", ["", *commands.COMMANDS])
def test_help_needs_no_torch(name: str) -> None:
    script = (
        "import sys; from samtrt.cli.commands import run\n"
        f"try: run([{name!r}, '--help'] if {name!r} else ['--help'])\n"
        "except SystemExit: sys.exit('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0 and "usage: samtrt" in done.stdout, done.stderr


def test_sizes_are_those_of_the_library() -> None:
    assert all(hasattr(config, size) for size in options.SIZES)


# The scripts of examples/sam and the commands behind them.
DOORS = {Path(script).stem: command for command, script in SCRIPTS.items()}


def offered(parser: argparse.ArgumentParser) -> dict[str, dict[str, object]]:
    """Each flag with what it takes and says, but for its default."""
    return {
        flag: {
            "type": action.type,
            "nargs": action.nargs,
            "choices": action.choices and tuple(action.choices),
            "metavar": action.metavar,
            "required": action.required,
            "help": re.sub(r" ?\(default: .*\)$", "", action.help or ""),
        }
        for action in parser._actions
        for flag in action.option_strings
    }


def console_parser(command: str) -> argparse.ArgumentParser:
    (subparsers,) = (
        action
        for action in commands.make_parser()._actions
        if isinstance(action, argparse._SubParsersAction)
    )
    return subparsers.choices[command]


def test_every_script_is_a_door() -> None:
    assert set(DOORS) == {path.stem for path in EXAMPLES.glob("*.py")}


@pytest.mark.parametrize(("script", "command"), DOORS.items())
def test_both_doors_have_the_same_options(
    script: str,
    command: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    parser = argparse.ArgumentParser()
    commands.COMMANDS[command].add_options(options.Options(parser, EXAMPLES))
    console = console_parser(command)
    assert offered(parser) == offered(console)
    assert all(flag["help"] for flag in offered(console).values())
    monkeypatch.setattr(sys, "argv", [f"{script}.py", "--help"])
    with pytest.raises(SystemExit):
        load_script(script).main()
    assert set(re.findall(r"--[a-z0-9-]+", capsys.readouterr().out)) >= set(offered(console)) - {
        "-h"
    }


def test_no_option_is_described_twice() -> None:
    """But for the doors' own: a text stands in one place of the sources."""
    sources = [path.read_text("utf-8") for path in (*CLI.rglob("*.py"), *EXAMPLES.glob("*.py"))]
    texts: Counter[str] = Counter()
    for source in sources:
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                texts[node.value] += len(node.value.split()) >= 5
    assert [text for text, count in texts.items() if count > 1] == []


def test_the_subject_needs_no_flag_and_stands_once(tmp_path: Path) -> None:
    parser = commands.make_parser()
    for argv in (["build", "folder", "--max-batch-size", "2"], ["build", "--params", "folder"]):
        assert parser.parse_args(argv).params == Path("folder")
    assert parser.parse_args(["build", "--max-batch-size", "2", "folder"]).params == Path("folder")
    for argv in (
        ["build", "folder", "--params", "another"],
        ["convert", "a.pth", "--random", "vit_b"],
        ["convert", "--checkpoint", "a.pth", "--random", "vit_b"],
    ):
        with pytest.raises(SystemExit) as ended:
            parser.parse_args(argv)
        assert ended.value.code == 2


def test_checkpoint_to_mask(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    parameters = random_parameters(CONFIG, 3)
    checkpoint = tmp_path / "tiny.pth"
    torch.save(to_torch(parameters.tensors), checkpoint)
    photo = tmp_path / "photo.png"
    image = picture(1)
    photo.write_bytes(encoded(image))

    assert commands.run(["convert", str(checkpoint)]) is None
    folder = tmp_path / "tiny"
    assert load_parameters(folder).sha256 == parameters.sha256

    build = ["build", str(folder), "--backend", "cpu", "--precision", "fp32"]
    assert commands.run([*build, "--pictures", str(photo)]) is None
    info = read_engine_info(folder / "engine")
    assert (info.backend, info.precision, info.parity.status) == ("cpu", "fp32", "passed")

    output = tmp_path / "mask.png"
    run = ["run", str(photo), "--params", str(folder), "--output", str(output)]
    assert not commands.run([*run, "--point-coords", "60", "70"])
    expected = segment(
        image, Prompt.from_numbers([60, 70]), load_encoder(folder / "engine"), load_decoder(folder)
    )
    with Image.open(output) as found:
        np.testing.assert_array_equal(np.array(found) > 0, expected[0].pixels)
    assert str(output) in capsys.readouterr().out


def test_everything_skips_reports_and_resumes(model: Path, tmp_path: Path) -> None:
    folder, outputs = tmp_path / "in", tmp_path / "out"
    (folder / "deep").mkdir(parents=True)
    (folder / "a.png").write_bytes(encoded(picture(1)))
    (folder / "deep" / "b.jpg").write_bytes(encoded(picture(2), "JPEG"))
    (folder / "cut.png").write_bytes(encoded(picture(3))[:500])
    (folder / "text.jpg").write_text("no picture")
    command = ["everything", folder, "--params", model, "--output-dir", outputs]
    command += ["--points-per-side", "2", "--pred-iou-thresh", "0"]
    command += ["--stability-score-thresh", "0", "--box-nms-thresh", "1"]

    first = samtrt(*command)
    assert first.returncode == 1, first.stderr  # some files were no pictures
    assert "segmented   2 pictures" in first.stdout and "skipped     2 files" in first.stdout
    assert "cut.png: " in first.stdout and "text.jpg: " in first.stdout
    assert "Traceback" not in first.stderr and "[1/4] a.png" in first.stderr
    dataset = json.loads((outputs / "deep" / "b.jpg.json").read_text())
    assert len(dataset["annotations"]) > 1
    for annotation in dataset["annotations"]:
        assert mask_utils.area(annotation["segmentation"]) == annotation["area"]
    assert (outputs / "a.png.png").is_file()

    (outputs / "a.png.json").unlink()
    second = samtrt(*command)
    assert "segmented   1 pictures" in second.stdout
    assert "resumed     1 pictures" in second.stdout


def test_serve_answers_and_ends_with_ctrl_c(model: Path) -> None:
    command = [sys.executable, "-c", "from samtrt.cli.commands import main; main()", "serve"]
    command += ["--params", str(model), "--port", "0", "--no-page"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    watchdog = threading.Timer(90, process.kill)
    watchdog.start()
    try:
        url = address_of(process)
        assert url.startswith("http://127.0.0.1:")
        headers = {"Content-Type": "image/png"}
        answer = httpx.post(f"{url}/embed", content=encoded(picture(1)), headers=headers)
        assert answer.status_code == 200
        process.send_signal(2)
        assert process.wait(30) in (0, 130)
        assert process.stderr is not None and "Traceback" not in process.stderr.read()
    finally:
        watchdog.cancel()
        process.kill()
        process.wait()


def test_errors_are_one_line(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photo = tmp_path / "photo.png"
    photo.write_bytes(encoded(picture(1)))
    run = ("run", photo, "--params", model)
    everything = ("everything", tmp_path / "none", "--params", model, "--output-dir", tmp_path)
    serve = ("serve", "--params", model, "--no-page")
    for words, arguments in (
        (["--checkpoint is not given", "--random"], ("convert",)),
        (["--seed", "--random"], ("convert", tmp_path / "none.pth", "--seed", "1")),
        (["--params is not given"], ("build",)),
        (["--params is not given"], ("export-decoder",)),
        (["no picture is named"], ("run",)),
        (["no model is named", "--params"], ("run", photo, "--point", "1,2")),
        (["no model is named"], ("evaluate",)),
        (["no picture"], ("compare", model)),
        (["none.pth"], ("convert", tmp_path / "none.pth")),
        (["config.json is missing"], ("build", tmp_path)),
        (["no picture"], ("build", model, "--pictures", tmp_path / "none.png")),
        (["at least one point"], run),
        (["outside the picture"], (*run, "--point-coords", "900", "10")),
        (["no folder"], everything),
        (["cannot listen", "--host"], (*serve, "--host", "192.0.2.1")),
        (["cannot listen", "--port"], (*serve, "--port", "99999999")),
        (["--allowed-host is a*b", "*.NAME"], (*serve, "--port", "0", "--allowed-host", "a*b")),
        (["no picture"], (*serve, "--sample", tmp_path / "none.jpg")),
    ):
        assert_one_line_error(capsys, words, *arguments)


def test_an_engine_that_cannot_be_used_is_refused_before_any_work(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = shutil.copytree(model, tmp_path / "model")
    with (folder / "engine" / "encoder.engine").open("r+b") as file:
        file.truncate(1000)
    photo = tmp_path / "photo.png"
    photo.write_bytes(encoded(picture(1)))
    (tmp_path / "in").mkdir()
    shutil.copy(photo, tmp_path / "in")
    for command in (
        ("serve", "--params", folder, "--port", "0", "--no-page"),
        ("everything", tmp_path / "in", "--params", folder, "--output-dir", tmp_path / "out"),
        ("run", photo, "--params", folder, "--point-coords", "60", "70"),
    ):
        assert_one_line_error(capsys, ["was altered after its build"], *command)
    assert not (tmp_path / "out").exists()


def test_a_page_of_another_model_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("samtrt.server.assets.assets_installed", lambda: True)
    build_model(tmp_path, seed=4)
    serve = ("serve", "--params", tmp_path)
    assert_one_line_error(capsys, ["different parameters"], *serve, "--decoder", tiny_decoder())
    file = tiny_decoder() / "decode.onnx"
    assert_one_line_error(capsys, ["is a file", "folder"], *serve, "--decoder", file)
    monkeypatch.setattr("samtrt.server.assets.assets_installed", lambda: False)
    assert_one_line_error(capsys, ["samtrt.server.assets", "--no-page"], *serve)
