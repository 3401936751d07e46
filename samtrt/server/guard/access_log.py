"""A line for each request that was answered."""

import logging

from starlette.types import Scope

logger = logging.getLogger("samtrt.access")


def log_access(scope: Scope, method: str, status: int, sent: int, seconds: float) -> None:
    """Logs client, method, path, status, bytes of the body and time.

    Args:
        status: 499 where the client went away before there was an answer.
        sent: bytes of the body, as far as they were sent.

    The path is as it was sent, percent-encoded, so that no request can forge a line; what follows
    a question mark is left out.
    """
    client = scope["client"][0] if scope.get("client") else "-"
    raw = scope.get("raw_path") or scope["path"].encode()
    path = raw.decode("ascii", "backslashreplace").encode("unicode_escape").decode("ascii")
    method = method if method.isalpha() and method.isascii() else "?"
    logger.info('%s "%s %s" %d %d %.1f ms', client, method, path, status, sent, 1e3 * seconds)
