"""What the page loads from others, installed from the npm registry: no CDN, nothing committed.

``python -m samtrt.server.assets`` runs ``npm ci`` in a temporary folder, which checks every
package against the integrity hashes of ``package-lock.json``, and keeps the few files named here,
the large ones also compressed (``samtrt.server.page.delivery`` sends them so).
"""

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from samtrt.console import run_script
from samtrt.errors import SamtrtError
from samtrt.files import replacing, sha256_of

HERE = Path(__file__).parent
STATIC = HERE / "static"
VENDOR = STATIC / "vendor"
LOCK = HERE / "package-lock.json"
STAMP = VENDOR / "installed-lock-sha256"

# Installed name → where npm puts it.
FILES = {
    "ort.wasm.min.mjs": "onnxruntime-web/dist/ort.wasm.min.mjs",
    "ort-wasm-simd-threaded.mjs": "onnxruntime-web/dist/ort-wasm-simd-threaded.mjs",
    "ort-wasm-simd-threaded.wasm": "onnxruntime-web/dist/ort-wasm-simd-threaded.wasm",
    "swagger-ui-bundle.js": "swagger-ui-dist/swagger-ui-bundle.js",
    "swagger-ui.css": "swagger-ui-dist/swagger-ui.css",
    "inter.woff2": "@fontsource-variable/inter/files/inter-latin-wght-normal.woff2",
}
# Megabytes, of which Brotli leaves a fifth. Node.js compresses: it comes with npm, and Python has
# no Brotli of its own. Quality 11 takes ten times as long for another tenth.
COMPRESSED = ("ort-wasm-simd-threaded.wasm",)
COMPRESS = """
const { readFileSync, writeFileSync } = require("node:fs");
const { brotliCompressSync, gzipSync, constants } = require("node:zlib");
for (const path of process.argv.slice(1)) {
  const content = readFileSync(path);
  const params = { [constants.BROTLI_PARAM_QUALITY]: 9, [constants.BROTLI_PARAM_LGWIN]: 24 };
  writeFileSync(path + ".br", brotliCompressSync(content, { params }));
  writeFileSync(path + ".gz", gzipSync(content, { level: 9 }));
}
"""
# As HTTP names them, the smallest first → what a compressed file's name ends in.
ENCODINGS = {"br": ".br", "gzip": ".gz"}


def assets_installed() -> bool:
    """Whether the files are there and belong to the lock file of this version."""
    return (
        all((VENDOR / name).is_file() for name in FILES)
        and STAMP.is_file()
        and STAMP.read_text("ascii").strip() == sha256_of(LOCK)
    )


def assets_compressed() -> bool:
    """Whether the compressed files are there too; without them a first visit takes longer."""
    return all((VENDOR / name).is_file() for name in _compressed_names())


def _compressed_names() -> list[str]:
    return [name + suffix for name in COMPRESSED for suffix in ENCODINGS.values()]


def require_assets() -> None:
    """Raises unless the page's assets are installed.

    Raises:
        SamtrtError: they are missing or of another version; says how to get them.
    """
    if not assets_installed():
        raise SamtrtError(
            "the page's assets (onnxruntime-web) are not installed or are out of date; "
            "run `python -m samtrt.server.assets` (needs npm), or start with --no-page"
        )


def install_assets() -> None:
    """Installs the page's assets with npm.

    Raises:
        SamtrtError: npm is missing or fails, or the files cannot be written.
    """
    npm, node = shutil.which("npm"), shutil.which("node")
    if npm is None or node is None:
        raise SamtrtError(
            f"{'npm' if npm is None else 'node'} is not installed, and the page's assets come from "
            "its registry; install Node.js 18 or newer, or start the server with --no-page"
        )
    with tempfile.TemporaryDirectory(prefix="samtrt-assets-") as folder:
        for name in ("package.json", "package-lock.json"):
            shutil.copy(HERE / name, folder)
        modules = Path(folder) / "node_modules"
        command = [npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error"]
        _run(command, folder, "check that npm reaches its registry, then run this again")
        made = {name: modules / source for name, source in FILES.items()}
        large = [str(made[name]) for name in COMPRESSED]
        _run([node, "-e", COMPRESS, *large], folder, "install Node.js 18 or newer")
        for name in COMPRESSED:
            for suffix in ENCODINGS.values():
                made[name + suffix] = modules / (FILES[name] + suffix)
        for name, source in made.items():
            with replacing(VENDOR / name) as temporary:
                shutil.copyfile(source, temporary)
    with replacing(STAMP) as temporary:
        temporary.write_text(sha256_of(LOCK) + "\n", "ascii")


def _run(command: list[str], folder: str, advice: str) -> None:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        reason = (done.stderr.strip() or done.stdout.strip()).splitlines()
        name = " ".join([Path(command[0]).name, *command[1:2]])
        raise SamtrtError(f"`{name}` failed: {reason[0] if reason else 'no message'}; {advice}")


def main() -> int:
    """Installs the assets unless they are there already."""
    if assets_installed() and assets_compressed():
        print(f"the page's assets are up to date in {VENDOR}")
        return 0
    install_assets()
    names = [*FILES, *_compressed_names()]
    size = sum((VENDOR / name).stat().st_size for name in names)
    print(f"installed {len(names)} files, {size / 2**20:.1f} MiB, in {VENDOR}")
    return 0


if __name__ == "__main__":
    sys.exit(run_script(main))
