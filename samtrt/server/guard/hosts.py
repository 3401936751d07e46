"""The host names that the server answers to.

Starlette's TrustedHostMiddleware asks the same, but the last one for Python 3.10 compares names
with their case and knows no IPv6 addresses.
"""

import re
from collections.abc import Iterable

# host [":" port] of RFC 9110: a name or an IPv4 address, or an IPv6 address in brackets.
_HOST = re.compile(r"(?:\[([\da-f:.]+)\]|([\w.-]+))(?::\d*)?", re.ASCII | re.IGNORECASE)


class AllowedHosts:
    """Host names, ``*.NAME`` for all below one, ``*`` for any; IPv6 addresses without brackets."""

    def __init__(self, patterns: Iterable[str]) -> None:
        lowered = [pattern.lower() for pattern in patterns]
        self._any = "*" in lowered
        self._names = {pattern for pattern in lowered if not pattern.startswith("*")}
        self._suffixes = tuple(pattern[1:] for pattern in lowered if pattern.startswith("*."))

    def admit(self, header: str) -> bool:
        """Whether a Host header names one of them."""
        if self._any:
            return True
        found = _HOST.fullmatch(header)
        if found is None:
            return False
        name = (found[1] or found[2]).lower()
        return name in self._names or (found[2] is not None and name.endswith(self._suffixes))
