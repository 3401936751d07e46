"""The model behind the API: pictures are embedded once, prompts are answered from the cache."""

import asyncio
import hashlib
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from threading import Event, Lock
from typing import Any

import numpy as np
import torch

from samtrt.errors import SamtrtError
from samtrt.masks.automatic import SamAutomaticMaskGenerator
from samtrt.masks.coco import coco_dataset
from samtrt.masks.predictor import SamPredictor
from samtrt.masks.prompts import Prompt
from samtrt.masks.runs import require_pycocotools
from samtrt.sam import Sam
from samtrt.server import schemas
from samtrt.server.cache import LRUCache
from samtrt.server.decoding import PictureReader
from samtrt.server.lanes import Lane
from samtrt.server.metrics import Metrics
from samtrt.server.settings import Settings

MAX_GENERATORS = 4


@dataclass(frozen=True)
class EmbeddedPicture:
    """What is kept of a picture: no pixels, only what prompts need.

    Attributes:
        features: [1, 256, S/16, S/16] float32.
        original_size: (height, width) of the picture.
        input_size: (height, width) that it takes up in the model's frame.
        seconds: what resizing and encoding took.
    """

    features: np.ndarray
    original_size: tuple[int, int]
    input_size: tuple[int, int]
    seconds: float

    @property
    def nbytes(self) -> int:
        """Bytes that keeping it costs."""
        return self.features.nbytes + 1024


class EmbeddedPredictor(SamPredictor):
    """A predictor whose picture was embedded before; ``set_image`` is spared the encoder."""

    def __init__(self, sam_model: Sam, picture: EmbeddedPicture) -> None:
        super().__init__(sam_model)
        self._picture = picture
        self._restore()

    def set_image(self, image: np.ndarray, image_format: str = "RGB") -> None:
        """Sets the embedded picture again, whatever the pixels."""
        self._restore()

    def _restore(self) -> None:
        features = torch.from_numpy(self._picture.features).to(self.device)
        self._set_features(features, self._picture.input_size, self._picture.original_size)


class AbandonedError(Exception):
    """Nobody waits for this result any more."""


class AbandonableGenerator(SamAutomaticMaskGenerator):
    """A generator that stops between two batches of points when its work is abandoned.

    Attributes:
        abandoned: set by another thread to stop it.
    """

    abandoned = Event()

    def _decode(self, points: np.ndarray, crop: Any) -> tuple[torch.Tensor, torch.Tensor]:
        if self.abandoned.is_set():
            raise AbandonedError
        return super()._decode(points, crop)


class Studio:
    """A model, its worker threads and its cache.

    One thread at a time runs the encoder: it is not re-entrant, and a GPU gains nothing from two.
    """

    def __init__(self, sam: Sam, settings: Settings, metrics: Metrics) -> None:
        self.sam = sam
        self.settings = settings
        self.metrics = metrics
        self.cache: LRUCache[EmbeddedPicture] = LRUCache(settings.cache_bytes)
        self.read_picture = PictureReader(settings)
        self.embed_seconds: float | None = None
        self.works = True
        self.lanes = {
            # One more than can be decoded at once: the encoder's. The others wait as files.
            "encode": Lane(
                "encode", settings.read_workers + 1, settings.encode_queue, settings.encode_timeout
            ),
            "decode": Lane(
                "decode", settings.decode_workers, settings.decode_queue, settings.decode_timeout
            ),
            "everything": Lane(
                "everything", 1, settings.everything_queue, settings.everything_timeout
            ),
        }
        # A CUDA graph must not be recorded while another thread launches work; on the CPU the
        # lanes run side by side.
        on_gpu = sam.device.type == "cuda"
        self._device_lock: AbstractContextManager[Any] = Lock() if on_gpu else nullcontext()
        self._encoder_lock = Lock()
        self._embedding: dict[str, asyncio.Task[EmbeddedPicture]] = {}
        # Kept with the CUDA graphs that they have recorded.
        self.generator = lru_cache(MAX_GENERATORS)(self._make_generator)
        self._mask_utils = require_pycocotools()
        metrics.watch_cache(self.cache)
        for lane in self.lanes.values():
            metrics.watch_lane(lane)

    @property
    def is_busy(self) -> bool:
        """Whether any work waits or runs."""
        return any(lane.pending for lane in self.lanes.values())

    async def embed(self, data: bytes, media_type: str) -> tuple[str, EmbeddedPicture, bool]:
        """Embeds an upload, or finds it embedded.

        The same picture sent several times at once is encoded once.

        Returns:
            Its id, the picture, and whether it was in the cache.

        Raises:
            RequestError: as ``decode_picture`` and ``Lane.run``.
        """
        key = hashlib.sha256(f"{self.sam.engine_sha256} {media_type}\n".encode())
        key.update(data)
        embedding_id = key.hexdigest()
        found = self.cache.get(embedding_id)
        if found is not None:
            return embedding_id, found, True
        task = self._embedding.get(embedding_id)
        if task is None:
            task = asyncio.create_task(self._embed_in_lane(embedding_id, data, media_type))
            self._embedding[embedding_id] = task
            task.add_done_callback(lambda done: self._embedded(embedding_id, done))
        # Shielded: one client that leaves must not take the result from the others.
        return embedding_id, await asyncio.shield(task), False

    def _embedded(self, embedding_id: str, task: asyncio.Task[EmbeddedPicture]) -> None:
        del self._embedding[embedding_id]
        if not task.cancelled():
            task.exception()  # seen, even where every client has left

    async def _embed_in_lane(
        self, embedding_id: str, data: bytes, media_type: str
    ) -> EmbeddedPicture:
        abandoned = Event()
        try:
            return await self.lanes["encode"].run(
                self._embed, embedding_id, data, media_type, abandoned
            )
        finally:
            abandoned.set()

    def _embed(
        self, embedding_id: str, data: bytes, media_type: str, abandoned: Event
    ) -> EmbeddedPicture:
        image = self.read_picture(data, media_type)
        with self._encoder_lock, self._device_lock:
            if abandoned.is_set():
                raise AbandonedError
            started = time.perf_counter()
            predictor = SamPredictor(self.sam)
            with self._watched():
                predictor.set_image(image)
            features = predictor.get_image_embedding().cpu().numpy()
            seconds = time.perf_counter() - started
        self.metrics.work_seconds.labels("encode").observe(seconds)
        before = seconds if self.embed_seconds is None else self.embed_seconds
        self.embed_seconds = 0.7 * before + 0.3 * seconds
        height, width = image.shape[:2]
        input_size = predictor.transform.get_preprocess_shape(height, width, self.sam.img_size)
        picture = EmbeddedPicture(features, (height, width), input_size, seconds)
        self.cache.put(embedding_id, picture)
        return picture

    @contextmanager
    def _watched(self) -> Iterator[None]:
        """The encoder's work; where it fails, a blank picture tells whether it is done for."""
        try:
            yield
        except SamtrtError:
            raise  # the picture's fault
        except Exception:
            try:
                self.warm_up()
                self.works = True
            except Exception:
                self.works = False
            raise
        self.works = True

    async def masks(self, picture: EmbeddedPicture, request: schemas.MaskRequest) -> list[Any]:
        """The masks of a prompt as ``schemas.Mask`` fields, the best first.

        Raises:
            InputError: a prompt that is empty, contradicts itself or leaves the picture.
            RequestError: as ``Lane.run``.
        """
        coords = [number for point in request.point_coords for number in point]
        prompt = Prompt.from_numbers(coords, request.point_labels, request.box)
        prompt.check_inside(picture.original_size)
        return await self.lanes["decode"].run(
            self._masks, picture, prompt, request.multimask_output
        )

    def _masks(
        self, picture: EmbeddedPicture, prompt: Prompt, multimask_output: bool
    ) -> list[dict[str, Any]]:
        with self.metrics.work_seconds.labels("decode").time():
            with self._device_lock:
                masks, scores, _ = EmbeddedPredictor(self.sam, picture).predict(
                    np.array(prompt.point_coords) if prompt.point_coords else None,
                    np.array(prompt.point_labels) if prompt.point_coords else None,
                    None if prompt.box is None else np.array(prompt.box),
                    multimask_output=multimask_output,
                )
            encoded = self._mask_utils.encode(np.asfortranarray(masks.transpose(1, 2, 0)))
            areas, boxes = self._mask_utils.area(encoded), self._mask_utils.toBbox(encoded)
            return [
                {
                    "segmentation": {
                        "size": encoded[index]["size"],
                        "counts": encoded[index]["counts"].decode("ascii"),
                    },
                    "area": int(areas[index]),
                    "bbox": boxes[index].tolist(),
                    "predicted_iou": float(scores[index]),
                }
                for index in np.argsort(-scores)
            ]

    async def everything(
        self, picture: EmbeddedPicture, request: schemas.EverythingRequest
    ) -> dict[str, Any]:
        """Automatic masks as a COCO data set (``schemas.CocoDataset`` fields).

        Raises:
            RequestError: as ``Lane.run``.
        """
        abandoned = Event()
        try:
            return await self.lanes["everything"].run(self._everything, picture, request, abandoned)
        finally:  # also when the time is up, or the client has left
            abandoned.set()

    def _everything(
        self, picture: EmbeddedPicture, request: schemas.EverythingRequest, abandoned: Event
    ) -> dict[str, Any]:
        height, width = picture.original_size
        # Without crops the generator hands the pixels to the predictor and looks at nothing but
        # their shape, so no picture needs to be kept for it.
        pixels = np.broadcast_to(np.uint8(0), (height, width, 3))
        generator = self.generator(**request.model_dump(exclude={"id"}))
        with self.metrics.work_seconds.labels("everything").time(), self._device_lock:
            generator.predictor = EmbeddedPredictor(self.sam, picture)
            generator.abandoned = abandoned
            records = generator.generate(pixels)
        return coco_dataset(Path(request.id[:16]), (height, width), records)

    def _make_generator(self, **options: Any) -> AbandonableGenerator:
        return AbandonableGenerator(self.sam, output_mode="coco_rle", **options)

    def warm_up(self) -> None:
        """Makes a first picture's work, so that no client waits for kernels to be compiled."""
        predictor = SamPredictor(self.sam)
        predictor.set_image(np.zeros((self.sam.img_size, self.sam.img_size, 3), np.uint8))
        predictor.predict(np.array([[0, 0]]), np.array([1]))

    def close(self) -> None:
        """Lets the worker threads end, and ends the processes that decode pictures."""
        self.read_picture.close()
        for lane in self.lanes.values():
            lane.close()
