"""An S3 that answers over HTTP, reached by the environment's variables, as any client is."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest


@contextmanager
def s3() -> Iterator[Any]:
    """fsspec's file system of a server of this process, which is empty."""
    server = pytest.importorskip("moto.server")
    fsspec = pytest.importorskip("fsspec")
    s3fs = pytest.importorskip("s3fs")
    threaded = server.ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
    threaded.start()
    host, port = threaded.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        patch.setenv("AWS_ACCESS_KEY_ID", "testing")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "testing")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        s3fs.S3FileSystem.clear_instance_cache()  # of another server's
        yield fsspec.filesystem("s3", skip_instance_cache=True, use_listings_cache=False)
    s3fs.S3FileSystem.clear_instance_cache()
    threaded.stop()
