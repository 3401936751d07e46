"""Sets up the environments of the clients, each in its own folder below ``.venv-clients``.

    python tests/clients/install.py NAME…    # or all

A client's packages and all that they need are pinned in ``requirements/NAME.txt``. What this
Python has already, torch above all, is seen from there and not installed again.
"""

import hashlib
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from benchmarks.clients import clients  # noqa: E402 (of the checkout)
from samtrt.console import run_script  # noqa: E402
from samtrt.errors import SamtrtError  # noqa: E402

REQUIREMENTS = Path(__file__).parent / "requirements"


def install(folder: Path) -> None:
    """Makes the environment, unless it is there and its pins are the same.

    Raises:
        SamtrtError: pip has failed, and said why.
    """
    requirements = REQUIREMENTS / f"{folder.name}.txt"
    digest = hashlib.sha256(requirements.read_bytes() + sys.prefix.encode()).hexdigest()
    installed = folder / "installed"
    if installed.exists() and installed.read_text("utf-8") == digest:
        return
    print(f"{folder.name}: setting up {folder.relative_to(ROOT)}", flush=True)
    venv.EnvBuilder(with_pip=True, clear=True).create(folder)
    packages = next(folder.glob("lib/python*/site-packages"))
    (packages / "base.pth").write_text(sysconfig.get_path("purelib") + "\n")
    done = subprocess.run(
        [
            str(folder / "bin/python"), "-m", "pip", "install", "--quiet", "--no-deps",
            "--disable-pip-version-check", "--requirement", str(requirements),
        ]
    )  # fmt: skip
    if done.returncode:
        raise SamtrtError(
            f"pip has ended with {done.returncode} and {folder.name} is not set up; its lines "
            "above have the reason"
        )
    installed.write_text(digest, "utf-8")


def main() -> None:
    for environment in dict.fromkeys(found.folder for found in clients(sys.argv[1:])):
        install(environment)


if __name__ == "__main__":
    sys.exit(run_script(main))
