"""What a run leaves of each picture: written once, known again by its content."""

import hashlib
import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from samtrt.errors import InputError, SamtrtError
from samtrt.formats.annotated import AnnotatedPicture
from samtrt.formats.annotated import begins_as_ours as is_written_by_us
from samtrt.jobs.sources import MARK, is_painting
from samtrt.jobs.targets import Target, sha256_at
from samtrt.pictures.rasters import Georeference

# Added to a picture's name.
PAINTING, EMBEDDING, EMBEDDING_ZARR = ".png", ".safetensors", ".zarr.zip"
EMBEDDINGS = (EMBEDDING, EMBEDDING_ZARR)
_ABSENT, _OURS, _THEIRS = "absent", "ours", "theirs"
# What a JSON calls the digest of the file beside it.
DIGESTS = {
    PAINTING: "png_sha256", EMBEDDING: "embedding_sha256", EMBEDDING_ZARR: "zarr_sha256"
}  # fmt: skip


class Records:
    """The outputs of a run's pictures.

    Args:
        target: where they go.
        beside: the files that are written beside each JSON, of ``DIGESTS``.
        computed_by: what computes the embeddings.
    """

    def __init__(self, target: Target, beside: Collection[str], computed_by: str) -> None:
        self.target = target
        self.beside = beside
        self.computed_by = computed_by

    def known(self, name: Path, arguments: dict[str, Any]) -> str:
        """The SHA-256 of the picture that a name's outputs were made of.

        Empty where they are not whole, byte by byte, or of another model or other arguments.

        Args:
            arguments: what its masks depend on besides, as JSON has them.

        Raises:
            SamtrtError: there are none, and what is there was written by others, or they cannot be
                written.
        """
        written = self._read_json(name)
        is_ours, mark = MARK in written, written.pop(MARK, None)
        origin = {"computed_by": self.computed_by, "arguments": arguments}
        if isinstance(mark, dict) and self._are_whole(written, mark, origin, name):
            return str(mark.get("picture_sha256", ""))
        self._check_outputs(name, is_ours)
        return ""

    def write(self, name: Path, files: Mapping[str, bytes]) -> None:
        """Writes a picture's files, each whole or not at all.

        Args:
            files: what is added to the name → content; in the order of writing, JSON last.

        Raises:
            SamtrtError: one cannot be written.
        """
        for suffix, content in files.items():
            self.target.write(_file(name, suffix), content)

    def read(self, name: Path) -> AnnotatedPicture:
        """A picture's masks, from the JSON that a run has written.

        Raises:
            SamtrtError: it has gone meanwhile.
        """
        dataset = self._read_json(name)
        try:
            image = dataset["images"][0]
            size = (image["height"], image["width"])
            sha256 = dataset[MARK]["dataset_sha256"]
            annotations, categories = dataset["annotations"], dataset["categories"]
            where = image.get("georeference")
            georeference = None if where is None else Georeference.from_json(where)
            return AnnotatedPicture(name, size, annotations, sha256, categories, georeference)
        except (KeyError, IndexError, TypeError, ValueError) as error:
            raise SamtrtError(
                f"{self.target.shown(_file(name))} was removed or altered during the run; run the "
                "command again"
            ) from error

    def _read_json(self, name: Path) -> dict[str, Any]:
        """The object in a picture's JSON; empty where there is none, or none that can be read."""
        try:
            file = self.target.look(_file(name))
            if file is None:
                return {}
            with file:
                value = json.loads(file.read().decode("utf-8"))
        except (OSError, ValueError, RecursionError):
            return {}
        return value if isinstance(value, dict) else {}

    def _are_whole(
        self, dataset: dict[str, Any], mark: dict[str, Any], origin: dict[str, Any], name: Path
    ) -> bool:
        """Whether the outputs are those of an earlier run of that origin, byte by byte."""
        if {key: mark.get(key) for key in origin} != origin:
            return False
        try:
            return mark.get("dataset_sha256") == sha256_of_json(dataset) and all(
                mark.get(DIGESTS[suffix]) == sha256_at(self.target, _file(name, suffix))
                for suffix in self.beside
            )
        except OSError:
            return False

    def _check_outputs(self, name: Path, is_ours: bool) -> None:
        """Refuses, before the encoder runs, what cannot be written or was written by others."""
        for suffix in (".json", *self.beside):
            self.target.make_room(_file(name, suffix))
        states = {suffix: self._state(name, suffix) for suffix in DIGESTS}
        # A damaged JSON beside our PNG is ours as well.
        own = is_ours or _OURS in states.values()
        states[".json"] = self._state(name, ".json", own)
        for suffix in (".json", *self.beside):
            if states[suffix] not in (_ABSENT, _OURS):
                raise InputError(
                    f"{self.target.shown(_file(name, suffix))} is there, and no earlier run has "
                    "written it; move it away, or give another output folder"
                )

    def _state(self, name: Path, suffix: str, is_ours: bool = False) -> str:
        """Whether a file is there, and was written by an earlier run."""
        try:
            file = self.target.look(_file(name, suffix))
            if file is None:
                return _ABSENT
            with file:
                if suffix == PAINTING:
                    is_ours = is_painting(file)
                elif suffix in EMBEDDINGS:
                    is_ours = is_written_by_us(file)
        except OSError:  # no file, or one that cannot be read
            return _THEIRS
        return _OURS if is_ours else _THEIRS


def _file(name: Path, suffix: str = ".json") -> Path:
    return name.with_name(name.name + suffix)


def sha256_of_json(value: Any) -> str:
    """Of a value as JSON has it, however a file of it is laid out."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
