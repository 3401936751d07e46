"""What the page loads from others, installed from the npm registry: no CDN, nothing committed.

``python -m samtrt.server.assets`` runs ``npm ci`` in a temporary folder, which checks every
package against the integrity hashes of ``package-lock.json``, and keeps the few files named here.
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
    "inter.woff2": "@fontsource-variable/inter/files/inter-latin-wght-normal.woff2",
}


def assets_installed() -> bool:
    """Whether the files are there and belong to the lock file of this version."""
    return (
        all((VENDOR / name).is_file() for name in FILES)
        and STAMP.is_file()
        and STAMP.read_text("ascii").strip() == sha256_of(LOCK)
    )


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
    npm = shutil.which("npm")
    if npm is None:
        raise SamtrtError(
            "npm is not installed, and the page's assets come from its registry; "
            "install Node.js 18 or newer, or start the server with --no-page"
        )
    with tempfile.TemporaryDirectory(prefix="samtrt-assets-") as folder:
        for name in ("package.json", "package-lock.json"):
            shutil.copy(HERE / name, folder)
        command = [npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error"]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
        if done.returncode:
            reason = (done.stderr.strip() or done.stdout.strip()).splitlines()
            raise SamtrtError(
                f"`npm ci` failed: {reason[0] if reason else 'no message'}; "
                "check that npm reaches its registry, then run this again"
            )
        for name, source in FILES.items():
            with replacing(VENDOR / name) as temporary:
                shutil.copyfile(Path(folder) / "node_modules" / source, temporary)
    with replacing(STAMP) as temporary:
        temporary.write_text(sha256_of(LOCK) + "\n", "ascii")


def main() -> int:
    """Installs the assets unless they are there already."""
    if assets_installed():
        print(f"the page's assets are up to date in {VENDOR}")
        return 0
    install_assets()
    size = sum((VENDOR / name).stat().st_size for name in FILES)
    print(f"installed {len(FILES)} files, {size / 2**20:.1f} MiB, in {VENDOR}")
    return 0


if __name__ == "__main__":
    sys.exit(run_script(main))
