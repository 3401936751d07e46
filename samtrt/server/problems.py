"""Errors as RFC 9457 problem details: a status and one line, never a path or a stack trace."""

from http import HTTPStatus
from typing import Any

from starlette.responses import JSONResponse

MEDIA_TYPE = "application/problem+json"


class RequestError(Exception):
    """A request that ends in an error response.

    Args:
        status: HTTP status, 400 or above.
        detail: one line: what happened, what was expected, what to do.
        retry_after: seconds for the Retry-After header, where trying again makes sense.
        close: whether the connection ends with the answer.
    """

    def __init__(
        self,
        status: HTTPStatus,
        detail: str,
        retry_after: int | None = None,
        close: bool = False,
    ) -> None:
        super().__init__(detail)
        self.status = status
        self.detail = detail
        self.retry_after = retry_after
        # The rest of a body that is too large is not read.
        self.close = close or status == HTTPStatus.REQUEST_ENTITY_TOO_LARGE

    def response(self) -> JSONResponse:
        """The response that says it."""
        headers = {} if self.retry_after is None else {"Retry-After": str(self.retry_after)}
        if self.status == HTTPStatus.UNAUTHORIZED:
            headers["WWW-Authenticate"] = "Bearer"
        if self.close:
            headers["Connection"] = "close"
        return JSONResponse(
            {
                "type": "about:blank",
                "title": self.status.phrase,
                "status": int(self.status),
                "detail": self.detail,
            },
            int(self.status),
            headers,
            MEDIA_TYPE,
        )

    def line(self) -> bytes:
        """The same as the last line of an answer that has begun (NDJSON)."""
        return b'{"problem": ' + bytes(self.response().body) + b"}\n"


def not_a_picture() -> RequestError:
    """What a body is answered that no picture is found in: 415."""
    return RequestError(
        HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
        "the body is not a JPEG, PNG or WebP picture; convert it to one of these",
    )


def documented(*statuses: HTTPStatus) -> dict[int | str, dict[str, Any]]:
    """The ``responses`` of a route for OpenAPI."""
    schema = {"$ref": "#/components/schemas/ProblemDetails"}
    return {
        int(status): {"description": status.phrase, "content": {MEDIA_TYPE: {"schema": schema}}}
        for status in statuses
    }
