"""Writes THIRD_PARTY.md and samtrt/server/licenses: what a wheel ships that others have made.

    python .ci/third_party.py            needs npm and the onnxruntime package
    python .ci/third_party.py --check    whether they belong to the lock file of the page's assets

The page's assets come from npm packages. The typeface and Swagger UI bring their licences along;
that of ONNX Runtime, and its own notices of what it is built from, are taken from its Python
package.
"""

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from importlib.metadata import distribution
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SERVER = ROOT / "samtrt" / "server"
LICENSES = SERVER / "licenses"
DOCUMENT = ROOT / "THIRD_PARTY.md"
FONT, RUNTIME = "@fontsource-variable/inter", "onnxruntime-web"
REFERENCE = "swagger-ui-dist"
TEXTS = {
    FONT: ("inter.txt",),
    RUNTIME: ("onnxruntime.txt", "onnxruntime-third-party.txt"),
    REFERENCE: ("swagger-ui.txt", "swagger-ui-notice.txt", "swagger-ui-third-party.txt"),
}
# Of packages that bring their texts along, in the order of TEXTS.
BROUGHT = {
    FONT: ("LICENSE",),
    REFERENCE: ("LICENSE", "NOTICE", "swagger-ui-bundle.js.LICENSE.txt"),
}
HEAD = """# What others have made

A wheel of samtrt that is built after `python -m samtrt.server.assets` ships these files beside its
own, in `samtrt/server/static/vendor`, under their own licences. Nothing of others is in the
repository itself, and what `pip` installs beside samtrt comes with its own licence.
`make third-party` writes this page and the texts that it points to.

| package | version | files | licence | text |
|---|---|---|---|---|
"""


def table() -> str:
    """THIRD_PARTY.md, from the lock file of the page's assets and the list of what is kept."""
    sys.path.insert(0, str(ROOT))
    from samtrt.server.assets import FILES

    packages = json.loads((SERVER / "package-lock.json").read_text("utf-8"))["packages"]
    rows = []
    for package, texts in TEXTS.items():
        entry = packages[f"node_modules/{package}"]
        files = [name for name, source in FILES.items() if source.startswith(package + "/")]
        links = [f"[{text}](samtrt/server/licenses/{text})" for text in texts]
        cells = (package, entry["version"], ", ".join(files), entry["license"], ", ".join(links))
        rows.append(f"| {' | '.join(cells)} |\n")
    return HEAD + "".join(rows)


def write() -> None:
    """Fetches the texts and writes everything."""
    npm = shutil.which("npm")
    if npm is None:
        raise SystemExit("error: npm is not installed, and the typeface's licence comes with it")
    LICENSES.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        for name in ("package.json", "package-lock.json"):
            shutil.copy(SERVER / name, folder)
        command = [npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error"]
        subprocess.run(command, cwd=folder, check=True)
        for package, sources in BROUGHT.items():
            for source, name in zip(sources, TEXTS[package], strict=True):
                shutil.copyfile(Path(folder) / "node_modules" / package / source, LICENSES / name)
    runtime = Path(str(distribution("onnxruntime").locate_file("onnxruntime")))
    for source, name in zip(("LICENSE", "ThirdPartyNotices.txt"), TEXTS[RUNTIME], strict=True):
        text = (runtime / source).read_text("utf-8-sig")
        (LICENSES / name).write_text(text.replace("\r\n", "\n"), "utf-8")
    DOCUMENT.write_text(table(), "utf-8")


def problems() -> list[str]:
    """What is missing or of another version."""
    found = [
        f"{text} is missing"
        for texts in TEXTS.values()
        for text in texts
        if not (LICENSES / text).is_file()
    ]
    if not DOCUMENT.is_file() or DOCUMENT.read_text("utf-8") != table():
        found.append(f"{DOCUMENT.name} is of other packages")
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing")
    if not parser.parse_args().check:
        write()
    found = problems()
    for problem in found:
        print(f"error: {problem}; run `make third-party`", file=sys.stderr)
    return bool(found)


if __name__ == "__main__":
    sys.exit(main())
