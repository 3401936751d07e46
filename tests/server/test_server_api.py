"""The HTTP API: what it answers, what it refuses, and how."""

import json
import socket
import struct
import threading
import time
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as mask_utils
from server_support import encoded, picture, running, tiny_model

from samtrt.decoders.browser.contract import FILES
from samtrt.decoders.torch import TorchDecoder
from samtrt.masks.automatic import SamAutomaticMaskGenerator
from samtrt.masks.predictor import SamPredictor
from samtrt.sam import Sam, load_sam
from samtrt.server.app import create_app
from samtrt.server.assets import STATIC
from samtrt.server.settings import Settings

PNG = {"Content-Type": "image/png"}
NO_MASKS_EVER = "0" * 64


@pytest.fixture(scope="module")
def sam() -> Sam:
    return load_sam(tiny_model() / "engine", tiny_model())


@pytest.fixture(scope="module")
def client(sam: Sam) -> Iterator[httpx.Client]:
    with running(create_app(sam)) as url, httpx.Client(base_url=url, timeout=60) as client:
        yield client


def serving(sam: Sam, **limits: Any) -> Any:
    """A server with other limits than the defaults."""
    return running(create_app(sam, settings=replace(Settings(), **limits)))


def embed(client: httpx.Client, image: np.ndarray) -> dict[str, Any]:
    response = client.post("/embed", content=encoded(image), headers=PNG)
    assert response.status_code == 200, response.text
    return response.json()


def assert_problem(response: httpx.Response, status: int, *words: str) -> None:
    """An error in the documented form that says the words and nothing of the inside."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    problem = response.json()
    assert problem.keys() == {"type", "title", "status", "detail"} and problem["status"] == status
    for word in words:
        assert word in problem["detail"]
    for leak in ("Traceback", ".py", str(Path.cwd()), "/tmp", "object at 0x", "samtrt."):
        assert leak not in response.text


def decode(rle: dict[str, Any]) -> np.ndarray:
    return mask_utils.decode({**rle, "counts": rle["counts"].encode()}).astype(bool)


# What it answers


def test_embedding_is_the_predictors(client: httpx.Client, sam: Sam) -> None:
    image = picture(1)
    answer = embed(client, image)
    assert answer["original_size"] == [150, 200] and answer["input_size"] == [192, 256]
    assert answer["frame_size"] == 256 and answer["embedding_shape"] == [1, 256, 16, 16]

    response = client.get(f"/embed/{answer['id']}")
    assert response.headers["content-type"] == "application/octet-stream"
    found = np.frombuffer(response.content, "<f4").reshape(answer["embedding_shape"])
    predictor = SamPredictor(sam)
    predictor.set_image(image)
    np.testing.assert_array_equal(found, predictor.get_image_embedding().numpy())


@pytest.mark.parametrize(
    "prompt",
    [
        {"point_coords": [[60, 70]], "point_labels": [1]},
        {"point_coords": [[60, 70], [20, 20]], "point_labels": [1, 0], "multimask_output": False},
        {"box": [20, 30, 120, 140]},
        {"point_coords": [[60, 70]], "point_labels": [1], "box": [20, 30, 120.5, 140]},
    ],
)
def test_masks_are_the_predictors(client: httpx.Client, sam: Sam, prompt: dict[str, Any]) -> None:
    image = picture(1)
    response = client.post("/masks", json={"id": embed(client, image)["id"], **prompt})
    assert response.status_code == 200, response.text
    found = response.json()["masks"]

    predictor = SamPredictor(sam)
    predictor.set_image(image)
    arrays = {
        name: np.array(prompt[name])
        for name in ("point_coords", "point_labels", "box")
        if name in prompt
    }
    masks, scores, _ = predictor.predict(
        **arrays, multimask_output=prompt.get("multimask_output", True)
    )
    assert len(found) == len(masks)
    for record, index in zip(found, np.argsort(-scores), strict=True):
        np.testing.assert_array_equal(decode(record["segmentation"]), masks[index])
        assert record["area"] == masks[index].sum()
        assert record["predicted_iou"] == pytest.approx(float(scores[index]), abs=1e-6)


def test_everything_is_the_generators(client: httpx.Client, sam: Sam) -> None:
    image = picture(2)
    options = {
        "points_per_side": 3,
        "pred_iou_thresh": 0.0,
        "stability_score_thresh": 0.0,
        "box_nms_thresh": 1.0,
    }
    response = client.post("/everything", json={"id": embed(client, image)["id"], **options})
    assert response.status_code == 200, response.text
    dataset = response.json()
    expected = SamAutomaticMaskGenerator(sam, **options).generate(image)
    assert len(expected) > 1 and len(dataset["annotations"]) == len(expected)
    assert dataset["images"][0]["width"] == 200 and dataset["images"][0]["height"] == 150
    for found, record in zip(dataset["annotations"], expected, strict=True):
        np.testing.assert_array_equal(decode(found["segmentation"]), record["segmentation"])
        assert found["area"] == record["area"]
        assert found["bbox"] == mask_utils.toBbox(found["segmentation"]).tolist()
        assert found["stability_score"] == pytest.approx(record["stability_score"])
        assert found["point_coords"] == record["point_coords"]


def test_a_cameras_jpeg_with_more_pictures_behind_is_a_jpeg(client: httpx.Client) -> None:
    """Pillow calls it MPO."""
    image = picture(2)
    preview = Image.fromarray(image).resize((40, 30))
    content = encoded(image, "MPO", save_all=True, append_images=[preview])
    response = client.post("/embed", content=content, headers={"Content-Type": "image/jpeg"})
    assert response.status_code == 200, response.text
    assert response.json()["original_size"] == [150, 200]


def test_same_content_is_embedded_once(client: httpx.Client) -> None:
    image = picture(3)
    first, second = embed(client, image), embed(client, image)
    assert (first["cached"], second["cached"]) == (False, True)
    assert first["id"] == second["id"] != embed(client, picture(4))["id"]


def test_same_picture_at_once_is_encoded_once(sam: Sam) -> None:
    with serving(sam) as url:

        def post(_: int) -> dict[str, Any]:
            with httpx.Client(base_url=url, timeout=60) as client:
                return embed(client, picture(5, 400, 600))

        with ThreadPoolExecutor(8) as threads:
            ids = {answer["id"] for answer in threads.map(post, range(8))}
        metrics = httpx.get(f"{url}/metrics").text
    assert len(ids) == 1
    assert 'samtrt_work_seconds_count{work="encode"} 1.0' in metrics


def test_orientation_of_exif_is_applied(client: httpx.Client) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees
    data = encoded(picture(6), "JPEG", exif=exif)
    response = client.post("/embed", content=data, headers={"Content-Type": "image/jpeg"})
    assert response.json()["original_size"] == [200, 150]


def test_health_and_metrics(client: httpx.Client) -> None:
    embed(client, picture(7))
    health = client.get("/health").json()
    assert health["status"] == "ok" and health["embed_seconds"] > 0
    assert health["lanes"]["encode"] == {"pending": 0, "capacity": 16}
    response = client.get("/metrics")
    assert response.headers["content-type"].startswith("text/plain")
    for name in (
        'samtrt_requests_total{method="POST",route="/embed",status="200"}',
        "samtrt_request_seconds_bucket",
        "samtrt_cache_bytes",
        'samtrt_queue_length{queue="encode"} 0.0',
        "process_resident_memory_bytes",
    ):
        assert name in response.text


def test_every_answer_has_the_security_headers(client: httpx.Client) -> None:
    for path in ("/health", "/nothing-here", "/openapi.json"):
        headers = client.get(path).headers
        assert "script-src 'self'" in headers["content-security-policy"]
        assert "unsafe-inline" not in headers["content-security-policy"]
        assert headers["cross-origin-opener-policy"] == "same-origin"
        assert headers["cross-origin-embedder-policy"] == "require-corp"
        assert headers["x-content-type-options"] == "nosniff"


# What it refuses


def test_content_types_are_checked(client: httpx.Client) -> None:
    png = encoded(picture(1))
    post = client.post
    assert_problem(post("/embed", content=png), 415, "Content-Type")
    assert_problem(post("/embed", content=png, headers={"Content-Type": "text/html"}), 415)
    mismatch = post("/embed", content=png, headers={"Content-Type": "image/jpeg"})
    assert_problem(mismatch, 415, "PNG", "image/jpeg")
    assert_problem(post("/embed", content=b"GIF89a nonsense", headers=PNG), 415, "JPEG, PNG")
    assert_problem(post("/masks", content="{}"), 415, "application/json")


def test_other_formats_are_refused_whatever_they_claim(client: httpx.Client) -> None:
    for kind in ("TIFF", "BMP", "GIF"):
        assert_problem(client.post("/embed", content=encoded(picture(1), kind), headers=PNG), 415)


def test_damaged_pictures_are_refused(client: httpx.Client) -> None:
    png = encoded(picture(1))
    for data in (png[: len(png) // 2], png[:200] + b"\0" * 400 + png[600:]):
        assert_problem(client.post("/embed", content=data, headers=PNG), 422, "damaged")
    assert_problem(client.post("/embed", content=b"", headers=PNG), 415)


def png_of_zeros(width: int, height: int) -> bytes:
    """A valid PNG of one bit a pixel that is small as a file, whatever its size in pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        body = kind + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    rows = zlib.compress(b"\0" * (height * (1 + (width + 7) // 8)), 9)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")
    )


def test_decompression_bombs_are_refused_before_they_are_decoded(client: httpx.Client) -> None:
    bomb = png_of_zeros(30_000, 30_000)  # 2.7 GB as RGB
    assert len(bomb) < 200_000
    started = time.perf_counter()
    assert_problem(client.post("/embed", content=bomb, headers=PNG), 413, "40 megapixels")
    assert time.perf_counter() - started < 10
    assert_problem(client.post("/embed", content=png_of_zeros(20_000, 4), headers=PNG), 413)


def test_body_sizes_are_limited(sam: Sam) -> None:
    with serving(sam, max_upload_bytes=10_000, max_json_bytes=60_000) as url:
        declared = httpx.post(f"{url}/embed", content=bytes(10_001), headers=PNG)
        assert_problem(declared, 413, "larger than")
        chunks = (bytes(1000) for _ in range(50))  # sent without a Content-Length
        assert_problem(httpx.post(f"{url}/embed", content=chunks, headers=PNG), 413)
        padded = {"id": NO_MASKS_EVER, "x": "x" * 70_000}
        assert_problem(httpx.post(f"{url}/masks", json=padded), 413)


@pytest.mark.parametrize(
    ("body", "word"),
    [
        ({}, "nothing is asked"),
        ({"point_coords": [[1, 1]], "point_labels": []}, "labels"),
        ({"point_coords": [[1, 1]], "point_labels": [2]}, "point_labels"),
        ({"point_coords": [[1000, 1]], "point_labels": [1]}, "outside"),
        ({"box": [10, 10, 5, 20]}, "no area"),
        ({"box": [0, 0, 5000, 20]}, "outside"),
        ({"box": [0, 0, 5]}, "box"),
        ({"point": [[1, 1]]}, "point"),
    ],
)
def test_bad_prompts_are_refused(client: httpx.Client, body: dict[str, Any], word: str) -> None:
    body = {"id": embed(client, picture(1))["id"], **body}
    assert_problem(client.post("/masks", json=body), 422, word)


def test_malformed_json_and_numbers_are_refused(client: httpx.Client) -> None:
    headers = {"Content-Type": "application/json"}
    assert_problem(client.post("/masks", content=b"{", headers=headers), 422)
    text = f'{{"id": "{NO_MASKS_EVER}", "box": [0, 0, NaN, Infinity]}}'
    assert_problem(client.post("/masks", content=text, headers=headers), 422)


def test_unknown_ids_paths_and_methods(client: httpx.Client) -> None:
    body = {"id": NO_MASKS_EVER, "box": [0, 0, 5, 5]}
    assert_problem(client.post("/masks", json=body), 404, "/embed again")
    assert_problem(client.post("/everything", json={"id": NO_MASKS_EVER}), 404)
    assert_problem(client.get(f"/embed/{NO_MASKS_EVER}"), 404)
    assert_problem(client.get("/embed/..%2F..%2Fetc%2Fpasswd"), 404)
    assert_problem(client.get("/nothing-here"), 404)
    response = client.delete("/health")
    assert_problem(response, 405)
    assert response.headers["allow"] == "GET, HEAD"


def test_foreign_hosts_and_pages_are_refused(client: httpx.Client) -> None:
    refused = ("evil.example", "localhost.evil.example", "[::2]:80", "::1", "", "localhost:x")
    for host in (*refused, "evil@localhost", "localhost/", "[localhost]", "localhost:80:80"):
        assert_problem(client.get("/health", headers={"Host": host}), 421)
    for host in ("localhost", "LOCALHOST:80", "127.0.0.1:8000", "[::1]", "[::1]:8000"):
        assert client.get("/health", headers={"Host": host}).status_code == 200, host
    body = {"id": NO_MASKS_EVER, "box": [0, 0, 5, 5]}
    for headers in ({"Origin": "http://evil.example"}, {"Sec-Fetch-Site": "cross-site"}):
        assert_problem(client.post("/masks", json=body, headers=headers), 403)


def test_further_hosts_are_answered_where_they_are_named(sam: Sam) -> None:
    named = ("samtrt.example", "*.lab.example", "fd00::1")
    with serving(sam, allowed_hosts=named) as url, httpx.Client(base_url=url) as client:
        for host in ("samtrt.example:8000", "gpu.Lab.example", "[FD00::1]:80"):
            assert client.get("/health", headers={"Host": host}).status_code == 200, host
        for host in ("localhost", "www.samtrt.example", "lab.example.evil", "lab.example"):
            assert_problem(client.get("/health", headers={"Host": host}), 421)


def test_cache_is_bounded_and_forgets_the_oldest(sam: Sam) -> None:
    entry = 256 * 16 * 16 * 4 + 1024
    with serving(sam, cache_bytes=2 * entry) as url, httpx.Client(base_url=url) as client:
        ids = [embed(client, picture(seed))["id"] for seed in (1, 2)]
        assert client.get(f"/embed/{ids[0]}").status_code == 200  # now 2 is the older one
        ids.append(embed(client, picture(3))["id"])
        found = [client.get(f"/embed/{name}").status_code for name in ids]
        assert found == [200, 404, 200]
        assert f"samtrt_cache_bytes {float(2 * entry)}" in client.get("/metrics").text


# What it does when there is too much to do


class SlowEncoder:
    """The model's encoder behind a gate that the test opens."""

    def __init__(self, sam: Sam, monkeypatch: pytest.MonkeyPatch) -> None:
        self.started = threading.Semaphore(0)
        self.gate = threading.Event()
        self.calls = 0
        encoder = type(sam.image_encoder)
        encode = encoder.__call__

        def slow(*arguments: Any) -> Any:
            self.calls += 1
            self.started.release()
            assert self.gate.wait(30)
            return encode(*arguments)

        monkeypatch.setattr(encoder, "__call__", slow)


@pytest.fixture
def slow_encoder(sam: Sam, monkeypatch: pytest.MonkeyPatch) -> Iterator[SlowEncoder]:
    slow = SlowEncoder(sam, monkeypatch)
    yield slow
    slow.gate.set()


def post_picture(url: str, seed: int) -> httpx.Response:
    return httpx.post(f"{url}/embed", content=encoded(picture(seed)), headers=PNG, timeout=30)


def wait_for(url: str, lane: str, pending: int) -> None:
    deadline = time.monotonic() + 60
    while httpx.get(f"{url}/health").json()["lanes"][lane]["pending"] != pending:
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_full_queue_answers_503(sam: Sam, slow_encoder: SlowEncoder) -> None:
    with serving(sam, encode_queue=2) as url, ThreadPoolExecutor(2) as threads:
        accepted = [threads.submit(post_picture, url, seed) for seed in (10, 11)]
        wait_for(url, "encode", 2)
        refused = post_picture(url, 12)
        assert_problem(refused, 503, "queue is full")
        assert refused.headers["retry-after"] == "1"
        slow_encoder.gate.set()
        assert [response.result().status_code for response in accepted] == [200, 200]
        assert post_picture(url, 12).status_code == 200


def test_too_many_of_one_client_answers_429(sam: Sam, slow_encoder: SlowEncoder) -> None:
    with serving(sam, max_requests_per_client=2) as url, ThreadPoolExecutor(2) as threads:
        accepted = [threads.submit(post_picture, url, seed) for seed in (20, 21)]
        wait_for(url, "encode", 2)
        refused = post_picture(url, 22)
        assert_problem(refused, 429)
        assert refused.headers["retry-after"] == "1"
        slow_encoder.gate.set()
        assert [response.result().status_code for response in accepted] == [200, 200]


def test_too_many_of_all_clients_answers_503(sam: Sam, slow_encoder: SlowEncoder) -> None:
    with serving(sam, max_requests=1) as url, ThreadPoolExecutor(1) as threads:
        accepted = threads.submit(post_picture, url, 30)
        wait_for(url, "encode", 1)
        assert_problem(post_picture(url, 31), 503)
        slow_encoder.gate.set()
        assert accepted.result().status_code == 200


def test_slow_work_answers_504_and_waiting_work_never_starts(
    sam: Sam, slow_encoder: SlowEncoder
) -> None:
    with serving(sam, encode_timeout=3) as url, ThreadPoolExecutor(2) as threads:
        first = threads.submit(post_picture, url, 40)
        assert slow_encoder.started.acquire(timeout=10)
        second = threads.submit(post_picture, url, 41)
        for response in (first.result(), second.result()):
            assert_problem(response, 504)
        slow_encoder.gate.set()
        wait_for(url, "encode", 0)
        assert slow_encoder.calls == 1


def test_slow_bodies_answer_408(sam: Sam) -> None:
    with serving(sam, body_timeout=0.5) as url:
        host, port = url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port)), timeout=10) as connection:
            connection.sendall(
                b"POST /embed HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: image/png\r\n"
                b"Content-Length: 1000\r\n\r\nonly this"
            )
            assert connection.recv(100).startswith(b"HTTP/1.1 408")


def test_clients_that_leave_are_forgotten(sam: Sam) -> None:
    with serving(sam, max_requests=2) as url:
        host, port = url.removeprefix("http://").split(":")
        for _ in range(4):
            with socket.create_connection((host, int(port)), timeout=10) as connection:
                connection.sendall(
                    b"POST /embed HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: image/png\r\n"
                    b"Content-Length: 1000\r\n\r\nonly this"
                )
        time.sleep(0.2)
        assert post_picture(url, 50).status_code == 200


def test_everything_stops_when_nobody_waits(sam: Sam) -> None:
    batches = []

    class Slow(TorchDecoder):
        def __call__(self, *arguments: Any) -> Any:
            batches.append(arguments)
            time.sleep(0.1)
            return super().__call__(*arguments)

    app = create_app(sam)
    app.state.studio.everything.decoder = Slow(sam.decoder)
    with running(app) as url, httpx.Client(base_url=url) as client:
        question = {"id": embed(client, picture(1))["id"], "points_per_side": 64}  # 64 batches
        body = json.dumps(question).encode()
        host, port = url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port)), timeout=30) as connection:
            connection.sendall(
                b"POST /everything HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json"
                b"\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)
            )
            deadline = time.monotonic() + 60
            while not batches:  # the work has begun, and now the client leaves
                assert time.monotonic() < deadline
                time.sleep(0.01)
        wait_for(url, "everything", 0)
        assert 0 < len(batches) < 64


def test_unexpected_errors_say_nothing_of_the_inside(
    sam: Sam, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: Any) -> None:
        raise RuntimeError("secret /etc/path")

    monkeypatch.setattr(Sam, "embed", broken)
    with serving(sam) as url:
        response = post_picture(url, 60)
    assert_problem(response, 500, "its log has the reason")
    assert "secret" not in response.text and "secret" in caplog.text


def test_static_files_do_not_leave_their_folder(sam: Sam, tmp_path: Path) -> None:
    for name in FILES:
        (tmp_path / name).write_bytes(b"onnx")
    with running(create_app(sam, tmp_path)) as url:
        assert httpx.get(f"{url}/static/js/main.js").status_code == 200
        assert httpx.get(f"{url}/model/decode.onnx").content == b"onnx"
        host, port = url.removeprefix("http://").split(":")
        for path in ("/static/../app.py", "/static/..%2fapp.py", "/static/%2e%2e/app.py"):
            # By hand: a client library would tidy the path before it sends it.
            with socket.create_connection((host, int(port)), timeout=10) as connection:
                connection.sendall(f"GET {path} HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
                assert connection.recv(100).startswith(b"HTTP/1.1 404")
        assert (STATIC.parent / "app.py").is_file()  # what a way out would have led to
