"""ONNX files that end in a digest of what stands before it.

ONNX has no checksum, and a flipped bit of a weight gives other masks without a word. A file of ours
ends in one more metadata entry, of a fixed size, with the SHA-256 of all bytes before it. To ONNX
it is an entry like any other: protobuf takes repeated fields wherever they stand.
"""

import hashlib

_KEY = b"samtrt.content_sha256"
_DIGEST_BYTES = 64  # in hexadecimal
# https://github.com/onnx/onnx/blob/main/onnx/onnx.proto: ModelProto.metadata_props is field 14, a
# StringStringEntryProto of key (1) and value (2); a byte each for a field's number and its length.
_ENTRY = b"\x0a" + bytes([len(_KEY)]) + _KEY + b"\x12" + bytes([_DIGEST_BYTES])
_HEAD = b"\x72" + bytes([len(_ENTRY) + _DIGEST_BYTES]) + _ENTRY


def sealed(content: bytes) -> bytes:
    """A serialized ``ModelProto`` with the digest at its end."""
    return content + _HEAD + hashlib.sha256(content).hexdigest().encode()


def is_sealed(content: bytes | bytearray) -> bool:
    """Whether the content ends in a digest.

    Raises:
        ValueError: it does, and the digest is not that of the content before.
    """
    view = memoryview(content)
    end = len(content) - len(_HEAD) - _DIGEST_BYTES
    if end < 0 or view[end:-_DIGEST_BYTES] != _HEAD:
        return False
    if hashlib.sha256(view[:end]).hexdigest().encode() != view[-_DIGEST_BYTES:]:
        raise ValueError("its SHA-256 is not the recorded one")
    return True
