"""What those who run a server ask: whether it works, and how much it has to do."""

from http import HTTPStatus
from pathlib import Path

from fastapi import FastAPI, Request
from fastapi.responses import Response

from samtrt.server import schemas
from samtrt.server.metrics import Metrics, exposition
from samtrt.server.model.studio import Studio
from samtrt.server.page.delivery import file_as_it_is
from samtrt.server.problems import RequestError, documented


def add_operation(app: FastAPI, studio: Studio, sample: Path | None, page: bool, note: str) -> None:
    """Adds the routes.

    Args:
        sample: the picture of ``/sample``, or None.
        page: whether the page is served.
        note: what a user must know of the model.
    """
    settings = studio.settings

    @app.get("/health", tags=["operation"])
    async def health() -> schemas.Health:
        """Whether the server works, its queues and its limits."""
        return schemas.Health(
            status="ok",
            note=note,
            device=str(studio.sam.device),
            frame_size=studio.sam.img_size,
            sample=sample is not None,
            page=page,
            embed_seconds=studio.embed_seconds,
            cached_embeddings=len(studio.cache),
            lanes={
                name: schemas.Lane(pending=lane.pending, capacity=lane.capacity)
                for name, lane in studio.lanes.items()
            },
            max_upload_bytes=settings.max_upload_bytes,
            max_pixels=settings.max_pixels,
            max_side=settings.max_side,
            max_prompts=settings.max_prompts,
        )

    @app.get("/ready", tags=["operation"], responses=documented(HTTPStatus.SERVICE_UNAVAILABLE))
    async def ready() -> schemas.Ready:
        """Whether requests are answered: the encoder works, and the server is not ending."""
        if not studio.works:
            raise RequestError(
                HTTPStatus.SERVICE_UNAVAILABLE,
                "the image encoder fails on every picture; its log has the reason, start it again",
            )
        return schemas.Ready(status="ready")

    if settings.metrics:
        _add_metrics(app, studio.metrics)

    if sample is not None:

        async def get_sample(request: Request) -> Response:
            return file_as_it_is(request, sample)

        app.add_route("/sample", get_sample, ["GET"], include_in_schema=False)


def _add_metrics(app: FastAPI, metrics: Metrics) -> None:
    @app.get(
        "/metrics",
        tags=["operation"],
        response_class=Response,
        responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}},
    )
    async def get_metrics() -> Response:
        """Counters, histograms and gauges for Prometheus."""
        return exposition(metrics.registry)
