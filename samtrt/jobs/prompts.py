"""What is asked about each picture of a job: a detector's boxes, or points, from a file.

COCO's detections (a list with ``bbox`` and ``image_id`` or ``file_name``) and data sets (``images``
and ``annotations``), or CSV with a header.
"""

import csv
import json
import math
import os
from collections import defaultdict
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from samtrt.decoders.prompts import Prompt
from samtrt.errors import InputError
from samtrt.masks.coco import CATEGORIES

_CSV_NAME = ("file_name", "image", "picture", "filename")
_CSV_BOXES = (("x0", "y0", "x1", "y1"), ("xmin", "ymin", "xmax", "ymax"))
_EXPECTED = (
    "expected COCO's detections or data set as .json, or a .csv with the columns file_name, x0, "
    "y0, x1, y1 (boxes) or file_name, x, y, label (points)"
)

Key = str | int  # a picture's name, or COCO's number of it


@dataclass(frozen=True)
class Asked:
    """One object on one picture.

    Attributes:
        prompt: points, a box or both, in the picture's pixels.
        kept: what its annotation has besides: ``category_id``, ``prompt_score``.
    """

    prompt: Prompt
    kept: dict[str, Any] = field(default_factory=dict)

    def to_json(self) -> list[Any]:
        """All of it, in one form."""
        prompt = self.prompt
        return [prompt.point_coords, prompt.point_labels, prompt.box, self.kept]


@dataclass
class PromptFile:
    """What a file asks for.

    Attributes:
        path: the file.
        asked: picture → objects, in the file's order.
        categories: COCO's.
    """

    path: Path
    asked: dict[Key, list[Asked]]
    categories: list[dict[str, Any]]

    def for_pictures(
        self, names: Collection[Path]
    ) -> tuple[dict[Path, tuple[Asked, ...]], list[Key]]:
        """What is asked about each picture, and those asked about that are not there.

        A name in the file means the picture of that name, else the one whose path ends so; a
        number, the one whose name is that number (``000000000139.jpg`` is 139).

        Raises:
            InputError: none is there, or a name fits two pictures.
        """
        by_name = {name.as_posix(): name for name in names}
        by_end: dict[Key, list[Path]] = defaultdict(list)
        for name in names:
            by_end[name.name].append(name)
            if name.stem.isascii() and name.stem.isdigit():
                by_end[int(name.stem)].append(name)
        found: dict[Path, list[Asked]] = defaultdict(list)
        missing: list[Key] = []
        for key, asked in self.asked.items():
            fitting = self._fitting(key, by_name, by_end)
            if len(fitting) > 1:
                raise InputError(
                    f"{self.path}: {key} may be {fitting[0]} or {fitting[1]}; name pictures by "
                    "their path below the source"
                )
            if fitting:
                found[fitting[0]] += asked
            else:
                missing.append(key)
        if not found:
            raise InputError(
                f"{self.path} asks about no picture that is here; it names {missing[0]}, and here "
                f"is {next(iter(by_name))}"
            )
        return {name: tuple(asked) for name, asked in found.items()}, missing

    @staticmethod
    def _fitting(key: Key, by_name: dict[str, Path], by_end: dict[Key, list[Path]]) -> list[Path]:
        if isinstance(key, int):
            return by_end.get(key, [])
        path = PurePosixPath(key.replace(os.sep, "/"))
        if (exact := by_name.get(str(path))) is not None:
            return [exact]
        ends = by_end.get(path.name, [])
        if len(path.parts) == 1:
            return ends
        longer = [name for name in ends if name.as_posix().endswith(f"/{path}")]
        # An absolute or longer path: of the pictures that it ends with.
        return longer or [name for name in ends if str(path).endswith(f"/{name.as_posix()}")]


def read_prompts(path: Path) -> PromptFile:
    """Reads a file of prompts.

    Raises:
        InputError: it cannot be read, is of no known kind, or asks for what cannot be.
    """
    try:
        if path.suffix.lower() == ".csv":
            with path.open(newline="", encoding="utf-8-sig") as file:
                asked, categories = _from_csv(path, csv.DictReader(file))
        else:
            asked, categories = _from_coco(path, json.loads(path.read_text("utf-8")))
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}; {_EXPECTED}") from error
    except (ValueError, RecursionError, csv.Error) as error:
        raise InputError(f"{path} is neither JSON nor CSV ({error}); {_EXPECTED}") from error
    if not asked:
        raise InputError(f"{path} asks for nothing; {_EXPECTED}")
    return PromptFile(path, asked, categories)


def _from_coco(path: Path, value: Any) -> tuple[dict[Key, list[Asked]], list[dict[str, Any]]]:
    names: dict[Any, str] = {}
    categories: list[dict[str, Any]] = []
    detections = value
    if isinstance(value, dict):
        detections = value.get("annotations")
        names = _by_id(path, value, "images", "file_name")
        categories = [
            {"id": number, "name": name}
            for number, name in _by_id(path, value, "categories", "name").items()
        ]
    if not isinstance(detections, list):
        raise InputError(f"{path} holds no detections; {_EXPECTED}")
    asked: dict[Key, list[Asked]] = defaultdict(list)
    for number, detection in enumerate(detections):
        where = f"{path}: detection {number}"
        if not isinstance(detection, dict):
            raise InputError(f"{where} is no object; {_EXPECTED}")
        key = detection.get("file_name", detection.get("image_id"))
        key = names.get(key, key) if isinstance(key, str | int) else None
        if key is None or isinstance(key, bool):
            raise InputError(f"{where} has neither image_id nor file_name")
        x, y, width, height = _numbers(where, "bbox", detection.get("bbox"), 4)
        kept = {
            name: detection[given]
            for name, given in (("category_id", "category_id"), ("prompt_score", "score"))
            if given in detection
        }
        asked[key].append(Asked(_prompt(where, box=(x, y, x + width, y + height)), kept))
    return dict(asked), _categories(path, categories, asked)


def _from_csv(
    path: Path, reader: "csv.DictReader[str]"
) -> tuple[dict[Key, list[Asked]], list[dict[str, Any]]]:
    columns = [column.strip() for column in reader.fieldnames or []]
    reader.fieldnames = columns
    name_column = next((name for name in _CSV_NAME if name in columns), None)
    box_columns = next((box for box in _CSV_BOXES if set(box) <= set(columns)), ())
    has_points = {"x", "y"} <= set(columns)
    if name_column is None or not (box_columns or has_points):
        raise InputError(f"{path} has the columns {', '.join(columns) or 'none'}; {_EXPECTED}")
    # Rows of one object: those with the same number in `object`; else each row is one.
    objects: dict[tuple[str, str], dict[str, Any]] = {}
    labels: dict[str, int] = {}
    for number, row in enumerate(reader, start=2):
        where = f"{path}: line {number}"
        if None in row or None in row.values():
            raise InputError(f"{where} has not as many cells as the header")
        name = row[name_column].strip()
        if not name:
            raise InputError(f"{where} names no picture")
        one = objects.setdefault(
            (name, row.get("object", "").strip() or f"line {number}"),
            {"where": where, "points": [], "labels": [], "box": None, "kept": {}},
        )
        if has_points and (row["x"].strip() or row["y"].strip()):
            one["points"] += _numbers(where, "x, y", [row["x"], row["y"]], 2)
            one["labels"] += _numbers(where, "label", [row.get("label") or "1"], 1)
        if box_columns and any(row[column].strip() for column in box_columns):
            if one["box"] is not None:
                raise InputError(f"{where}: a second box for one object")
            cells = [row[column] for column in box_columns]
            one["box"] = _numbers(where, ", ".join(box_columns), cells, 4)
        if (row.get("category") or "").strip():
            category = row["category"].strip()
            one["kept"]["category_id"] = labels.setdefault(category, len(labels) + 1)
        if (row.get("score") or "").strip():
            (one["kept"]["prompt_score"],) = _numbers(where, "score", [row["score"]], 1)
    asked: dict[Key, list[Asked]] = defaultdict(list)
    for (name, _), one in objects.items():
        prompt = _prompt(one["where"], one["points"], one["labels"], one["box"])
        asked[name].append(Asked(prompt, one["kept"]))
    categories = [{"id": number, "name": name} for name, number in labels.items()]
    return dict(asked), categories or list(CATEGORIES)


def _prompt(
    where: str, points: Iterable[float] = (), labels: Iterable[float] = (), box: Any = None
) -> Prompt:
    for label in (labels := list(labels)):
        if label != int(label):
            raise InputError(f"{where}: the label {label:g} is no whole number")
    try:
        return Prompt.from_numbers(list(points), [int(label) for label in labels], box)
    except InputError as error:
        raise InputError(f"{where}: {error}") from error


def _numbers(where: str, what: str, value: Any, count: int) -> list[float]:
    """So many finite numbers."""
    try:
        numbers = [float(one) for one in value]
        if len(numbers) == count and all(map(math.isfinite, numbers)):
            return numbers
    except (TypeError, ValueError):
        pass
    shown = json.dumps(value, default=str)[:80]
    raise InputError(f"{where} has {what} {shown}; expected {count} finite numbers")


def _categories(
    path: Path, given: list[dict[str, Any]], asked: dict[Key, list[Asked]]
) -> list[dict[str, Any]]:
    """COCO's categories: those of the file, else one for each number that is used."""
    used = {
        one.kept["category_id"] for several in asked.values() for one in several
        if "category_id" in one.kept
    }  # fmt: skip
    if not all(isinstance(number, int) and not isinstance(number, bool) for number in used):
        raise InputError(f"{path}: a category_id is no whole number")
    if not given:
        return [{"id": number, "name": str(number)} for number in sorted(used)] or list(CATEGORIES)
    if unknown := used - {category["id"] for category in given}:
        raise InputError(f"{path}: category_id {min(unknown)} is not among its categories")
    return given


def _by_id(path: Path, dataset: dict[str, Any], part: str, name: str) -> dict[int, str]:
    """``id`` → ``name`` of a data set's images or categories.

    Raises:
        InputError: they are not as COCO has them.
    """
    try:
        found = {one["id"]: one[name] for one in dataset.get(part, [])}
    except (KeyError, TypeError) as error:
        raise InputError(f"{path}: its {part} are not COCO's ({error}); {_EXPECTED}") from error
    for number, text in found.items():
        if not isinstance(number, int) or isinstance(number, bool) or not isinstance(text, str):
            raise InputError(
                f"{path}: its {part} are not COCO's; expected a whole number as id and a text as "
                f"{name}, found {number!r} and {text!r}"
            )
    return found
