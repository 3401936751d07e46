"""Pictures that wait for the encoder are encoded together, where that costs none of them time.

Nobody waits for a batch to fill: the thread that gets the encoder takes what is there.
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from samtrt.encoders.embedded import EmbeddedPicture
from samtrt.server.model.lanes import AbandonedError

logger = logging.getLogger(__name__)

Image = npt.NDArray[np.uint8]
Encode = Callable[[Sequence[Image]], list[EmbeddedPicture]]

LARGEST = 8  # tried at the start
_TRIES = 3
_SECONDS = 1.0


@dataclass(eq=False)
class _Waiting:
    image: Image | None
    abandoned: threading.Event
    result: EmbeddedPicture | None = None
    error: BaseException | None = None
    seconds: float = 0.0
    batch: int = 0
    done: threading.Event = field(default_factory=threading.Event)


@dataclass(frozen=True)
class Encoded:
    """One picture's result.

    Attributes:
        picture: the embedding.
        seconds: what its batch took.
        batch: pictures of it.
    """

    picture: EmbeddedPicture
    seconds: float
    batch: int


class Batcher:
    """Runs an encoder for one thread at a time, on as many waiting pictures as go together.

    Args:
        encode: encodes [H, W, 3] uint8 pictures of any sizes as one batch.
        largest: pictures of a batch.
    """

    def __init__(self, encode: Encode, largest: int = 1) -> None:
        self.largest = largest
        self._encode = encode
        self._waiting: deque[_Waiting] = deque()
        self._encoder = threading.Lock()

    def __call__(self, image: Image, abandoned: threading.Event) -> Encoded:
        """Encodes a picture; returns once it is done.

        Args:
            abandoned: set where nobody wants the result any more: what has not begun never does.

        Raises:
            AbandonedError: so it was.
            Exception: what the encoder raises for this picture.
        """
        own = _Waiting(image, abandoned)
        self._waiting.append(own)
        with self._encoder:  # whoever has it may do the work of those who wait
            while not own.done.is_set():
                self._run(self._next())
        if own.error is not None:
            raise own.error
        assert own.result is not None
        return Encoded(own.result, own.seconds, own.batch)

    def _next(self) -> list[_Waiting]:
        batch: list[_Waiting] = []
        while self._waiting and len(batch) < self.largest:
            one = self._waiting.popleft()
            if one.abandoned.is_set():
                _finish(one, error=AbandonedError())
            else:
                batch.append(one)
        return batch

    def _run(self, batch: list[_Waiting]) -> None:
        if not batch:
            return
        started = time.perf_counter()
        try:
            found = self._encode([one.image for one in batch if one.image is not None])
        except BaseException as error:
            if len(batch) == 1:
                _finish(batch[0], error=error)
                return
            for one in batch:  # what one picture does is not the others' fault
                self._run([one])
            return
        seconds = time.perf_counter() - started
        for one, picture in zip(batch, found, strict=True):
            one.seconds, one.batch = seconds, len(batch)
            _finish(one, picture)


def _finish(
    one: _Waiting, result: EmbeddedPicture | None = None, error: BaseException | None = None
) -> None:
    one.result, one.error, one.image = result, error, None
    one.done.set()


def best_batch(encode: Encode, side: int, largest: int = LARGEST) -> int:
    """How many pictures should be encoded together here: measured, 1 where that is best.

    B pictures that arrive together and are encoded one after the other wait (B + 1) / 2 times as
    long as one, on average; a batch must not take longer than that.

    Args:
        side: of the square pictures that are tried.
        largest: pictures of a batch that are tried at most; the encoder's largest batch.
    """
    image = np.zeros((side, side, 3), np.uint8)
    alone = _seconds(encode, [image])
    best, size = 1, 2
    told = [f"1 in {1e3 * alone:.1f} ms"]
    while size <= largest:
        took = _seconds(encode, [image] * size)
        told.append(f"{size} in {1e3 * took:.1f} ms")
        if took > (size + 1) / 2 * alone:
            break
        best, size = size, 2 * size
    logger.info("pictures encoded together: up to %d (%s)", best, ", ".join(told))
    return best


def _seconds(encode: Encode, images: list[Image]) -> float:
    """The least of a few tries, after one that does not count; of one where that takes long."""
    encode(images)
    took: list[float] = []
    while len(took) < _TRIES and sum(took) < _SECONDS:
        started = time.perf_counter()
        encode(images)
        took.append(time.perf_counter() - started)
    return min(took)
