"""The code blocks of README.md and docs/, for the tests that run them.

A block that no shell of a test can run as it stands has a comment before it, which says what is
done with it, and by which test: that test takes it from the document with ``block_for``.
"""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
BLOCK = re.compile(
    r"(?:<!-- [a-z, ]+ by (?P<elsewhere>\S+) -->\n)?```(?P<language>sh|python)\n(?P<code>.*?)```",
    re.S,
)


def blocks(document: str) -> list[dict[str, str]]:
    """``elsewhere``, ``language`` and ``code`` of each block, by a document's path in the tree."""
    text = (ROOT / document).read_text("utf-8")
    return [match.groupdict() for match in BLOCK.finditer(text)]


def block_for(test: str, document: str) -> list[str]:
    """The lines of the one block that the document leaves to that test file."""
    name = Path(test).resolve().relative_to(ROOT).as_posix()
    (code,) = (block["code"] for block in blocks(document) if block["elsewhere"] == name)
    return code.splitlines()
