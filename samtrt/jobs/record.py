"""What a run leaves of each picture: written once, known again by its content."""

import hashlib
import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from samtrt.errors import InputError, SamtrtError
from samtrt.files import sha256_of, write_bytes
from samtrt.formats.annotated import AnnotatedPicture
from samtrt.formats.annotated import is_ours as is_written_by_us
from samtrt.jobs.sources import MARK, is_painting
from samtrt.pictures.rasters import Georeference

PAINTING, EMBEDDING = ".png", ".safetensors"  # added to a picture's name
# What a JSON calls the digest of the file beside it.
_DIGESTS = {PAINTING: "png_sha256", EMBEDDING: "embedding_sha256"}


def embedding_name(name: Path) -> Path:
    """Where a picture's embedding lies below an output folder."""
    return name.with_name(name.name + EMBEDDING)


class Records:
    """The outputs of a run's pictures.

    Args:
        output_dir: where they go.
        beside: the files that are written beside each JSON: ``PAINTING``, ``EMBEDDING``.
        computed_by: what computes the embeddings.
    """

    def __init__(self, output_dir: Path, beside: Collection[str], computed_by: str) -> None:
        self.output_dir = output_dir
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
        json_file = self._file(name)
        written = _read_json(json_file)
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
            write_bytes(self._file(name, suffix), content)

    def read(self, name: Path) -> AnnotatedPicture:
        """A picture's masks, from the JSON that a run has written.

        Raises:
            SamtrtError: it has gone meanwhile.
        """
        json_file = self._file(name)
        dataset = _read_json(json_file)
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
                f"{json_file} was removed or altered during the run; run the command again"
            ) from error

    def _file(self, name: Path, suffix: str = ".json") -> Path:
        return self.output_dir / f"{name}{suffix}"

    def _are_whole(
        self, dataset: dict[str, Any], mark: dict[str, Any], origin: dict[str, Any], name: Path
    ) -> bool:
        """Whether the outputs are those of an earlier run of that origin, byte by byte."""
        if {key: mark.get(key) for key in origin} != origin:
            return False
        try:
            return mark.get("dataset_sha256") == sha256_of_json(dataset) and all(
                mark.get(_DIGESTS[suffix]) == sha256_of(self._file(name, suffix))
                for suffix in self.beside
            )
        except OSError:
            return False

    def _check_outputs(self, name: Path, is_ours: bool) -> None:
        """Refuses, before the encoder runs, what cannot be written or was written by others."""
        painting, embedding = self._file(name, PAINTING), self._file(name, EMBEDDING)
        are_ours = {PAINTING: is_painting(painting), EMBEDDING: is_written_by_us(embedding)}
        # A damaged JSON beside our PNG is ours as well.
        ours = {self._file(name): is_ours or any(are_ours.values())}
        ours |= {self._file(name, suffix): are_ours[suffix] for suffix in self.beside}
        for file, replaceable in ours.items():
            try:
                file.parent.mkdir(parents=True, exist_ok=True)
                there = file.is_symlink() or file.exists()
            except OSError as error:
                reason = f"{error.strerror}; give another output folder"
                raise SamtrtError(f"cannot write {file}: {reason}") from error
            if there and not (replaceable and file.is_file()):
                raise InputError(
                    f"{file} is there, and no earlier run has written it; "
                    "move it away, or give another output folder"
                )


def sha256_of_json(value: Any) -> str:
    """Of a value as JSON has it, however a file of it is laid out."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _read_json(json_file: Path) -> dict[str, Any]:
    """The object in a file; empty where there is no file, or none that can be read."""
    try:
        value = json.loads(json_file.read_text("utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}
