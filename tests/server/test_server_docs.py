"""docs/server.md says what the server does."""

import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest
from documents import block_for
from server_support import encoded, picture, running, tiny_model

from samtrt.sam import load_sam
from samtrt.server.app import create_app
from samtrt.server.settings import MIB, Settings

LIMITS = {field.name: field.default for field in fields(Settings) if "help" in field.metadata}
TEXT = (Path(__file__).parents[2] / "docs" / "server.md").read_text("utf-8")


def test_limits_are_the_defaults() -> None:
    units = {"MiB": MIB, "KiB": 1 << 10}
    table = TEXT[TEXT.index("## Limits") :]
    rows = re.findall(r"^\|[^|]*\| (`[a-z_`, ]+`) \| ([^|]+) \|", table, re.M)
    documented: dict[str, float] = {}
    for names, values in rows:
        for name, value in zip(names.split(", "), values.split(", "), strict=True):
            number, _, unit = value.partition(" ")
            documented[name.strip("`")] = float(number.replace(",", "")) * units.get(unit, 1)
    assert len(documented) == len(LIMITS)
    for name, value in documented.items():
        assert LIMITS[name] == value, name


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_example(tmp_path: Path) -> None:
    (tmp_path / "picture.png").write_bytes(encoded(picture(1)))
    code = "\n".join(block_for(__file__, "docs/server.md"))
    with running(create_app(load_sam(tiny_model() / "engine", tiny_model()))) as url:
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        done = subprocess.run(
            ["bash", "-euc", code],
            cwd=tmp_path,
            env={**os.environ, "PATH": path, "URL": url},
            capture_output=True,
            text=True,
            timeout=60,
        )
    assert len(json.loads(done.stdout)["masks"]) == 3, done.stderr


def test_every_operation_is_described() -> None:
    document = create_app(load_sam(tiny_model() / "engine", tiny_model())).openapi()
    for path, operations in document["paths"].items():
        for method in operations:
            assert f"`{method.upper()} {path.replace('embedding_id', 'id')}`" in TEXT
