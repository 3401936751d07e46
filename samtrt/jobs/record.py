"""What a run leaves of each picture: written once, known again by its content."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from samtrt.errors import InputError, SamtrtError
from samtrt.files import sha256_of, write_json
from samtrt.formats.annotated import AnnotatedPicture
from samtrt.jobs.sources import MARK, is_painting
from samtrt.masks.automatic import SamAutomaticMaskGenerator
from samtrt.masks.coco import coco_dataset
from samtrt.masks.runs import coco_decode_rle
from samtrt.pictures.drawing import paint_in_order
from samtrt.pictures.reading import decode_image, read_file, save_png
from samtrt.sam import Sam

Progress = Callable[[int, int], None]


class Records:
    """The outputs of a run's pictures.

    Args:
        sam: the model.
        output_dir: where they go.
        painted: whether a PNG is written beside each JSON.
        generator: makes the masks, as ``coco_rle``.
        arguments: the generator's, as JSON has them.
    """

    def __init__(
        self,
        sam: Sam,
        output_dir: Path,
        painted: bool,
        generator: SamAutomaticMaskGenerator,
        arguments: dict[str, Any],
    ) -> None:
        self.sam = sam
        self.output_dir = output_dir
        self.painted = painted
        self.generator = generator
        self.arguments = arguments

    def segment(self, name: Path, picture: Path, progress: Progress) -> int | None:
        """Writes a picture's outputs; the number of its masks, or None where they were there.

        Args:
            name: the picture's, in the outputs.
            picture: its file.
            progress: called with the points done, and all of them.

        Raises:
            SamtrtError: the picture cannot be used, or an output not be written.
        """
        json_file, png_file = self._files(name)
        content = read_file(picture)
        origin: dict[str, Any] = {
            "picture_sha256": hashlib.sha256(content).hexdigest(),
            "computed_by": self.sam.computed_by,
            "arguments": self.arguments,
        }
        if self._are_written(json_file, png_file, origin):
            return None
        image = decode_image(content, str(picture))
        self._check_outputs(json_file, png_file)
        records = self.generator.generate(image, progress=progress)
        if self.painted:
            by_area = sorted(records, key=lambda record: -record["area"])
            masks = (coco_decode_rle(record["segmentation"]) for record in by_area)
            save_png(png_file, paint_in_order(image, masks), {MARK: origin["picture_sha256"]})
            origin["png_sha256"] = sha256_of(png_file)
        # Last: a JSON that is there says that everything is.
        dataset = coco_dataset(name, image.shape[:2], records)
        origin["dataset_sha256"] = _sha256_of_json(dataset)
        write_json(json_file, {**dataset, MARK: origin})
        return len(records)

    def read(self, name: Path) -> AnnotatedPicture:
        """A picture's masks, from the JSON that ``segment`` has written.

        Raises:
            SamtrtError: it has gone meanwhile.
        """
        json_file, _ = self._files(name)
        dataset = _read_json(json_file)
        try:
            image = dataset["images"][0]
            size = (image["height"], image["width"])
            sha256 = dataset[MARK]["dataset_sha256"]
            return AnnotatedPicture(name, size, dataset["annotations"], sha256)
        except (KeyError, IndexError, TypeError) as error:
            raise SamtrtError(
                f"{json_file} was removed or altered during the run; run the command again"
            ) from error

    def _files(self, name: Path) -> tuple[Path, Path]:
        return self.output_dir / f"{name}.json", self.output_dir / f"{name}.png"

    def _are_written(self, json_file: Path, png_file: Path, origin: dict[str, Any]) -> bool:
        """Whether the outputs are those of an earlier run from the same origin, byte by byte."""
        written = _read_json(json_file)
        mark = written.pop(MARK, None)
        if not isinstance(mark, dict):
            return False
        expected = {**origin, "dataset_sha256": _sha256_of_json(written)}
        if self.painted:
            try:
                expected["png_sha256"] = sha256_of(png_file)
            except OSError:
                return False
        return {key: mark.get(key) for key in expected} == expected

    def _check_outputs(self, json_file: Path, png_file: Path) -> None:
        """Refuses, before the encoder runs, what cannot be written or was written by others."""
        png_is_ours = is_painting(png_file)
        # A damaged JSON beside our PNG is ours as well.
        ours = {json_file: MARK in _read_json(json_file) or png_is_ours}
        if self.painted:
            ours[png_file] = png_is_ours
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


def _read_json(json_file: Path) -> dict[str, Any]:
    """The object in a file; empty where there is no file, or none that can be read."""
    try:
        value = json.loads(json_file.read_text("utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def _sha256_of_json(value: Any) -> str:
    """Of a value as JSON has it, however a file of it is laid out."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
