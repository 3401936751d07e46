"""Runs what deploy/Dockerfile runs, where there is no Docker: a stage's steps in a clean folder.

    python .ci/try_image.py build-cpu

Steps that install the system's packages are left out: npm and this Python must be there. The tree
is that of the last commit. Ends by starting the server that was installed, and asking it for masks.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import urllib.request
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
DOCKERFILE = ROOT / "deploy" / "Dockerfile"
INSTALLED = "/opt/samtrt"


def stages(text: str) -> dict[str, tuple[str, list[tuple[str, str]]]]:
    """Each stage's base and instructions, (word, rest), by its name."""
    joined = re.sub(r"\\\n\s*", "", text)
    found: dict[str, tuple[str, list[tuple[str, str]]]] = {}
    name = ""
    for line in joined.splitlines():
        word, _, rest = line.strip().partition(" ")
        if word == "FROM":
            base, name = re.fullmatch(r"(\S+) AS (\S+)", rest).groups()
            found[name] = (base, [])
        elif word and not word.startswith("#") and name:
            found[name][1].append((word, rest.strip()))
    return found


def steps(name: str) -> list[tuple[str, str]]:
    """All instructions of a stage, with those of the stages that it is built on."""
    known = stages(DOCKERFILE.read_text("utf-8"))
    base, own = known[name]
    return [*(steps(base) if base in known else []), *own]


def run(name: str, folder: Path) -> Path:
    """Runs a stage's steps below a folder; where it has installed the server."""
    installed, source = folder / INSTALLED.lstrip("/"), folder / "src"
    source.mkdir()
    tree = subprocess.run(["git", "archive", "HEAD"], cwd=ROOT, check=True, capture_output=True)
    environment = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("PYTHON", "VIRTUAL_ENV"))
    }
    environment["PATH"] = f"{installed}/bin:{os.environ['PATH']}"
    for word, rest in steps(name):
        if word == "ARG" and "=" in rest:
            key, _, value = rest.partition("=")
            environment.setdefault(key, value)
        elif word == "COPY":
            paths = rest.split()[:-1]
            members = [] if paths == ["."] else paths
            subprocess.run(["tar", "-x", *members], cwd=source, input=tree.stdout, check=True)
        elif word == "RUN" and "apt-get" not in rest:
            command = rest.replace(INSTALLED, str(installed))
            if command.startswith("python -m venv"):
                command = command.replace("python", sys.executable, 1)
            print(f"RUN {rest}", flush=True)
            subprocess.run(command, shell=True, cwd=source, env=environment, check=True)
    return installed


def serve(installed: Path) -> int:
    """Starts the server as the image does, without the source; how many masks a click has."""
    folder = installed.parent
    command = [str(installed / "bin" / "samtrt"), "serve", "--port", "0"]
    environment = {**os.environ, "XDG_CACHE_HOME": str(folder / "cache"), "HOME": str(folder)}
    environment.pop("PYTHONPATH", None)
    process = subprocess.Popen(
        command, cwd=folder, env=environment, stderr=subprocess.PIPE, text=True
    )
    assert process.stderr is not None
    try:
        url = None
        for line in process.stderr:
            print(line, end="", flush=True)
            if found := re.search(r"http://\S+", line):
                url = found[0]
                break
        if url is None:
            raise SystemExit("error: the server did not start")
        picture = (ROOT / "examples/sam/images/demo.jpg").read_bytes()
        known = ask(f"{url}/v1/embed", picture, "image/jpeg")
        prompt = {"id": known["id"], "point_coords": [[100, 100]], "point_labels": [1]}
        masks = ask(f"{url}/v1/masks", json.dumps(prompt).encode(), "application/json")
        urllib.request.urlopen(f"{url}/docs", timeout=10)
        urllib.request.urlopen(f"{url}/", timeout=10)
        return len(masks["masks"])
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)


def ask(url: str, data: bytes, media_type: str) -> dict:
    request = urllib.request.Request(url, data, {"Content-Type": media_type})
    with urllib.request.urlopen(request, timeout=300) as answer:
        return json.load(answer)


def main() -> int:
    name = sys.argv[1] if len(sys.argv) == 2 else "build-cpu"
    folder = Path(tempfile.mkdtemp(prefix="samtrt-image-"))
    try:
        installed = run(name, folder)
        print(f"{serve(installed)} masks from {name}")
    finally:
        shutil.rmtree(folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
