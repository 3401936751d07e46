"""Files as browsers want them: compressed beforehand, kept by their hash, asked about by ETag."""

import gzip
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path

from starlette.requests import Request
from starlette.responses import FileResponse, Response

from samtrt.files import sha256_of
from samtrt.server.assets import ENCODINGS
from samtrt.server.problems import RequestError

# Of an answer whose URL names its content's hash, and of one that must be asked about.
FOREVER = "max-age=31536000, immutable"
FRESH = "no-cache"

PLAIN = "identity"

# By their names, not by what the system knows of them: browsers refuse modules of other types.
MEDIA_TYPES = {
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".mjs": "text/javascript; charset=utf-8",
    ".onnx": "application/octet-stream",
    ".svg": "image/svg+xml",
    ".wasm": "application/wasm",
    ".woff2": "font/woff2",
}
COMPRESSED_TYPES = {".woff2"}  # as they are


@dataclass(frozen=True)
class DeliveredFile:
    """One file in every encoding that there is of it.

    Attributes:
        forms: encoding → content, or where it lies; ``PLAIN`` always.
        media_type: of the plain content.
        digest: SHA-256 of the plain content, in hexadecimal.
        nbytes: size of the plain content.
    """

    forms: Mapping[str, bytes | Path]
    media_type: str
    digest: str
    nbytes: int

    @classmethod
    def of(cls, content: bytes, media_type: str, compress: bool = True) -> "DeliveredFile":
        """A file in memory: a small one, since a slow client's connection holds it whole."""
        forms: dict[str, bytes | Path] = {PLAIN: content}
        if compress:
            forms["gzip"] = gzip.compress(content, mtime=0)
        return cls(forms, media_type, hashlib.sha256(content).hexdigest(), len(content))

    @classmethod
    def at(cls, path: Path, media_type: str) -> "DeliveredFile":
        """A file on disk, with the compressed ones that lie beside it."""
        forms: dict[str, bytes | Path] = {PLAIN: path}
        for encoding, suffix in ENCODINGS.items():
            beside = path.with_name(path.name + suffix)
            if beside.is_file():
                forms[encoding] = beside
        return cls(forms, media_type, sha256_of(path), path.stat().st_size)

    def response(self, request: Request, cache_control: str) -> Response:
        """The answer to GET or HEAD, in the smallest encoding that the client takes."""
        encoding = self._choose(request.headers.get("accept-encoding", ""))
        headers = {
            "Cache-Control": cache_control,
            "Vary": "Accept-Encoding",
            "ETag": f'"{self.digest[:32]}-{encoding}"',
        }
        if encoding != PLAIN:
            headers["Content-Encoding"] = encoding
        content = self.forms[encoding]
        response: Response
        if isinstance(content, bytes):
            response = Response(content, headers=headers, media_type=self.media_type)
        else:
            response = FileResponse(content, headers=headers, media_type=self.media_type)
        return unless_known(request, response)

    def _choose(self, accept_encoding: str) -> str:
        accepted = accepted_encodings(accept_encoding)
        return next((e for e in ENCODINGS if e in self.forms and e in accepted), PLAIN)


def accepted_encodings(header: str) -> set[str]:
    """The encodings that an Accept-Encoding header names with a weight above zero."""
    accepted = set()
    for item in header.lower().split(","):
        name, *parameters = (part.strip() for part in item.split(";"))
        weights = [part[2:].strip() for part in parameters if part.startswith("q=")]
        if not (weights and weights[0].strip("0.") == ""):
            accepted.add(name)
    return accepted


def unless_known(request: Request, response: Response) -> Response:
    """The response, or 304 where the client has it: its ETag is among If-None-Match."""
    known = request.headers.get("if-none-match")
    etag = response.headers["etag"]
    if known is None:
        return response
    # A proxy that compresses makes an ETag weak; the content is the same.
    names = {name.strip().removeprefix("W/") for name in known.split(",")}
    if not names & {etag, "*"}:
        return response
    kept = {
        name: response.headers[name]
        for name in ("cache-control", "etag", "vary")
        if name in response.headers
    }
    return Response(status_code=304, headers=kept)


def file_as_it_is(request: Request, path: Path) -> Response:
    """A file that may change while the server runs; 304 by its time and size."""
    response = FileResponse(path, headers={"Cache-Control": FRESH}, stat_result=path.stat())
    return unless_known(request, response)


class Folder:
    """Files that change together, by their paths below it and a version that their content makes.

    A request's path is looked up among them, and so never reaches the file system.

    Args:
        paths: path in the folder → file. Files of up to ``IN_MEMORY`` bytes are read now, and
            larger ones when they are asked for.

    Attributes:
        files: path in the folder → file.
        version: hash of all paths and contents.
    """

    IN_MEMORY = 256 << 10

    def __init__(self, paths: Mapping[str, Path]) -> None:
        self.files: dict[str, DeliveredFile] = {}
        digest = hashlib.sha256()
        for name, path in sorted(paths.items()):
            media_type = MEDIA_TYPES[path.suffix]
            if path.stat().st_size > self.IN_MEMORY:
                file = DeliveredFile.at(path, media_type)
            else:
                compress = path.suffix not in COMPRESSED_TYPES
                file = DeliveredFile.of(path.read_bytes(), media_type, compress)
            self.files[name] = file
            digest.update(f"{name}\n{file.digest}\n".encode())
        self.version = digest.hexdigest()[:16]

    @classmethod
    def below(cls, root: Path) -> "Folder":
        """All files below a folder that have one of ``MEDIA_TYPES``."""
        found = (path for path in root.rglob("*") if path.suffix in MEDIA_TYPES and path.is_file())
        return cls({path.relative_to(root).as_posix(): path for path in found})

    def response(self, request: Request, scope: str = "") -> Response:
        """The answer for the request's ``path``, with or without the version before it.

        Args:
            scope: more of Cache-Control: ``private, ``, or nothing.

        Raises:
            RequestError: 404, there is no such file.
        """
        path = request.path_params["path"]
        version, _, rest = path.partition("/")
        if version == self.version and rest in self.files:
            return self.files[rest].response(request, scope + FOREVER)
        if path in self.files:
            return self.files[path].response(request, scope + FRESH)
        raise RequestError(
            HTTPStatus.NOT_FOUND, "the page has no such file (any more); load the page again"
        )
