"""The checkpoints that have a name: Meta's three, and the demo model that comes along."""

from dataclasses import dataclass
from pathlib import Path

from samtrt.errors import CheckpointError
from samtrt.files import cache_folder
from samtrt.hints import command

DEMO = "demo"
_PACKAGE = Path(__file__).resolve().parent.parent
_META = "https://dl.fbaipublicfiles.com/segment_anything/"
# Where the demo model and its picture are: in a wheel, and in a checkout.
_DEMO_CHECKPOINTS = (
    _PACKAGE / "models" / "sam_demo.pth",
    _PACKAGE.parent / "examples" / "sam" / "sam_models" / "sam_demo.pth",
)
_DEMO_PICTURES = (
    _PACKAGE / "models" / "demo.jpg",
    _PACKAGE.parent / "examples" / "sam" / "images" / "demo.jpg",
)


@dataclass(frozen=True)
class KnownCheckpoint:
    """A checkpoint that can be asked for by name.

    Attributes:
        name: what ``--checkpoint`` takes.
        file: its file's name, which Meta ends with the first digits of its SHA-256.
        megabytes: its size, roughly.
        what: in a few words.
    """

    name: str
    file: str
    megabytes: int
    what: str

    @property
    def url(self) -> str:
        """Where Meta has it."""
        return _META + self.file

    @property
    def download(self) -> str:
        """A command that fetches it into the current folder."""
        return f"curl -LO {self.url}"


META = (
    KnownCheckpoint("vit_b", "sam_vit_b_01ec64.pth", 375, "Meta's SAM, ViT-B"),
    KnownCheckpoint("vit_l", "sam_vit_l_0b3195.pth", 1250, "Meta's SAM, ViT-L"),
    KnownCheckpoint("vit_h", "sam_vit_h_4b8939.pth", 2565, "Meta's SAM, ViT-H"),
)


def checkpoints_folder() -> Path:
    """The folder in the user's cache where checkpoints are looked for by name."""
    return cache_folder() / "checkpoints"


def demo_checkpoint() -> Path | None:
    """The demo model, trained on synthetic scenes only; None where it did not come along."""
    return _first(_DEMO_CHECKPOINTS)


def demo_picture() -> Path | None:
    """A picture of the demo model's own world; None where it did not come along."""
    return _first(_DEMO_PICTURES)


def find_known(known: KnownCheckpoint) -> Path | None:
    """One of Meta's checkpoints where it was put: the current folder, ``checkpoints_folder``, or
    a checkout's folder for models."""
    folders = (Path(), checkpoints_folder(), _DEMO_CHECKPOINTS[1].parent)
    return _first(tuple(folder / known.file for folder in folders))


def find_checkpoint(name: str | Path) -> Path:
    """The file that a name of the catalogue, or a path, means.

    Raises:
        CheckpointError: a name whose file is not here; says how to get it.
    """
    path = Path(name)
    if path.exists():
        return path
    if str(name) == DEMO:
        demo = demo_checkpoint()
        if demo is None:
            raise CheckpointError("the demo model did not come along with this installation")
        return demo
    for known in META:
        if str(name) == known.name:
            found = find_known(known)
            if found is None:
                raise CheckpointError(
                    f"{known.file} ({known.megabytes:,} MB) is neither here nor in "
                    f"{checkpoints_folder()}; fetch it with `{known.download}`"
                )
            return found
    near = next((known for known in META if path.name == known.file), None)
    where = f"fetch it with `{near.download}`" if near else f"`{command('models')}` lists what is"
    raise CheckpointError(f"no checkpoint at {path}; {where}")


def _first(paths: tuple[Path, ...]) -> Path | None:
    return next((path for path in paths if path.is_file()), None)
