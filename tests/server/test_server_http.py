"""HTTP itself: versions, HEAD, uploads of every kind, other origins, the log, flags."""

import argparse
import logging
import re
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import httpx
import pytest
from server_support import encoded, picture, running, tiny_model

from samtrt.cli.options import Options
from samtrt.cli.serve import _settings, add_options
from samtrt.sam import Sam, load_sam
from samtrt.server.app import create_app
from samtrt.server.settings import MIB, Settings

PNG = {"Content-Type": "image/png"}
ORIGIN = "https://tool.example"
TOKEN = "a-token-of-sixteen-letters-or-more"


@pytest.fixture(scope="module")
def sam() -> Sam:
    return load_sam(tiny_model() / "engine", tiny_model())


@pytest.fixture(scope="module")
def client(sam: Sam) -> Iterator[httpx.Client]:
    settings = replace(Settings(), cors_origins=(ORIGIN,), access_log=True, token=TOKEN)
    headers = {"Authorization": f"Bearer {TOKEN}"}
    app = create_app(sam, settings=settings)
    with running(app) as url, httpx.Client(base_url=url, headers=headers, timeout=60) as client:
        yield client


def problem(response: httpx.Response, status: int) -> str:
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    detail: str = response.json()["detail"]
    return detail


def test_paths_with_and_without_the_version_are_the_same(client: httpx.Client) -> None:
    data = encoded(picture(1))
    new = client.post("/v1/embed", content=data, headers=PNG).json()
    old = client.post("/embed", content=data, headers=PNG).json()
    assert new["id"] == old["id"] and (new["cached"], old["cached"]) == (False, True)
    body = {"id": new["id"], "box": [20, 30, 120, 140]}
    assert client.post("/masks", json=body).json() == client.post("/v1/masks", json=body).json()
    assert client.get(f"/embed/{new['id']}").content == client.get(f"/v1/embed/{new['id']}").content
    problem(client.get("/v2/health"), 404)
    problem(client.get("/v1/v1/embed"), 404)
    paths = client.get("/openapi.json").json()["paths"]
    assert {path for path in paths if path.startswith("/v1/")} == {
        "/v1/embed",
        "/v1/embed/{embedding_id}",
        "/v1/masks",
        "/v1/everything",
    }


def test_limits_hold_whatever_the_version(client: httpx.Client, sam: Sam) -> None:
    for path in ("/masks", "/v1/masks", "/v1/everything"):
        problem(client.post(path, content="{}"), 415)
        problem(client.post(path, json={}, headers={"Authorization": "none"}), 401)
    with running(create_app(sam, settings=replace(Settings(), root_path="/sam"))) as url:
        for prefix in ("", "/sam"):  # taken away by a proxy, or kept
            large = httpx.post(f"{url}{prefix}/v1/masks", json={"x": "x" * 5 * MIB})
            problem(large, 413)
            answer = httpx.post(f"{url}{prefix}/v1/embed", content=bytes(5 * MIB), headers=PNG)
            problem(answer, 415)  # within an upload's limit
            assert httpx.get(f"{url}{prefix}/docs").status_code in (200, 404)
        document = httpx.get(f"{url}/sam/openapi.json").json()
        assert document["servers"] == [{"url": "/sam"}] and "/v1/embed" in document["paths"]


def test_head_is_get_without_its_body(client: httpx.Client) -> None:
    name = client.post("/embed", content=encoded(picture(1)), headers=PNG).json()["id"]
    for path in ("/health", "/ready", "/metrics", f"/v1/embed/{name}", "/openapi.json"):
        get, head = client.get(path), client.head(path)
        assert head.status_code == get.status_code == 200 and head.content == b""
        assert head.headers["content-type"] == get.headers["content-type"]
        if path != "/metrics":  # which counts these requests
            assert head.headers["content-length"] == get.headers["content-length"]
    metrics = client.get("/metrics").text
    assert 'samtrt_requests_total{method="HEAD",route="/health",status="200"} 1.0' in metrics
    assert client.head("/v1/masks").status_code == 405


def test_uploads_of_every_kind_are_the_same_picture(client: httpx.Client) -> None:
    pytest.importorskip("python_multipart", reason="`make test` installs it")
    for kind, media_type in (("PNG", "image/png"), ("JPEG", "image/jpeg"), ("WEBP", "image/webp")):
        data = encoded(picture(2), kind)
        answers = [
            client.post("/v1/embed", content=data, headers={"Content-Type": media_type}),
            client.post(
                "/v1/embed", content=data, headers={"Content-Type": "application/octet-stream"}
            ),
            client.post("/v1/embed", files={"file": ("name", data, media_type)}),
            client.post("/v1/embed", files={"file": ("name", data)}),
        ]
        for answer in answers:
            assert answer.status_code == 200, answer.text
        assert len({answer.json()["id"] for answer in answers}) == 1


def test_forms_that_are_not_one_picture(client: httpx.Client) -> None:
    pytest.importorskip("python_multipart", reason="`make test` installs it")
    data = encoded(picture(2))
    post = client.post
    assert "`file`" in problem(post("/v1/embed", files={"image": ("a", data)}), 422)
    assert "`file`" in problem(post("/v1/embed", files={"file": (None, data)}), 422)
    two = [("file", ("a", data)), ("file", ("b", data))]
    assert "one part" in problem(post("/v1/embed", files=two), 400)
    more = post("/v1/embed", files={"file": ("a", data)}, data={"points_per_side": "3"})
    assert "one part" in problem(more, 422)
    headers = {"Content-Type": "multipart/form-data; boundary=x"}
    problem(post("/v1/embed", content=b"--x\r\nnonsense", headers=headers), 422)
    problem(post("/v1/embed", content=b"nonsense", headers=headers), 400)
    problem(post("/v1/embed", content=b"", headers=headers), 422)
    problem(post("/v1/embed", content=b"x", headers={"Content-Type": "multipart/form-data"}), 400)
    assert "PNG but" in problem(
        post("/v1/embed", files={"file": ("a.jpg", data, "image/jpeg")}), 415
    )
    octets = {"Content-Type": "application/octet-stream"}
    assert "not a JPEG" in problem(post("/v1/embed", content=b"GIF89a", headers=octets), 415)
    problem(post("/v1/embed", content=b"", headers=octets), 415)


def test_pages_of_named_origins_may_call(client: httpx.Client) -> None:
    ask = {
        "Origin": ORIGIN,
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "authorization,content-type",
    }
    answer = httpx.options(f"{client.base_url}/v1/masks", headers=ask)  # without a token
    assert answer.status_code == 200
    assert answer.headers["access-control-allow-origin"] == ORIGIN
    other = httpx.options(
        f"{client.base_url}/v1/masks", headers={**ask, "Origin": "https://evil.example"}
    )
    assert other.status_code == 400 and "access-control-allow-origin" not in other.headers
    cross = {"Origin": ORIGIN, "Sec-Fetch-Site": "cross-site"}
    sent = client.post("/v1/embed", content=encoded(picture(1)), headers={**PNG, **cross})
    assert sent.status_code == 200
    assert sent.headers["access-control-allow-origin"] == ORIGIN
    refused = httpx.post(f"{client.base_url}/v1/masks", json={}, headers=cross)
    problem(refused, 401)  # which that page can read
    assert refused.headers["access-control-allow-origin"] == ORIGIN
    evil = {"Origin": "https://evil.example"}
    problem(client.post("/v1/masks", json={}, headers=evil), 403)


def test_access_log(client: httpx.Client, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "samtrt.access"):
        client.get("/health?token=secret")
        client.get("/no%0Athing%22 %1b")
        client.post("/v1/masks", json={})
    lines = [record.getMessage() for record in caplog.records if record.name == "samtrt.access"]
    size = len(client.get("/health").content)
    assert re.fullmatch(rf'127\.0\.0\.1 "GET /health" 200 {size} \d+\.\d ms', lines[0])
    assert lines[1].startswith('127.0.0.1 "GET /no%0Athing%22%20%1b" 404 ')
    assert lines[2].startswith('127.0.0.1 "POST /v1/masks" 422 ')


def parsed(*words: str) -> Settings:
    parser = argparse.ArgumentParser()
    add_options(Options(parser))
    return _settings(parser.parse_args(list(words)))


def test_limits_are_flags() -> None:
    assert parsed() == Settings()
    found = parsed(
        *("--max-upload-bytes", "1.5MiB", "--max-json-bytes", "1000", "--encode-timeout", "0.5"),
        *("--decode-queue", "7"),
    )
    assert found == replace(
        Settings(),
        max_upload_bytes=1_572_864,
        max_json_bytes=1000,
        encode_timeout=0.5,
        decode_queue=7,
    )
    assert isinstance(found.max_upload_bytes, int)


@pytest.mark.parametrize(
    ("flag", "value"),
    [
        ("--decode-queue", "0"),
        ("--decode-queue", "1.5"),
        ("--decode-queue", "-3"),
        ("--decode-queue", "2MiB"),
        ("--max-upload-bytes", "0.3"),
        ("--max-upload-bytes", "20 MB"),
        ("--encode-timeout", "nan"),
        ("--encode-timeout", "inf"),
    ],
)
def test_what_is_no_limit(flag: str, value: str, capsys: Any) -> None:
    with pytest.raises(SystemExit):
        parsed(flag, value)
    assert "number above zero" in capsys.readouterr().err
