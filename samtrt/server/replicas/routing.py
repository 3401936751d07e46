"""Which replica a request belongs to."""

import hashlib
import json
from collections.abc import Sequence

from starlette.requests import Request

from samtrt.server.api.uploads import picture_id, uploaded

_BY_ID = ("/masks", "/everything")
_EMBED = "/embed"


async def key_of(path: str, request: Request, computed_by: str) -> str | None:
    """The id of the picture that a request is about; None for a request about none.

    Args:
        path: without prefix and version.
        computed_by: ``Sam.computed_by`` of the replicas' model.

    Raises:
        RequestError: an upload that is no picture, as ``uploaded``.
    """
    if path == _EMBED and request.method == "POST":
        data, media_type = await uploaded(request)
        return picture_id(computed_by, media_type, data)
    if path.startswith(f"{_EMBED}/"):
        return path.removeprefix(f"{_EMBED}/")
    if path in _BY_ID and request.method == "POST":
        try:
            found = json.loads(await request.body())
        except (ValueError, RecursionError):
            return None  # any replica says what is wrong with it
        key = found.get("id") if isinstance(found, dict) else None
        return key if isinstance(key, str) else None
    return None


def ranked(key: str, names: Sequence[str]) -> list[str]:
    """The names in the order of a key: rendezvous hashing.

    Where one leaves or comes, only the keys that it has change their place.
    """

    def weight(name: str) -> bytes:
        return hashlib.blake2b(f"{name} {key}".encode(), digest_size=16).digest()

    return sorted(names, key=weight, reverse=True)


def label_of(path: str) -> str:
    """The route of a path for metrics: few different ones, whatever is asked for."""
    if path.startswith(f"{_EMBED}/"):
        return f"{_EMBED}/{{embedding_id}}"
    known = (_EMBED, *_BY_ID, "/health", "/ready", "/metrics", "/openapi.json", "/docs", "/")
    return path if path in known else "other"
