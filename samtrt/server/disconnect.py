"""Work that ends when the client that asked for it has left."""

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from fastapi import Request

Result = TypeVar("Result")


async def unless_disconnected(connection: Request, work: Coroutine[Any, Any, Result]) -> Result:
    """The work's result; the work is cancelled when the client disconnects before it is there.

    Raises:
        ConnectionAbortedError: the client has left.
    """
    task = asyncio.create_task(work)
    left = asyncio.create_task(_disconnected(connection))
    try:
        await asyncio.wait({task, left}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ConnectionAbortedError
        return task.result()
    finally:
        task.cancel()
        left.cancel()


async def _disconnected(connection: Request) -> None:
    while (await connection.receive())["type"] != "http.disconnect":
        pass
