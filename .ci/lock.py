"""Locks every requirements file: versions and hashes of all it brings along, for any platform.

    python .ci/lock.py            writes locks/*.txt (needs `uv`, and PyPI)
    python .ci/lock.py --check    says whether they belong to the requirements, without the network

torch is not in the locks of CPU machines: its wheel there is often that of another index, with
another hash. They pin all else, and are installed beside it:

    pip install torch==2.13.0
    pip install --require-hashes --no-deps -r locks/requirements.txt
"""

import argparse
import hashlib
import re
import shutil
import subprocess
import sys
from pathlib import Path

from packaging.requirements import InvalidRequirement, Requirement

ROOT = Path(__file__).resolve().parent.parent
LOCKS = ROOT / "locks"
INPUTS = (
    "requirements",
    "requirements-server",
    "requirements-ray",
    "requirements-test",
    "requirements-gpu",
)
WITH_TORCH = {"requirements-gpu"}  # PyPI's wheel is the one for data-centre GPUs
PIN = re.compile(r"^(?P<name>[A-Za-z0-9._-]+)==(?P<version>[^\s;\\]+)", re.M)


def requirement_lines(name: str) -> list[str]:
    """The requirements of a file and of those that it includes, without comments."""
    lines: list[str] = []
    for line in (ROOT / f"{name}.txt").read_text("utf-8").splitlines():
        line = line.partition("#")[0].strip()
        if line.startswith("-r "):
            lines += requirement_lines(line.removeprefix("-r ").strip().removesuffix(".txt"))
        elif line:
            lines.append(line)
    return lines


def header(name: str) -> str:
    """The first line of a lock: which requirements it is of."""
    text = "\n".join(sorted(requirement_lines(name)))
    return f"# {name}.txt {hashlib.sha256(text.encode()).hexdigest()}; `make lock` writes this\n"


def write(name: str) -> None:
    """Resolves anew; versions that still fit stay."""
    uv = shutil.which("uv")
    if uv is None:
        raise SystemExit("error: uv is not installed, and it makes the locks; `pip install uv`")
    lock = LOCKS / f"{name}.txt"
    command = [uv, "pip", "compile", "--universal", "--python-version=3.10", "--generate-hashes"]
    command += ["--no-header", "--no-annotate", "--quiet", "--upgrade"]
    command += ["--no-emit-index-url", "--no-emit-find-links"]
    if name not in WITH_TORCH:
        command += ["--no-emit-package=torch"]
    done = subprocess.run(
        [*command, f"{name}.txt"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(f"error: {name}.txt cannot be locked:\n{done.stderr}")
    lock.write_text(header(name) + done.stdout, "utf-8")
    print(f"{lock.relative_to(ROOT)}: {len(PIN.findall(done.stdout))} pins")


def problems(name: str) -> list[str]:
    """What is wrong with a lock; nothing, if it belongs to its requirements."""
    path = LOCKS / f"{name}.txt"
    if not path.is_file():
        return [f"{path.name} is missing"]
    text = path.read_text("utf-8")
    found = []
    if text.splitlines()[0] + "\n" != header(name):
        found.append(f"{path.name} is of other requirements")
    if re.search(r"://|--(?:extra-)?index|--find-links", text):
        found.append(f"{path.name} names an index")
    entries = [entry for entry in re.split(r"\n(?=[A-Za-z0-9])", text) if PIN.match(entry)]
    found += [
        f"{path.name} has no hash for {entry.split()[0]}"
        for entry in entries
        if "--hash=sha256:" not in entry
    ]
    pins: dict[str, list[str]] = {}
    for pin in PIN.finditer(text):
        pins.setdefault(normal(pin["name"]), []).append(pin["version"])
    for line in requirement_lines(name):
        try:
            wanted = Requirement(line)
        except InvalidRequirement:
            found.append(f"{name}.txt: {line} is no requirement")
            continue
        versions = pins.get(normal(wanted.name), [])
        if normal(wanted.name) == "torch" and name not in WITH_TORCH:
            continue
        fits = [wanted.specifier.contains(version) for version in versions]
        # Other versions may be for where the requirement's marker does not hold.
        if not fits or not (any(fits) if wanted.marker else all(fits)):
            found.append(f"{path.name} has {versions or 'nothing'} for {line}")
    return found


def normal(name: str) -> str:
    """A package's name as indexes compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing")
    arguments = parser.parse_args()
    if not arguments.check:
        LOCKS.mkdir(exist_ok=True)
        for name in INPUTS:
            write(name)
    found = [problem for name in INPUTS for problem in problems(name)]
    for problem in found:
        print(f"error: {problem}; run `make lock`", file=sys.stderr)
    return bool(found)


if __name__ == "__main__":
    sys.exit(main())
