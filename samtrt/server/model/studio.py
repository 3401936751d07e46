"""The model behind the API: pictures are embedded once, prompts are answered from the cache."""

import asyncio
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from threading import Event
from typing import Any

import numpy as np
from torch import Tensor

from samtrt.decoders.prompts import Prompt, Prompts
from samtrt.decoders.protocol import Decoder
from samtrt.decoders.upscaling import cut_out
from samtrt.encoders.embedded import EmbeddedPicture
from samtrt.errors import SamtrtError
from samtrt.masks.transfer import to_host
from samtrt.sam import Sam
from samtrt.server import schemas
from samtrt.server.api.answers import mask_fields, text_of_logits
from samtrt.server.api.prompts import prompts_of
from samtrt.server.api.uploads import picture_id
from samtrt.server.decoding import PictureReader
from samtrt.server.metrics import Metrics
from samtrt.server.model.batching import Batcher, Image
from samtrt.server.model.everything import Everything
from samtrt.server.model.lanes import AbandonedError, Lane
from samtrt.server.model.memory import LRUCache
from samtrt.server.model.store import Store
from samtrt.server.settings import Settings
from samtrt.server.tracing import Tracing

_STORE_THREADS = 4


@dataclass(frozen=True)
class KeptPicture:
    """What is kept of a picture: no pixels, only what prompts need.

    Attributes:
        embedded: the picture, in host memory.
        seconds: what resizing and encoding took.
    """

    embedded: EmbeddedPicture
    seconds: float

    @property
    def nbytes(self) -> int:
        """Bytes that keeping it costs."""
        return self.embedded.nbytes + 1024


class Studio:
    """A model, its worker threads and its cache.

    One thread at a time runs the encoder: a GPU gains nothing from two.

    Args:
        decoder: what decodes; None for the model's own (``Sam.get_decoder``).
        tracing: makes spans of the work; None for nothing.
        store: has the embeddings of other servers, too; None for those of this one alone.
    """

    def __init__(
        self,
        sam: Sam,
        settings: Settings,
        metrics: Metrics,
        decoder: Decoder | None = None,
        tracing: Tracing | None = None,
        store: Store | None = None,
    ) -> None:
        self.sam = sam
        self.store = store
        self.tracing = tracing or Tracing()
        self.decoder = decoder or sam.get_decoder()
        self.computed_by = sam.computed_by
        self.settings = settings
        self.metrics = metrics
        self.cache: LRUCache[KeptPicture] = LRUCache(settings.cache_bytes)
        self.read_picture = PictureReader(settings)
        self.embed_seconds: float | None = None
        self.works = True
        self.lanes = {
            # More than can be decoded at once: a batch of the encoder's. The others wait as files.
            "encode": Lane(
                "encode",
                settings.read_workers + settings.encode_batch,
                settings.encode_queue,
                settings.encode_timeout,
            ),
            "decode": Lane(
                "decode", settings.decode_workers, settings.decode_queue, settings.decode_timeout
            ),
            "everything": Lane(
                "everything", 1, settings.everything_queue, settings.everything_timeout
            ),
        }
        self.everything = Everything(sam, self.decoder, self.lanes["everything"], settings, metrics)
        self.batcher = Batcher(self._encode, settings.encode_batch)
        self._embedding: dict[str, asyncio.Task[KeptPicture]] = {}
        metrics.watch_cache(self.cache)
        metrics.watch_model(self.computed_by, sam.device)
        if store is not None:
            # As many as there are requests: they wait for the network.
            self.lanes["store"] = Lane(
                "store", _STORE_THREADS, settings.max_requests, settings.decode_timeout
            )
            metrics.watch_store(store)
        for lane in self.lanes.values():
            metrics.watch_lane(lane)

    @property
    def is_busy(self) -> bool:
        """Whether any work waits or runs."""
        return any(lane.pending for lane in self.lanes.values())

    async def embed(self, data: bytes, media_type: str) -> tuple[str, KeptPicture, bool]:
        """Embeds an upload, or finds it embedded.

        The same picture sent several times at once is encoded once.

        Returns:
            Its id, the picture, and whether it was in the cache.

        Raises:
            RequestError: as ``decode_picture`` and ``Lane.run``.
        """
        embedding_id = picture_id(self.computed_by, media_type, data)
        found = await self.find(embedding_id)
        if found is not None:
            return embedding_id, found, True
        task = self._embedding.get(embedding_id)
        if task is None:
            task = asyncio.create_task(self._embed_in_lane(embedding_id, data, media_type))
            self._embedding[embedding_id] = task
            task.add_done_callback(lambda done: self._embedded(embedding_id, done))
        # Shielded: one client that leaves must not take the result from the others.
        return embedding_id, await asyncio.shield(task), False

    async def find(self, embedding_id: str) -> KeptPicture | None:
        """A picture that is embedded: in memory, or in the store; None where it is in neither.

        Raises:
            RequestError: 503, the store does not answer.
        """
        found = self.cache.get(embedding_id)
        if found is not None or self.store is None:
            return found
        stored = await self.lanes["store"].run(self.store.get, embedding_id)
        if stored is None:
            return None
        embedded, seconds = stored
        # Its id says so; whoever writes to the store may have said otherwise.
        made_by = embedded.computed_by, embedded.parameters_sha256, embedded.img_size
        if made_by != (
            self.sam.encoder.computed_by, self.sam.parameters_sha256, self.sam.img_size
        ):  # fmt: skip
            return None
        picture = KeptPicture(embedded, seconds)
        self.cache.put(embedding_id, picture)
        return picture

    def _embedded(self, embedding_id: str, task: asyncio.Task[KeptPicture]) -> None:
        del self._embedding[embedding_id]
        if not task.cancelled():
            task.exception()  # seen, even where every client has left

    async def _embed_in_lane(self, embedding_id: str, data: bytes, media_type: str) -> KeptPicture:
        abandoned = Event()
        try:
            return await self.lanes["encode"].run(
                self._embed, embedding_id, data, media_type, abandoned
            )
        finally:
            abandoned.set()

    def _embed(
        self, embedding_id: str, data: bytes, media_type: str, abandoned: Event
    ) -> KeptPicture:
        with self.tracing.span("decode picture", bytes=len(data)):
            image = self.read_picture(data, media_type)
        with self.tracing.span("encode") as span:
            encoded = self.batcher(image, abandoned)
            if span is not None:
                span.set_attributes({"samtrt.batch": encoded.batch})
        before = encoded.seconds if self.embed_seconds is None else self.embed_seconds
        self.embed_seconds = 0.7 * before + 0.3 * encoded.seconds
        picture = KeptPicture(encoded.picture, encoded.seconds)
        self.cache.put(embedding_id, picture)
        if self.store is not None:  # before the answer, so that others find it
            self.store.put(embedding_id, picture.embedded, picture.seconds)
        return picture

    def _encode(self, images: Sequence[Image]) -> list[EmbeddedPicture]:
        """The encoder's work for pictures that go together."""
        with self.metrics.work_seconds.labels("encode").time(), self._watched():
            if len(images) == 1:
                found = [self.sam.embed(images[0])]
            else:
                found = self.sam.embed_pictures(images)
            embedded = [picture.to("cpu") for picture in found]
        self.metrics.batch.observe(len(images))
        return embedded

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

    async def masks(
        self, picture: EmbeddedPicture, request: schemas.MaskRequest
    ) -> list[dict[str, Any]]:
        """The masks of all prompts as ``schemas.Mask`` fields, the best first of each prompt.

        Raises:
            InputError: a prompt that is empty, contradicts itself or leaves the picture.
            RequestError: as ``Lane.run``; 422 where there are prompts of both kinds or too many.
        """
        prompts = prompts_of(request, picture, self.settings.max_prompts)
        abandoned = Event()
        try:
            return await self.lanes["decode"].run(self._masks, picture, prompts, request, abandoned)
        finally:  # also when the time is up, or the client has left
            abandoned.set()

    def _masks(
        self,
        picture: EmbeddedPicture,
        prompts: list[Prompts],
        request: schemas.MaskRequest,
        abandoned: Event,
    ) -> list[dict[str, Any]]:
        found: list[list[dict[str, Any]]] = [[] for _ in prompts]
        self.metrics.prompts.observe(len(prompts))
        with (
            self.tracing.span("decode masks", prompts=len(prompts)),
            self.metrics.work_seconds.labels("decode").time(),
        ):
            for numbers, batch in Prompts.batches(prompts):
                low_res, scores = self.decoder(picture, batch, request.multimask_output)
                # One prompt at a time: masks of large pictures are large.
                for number, logits, predicted in zip(numbers, low_res, scores, strict=True):
                    if abandoned.is_set():
                        raise AbandonedError
                    found[number] = self._answers(picture, number, logits, predicted, request)
        return [mask for masks in found for mask in masks]

    def _answers(
        self,
        picture: EmbeddedPicture,
        number: int,
        low_res: Tensor,
        predicted: Tensor,
        request: schemas.MaskRequest,
    ) -> list[dict[str, Any]]:
        """The masks of one prompt: of logits [M, 4h, 4w] and predicted IoUs [M]."""
        cut = cut_out(low_res[None], picture)[0]
        masks, scores, logits = to_host(cut, predicted, low_res)
        return [
            {
                "prompt": number,
                "predicted_iou": float(scores[index]),
                "low_res_logits": text_of_logits(logits[index]) if request.low_res_logits else None,
                **mask_fields(
                    masks[index],
                    request.format,
                    request.polygon_tolerance,
                    self.settings.max_polygon_runs,
                ),
            }
            for index in np.argsort(-scores)
        ]

    def warm_up(self) -> None:
        """Makes a first picture's work, so that no client waits for kernels to be compiled."""
        side = self.sam.img_size
        picture = self.sam.embed(np.zeros((side, side, 3), np.uint8))
        prompts = Prompt(((0, 0),), (1,)).to_model_frame(picture)
        to_host(cut_out(self.decoder(picture, prompts, True)[0], picture))

    async def close(self) -> None:
        """Lets the worker threads end, and ends the processes that decode pictures."""
        embedding = list(self._embedding.values())
        for task in embedding:
            task.cancel()  # before its process ends, whose failure nobody would hear of
        await asyncio.gather(*embedding, return_exceptions=True)
        self.read_picture.close()
        for lane in self.lanes.values():
            lane.close()
        if self.store is not None:
            self.store.close()
