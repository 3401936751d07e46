"""Automatic masks of a picture that is embedded: within limits, and as they are found."""

import asyncio
import time
from collections.abc import AsyncGenerator
from http import HTTPStatus
from pathlib import Path
from threading import Event
from typing import Any

import torch

from samtrt.decoders.protocol import Decoder
from samtrt.encoders.embedded import EmbeddedPicture
from samtrt.files import without_nan
from samtrt.masks.automatic import Found, SamAutomaticMaskGenerator
from samtrt.masks.coco import coco_dataset
from samtrt.masks.geometry import nms
from samtrt.sam import Sam
from samtrt.server import schemas
from samtrt.server.metrics import Metrics
from samtrt.server.model.lanes import AbandonedError, Lane
from samtrt.server.model.memory import release
from samtrt.server.problems import RequestError
from samtrt.server.settings import MIB, Settings


class Everything:
    """What segments whatever is in a picture, one picture after the other.

    Args:
        decoder: what decodes.
        lane: where it waits and runs.
    """

    def __init__(
        self, sam: Sam, decoder: Decoder, lane: Lane, settings: Settings, metrics: Metrics
    ) -> None:
        self.sam = sam
        self.decoder = decoder
        self.lane = lane
        self.settings = settings
        self.metrics = metrics

    async def dataset(
        self,
        picture: EmbeddedPicture,
        request: schemas.EverythingRequest,
        found: Found | None = None,
    ) -> dict[str, Any]:
        """Automatic masks as a COCO data set (``schemas.CocoDataset`` fields).

        Args:
            picture: the picture.
            request: the options.
            found: as of ``generate_embedded``, called in the worker thread.

        Raises:
            RequestError: as ``Lane.run``; 422 where more masks pass the filters than are kept.
        """
        abandoned = Event()
        try:
            return await self.lane.run(self._generate, picture, request, abandoned, found)
        finally:  # also when the time is up, or the client has left
            abandoned.set()

    async def as_found(
        self, picture: EmbeddedPicture, request: schemas.EverythingRequest
    ) -> AsyncGenerator[dict[str, Any], None]:
        """``dataset`` while it goes on: ``schemas.EverythingEvent`` fields, the data set last.

        The work ends when the iterator is closed.

        Raises:
            RequestError: as ``dataset``.
        """
        events: asyncio.Queue[dict[str, Any] | None] = asyncio.Queue()
        loop = asyncio.get_running_loop()
        shown = _Shown(request.box_nms_thresh)

        def found(done: int, total: int, records: list[dict[str, Any]]) -> None:
            event = {"points_done": done, "points_total": total, **shown.add(records)}
            loop.call_soon_threadsafe(events.put_nowait, event)

        work = asyncio.create_task(self.dataset(picture, request, found))
        work.add_done_callback(lambda _: events.put_nowait(None))
        try:
            while (event := await events.get()) is not None:
                yield event
            yield {"dataset": schemas.CocoDataset(**await work).model_dump()}
        finally:
            work.cancel()

    def _generate(
        self,
        picture: EmbeddedPicture,
        request: schemas.EverythingRequest,
        abandoned: Event,
        found: Found | None,
    ) -> dict[str, Any]:
        settings, started = self.settings, time.monotonic()

        def check(masks: int, nbytes: int) -> None:
            release()
            if abandoned.is_set():
                raise AbandonedError
            took = time.monotonic() - started
            if took > settings.everything_share and self.lane.pending > 1:
                raise RequestError(
                    HTTPStatus.SERVICE_UNAVAILABLE,
                    f'others wait for "everything", and this one has had its '
                    f"{settings.everything_share:g} s; try again later, or with fewer points",
                    retry_after=30,
                )
            if masks > settings.everything_masks or nbytes > settings.everything_bytes:
                raise RequestError(
                    HTTPStatus.UNPROCESSABLE_ENTITY,
                    f"more than {settings.everything_masks:,} masks, or "
                    f"{settings.everything_bytes / MIB:g} MiB of them, pass the filters; raise "
                    "pred_iou_thresh or stability_score_thresh, or lower points_per_side",
                )

        options = request.model_dump(exclude={"id"})
        generator = SamAutomaticMaskGenerator(
            self.sam, **options, output_mode="coco_rle", decoder=self.decoder
        )
        with self.metrics.work_seconds.labels("everything").time():
            records = generator.generate_embedded(picture, check, found)
        return coco_dataset(Path(request.id[:16]), picture.original_size, records)


class _Shown:
    """The masks found so far without duplicates, as far as can be said before the end."""

    def __init__(self, box_nms_thresh: float) -> None:
        self.box_nms_thresh = box_nms_thresh
        self.last_id = 0
        self.ids: list[int] = []
        self.boxes = torch.zeros(0, 4)
        self.scores = torch.zeros(0)

    def add(self, records: list[dict[str, Any]]) -> dict[str, Any]:
        """``found`` and ``dropped`` of an ``EverythingEvent``."""
        if not records:
            return {"found": [], "dropped": []}
        before = self.ids
        new = range(self.last_id + 1, self.last_id + 1 + len(records))
        self.last_id = new[-1]
        corners = torch.tensor([record["bbox"] for record in records], dtype=torch.float32)
        corners[:, 2:] += corners[:, :2]
        boxes = torch.cat([self.boxes, corners])
        scores = torch.cat([self.scores, torch.tensor([r["predicted_iou"] for r in records])])
        kept = nms(boxes, scores, self.box_nms_thresh).sort().values
        ids = [*before, *new]
        self.ids = [ids[index] for index in kept.tolist()]
        self.boxes, self.scores = boxes[kept], scores[kept]
        alive = set(self.ids)
        fields = ("segmentation", "area", "predicted_iou", "stability_score", "point_coords")
        return {
            "found": [
                without_nan({"id": number, **{name: record[name] for name in fields}})
                for number, record in zip(new, records, strict=True)
                if number in alive
            ],
            "dropped": [number for number in before if number not in alive],
        }
