"""The end of a server: new requests are refused, those at work finish or are given up."""

import asyncio
import sys
from http import HTTPStatus

from samtrt.server.problems import RequestError

RETRY_SECONDS = 5  # until another server, or this one again, may be there


class Stopping:
    """Which requests are at work, and whether the server ends. Used from one event loop only.

    Attributes:
        refusing: new requests are not taken any more.
        at_work: the tasks of the requests that were taken and are not answered yet.
    """

    def __init__(self) -> None:
        self.refusing = False
        self.at_work: set[asyncio.Task[None]] = set()
        self._given_up = False

    def check(self) -> None:
        """Raises RequestError (503) once the server ends."""
        if self.refusing:
            raise self.refusal()

    def refusal(self) -> RequestError:
        """What a client hears of it."""
        return RequestError(
            HTTPStatus.SERVICE_UNAVAILABLE,
            "the server is ending; send the request again in a moment",
            retry_after=RETRY_SECONDS,
            close=True,
        )

    def give_up(self) -> None:
        """Cancels the requests at work; ``was_given_up`` tells them why."""
        self.refusing = self._given_up = True
        for task in self.at_work:
            task.cancel()

    def was_given_up(self, task: asyncio.Task[None]) -> bool:
        """Whether the task's cancellation is this one, which then counts as handled."""
        if self._given_up and sys.version_info >= (3, 11):  # before that nothing counts them
            task.uncancel()
        return self._given_up
