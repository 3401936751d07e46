"""Hostile pictures and connections: honest clients are answered all the while."""

import socket
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from http import HTTPStatus
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil
import pytest
from server_support import encoded, picture, running, tiny_model

from samtrt.decoders.browser.contract import FILES
from samtrt.errors import InputError
from samtrt.sam import Sam, load_sam
from samtrt.server.app import create_app
from samtrt.server.decoding import PictureReader
from samtrt.server.launch import ServeOptions, network_settings
from samtrt.server.problems import RequestError
from samtrt.server.settings import MIB, Settings

PNG = {"Content-Type": "image/png"}
JPEG = {"Content-Type": "image/jpeg"}
TOKEN = "correct-horse-battery-staple"


@pytest.fixture(scope="module")
def sam() -> Sam:
    return load_sam(tiny_model() / "engine", tiny_model())


def serving(sam: Sam, **limits: Any) -> Any:
    """A server with other limits than the defaults."""
    return running(create_app(sam, settings=replace(Settings(), **limits)))


def connect(url: str) -> socket.socket:
    host, port = url.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)), timeout=10)


def is_closed(connection: socket.socket, within: float = 5) -> bool:
    """Whether the server ends the connection without a word."""
    connection.settimeout(within)
    try:
        return connection.recv(1) == b""
    except ConnectionError:
        return True
    except TimeoutError:
        return False


# Pictures


def slow_picture() -> bytes:
    """A PNG of 40 megapixels: a second or two of work, and 300 MB."""
    return encoded(np.zeros((6300, 6300, 3), np.uint8), compress_level=1)


def with_scans(scans: int) -> bytes:
    """A progressive JPEG whose last refinement comes again and again."""
    content = encoded(picture(1), "JPEG", progressive=True)
    last, end = content.rindex(b"\xff\xda"), content.rindex(b"\xff\xd9")
    return content[:end] + content[last:end] * scans + content[end:]


@pytest.fixture
def reader() -> Any:
    """Makes readers that end with the test."""
    with ExitStack() as stack:

        def make(**limits: Any) -> PictureReader:
            reader = PictureReader(replace(Settings(), read_workers=1, **limits))
            stack.callback(reader.close)
            return reader

        yield make


def refusal(read: Callable[[], Any]) -> str:
    with pytest.raises(RequestError) as caught:
        read()
    assert caught.value.status == HTTPStatus.UNPROCESSABLE_ENTITY
    return caught.value.detail


def test_a_reader_reads_what_it_is_given(reader: Any) -> None:
    read = reader()
    for seed in range(3):
        image = picture(seed, 150 + seed, 200)
        np.testing.assert_array_equal(read(encoded(image), "image/png"), image)
    with pytest.raises(RequestError, match="not a JPEG") as caught:
        read(b"nonsense", "image/png")
    assert caught.value.status == HTTPStatus.UNSUPPORTED_MEDIA_TYPE


def test_a_picture_that_takes_long_ends_its_process_only(reader: Any) -> None:
    read = reader(read_seconds=0.7)
    read.start()
    time.sleep(1)  # the process is up: what follows is the picture's own time
    assert "takes longer than 0.7 s" in refusal(lambda: read(slow_picture(), "image/png"))
    deadline = time.monotonic() + 30
    while True:  # the next process starts within the picture's time, on an idle machine
        try:
            read(encoded(picture(1)), "image/png")
            break
        except RequestError:
            assert time.monotonic() < deadline


@pytest.mark.skipif(not psutil.LINUX, reason="only Linux keeps a limit on memory")
def test_a_picture_that_takes_much_memory_is_refused(reader: Any) -> None:
    read = reader(read_bytes=100 * MIB)
    assert "memory" in refusal(lambda: read(slow_picture(), "image/png"))
    np.testing.assert_array_equal(read(encoded(picture(1)), "image/png"), picture(1))


def test_the_largest_pictures_fit_the_memory(reader: Any) -> None:
    pixels = np.zeros((6324, 6324, 3), np.uint8)
    for media_type, kind, options in (
        ("image/png", "PNG", {"compress_level": 1}),
        ("image/jpeg", "JPEG", {"progressive": True, "subsampling": 0}),
        ("image/webp", "WEBP", {"method": 0, "quality": 10}),
    ):
        read = reader()
        assert read(encoded(pixels, kind, **options), media_type).shape == pixels.shape


@pytest.fixture
def decoding_process() -> Callable[[], psutil.Process]:
    """Finds the decoder that the test has started: other tests' servers may still have theirs."""
    before = psutil.Process().children()

    def find() -> psutil.Process:
        (found,) = [
            child
            for child in psutil.Process().children()
            if child not in before
            and any("samtrt.server.decoding" in part for part in child.cmdline())
        ]
        return found

    return find


def test_a_decoder_does_not_know_the_token(
    reader: Any, decoding_process: Callable[[], psutil.Process], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SAMTRT_TOKEN", TOKEN)
    reader().start()
    assert TOKEN not in " ".join(decoding_process().environ().values())


def test_a_decoder_that_dies_takes_nothing_along(
    reader: Any, decoding_process: Callable[[], psutil.Process]
) -> None:
    read = reader()
    image = picture(1)
    for _ in range(2):
        np.testing.assert_array_equal(read(encoded(image), "image/png"), image)
        process = decoding_process()
        process.kill()
        process.wait(10)


def test_scans_without_end_do_not_hold_the_encoder(sam: Sam) -> None:
    hostile = with_scans(10_000)
    with serving(sam) as url:
        started = time.perf_counter()
        answer = httpx.post(f"{url}/embed", content=hostile, headers=JPEG, timeout=60)
        assert answer.status_code == 422 and "100 scans" in answer.json()["detail"]
        assert time.perf_counter() - started < 5  # minutes, when they are decoded
        honest = httpx.post(f"{url}/embed", content=encoded(picture(1)), headers=PNG, timeout=60)
        assert honest.status_code == 200


# Everything


ALL_MASKS = {"pred_iou_thresh": 0, "stability_score_thresh": 0, "box_nms_thresh": 1}


def embedded(url: str) -> str:
    answer = httpx.post(f"{url}/embed", content=encoded(picture(1)), headers=PNG, timeout=60)
    return answer.json()["id"]


@pytest.mark.parametrize("limits", [{"everything_masks": 500}, {"everything_bytes": 5_000_000}])
def test_everything_ends_where_it_holds_too_much(sam: Sam, limits: dict[str, int]) -> None:
    with serving(sam, **limits) as url:
        body = {"id": embedded(url), **ALL_MASKS}
        answer = httpx.post(f"{url}/everything", json={**body, "points_per_side": 64}, timeout=60)
        assert answer.status_code == 422 and "pred_iou_thresh" in answer.json()["detail"]
        answer = httpx.post(f"{url}/everything", json={**body, "points_per_side": 2}, timeout=60)
        assert answer.status_code == 200 and len(answer.json()["annotations"]) == 12


def test_one_client_has_one_everything_at_once(sam: Sam) -> None:
    with serving(sam) as url, ThreadPoolExecutor(1) as threads:
        body = {"id": embedded(url), **ALL_MASKS, "points_per_side": 16}
        first = threads.submit(httpx.post, f"{url}/everything", json=body, timeout=60)
        while not httpx.get(f"{url}/health").json()["lanes"]["everything"]["pending"]:
            assert not first.done()
        second = httpx.post(f"{url}/everything", json=body)
        assert second.status_code == 429 and second.headers["retry-after"] == "1"
        assert first.result().status_code == 200
        body["points_per_side"] = 2
        assert httpx.post(f"{url}/everything", json=body, timeout=60).status_code == 200


@pytest.mark.parametrize(("share", "status"), [(0.2, 503), (60.0, 200)])
def test_everything_gives_way_to_others_after_its_share(
    sam: Sam, share: float, status: int
) -> None:
    limits = {"everything_share": share, "everything_queue_per_client": 2}
    with serving(sam, **limits) as url, ThreadPoolExecutor(1) as threads:
        body = {"id": embedded(url), **ALL_MASKS, "points_per_side": 16}
        first = threads.submit(httpx.post, f"{url}/everything", json=body, timeout=60)
        while not httpx.get(f"{url}/health").json()["lanes"]["everything"]["pending"]:
            assert not first.done()
        body["points_per_side"] = 2
        assert httpx.post(f"{url}/everything", json=body, timeout=60).status_code == 200
        answer = first.result()
        assert answer.status_code == status, answer.text
        if status == 503:
            assert answer.headers["retry-after"] == "30"


# Connections


def test_silent_connections_are_closed(sam: Sam) -> None:
    with serving(sam, head_timeout=0.5, max_connections=8, max_connections_per_client=8) as url:
        silent = [connect(url) for _ in range(8)]
        silent[0].sendall(b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\nX-Slow: ")
        started = time.monotonic()
        while not is_closed(silent[0], 0.2):  # a byte now and then puts off nothing
            silent[0].sendall(b"x")
            assert time.monotonic() - started < 5
        assert all(is_closed(connection) for connection in silent)
        assert httpx.get(f"{url}/health").status_code == 200


def test_the_oldest_idle_connection_makes_room(sam: Sam) -> None:
    with serving(sam, max_connections=8, max_connections_per_client=100) as url:
        silent = [connect(url) for _ in range(20)]
        assert httpx.get(f"{url}/health").status_code == 200
        assert all(is_closed(connection) for connection in silent[:12])
        assert not any(is_closed(connection, 0.05) for connection in silent[-7:])


def test_one_address_has_so_many_connections(sam: Sam) -> None:
    with serving(sam, max_connections_per_client=4) as url:
        kept = [connect(url) for _ in range(4)]
        time.sleep(0.2)
        assert is_closed(connect(url))
        kept.pop().close()
        time.sleep(0.2)
        assert httpx.get(f"{url}/health").status_code == 200


def test_a_trusted_proxy_has_any_number(sam: Sam) -> None:
    limits = {"max_connections_per_client": 2, "trusted_proxies": ("127.0.0.0/8",)}
    with serving(sam, **limits) as url:
        kept = [connect(url) for _ in range(6)]
        assert not any(is_closed(connection, 0.1) for connection in kept)


def test_answers_that_nobody_takes_are_given_up(sam: Sam) -> None:
    with serving(sam, answer_timeout=0.5) as url:
        content = encoded(picture(1))
        name = httpx.post(f"{url}/embed", content=content, headers=PNG, timeout=60).json()["id"]
        connection = connect(url)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        request = f"GET /embed/{name} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode()
        connection.sendall(request * 60)  # 15 MB of answers, more than the kernel buffers
        server = psutil.Process()
        own = connection.getsockname()[1]

        def is_open() -> bool:
            return any(
                item.raddr and item.raddr.port == own and item.laddr.port != own
                for item in server.net_connections("tcp")
                if item.status == psutil.CONN_ESTABLISHED
            )

        deadline = time.monotonic() + 10
        while not is_open():  # taken in
            assert time.monotonic() < deadline
        while is_open():
            assert time.monotonic() < deadline
            time.sleep(0.1)


def test_the_rest_of_a_refused_body_may_not_trickle_for_ever(sam: Sam) -> None:
    with serving(sam, head_timeout=0.5) as url, connect(url) as connection:
        connection.sendall(
            b"POST /masks HTTP/1.1\r\nHost: evil.example\r\nContent-Length: 60000\r\n\r\nsome"
        )
        assert connection.recv(100).startswith(b"HTTP/1.1 421")
        started = time.monotonic()
        with pytest.raises(ConnectionError):
            while True:
                connection.sendall(b"x")
                time.sleep(0.1)
                assert time.monotonic() - started < 10


def test_broken_http_is_refused_without_a_trace(sam: Sam, caplog: pytest.LogCaptureFixture) -> None:
    head = b"POST /embed HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: image/png\r\n"
    with serving(sam) as url:
        for data, status in (
            (b"\x16\x03\x01\x02\x00", b"400"),
            (b"nonsense\r\n\r\n", b"400"),
            (head + b"Content-Length: -1\r\n\r\n", b"400"),
            (head + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n", b""),
            (head + b"Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\nzz\r\n", b""),
            (b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\nnonsense\r\n\r\n", b"200"),
        ):
            with connect(url) as connection:
                connection.sendall(data)
                connection.shutdown(socket.SHUT_WR)
                try:
                    start = connection.recv(20)
                except ConnectionError:
                    start = b""
                assert start[9:12] == status, data
        assert httpx.get(f"{url}/health").status_code == 200
    assert not [record for record in caplog.records if record.exc_info], caplog.text


@pytest.mark.parametrize(("proxies", "status"), [((), 429), (("127.0.0.1",), 200)])
def test_forwarded_addresses_are_believed_from_named_proxies_only(
    sam: Sam, proxies: tuple[str, ...], status: int
) -> None:
    """One request in work fills one address's share; another address is another share."""
    limits = {"max_requests_per_client": 1, "body_timeout": 5, "trusted_proxies": proxies}
    with serving(sam, **limits) as url, connect(url) as busy:
        busy.sendall(
            b"POST /embed HTTP/1.1\r\nHost: 127.0.0.1\r\nX-Forwarded-For: 192.0.2.1\r\n"
            b"Content-Type: image/png\r\nContent-Length: 1000\r\n\r\n"
        )
        time.sleep(0.3)
        headers = {**PNG, "X-Forwarded-For": "192.0.2.2"}
        content = encoded(picture(1))
        answer = httpx.post(f"{url}/embed", content=content, headers=headers, timeout=30)
        assert answer.status_code == status


# The token


def test_without_the_token_only_the_page_and_the_probe_are_there(sam: Sam, tmp_path: Path) -> None:
    for name in FILES:
        (tmp_path / name).write_bytes(b"onnx")
    settings = replace(Settings(), token=TOKEN)
    app = create_app(sam, tmp_path, settings=settings)
    with running(app) as url:
        for path in ("/", "/static/js/main.js", "/ready"):
            assert httpx.get(url + path).status_code == 200
        paths = ("/health", "/metrics", "/openapi.json", "/model/decode.onnx", "/nothing")
        for path in (*paths, "/static", "//", "/ready/", "/%2e/health"):
            for headers in (
                {},
                {"Authorization": f"Bearer {TOKEN}x"},
                {"Authorization": f"Bearer {TOKEN[:-1]}"},
                {"Authorization": "Bearer"},
                {"Authorization": f"Basic {TOKEN}"},
                {"Authorization": TOKEN},
            ):
                answer = httpx.get(url + path, headers=headers)
                assert answer.status_code == 401, (path, headers)
                assert answer.headers["www-authenticate"] == "Bearer"
                assert TOKEN not in answer.text
        answer = httpx.post(f"{url}/embed", content=encoded(picture(1)), headers=PNG)
        assert answer.status_code == 401
        headers = {"Authorization": f"Bearer {TOKEN}"}
        for path in paths[:-1]:
            assert httpx.get(url + path, headers=headers).status_code == 200
        content = encoded(picture(1))
        answer = httpx.post(f"{url}/embed", content=content, headers={**PNG, **headers}, timeout=60)
        assert answer.status_code == 200


def test_metrics_can_be_closed(sam: Sam) -> None:
    with serving(sam, metrics=False) as url:
        assert httpx.get(f"{url}/metrics").status_code == 404


# Readiness


def test_ready_says_whether_the_encoder_works(sam: Sam, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = True
    encoder = type(sam.image_encoder)
    encode = encoder.__call__

    def maybe(*arguments: Any) -> Any:
        if broken:
            raise RuntimeError("device lost")
        return encode(*arguments)

    with serving(sam) as url:
        assert httpx.get(f"{url}/ready").json() == {"status": "ready"}
        monkeypatch.setattr(encoder, "__call__", maybe)
        for status in (500, 200):
            content = encoded(picture(status))
            answer = httpx.post(f"{url}/embed", content=content, headers=PNG, timeout=60)
            assert answer.status_code == status
            assert httpx.get(f"{url}/ready").status_code == (503 if broken else 200)
            broken = False


# What is open to whom


def options(**given: Any) -> ServeOptions:
    return ServeOptions(Path("params"), **given)


@pytest.fixture
def no_token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SAMTRT_TOKEN", raising=False)


@pytest.mark.usefixtures("no_token")
def test_the_loopback_needs_no_token_and_the_network_does() -> None:
    here, there = ip_address("127.0.0.1"), ip_address("192.0.2.7")
    assert network_settings(options(), here).token is None
    made = [network_settings(options(host="192.0.2.7"), there).token for _ in range(2)]
    assert all(token is not None and len(token) >= 32 for token in made) and made[0] != made[1]
    hosts = network_settings(options(host="192.0.2.7", allowed_hosts=("a.example",)), there)
    assert {"192.0.2.7", "a.example", "localhost"} <= set(hosts.allowed_hosts)


@pytest.mark.usefixtures("no_token")
def test_every_address_needs_the_names_of_its_hosts() -> None:
    for host in ("0.0.0.0", "::"):
        with pytest.raises(InputError, match="--allowed-host"):
            network_settings(options(host=host), ip_address(host))
        named = options(host=host, allowed_hosts=("a.example",))
        found = network_settings(named, ip_address(host))
        assert "*" not in found.allowed_hosts and found.token is not None


def test_given_tokens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    address = ip_address("127.0.0.1")
    monkeypatch.setenv("SAMTRT_TOKEN", TOKEN)
    assert network_settings(options(), address).token == TOKEN
    file = tmp_path / "token"
    file.write_text("another-token-of-a-file\n")
    assert network_settings(options(token_file=file), address).token == "another-token-of-a-file"
    for content in ("", "short", "with a space in it, long", "ümläüte-ümläüte-ümläüte", "x\ny" * 9):
        file.write_text(content)
        with pytest.raises(InputError, match="must have 16 or more letters"):
            network_settings(options(token_file=file), address)
    for missing in (tmp_path / "none", tmp_path):
        with pytest.raises(InputError, match="cannot read"):
            network_settings(options(token_file=missing), address)


@pytest.mark.parametrize("proxy", ["proxy.example", "*", "10.0.0.7/24", ""])
def test_proxies_are_addresses(proxy: str) -> None:
    with pytest.raises(InputError, match="--trusted-proxy"):
        network_settings(options(trusted_proxies=(proxy,)), ip_address("127.0.0.1"))
