"""JSON that nobody has checked → dataclasses: every field known, of its type, within its bounds."""

import re
from functools import cache
from typing import Any, TypeVar

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

T = TypeVar("T")

# For a dataclass's ``__pydantic_config__``: no surplus field, no number in quotes, no NaN.
STRICT = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)

SHA256 = Field(pattern=r"^[0-9a-f]{64}$")

MAX_BYTES = 1 << 20  # ours have some hundred


def one_of(*values: str) -> Any:
    """For ``Annotated[str, …]``: a text of a fixed set."""
    return Field(pattern=f"^(?:{'|'.join(map(re.escape, values))})$")


def parse_record(content: bytes | str, kind: type[T]) -> T:
    """JSON → a dataclass with ``STRICT`` as its ``__pydantic_config__``.

    Raises:
        ValueError: it is not JSON, or a field is missing, surplus, of another type or out of
            bounds; the message is one line and names the field.
    """
    if len(content) > MAX_BYTES:
        raise ValueError(f"{len(content):,} bytes, expected at most {MAX_BYTES:,}")
    try:
        parsed: T = _adapter(kind).validate_json(content)  # type: ignore[arg-type]  # types are hashable
        return parsed
    except ValidationError as error:
        faults = error.errors(include_url=False, include_context=False, include_input=False)
        first = faults[0]
        field = ".".join(str(part) for part in first["loc"])
        text = " ".join(f"{field}: {first['msg']}".removeprefix(": ").split())
        more = f" and {len(faults) - 1} more" if len(faults) > 1 else ""
        raise ValueError(text + more) from None


@cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)
