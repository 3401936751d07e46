"""One picture's way through a job: read, segmented, made into the content of its files.

The steps are apart because workers run them in different processes: reading and finishing on any
CPU, segmenting where the model is. What a step gives is what the next takes; a picture that
cannot be used becomes a ``Failed`` and passes the rest.
"""

import hashlib
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from samtrt.console import one_line
from samtrt.encoders.embedded import EmbeddedPicture
from samtrt.errors import InputError, SamtrtError
from samtrt.files import json_bytes
from samtrt.jobs.places import Part, Place, Remote, read_part_of, read_place
from samtrt.jobs.prompts import Asked
from samtrt.jobs.record import (
    DIGESTS,
    EMBEDDING_ZARR,
    EMBEDDINGS,
    MARK,
    PAINTING,
    sha256_of_json,
)
from samtrt.masks.automatic import Progress, SamAutomaticMaskGenerator, unseen
from samtrt.masks.coco import CATEGORIES, coco_dataset
from samtrt.masks.embedding import embedding_bytes, image_sha256, load_embedding, read_embedding
from samtrt.masks.prompted import SamPromptedMaskGenerator
from samtrt.masks.runs import coco_decode_rle
from samtrt.pictures.drawing import paint_in_order
from samtrt.pictures.rasters import Georeference
from samtrt.pictures.reading import decode_image, png_bytes
from samtrt.sam import Sam

# Pictures that a device is given at once: while the host packs the masks of one, a GPU computes
# those of the other.
AT_ONCE = {"cuda": 2, "cpu": 1}


@dataclass(frozen=True)
class Settings:
    """What a job makes of every picture.

    Attributes:
        arguments: of ``SamAutomaticMaskGenerator``, or of ``SamPromptedMaskGenerator``.
        recorded: the same as JSON has them.
        painted: whether the picture is wanted with its masks painted on it.
        embedded: the kinds of files of its embedding that are wanted, of ``EMBEDDINGS``.
        embeddings: where an earlier job has left embeddings, which are taken in place of encoding:
            a folder, or the address of a place in a store.
        prompted: whether each picture has prompts of its own.
        categories: COCO's.
    """

    arguments: dict[str, Any]
    recorded: dict[str, Any]
    painted: bool
    embedded: tuple[str, ...] = ()
    embeddings: Path | str | None = None
    prompted: bool = False
    categories: Sequence[dict[str, Any]] = CATEGORIES

    def recorded_for(self, asked: Sequence[Asked]) -> dict[str, Any]:
        """What a picture's masks depend on, beside the picture and the model."""
        if not self.prompted:
            return self.recorded
        prompts = sha256_of_json([list(self.categories), [one.to_json() for one in asked]])
        return {**self.recorded, "prompts_sha256": prompts}


@dataclass(frozen=True)
class Identity:
    """The model that a job works with, as every worker has it.

    Attributes:
        computed_by: ``Sam.computed_by``.
        parameters_sha256: of its parameters.
        note: what its users should know, or empty.
        device: ``"cpu"`` or ``"cuda"``.
    """

    computed_by: str
    parameters_sha256: str
    note: str
    device: str

    @classmethod
    def of(cls, sam: Sam) -> "Identity":
        """That of a model; its encoder is made, if it is not yet."""
        return cls(sam.computed_by, sam.parameters_sha256, sam.note, sam.device.type)


@dataclass(frozen=True)
class Item:
    """A picture to be done.

    Attributes:
        number: its place in the job's order.
        name: in the outputs.
        place: where it is read from.
        known: SHA-256 of the picture that the outputs on the disk were made of, where they are
            whole and by this model and these settings; empty otherwise.
        asked: its prompts.
        part_of: the picture that this is a window of; None for a whole one.
    """

    number: int
    name: Path
    place: Place
    known: str = ""
    asked: tuple[Asked, ...] = ()
    part_of: Path | None = None

    @property
    def item(self) -> "Item":
        """As of what it becomes."""
        return self


@dataclass(frozen=True)
class Resumed:
    """A picture whose outputs an earlier run has left."""

    item: Item


@dataclass(frozen=True)
class Failed:
    """A picture without outputs.

    Attributes:
        reason: one line.
        details: the traceback of a failure that nobody foresaw; else empty.
        error: that failure, where it was met in this process.
    """

    item: Item
    reason: str
    details: str = ""
    error: BaseException | None = None


@dataclass(frozen=True, eq=False)
class Decoded:
    """A picture in memory: [H, W, 3] uint8, RGB, and the SHA-256 of its file."""

    item: Item
    sha256: str
    image: npt.NDArray[np.uint8]


@dataclass(frozen=True, eq=False)
class Segmented:
    """The records of a picture's masks, and what else its files are made of.

    Attributes:
        size: (H, W) of the picture, in pixels.
        seconds: of a worker's time.
        image: the picture, where it is painted on; else None.
        embeddings: the content of its files, by what is added to the picture's name.
        georeference: where the picture lies on Earth, where that is known.
    """

    item: Item
    sha256: str
    size: tuple[int, int]
    records: list[dict[str, Any]]
    seconds: float
    image: npt.NDArray[np.uint8] | None = None
    embeddings: dict[str, bytes] = field(default_factory=dict)
    georeference: Georeference | None = None


@dataclass(frozen=True)
class Finished:
    """The content of a picture's files.

    Attributes:
        files: what is added to the picture's name → content; in the order to be written.
        masks: how many there are.
        seconds: of a worker's time, for the masks.
    """

    item: Item
    files: dict[str, bytes] = field(repr=False)
    masks: int
    seconds: float


Outcome = Finished | Resumed | Failed


def read(item: Item) -> Decoded | Resumed:
    """Reads a picture, and decodes it where its outputs are not there already.

    Raises:
        InputError: it cannot be used.
    """
    if isinstance(item.place, Part):
        image = read_part_of(item.place)
        sha256 = image_sha256(image)
        return Resumed(item) if sha256 == item.known else Decoded(item, sha256, image)
    content = read_place(item.place)
    sha256 = hashlib.sha256(content).hexdigest()
    if sha256 == item.known:
        return Resumed(item)
    return Decoded(item, sha256, decode_image(content, str(item.place)))


class _Busy:
    """The seconds in which at least one of a worker's threads is at work, each counted once."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._active = 0
        self._since = self._seconds = 0.0

    def begin(self) -> None:
        """A thread begins."""
        with self._lock:
            self._take()
            self._active += 1

    def end(self) -> float:
        """A thread is done: the seconds that nobody was told of."""
        with self._lock:
            self._take()
            self._active -= 1
            seconds, self._seconds = self._seconds, 0.0
            return seconds

    def _take(self) -> None:
        now = time.perf_counter()
        if self._active:
            self._seconds += now - self._since
        self._since = now


class Segmenter:
    """Makes masks; one a process, beside its model, for any number of threads.

    Raises:
        InputError: what the generator refuses of the settings' arguments.
    """

    def __init__(self, sam: Sam, settings: Settings) -> None:
        self._sam = sam
        self._settings = settings
        self._busy = _Busy()
        arguments = settings.arguments
        self._generator: SamAutomaticMaskGenerator | SamPromptedMaskGenerator
        if settings.prompted:
            self._generator = SamPromptedMaskGenerator(sam, **arguments)
            return
        self._generator = SamAutomaticMaskGenerator(sam, **arguments, output_mode="coco_rle")
        if self._generator.crop_n_layers and (settings.embedded or settings.embeddings):
            raise InputError(
                "an embedding is of a whole picture, and crops have their own; leave crop layers "
                "out where embeddings are kept or taken"
            )

    def segment(self, picture: Decoded, progress: Progress = unseen) -> Segmented:
        """The masks of a picture; ``progress`` is called with the points done, and all of them.

        Raises:
            InputError: prompts that the picture cannot have, or no embedding of it.
        """
        self._busy.begin()
        try:
            records, embeddings = self._segment(picture, progress)
        finally:
            seconds = self._busy.end()
        size = (picture.image.shape[0], picture.image.shape[1])
        image = picture.image if self._settings.painted else None
        return Segmented(picture.item, picture.sha256, size, records, seconds, image, embeddings)

    def _segment(
        self, picture: Decoded, progress: Progress
    ) -> tuple[list[dict[str, Any]], dict[str, bytes]]:
        """Records, and the embedding's files that are wanted."""
        files = {}
        if self._settings.embedded or self._settings.embeddings is not None:
            embedded = self._embed(picture)
            for suffix in self._settings.embedded:
                digest, as_zarr = image_sha256(picture.image), suffix == EMBEDDING_ZARR
                files[suffix] = embedding_bytes(embedded, digest, as_zarr)
            records = self._of_embedded(embedded, picture.item, progress)
        elif isinstance(self._generator, SamPromptedMaskGenerator):
            prompts = [one.prompt for one in picture.item.asked]
            records = self._generator.generate(picture.image, prompts, progress)
        else:
            records = self._generator.generate(picture.image, progress=progress)
        if self._settings.prompted:
            kept = (one.kept for one in picture.item.asked)
            records = [{**record, **more} for record, more in zip(records, kept, strict=True)]
        return records, files

    def _embed(self, picture: Decoded) -> EmbeddedPicture:
        place, name = self._settings.embeddings, picture.item.name
        if place is None:
            return self._sam.embed(picture.image)
        if isinstance(place, Path):
            files = [place / f"{name}{suffix}" for suffix in EMBEDDINGS]
            found = next((file for file in files if file.exists()), files[0])
            return load_embedding(found, picture.image, self._sam)
        missing = None
        for suffix in EMBEDDINGS:
            address = f"{place.rstrip('/')}/{name.as_posix()}{suffix}"
            try:
                content = read_place(Remote(address))
            except InputError as error:
                missing = missing or error
                continue
            return read_embedding(content, address, picture.image, self._sam)
        raise missing or InputError(f"no embedding at {place}")

    def _of_embedded(
        self, picture: EmbeddedPicture, item: Item, progress: Progress
    ) -> list[dict[str, Any]]:
        if isinstance(self._generator, SamPromptedMaskGenerator):
            prompts = [one.prompt for one in item.asked]
            return self._generator.generate_embedded(picture, prompts, progress)
        return self._generator.generate_embedded(picture, progress=progress)


def finish(picture: Segmented, settings: Settings, identity: Identity) -> Finished:
    """The content of a picture's files.

    The JSON is COCO's (``coco_dataset``) and has what it was made from besides, with the digests
    of all files; it is the last, so that one that is there says that everything is.
    """
    files = {}
    origin: dict[str, Any] = {
        "picture_sha256": picture.sha256,
        "computed_by": identity.computed_by,
        "arguments": settings.recorded_for(picture.item.asked),
    }
    if picture.image is not None:
        by_area = sorted(picture.records, key=lambda record: -record["area"])
        masks = (coco_decode_rle(record["segmentation"]) for record in by_area)
        painted = paint_in_order(picture.image, masks)
        files[PAINTING] = png_bytes(painted, {MARK: picture.sha256})
        origin["png_sha256"] = hashlib.sha256(files[PAINTING]).hexdigest()
    for suffix, content in picture.embeddings.items():
        files[suffix] = content
        origin[DIGESTS[suffix]] = hashlib.sha256(content).hexdigest()
    name, size = picture.item.name, picture.size
    dataset = coco_dataset(name, size, picture.records, settings.categories)
    if picture.georeference is not None:
        dataset["images"][0]["georeference"] = picture.georeference.to_json()
    origin["dataset_sha256"] = sha256_of_json(dataset)
    files[".json"] = json_bytes({**dataset, MARK: origin})
    return Finished(picture.item, files, len(picture.records), picture.seconds)


def attempt(step: Callable[[Any], Any], value: Any) -> Any:
    """What a step makes of a picture; a ``Failed`` where it fails, whatever the reason.

    A picture that is done already, or has failed, stays as it is.
    """
    if isinstance(value, Resumed | Failed):
        return value
    item = value.item
    try:
        return step(value)
    except SamtrtError as error:
        return Failed(item, one_line(str(error)))
    except Exception as error:
        if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
            return Failed(item, "does not fit into memory; scale it down")
        reason = f"unexpected {type(error).__name__}: {error}; the log has its traceback"
        return Failed(item, one_line(reason), traceback.format_exc(), error)
