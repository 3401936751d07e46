"""What samtrt takes of a disk: the Python environment it runs in, and a model's files.

    python benchmarks/disk.py                       this environment, and Meta's three models
    python benchmarks/disk.py --name cpu --append   as a row of benchmarks/results/disk.json, too

An environment is counted file by file, what is linked into it from elsewhere included. A model's
files are counted from its tensors' shapes: the checkpoint and the parameter folder in fp32, the
engine in 16 bits, the mask decoder in fp32.
"""

import argparse
import json
import platform
import sys
import sysconfig
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from importlib.metadata import version

import numpy as np

from samtrt.checkpoints import config as sizes
from samtrt.checkpoints.shapes import ENCODER_PREFIX, parameter_shapes
from samtrt.console import run_script
from samtrt.files import write_json
from samtrt.reports.benchmarking import markdown_table

RECORD = Path(__file__).resolve().parent / "results" / "disk.json"
MODELS = ("vit_b", "vit_l", "vit_h")


def environment_megabytes() -> float:
    """All files of the environment's packages, but for compiled Python."""
    folder = Path(sysconfig.get_path("purelib"))
    files = (path for path in folder.rglob("*") if path.is_file() and path.suffix != ".pyc")
    return sum(path.stat().st_size for path in files) / 1e6


def model_megabytes(name: str) -> dict[str, float]:
    """Of each kind of file."""
    shapes = parameter_shapes(getattr(sizes, name)())
    counts = {key: int(np.prod(shape)) for key, shape in shapes.items()}
    encoder = sum(count for key, count in counts.items() if key.startswith(ENCODER_PREFIX))
    total = sum(counts.values())
    return {
        "parameters": 4 * total / 1e6,
        "engine": 2 * encoder / 1e6,
        "decoder": 4 * (total - encoder) / 1e6,
    }


def table(environments: dict[str, dict[str, object]]) -> str:
    """Environments and models, as README.md has them."""
    rows = [
        [f"environment, {name}", f"{row['megabytes']:,.0f}"] for name, row in environments.items()
    ]
    for name in MODELS:
        found = model_megabytes(name)
        parts = " + ".join(f"{found[kind]:,.0f}" for kind in ("parameters", "engine", "decoder"))
        rows.append(
            [
                f"{name}: checkpoint; parameters + engine + decoder",
                f"{found['parameters']:,.0f}; {parts}",
            ]
        )
    return markdown_table(["what", "MB"], rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--name", default="this one", help="of the environment")
    parser.add_argument("--append", action="store_true", help=f"add it to {RECORD.name}")
    arguments = parser.parse_args()
    row = {
        "megabytes": round(environment_megabytes()),
        "torch": version("torch"),
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
    }
    environments = {arguments.name: row}
    if arguments.append:
        earlier = json.loads(RECORD.read_text("utf-8")) if RECORD.is_file() else {}
        environments = {**earlier, **environments}
        write_json(RECORD, environments)
    print(table(environments))


if __name__ == "__main__":
    sys.exit(run_script(main))
