"""Pictures from files, patterns of names, standard input and the web, read within bounds."""

import glob
import http.client
import os
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from urllib.parse import unquote, urlsplit

import numpy as np
import numpy.typing as npt

from samtrt.errors import InputError
from samtrt.pictures.reading import MAX_FILE_BYTES, MAX_PIXELS, decode_image, read_file

STANDARD_INPUT = "-"
WEB_BYTES = 256 << 20  # of a picture from the web, at most
WEB_SECONDS = 60.0  # until it is here
_PAUSE_SECONDS = 20.0  # without a byte
_CHUNK = 1 << 16


@dataclass(frozen=True)
class PictureSource:
    """One picture, not yet read.

    Attributes:
        text: a path, ``-`` for standard input, or an http(s) URL.
    """

    text: str

    @property
    def is_url(self) -> bool:
        """Whether it comes from the web."""
        return self.text.lower().startswith(("http://", "https://"))

    @property
    def stem(self) -> str:
        """A name for files about it: its own without suffix, or ``stdin``."""
        if self.text == STANDARD_INPUT:
            return "stdin"
        if self.is_url:
            name = PurePosixPath(unquote(urlsplit(self.text).path)).stem
            return "".join(c if c.isalnum() or c in "._- " else "_" for c in name) or "picture"
        return Path(self.text).stem

    def read(self, max_pixels: int = MAX_PIXELS) -> npt.NDArray[np.uint8]:
        """The picture, [H, W, 3] uint8 RGB.

        Raises:
            InputError: what ``load_image`` refuses, or a URL that gives no picture within
                ``WEB_SECONDS`` and ``WEB_BYTES``.
        """
        if self.text == STANDARD_INPUT:
            content = sys.stdin.buffer.read(MAX_FILE_BYTES + 1)
            if len(content) > MAX_FILE_BYTES:
                raise InputError(
                    f"standard input is too large for a picture; at most {MAX_FILE_BYTES >> 20} "
                    "MiB are read"
                )
            return decode_image(content, "standard input", max_pixels)
        content = read_url(self.text) if self.is_url else read_file(self.text)
        return decode_image(content, self.text, max_pixels)


def picture_sources(texts: Iterable[str | os.PathLike[str]]) -> list[PictureSource]:
    """The pictures that a user names; a pattern (``*.jpg``) that no shell has replaced is here.

    Raises:
        InputError: a pattern that nothing matches, a folder, or standard input named twice.
    """
    found: list[str] = []
    for text in (os.fspath(text) for text in texts):
        source = PictureSource(text)
        if text == STANDARD_INPUT or source.is_url or Path(text).exists():
            if text != STANDARD_INPUT and not source.is_url and Path(text).is_dir():
                raise InputError(f"{text} is a folder; name pictures, as in {Path(text, '*.jpg')}")
            found.append(text)
        elif glob.has_magic(text):
            names = glob.glob(text, recursive=True)  # noqa: PTH207, which takes no absolute ones
            matches = sorted(name for name in names if Path(name).is_file())
            if not matches:
                raise InputError(f"no file matches {text}; give the path of a picture file")
            found += matches
        else:
            found.append(text)  # is told when it is read
    if found.count(STANDARD_INPUT) > 1:
        raise InputError("standard input (-) is named twice; it holds one picture")
    return [PictureSource(text) for text in found]


def read_url(url: str, max_bytes: int = WEB_BYTES, max_seconds: float = WEB_SECONDS) -> bytes:
    """What an http(s) address answers with; it may lead on to others of that kind only.

    Raises:
        InputError: no connection, an error as answer, more than ``max_bytes``, or not whole after
            ``max_seconds``.
    """
    deadline = time.monotonic() + max_seconds
    opener = urllib.request.OpenerDirector()  # no files, no FTP
    for handler in (
        urllib.request.ProxyHandler,
        urllib.request.HTTPHandler,
        urllib.request.HTTPSHandler,
        urllib.request.HTTPRedirectHandler,
        urllib.request.HTTPErrorProcessor,
        urllib.request.HTTPDefaultErrorHandler,
        urllib.request.UnknownHandler,
    ):
        opener.add_handler(handler())
    opener.addheaders = [("User-Agent", "samtrt"), ("Accept", "image/*")]
    content = bytearray()
    try:
        with opener.open(url, timeout=min(_PAUSE_SECONDS, max_seconds)) as answer:
            while chunk := answer.read1(_CHUNK):
                content += chunk
                if len(content) > max_bytes:
                    raise InputError(
                        f"{url} is too large for a picture; at most {max_bytes >> 20} MiB are read"
                    )
                if time.monotonic() > deadline:
                    raise TimeoutError(f"not here after {max_seconds:g} s")
    except urllib.error.HTTPError as error:
        raise InputError(f"{url} answers {error.code} {error.reason}; check the address") from error
    except (OSError, ValueError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", None) or error
        text = " ".join(str(reason).split()) or type(error).__name__
        raise InputError(f"cannot read {url}: {text}; check the address") from error
    return bytes(content)
