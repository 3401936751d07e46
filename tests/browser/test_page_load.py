"""What a first and a second visit cost on the wire."""

import json
import socket
import threading
import time
from pathlib import Path

import pytest
from conftest import find_chromium
from server_support import encoded, picture, running, tiny_decoder

from benchmarks.page_load import first_mask, new_browser, table
from benchmarks.record import ROOT
from benchmarks.slow_link import slow_link
from samtrt.sam import Sam
from samtrt.server.app import create_app
from samtrt.server.assets import assets_compressed

# The runtime and a decoder of SAM's size; a picture's embedding (2 MiB where it is 64² tokens) is
# small here. Over 10 Mbit/s these bytes take 9.2 s and 0.2 s.
MOST_BYTES_COLD = 11_500_000
MOST_BYTES_WARM = 250_000


def test_bytes_of_two_visits(sam: Sam, tmp_path: Path) -> None:
    find_chromium()
    if not assets_compressed():
        pytest.fail("the page's assets are not compressed: run python -m samtrt.server.assets")
    sample = tmp_path / "sample.png"
    sample.write_bytes(encoded(picture(1)))
    app = create_app(sam, tiny_decoder(), sample=sample)
    with (
        running(app) as url,
        slow_link(int(url.rpartition(":")[2])) as link,
        new_browser() as driver,
    ):
        cold, warm = first_mask(driver, link), first_mask(driver, link)
    print("cold", cold, "warm", warm)
    assert 8_000_000 < cold["down"] <= MOST_BYTES_COLD  # not a page that has loaded nothing
    assert warm["down"] <= MOST_BYTES_WARM
    assert warm["up"] <= MOST_BYTES_WARM


def test_the_link_is_never_faster_than_it_says() -> None:
    """Also after it was idle, and where the machine oversleeps."""
    sent = 100_000
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer() -> None:
            connection, _ = server.accept()
            with connection:
                for _ in range(2):
                    connection.sendall(bytes(sent))
                    time.sleep(0.3)

        threading.Thread(target=answer, daemon=True).start()
        port = server.getsockname()[1]
        with (
            slow_link(port, megabits=4, delay=0.05) as link,
            socket.create_connection(("127.0.0.1", link.port)) as client,
        ):
            started = time.monotonic()
            for stretch in (1, 2):
                for _ in range(sent):
                    assert client.recv(1)
                assert time.monotonic() - started >= stretch * 8 * sent / 4e6 + 0.05
            assert link.down == 2 * sent


def test_the_documents_table_is_the_records() -> None:
    record = json.loads((ROOT / "benchmarks/results/page_load_cpu.json").read_text("utf-8"))
    document = (ROOT / "docs/server.md").read_text("utf-8")
    assert "\n".join(table(record)) in document
