"""One process that does a job's work by itself, with threads that keep its GPU at work."""

import threading
from collections import deque
from collections.abc import Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any

import torch

from samtrt.jobs.progress import JobProgress
from samtrt.jobs.segmenting import (
    AT_ONCE,
    Failed,
    Identity,
    Item,
    Outcome,
    Resumed,
    Segmenter,
    Settings,
    attempt,
    finish,
    read,
)
from samtrt.masks.automatic import Progress, unseen
from samtrt.sam import Sam

_THREADS = 8  # that read, wait for the GPU and pack
_AHEAD = 4  # pictures that have been begun, or are done and wait for one before them, a thread


class Alone:
    """This process in the place of workers.

    Attributes:
        identity: of the model.
        count: one.
        together: whether pictures are done faster than their files are written one by one.
    """

    count = 1

    def __init__(self, sam: Sam, settings: Settings) -> None:
        self.segmenter = Segmenter(sam, settings)
        self.identity = Identity.of(sam)
        self._device = sam.device
        self._settings = settings
        self._at_once = AT_ONCE[sam.device.type]
        self.together = self._at_once > 1

    def outcomes(
        self, items: Iterator[Item | Failed | Resumed], progress: JobProgress
    ) -> Generator[Outcome, None, None]:
        """What becomes of each picture, in their order."""
        every = self._one_by_one(items, progress) if not self.together else self._together(items)
        for found in every:
            if isinstance(found, Failed) and found.error and self._device.type == "cuda":
                torch.cuda.synchronize(self._device)  # raises where nothing would work any more
            yield found

    def _one_by_one(
        self, items: Iterator[Item | Failed | Resumed], progress: JobProgress
    ) -> Generator[Outcome, None, None]:
        for value in items:
            progress.begin(value.item.name)
            yield self._one(value, progress.points)

    def _together(self, items: Iterator[Item | Failed | Resumed]) -> Generator[Outcome, None, None]:
        """Some pictures are read and packed while others are on the GPU."""
        turns = threading.Semaphore(self._at_once)
        waiting: deque[Future[Outcome]] = deque()
        pool = ThreadPoolExecutor(_THREADS, thread_name_prefix="picture")
        try:
            for value in items:
                waiting.append(pool.submit(self._one, value, unseen, turns))
                while waiting and (waiting[0].done() or len(waiting) > _AHEAD * _THREADS):
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)

    def _one(
        self,
        value: Item | Failed | Resumed,
        progress: Progress,
        turns: threading.Semaphore | None = None,
    ) -> Outcome:
        def segment(picture: Any) -> Any:
            with turns or threading.Semaphore():
                return self.segmenter.segment(picture, progress)

        found: Any = value
        finisher = partial(finish, settings=self._settings, identity=self.identity)
        for step in (read, segment, finisher):
            found = attempt(step, found)
        outcome: Outcome = found
        return outcome
