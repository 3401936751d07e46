"""The page's assets: pinned by hashes, installed whole or not at all."""

import gzip
import json
import shutil
import stat
import subprocess
from pathlib import Path

import pytest

from samtrt.errors import SamtrtError
from samtrt.server import assets

NPM = """#!/bin/sh
[ "$1" = ci ] || exit 3
for file in {files}; do
  mkdir -p "node_modules/$(dirname "$file")"
  echo "$file" > "node_modules/$file"
done
{end}
"""


@pytest.fixture
def npm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An npm that makes the packages' files; the test may rewrite it."""
    if shutil.which("node") is None:
        pytest.skip("node is not installed; run tests/browser/install.sh")
    program = tmp_path / "bin" / "npm"
    program.parent.mkdir()
    program.write_text(NPM.format(files=" ".join(assets.FILES.values()), end=""))
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    node = Path(shutil.which("node") or "").parent
    monkeypatch.setenv("PATH", f"{program.parent}:{node}:/usr/bin:/bin")
    monkeypatch.setattr(assets, "VENDOR", tmp_path / "vendor")
    monkeypatch.setattr(assets, "STAMP", tmp_path / "vendor" / "stamp")
    return program


def test_lock_pins_every_package_and_names_no_host() -> None:
    lock = json.loads(assets.LOCK.read_text())
    packages = {name: entry for name, entry in lock["packages"].items() if name}
    assert "node_modules/onnxruntime-web" in packages
    for name, entry in packages.items():
        assert entry["integrity"].startswith("sha512-"), name
        assert "resolved" not in entry, name
    wanted = json.loads((assets.HERE / "package.json").read_text())["dependencies"]
    assert lock["packages"][""]["dependencies"] == wanted


def test_installs_what_the_page_loads(npm: Path) -> None:
    assert not assets.assets_installed()
    with pytest.raises(SamtrtError, match=r"samtrt\.server\.assets"):
        assets.require_assets()
    assert assets.main() == 0
    compressed = {f"{name}{end}" for name in assets.COMPRESSED for end in (".br", ".gz")}
    names = {path.name for path in assets.VENDOR.iterdir()}
    assert names == {*assets.FILES, *compressed, "stamp"}
    assets.require_assets()
    assert assets.assets_compressed()
    npm.write_text("#!/bin/sh\nexit 1\n")
    assert assets.main() == 0  # nothing to do, so npm is not called


def test_compressed_files_hold_the_same(npm: Path) -> None:
    assets.install_assets()
    for name in assets.COMPRESSED:
        path = assets.VENDOR / name
        assert gzip.decompress(Path(f"{path}.gz").read_bytes()) == path.read_bytes()
        script = "process.stdout.write(zlib.brotliDecompressSync(fs.readFileSync(process.argv[1])))"
        command = ["node", "-e", script, f"{path}.br"]
        assert subprocess.run(command, capture_output=True, check=True).stdout == path.read_bytes()


def test_older_assets_work_and_are_completed(npm: Path) -> None:
    assets.install_assets()
    for name in assets.COMPRESSED:
        (assets.VENDOR / f"{name}.br").unlink()
    assert assets.assets_installed() and not assets.assets_compressed()
    assert assets.main() == 0
    assert assets.assets_compressed()


def test_another_lock_file_makes_them_stale(
    npm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assets.install_assets()
    other = tmp_path / "package-lock.json"
    other.write_text("{}")
    monkeypatch.setattr(assets, "LOCK", other)
    assert not assets.assets_installed()


def test_failures_are_one_line_and_leave_nothing(
    npm: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    npm.write_text("#!/bin/sh\necho 'npm error code EINTEGRITY' >&2\nexit 1\n")
    with pytest.raises(SamtrtError, match="EINTEGRITY") as failure:
        assets.install_assets()
    assert "\n" not in str(failure.value)
    monkeypatch.setenv("PATH", str(npm.parent / "empty"))
    with pytest.raises(SamtrtError, match="npm is not installed"):
        assets.install_assets()
    assert not assets.VENDOR.exists()
