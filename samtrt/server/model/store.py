"""Embeddings that several servers share, in Valkey or Redis.

The extra ``store`` brings the client. What is kept names its own digest and what computed it, so
that a damaged or foreign value is never decoded.
"""

import hashlib
import json
import logging
from dataclasses import asdict, dataclass
from http import HTTPStatus
from typing import Annotated

import numpy as np
import torch
from annotated_types import Ge

from samtrt.encoders.embedded import EmbeddedPicture
from samtrt.errors import InputError, SamtrtError
from samtrt.hints import install
from samtrt.masks.embedding import EmbeddingFacts
from samtrt.records import SHA256, parse_record
from samtrt.server.problems import RequestError

logger = logging.getLogger(__name__)

_PREFIX = "samtrt:1:"
_SECONDS = 5.0  # to connect, and for an answer


@dataclass(frozen=True)
class _Head(EmbeddingFacts):
    """What a value says of its features, before them."""

    shape: tuple[int, int, int, int]
    sha256: Annotated[str, SHA256]
    seconds: Annotated[float, Ge(0)]


class Store:
    """Keeps embeddings where others find them. Safe to use from several threads.

    Args:
        url: ``valkey://``, ``redis://`` (with ``s`` at its end: TLS) or ``unix://``.
        keep_seconds: how long a picture that nobody asks for is kept.

    Attributes:
        hits, misses, errors: how often it had what was asked for, had it not, did not answer.

    Raises:
        InputError: no such address.
        SamtrtError: the client is not installed, or the store does not answer.
    """

    def __init__(self, url: str, keep_seconds: int) -> None:
        try:
            import valkey
        except ImportError as error:
            raise SamtrtError(
                f"{error.name} is not installed, and --store needs it; run `{install('store')}`"
            ) from error
        self.keep_seconds = keep_seconds
        self.hits = self.misses = self.errors = 0
        self._failure: type[Exception] = valkey.ValkeyError
        try:
            self._client = valkey.Valkey.from_url(
                url, socket_timeout=_SECONDS, socket_connect_timeout=_SECONDS
            )
        except ValueError as error:
            raise InputError(
                "--store is no address of a store; expected valkey://HOST:PORT, redis://HOST:PORT "
                "or unix://PATH"
            ) from error
        try:
            self._client.ping()
        except self._failure as error:
            raise SamtrtError(
                f"the store does not answer ({error}); start it, or correct --store"
            ) from error

    def get(self, embedding_id: str) -> tuple[EmbeddedPicture, float] | None:
        """The picture and its encoder's seconds; None where it is not kept.

        Raises:
            RequestError: 503, the store does not answer.
        """
        try:
            # Asked for, it stays as long again.
            data = self._client.getex(_PREFIX + embedding_id, ex=self.keep_seconds)
        except self._failure as error:
            self.errors += 1
            logger.warning("the store does not answer: %s", error)
            raise RequestError(
                HTTPStatus.SERVICE_UNAVAILABLE,
                "the store of embeddings does not answer; try again in a moment",
                retry_after=2,
            ) from error
        found = None if data is None else _parse(data)
        if found is None:
            self.misses += 1
        else:
            self.hits += 1
        return found

    def put(self, embedding_id: str, picture: EmbeddedPicture, seconds: float) -> None:
        """Keeps a picture; where the store does not answer, its server has it alone."""
        try:
            self._client.set(_PREFIX + embedding_id, _value(picture, seconds), ex=self.keep_seconds)
        except self._failure as error:
            self.errors += 1
            logger.warning("the store does not answer: %s", error)

    def close(self) -> None:
        """Closes the connections."""
        self._client.close()


def _value(picture: EmbeddedPicture, seconds: float) -> bytes:
    features = picture.features.cpu().numpy().astype("<f4", copy=False)
    content = features.tobytes()
    head = _Head(
        **EmbeddingFacts.of(picture),
        shape=features.shape,
        sha256=hashlib.sha256(content).hexdigest(),
        seconds=seconds,
    )
    return json.dumps(asdict(head)).encode() + b"\n" + content


def _parse(data: bytes) -> tuple[EmbeddedPicture, float] | None:
    """What ``_value`` made; None for anything else, which is encoded again."""
    line, _, content = data.partition(b"\n")
    try:
        head = parse_record(line.decode(), _Head)
        if hashlib.sha256(content).hexdigest() != head.sha256:
            raise ValueError("another digest")
        features = np.frombuffer(content, "<f4").astype(np.float32).reshape(head.shape)
        picture = head.picture(torch.from_numpy(features))
    except (ValueError, InputError) as error:
        logger.warning("the store has a damaged embedding (%s); it is made anew", error)
        return None
    return picture, head.seconds
