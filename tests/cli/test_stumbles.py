"""What an error advises is typed as it stands there, and then what failed works."""

import re
import shlex
from pathlib import Path

import pytest
import torch
from oracle import to_torch
from scripts import EXAMPLES, call_script, load_script
from server_support import CONFIG, SEED, encoded, picture

from samtrt.checkpoints.parameters import random_parameters
from samtrt.cli import commands
from samtrt.console import run_script
from samtrt.files import CACHE_VARIABLE
from samtrt.hints import SCRIPTS

RUN = ("run", "photo.png", "--point", "60,70", "--quiet")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a checkpoint and a photo, and names that a shell would split."""
    folder = tmp_path / "my files"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
    torch.save(to_torch(random_parameters(CONFIG, SEED).tensors), folder / "my model.pth")
    (folder / "photo.png").write_bytes(encoded(picture(1)))
    return folder


def samtrt(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str]:
    """Exit status and stderr."""
    capsys.readouterr()
    status = run_script(lambda: commands.run(list(words)))
    return status, capsys.readouterr().err


def advised(error: str) -> list[str]:
    """The words of the command that an error names, without the program."""
    (hint,) = re.findall(r"`([^`]+)`", error)
    words = shlex.split(hint)
    return words[next(i for i, word in enumerate(words) if word in commands.COMMANDS) :]


def follow(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """Runs what fails, then what its error advises; returns the error."""
    status, error = samtrt(capsys, *words)
    assert status == 1 and error.count("\n") == 1, error
    status, trouble = samtrt(capsys, *advised(error))
    assert status == 0, trouble
    return error


def test_from_a_missing_folder_to_a_mask(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = (*RUN, "--params", "my model")
    assert "config.json is missing" in follow(capsys, "build", "my model", "--backend", "cpu")
    assert "no engine in" in follow(capsys, *run)
    assert samtrt(capsys, *run)[0] == 0 and (here / "mask.png").is_file()

    with_engine = (*RUN, "--engine", "my model/engine", "--decoder", "my model/mask_decoder.onnx")
    assert "no mask decoder at" in follow(capsys, *with_engine)
    assert samtrt(capsys, *with_engine)[0] == 0

    engine = here / "my model" / "engine" / "encoder.engine"
    engine.write_bytes(engine.read_bytes()[:-1])
    assert "was altered" in follow(capsys, *run)
    assert samtrt(capsys, *run)[0] == 0


def test_no_model_and_no_such_checkpoint(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for words in (RUN, (*RUN, "--checkpoint", "none.pth")):
        status, error = samtrt(capsys, *words)
        assert status == 1 and samtrt(capsys, *advised(error))[0] == 0
    _, error = samtrt(capsys, *RUN, "--checkpoint", "sam_vit_b_01ec64.pth")
    assert re.search(r"`curl -LO https://\S+/sam_vit_b_01ec64\.pth`", error)


def test_no_error_names_what_only_a_checkout_has() -> None:
    """Scripts and requirements stand in ``hints`` alone, which knows how samtrt was started."""
    package = Path(commands.__file__).parents[1]
    names = "|".join(map(re.escape, SCRIPTS.values())) + r"|requirements[\w-]*\.txt"
    for path in package.rglob("*.py"):
        if path.name != "hints.py":
            found = re.findall(rf"(?<![\w/.]){names}", path.read_text("utf-8"))
            assert not [name for name in found if name != "run.py"], (path, found)


def test_scripts_advise_scripts(here: Path) -> None:
    script = load_script("build")
    status, _, error = call_script(script, "--params", "my model")
    assert status == 1 and "convert" in error
    assert (EXAMPLES / "params_convert.py").is_file()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("convert", "--random", "vit_b", "--seed", "-1", "--output-dir", "x"), "seed is -1"),
        (("evaluate", "--params", "x", "--seed", "-1"), "--seed is -1"),
        (("compare", "x", "--json", "photo.png/a.json"), "cannot write"),
        (("benchmark", "x", "--plot", "photo.png/a.png"), "cannot write"),
        (("evaluate", "--json", "."), "cannot write"),
    ],
)
def test_refused_before_any_work(
    here: Path, capsys: pytest.CaptureFixture[str], words: tuple[str, ...], message: str
) -> None:
    status, error = samtrt(capsys, *words)
    assert status == 1 and message in error and error.count("\n") == 1
    assert not (here / "x").exists()
