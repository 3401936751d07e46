"""The wheel, installed outside the checkout: every command on real input, nothing of the checkout.

The packages that it needs are those of the environment of the tests; no network is used.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import sysconfig
import threading
import zipfile
from collections.abc import Callable
from pathlib import Path

import httpx
import numpy as np
import pytest
import torch
from oracle import to_torch
from PIL import Image
from server_support import CONFIG, SEED, address_of, encoded, picture

from samtrt import __version__
from samtrt.checkpoints.parameters import random_parameters
from samtrt.files import CACHE_VARIABLE, sha256_of
from samtrt.hints import REQUIREMENTS
from samtrt.models.catalogue import demo_checkpoint

ROOT = Path(__file__).resolve().parents[2]
SOURCES = (
    "samtrt",
    "setup.py",
    "pyproject.toml",
    "MANIFEST.in",
    "README.md",
    "CHANGELOG.md",
    "LICENSE",
    "SECURITY.md",
    "THIRD_PARTY.md",
    "examples/sam/sam_models/sam_demo.pth",
    "examples/sam/images/demo.jpg",
)
REPOSITORY = "https://example.org/owner/samtrt"
Samtrt = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    source = tmp_path_factory.mktemp("source")
    for name in SOURCES:
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        if (ROOT / name).is_dir():
            leave = shutil.ignore_patterns("__pycache__")
            shutil.copytree(ROOT / name, source / name, ignore=leave)
        else:
            shutil.copyfile(ROOT / name, source / name)
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation"]
    command += ["--no-index", "--wheel-dir", str(source / "dist"), str(source)]
    environment = {**os.environ, "SAMTRT_REPOSITORY": REPOSITORY}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (path,) = (source / "dist").glob("*.whl")
    return path


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment of its own with the wheel, beside the packages of this one."""
    folder = tmp_path_factory.mktemp("installed") / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    python = folder / "bin" / "python"
    (site,) = folder.glob("lib/python*/site-packages")
    # A path alone: what makes this environment's samtrt the checkout is left out.
    (site / "others.pth").write_text(sysconfig.get_path("purelib") + "\n")
    command = [sys.executable, "-m", "pip", "--python", str(python), "install", "--no-deps"]
    command += ["--no-index", "--ignore-installed", "--quiet", str(wheel)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where a user is: a checkpoint and a photo."""
    folder = tmp_path_factory.mktemp("here")
    state = to_torch(random_parameters(CONFIG, SEED).tensors)
    torch.save(state, folder / "tiny.pth")
    (folder / "photo.png").write_bytes(encoded(picture(1)))
    return folder


@pytest.fixture(scope="module")
def environment(installed: Path, here: Path) -> dict[str, str]:
    left_out = ("PYTHONPATH", "VIRTUAL_ENV")
    kept = {key: value for key, value in os.environ.items() if key not in left_out}
    path = f"{installed / 'bin'}{os.pathsep}{kept['PATH']}"
    return {**kept, "PATH": path, CACHE_VARIABLE: str(here / "cache"), "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def samtrt(environment: dict[str, str], here: Path) -> Samtrt:
    def run(line: str, **added: str) -> subprocess.CompletedProcess[str]:
        command = ["bash", "-euc", line]
        return subprocess.run(
            command,
            cwd=here,
            env={**environment, **added},
            capture_output=True,
            text=True,
            check=False,
            timeout=300,
        )

    return run


def test_what_the_wheel_has(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        (metadata,) = (name for name in names if name.endswith("/METADATA"))
        text = archive.read(metadata).decode("utf-8")
    assert {"samtrt/py.typed", "samtrt/models/sam_demo.pth", "samtrt/models/demo.jpg"} <= {*names}
    vendor = {
        path.relative_to(ROOT).as_posix() for path in ROOT.glob("samtrt/server/static/vendor/*")
    }
    assert vendor <= {*names}  # where `python -m samtrt.server.assets` has run
    assert not any(name.startswith(("tests/", "training/", "examples/")) for name in names)
    head, _, body = text.partition("\n\n")
    assert f"\nVersion: {__version__}\n" in head
    assert f"Project-URL: Repository, {REPOSITORY}" in head
    assert "Requires-Python: >=3.10" in head and "Programming Language :: Python :: 3.13" in head
    extras = set(re.findall(r"^Provides-Extra: (.+)$", head, re.MULTILINE))
    assert extras >= set(REQUIREMENTS) | {"formats"}
    targets = re.findall(r"\]\(([^)#]+)\)", body)
    assert targets and all(target.startswith("https://") for target in targets)
    assert f"]({REPOSITORY}/raw/v{__version__}/docs/images/" in body


def test_it_says_what_it_is(samtrt: Samtrt, installed: Path) -> None:
    done = samtrt(
        "samtrt --version; python -m samtrt --version; "
        "python -c 'import samtrt; print(samtrt.__file__, samtrt.__version__, *dir(samtrt))'; "
        "samtrt models --json"
    )
    assert done.returncode == 0, done.stderr
    first, second, third, listed = done.stdout.splitlines()
    assert first == second == f"samtrt {__version__}"
    assert third.startswith(str(installed)) and "SamPredictor" in third and "_MODULES" not in third
    demo = next(e for e in json.loads(listed)["checkpoints"] if e["name"] == "demo")
    assert Path(demo["file"]).is_relative_to(installed)
    shipped = demo_checkpoint()
    assert shipped is not None and sha256_of(demo["file"]) == sha256_of(shipped)


def test_every_command_on_real_input(samtrt: Samtrt, here: Path) -> None:
    """In the order of a first hour; each makes what the next needs."""
    for line, expected in (
        ("samtrt convert tiny.pth", "written to   tiny"),
        ("samtrt build tiny --backend cpu --precision fp32", "passed"),
        ("samtrt export-decoder tiny", "tiny/mask_decoder.onnx"),
        ("samtrt run photo.png --engine tiny/engine --point 60,70", "mask.png"),
        ("samtrt everything photo.png --params tiny --output-dir out --points-per-side 2", "out"),
        ("samtrt evaluate --params tiny --scenes 1", "all"),
        ("samtrt compare tiny --image photo.png --json compare.json", "segment_anything"),
        ("samtrt benchmark tiny --image photo.png --runs 1 --seconds 1 --plot b.png", "images/s"),
    ):
        done = samtrt(line)
        assert done.returncode == 0 and expected in done.stdout, (line, done.stdout, done.stderr)
        assert "Traceback" not in done.stderr
    assert np.array(Image.open(here / "mask.png")).shape == (150, 200)
    for name in ("out/photo.png.json", "compare.json", "b.png"):
        assert (here / name).is_file(), name


def test_the_server(environment: dict[str, str], here: Path, samtrt: Samtrt) -> None:
    if not (here / "tiny").exists():
        assert samtrt("samtrt convert tiny.pth; samtrt build tiny --backend cpu").returncode == 0
    command = ["samtrt", "serve", "--params", "tiny", "--port", "0", "--no-page"]
    process = subprocess.Popen(
        command, cwd=here, env=environment, stderr=subprocess.PIPE, text=True
    )
    watchdog = threading.Timer(120, process.kill)
    watchdog.start()
    try:
        url = address_of(process)
        headers = {"Content-Type": "image/png"}
        content = encoded(picture(1))
        assert httpx.post(f"{url}/embed", content=content, headers=headers).status_code == 200
        process.send_signal(signal.SIGINT)
        assert process.wait(30) in (0, 130)
    finally:
        watchdog.cancel()
        process.kill()
        process.wait()


def test_what_is_missing_names_its_extra(samtrt: Samtrt, here: Path, tmp_path: Path) -> None:
    """As where only `pip install samtrt` was run."""
    blocked = ("onnx", "fastapi", "segment_anything", "tensorrt", "tensorrt_rtx")
    (tmp_path / "sitecustomize.py").write_text(
        "from importlib.machinery import PathFinder\n"
        "find = PathFinder.find_spec\n"
        "def found(name, *given):\n"
        f"    return None if name in {blocked} else find(name, *given)\n"
        "PathFinder.find_spec = found\n"
    )
    if not (here / "tiny").exists():
        assert samtrt("samtrt convert tiny.pth").returncode == 0
    for line, extra in (
        ("samtrt export-decoder tiny --output new.onnx", "export"),
        ("samtrt serve --params tiny", "server"),
        ("samtrt compare tiny --image photo.png", "compare"),
        ("samtrt build tiny --backend tensorrt --output-dir new", "gpu"),
    ):
        done = samtrt(line, PYTHONPATH=str(tmp_path))
        last = done.stderr.splitlines()[-1]
        assert done.returncode == 1 and last.startswith("error: "), done.stderr
        assert f"install 'samtrt[{extra}]'" in last and "requirements" not in last
    assert not (here / "new.onnx").exists()
