"""The page's files on the wire: kept by their hash, asked about by ETag, compressed."""

import gzip
import json
import re
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from urllib.parse import urljoin

import httpx
import numpy as np
import pytest
from server_support import encoded, picture, running, tiny_model

from samtrt.decoders.browser.contract import FILES
from samtrt.errors import InputError
from samtrt.sam import load_sam
from samtrt.server import assets
from samtrt.server.app import create_app
from samtrt.server.launch import ServeOptions, network_settings
from samtrt.server.page.delivery import DeliveredFile, accepted_encodings
from samtrt.server.settings import Settings

DECODER = b"onnx" * 100_000
TOKEN = "a-token-of-sixteen-letters-or-more"
PNG = {"Content-Type": "image/png"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A decoder with compressed files beside, and a sample."""
    folder = tmp_path_factory.mktemp("delivery")
    for name in FILES:
        (folder / name).write_bytes(DECODER)
        (folder / f"{name}.gz").write_bytes(gzip.compress(DECODER))
    (folder / "sample.png").write_bytes(encoded(picture(1)))
    return folder


def serving(folder: Path, **settings: object):
    sam = load_sam(tiny_model() / "engine", tiny_model())
    app = create_app(
        sam,
        folder,
        sample=folder / "sample.png",
        settings=replace(Settings(), **settings),
    )
    return running(app)


@pytest.fixture(scope="module")
def url(folder: Path) -> Iterator[str]:
    with serving(folder) as url:
        yield url


def addresses(url: str) -> dict[str, str]:
    """What the document names → its address."""
    html = httpx.get(f"{url}/").text
    found = re.findall(r'\b(?:href|src)="((?!data:)[^"#]+)"', html)
    (graphs,) = re.findall(r'name="mask-decoder" content="([^"]+)"', html)
    found += graphs.split(" ")[::2]
    return {name.rpartition("/")[2]: urljoin(f"{url}/", name) for name in found}


def test_everything_that_the_document_names_is_kept_for_ever(url: str) -> None:
    names = addresses(url)
    assert {"main.js", "style.css", "icon.svg", "api.js", *FILES} <= set(names)
    assert "decoder-worker.js" not in names  # a module of another kind
    for name, address in names.items():
        if address.rstrip("/") == url:
            continue  # the document itself
        answer = httpx.get(address)
        if name == "inter.woff2" and not assets.assets_installed():
            continue
        assert answer.status_code == 200, address
        assert "immutable" in answer.headers["cache-control"], address
        assert ("private" in answer.headers["cache-control"]) == (name in FILES)
    assert httpx.get(f"{url}/").headers["cache-control"] == "no-cache"


def test_modules_find_each_other_below_the_version(url: str) -> None:
    """Relative imports: with one of them absolute the browser would load a module twice."""
    main = addresses(url)["main.js"]
    for path in (assets.STATIC / "js").glob("*.js"):
        for name in re.findall(r'(?:from|import\() ?"([^"]+)"', path.read_text()):
            assert name.startswith("."), f"{path.name} imports {name}"
            if "vendor" not in name or assets.assets_installed():
                assert httpx.get(urljoin(main, name)).status_code == 200, name
    assert "url(/" not in (assets.STATIC / "style.css").read_text().replace('"', "")


@pytest.mark.parametrize("path", ["/", "/static/js/main.js", "/sample", "main.js", "decoder"])
def test_what_a_client_has_is_not_sent_again(url: str, path: str) -> None:
    known = {"main.js": "main.js", "decoder": "decode.onnx"}
    address = addresses(url)[known[path]] if path in known else url + path
    first = httpx.get(address)
    etag = first.headers["etag"]
    assert first.status_code == 200 and first.content
    for given in (etag, f"W/{etag}", f'"other", {etag}', "*"):
        again = httpx.get(address, headers={"If-None-Match": given})
        assert (again.status_code, again.content) == (304, b""), given
        for name in ("etag", "cache-control"):
            assert again.headers[name] == first.headers[name]
        assert again.headers["content-security-policy"]
    other = httpx.get(address, headers={"If-None-Match": '"other"'})
    assert (other.status_code, other.content) == (200, first.content)
    head = httpx.head(address)
    assert (head.status_code, head.content) == (200, b"")
    for name in ("etag", "content-length", "content-type", "cache-control"):
        assert head.headers[name] == first.headers[name]
    assert httpx.head(address, headers={"If-None-Match": etag}).status_code == 304


def test_embeddings_are_not_sent_again(url: str) -> None:
    answer = httpx.post(f"{url}/embed", content=encoded(picture(1)), headers=PNG, timeout=60)
    address = f"{url}/embed/{answer.json()['id']}"
    full = httpx.get(address)
    half = httpx.get(f"{address}?dtype=float16")
    values = np.frombuffer(full.content, "<f4")
    assert values.size == np.prod(answer.json()["embedding_shape"])
    np.testing.assert_array_equal(np.frombuffer(half.content, "<f2"), values.astype("<f2"))
    etag = full.headers["etag"]
    assert half.headers["etag"] != etag
    assert httpx.get(address, headers={"If-None-Match": etag}).status_code == 304
    for query in ("dtype=float64", "dtype="):
        assert httpx.get(f"{address}?{query}").status_code == 422, query
    other = address[:-1] + ("0" if address[-1] != "0" else "1")
    assert httpx.get(other, headers={"If-None-Match": etag}).status_code == 404


def test_the_smallest_encoding_that_is_taken(url: str, folder: Path) -> None:
    address = addresses(url)["decode.onnx"]
    sizes, etags = {}, set()
    for header, expected in {
        "": None,
        "br": None,  # there is none of this file
        "gzip, deflate, br": "gzip",
        "gzip;q=0": None,
        "GZIP;q=0.5": "gzip",
    }.items():
        with httpx.stream("GET", address, headers={"Accept-Encoding": header}) as answer:
            raw = b"".join(answer.iter_raw())
        assert answer.headers.get("content-encoding") == expected, header
        assert answer.headers["vary"] == "Accept-Encoding"
        assert (gzip.decompress(raw) if expected else raw) == DECODER
        assert int(answer.headers["content-length"]) == len(raw)
        sizes[expected] = len(raw)
        etags.add(answer.headers["etag"])
    assert sizes["gzip"] < sizes[None] / 10
    assert len(etags) == 2  # one each: a part of one does not fit the other
    small = httpx.get(f"{url}/static/js/main.js", headers={"Accept-Encoding": "gzip"})
    assert small.headers["content-encoding"] == "gzip"
    assert small.text == (assets.STATIC / "js/main.js").read_text()


def test_weights_of_encodings() -> None:
    assert accepted_encodings("gzip;q=0.000, br ; q=1, deflate") == {"br", "deflate"}


@pytest.mark.skipif(not assets.assets_compressed(), reason="run python -m samtrt.server.assets")
def test_the_runtime_is_sent_as_brotli(url: str) -> None:
    main = addresses(url)["main.js"]
    address = urljoin(main, "../vendor/ort-wasm-simd-threaded.wasm")
    with httpx.stream("GET", address, headers={"Accept-Encoding": "gzip, br"}) as answer:
        raw = b"".join(answer.iter_raw())
    assert answer.headers["content-encoding"] == "br"
    assert answer.headers["content-type"] == "application/wasm"
    assert len(raw) < 3_000_000
    script = "process.stdout.write(zlib.brotliDecompressSync(fs.readFileSync(0)))"
    plain = subprocess.run(["node", "-e", script], input=raw, capture_output=True, check=True)
    assert plain.stdout == (assets.VENDOR / "ort-wasm-simd-threaded.wasm").read_bytes()


def test_an_address_of_another_version_is_gone(url: str) -> None:
    address = addresses(url)["main.js"]
    version = address.split("/")[-3]
    answer = httpx.get(address.replace(version, "0" * len(version)))
    assert answer.status_code == 404 and "load the page again" in answer.json()["detail"]


def test_the_version_is_that_of_the_content(tmp_path: Path) -> None:
    path = tmp_path / "main.js"
    path.write_bytes(b"1")
    first = DeliveredFile.at(path, "text/javascript")
    path.write_bytes(b"2")
    assert DeliveredFile.at(path, "text/javascript").digest != first.digest


# Below a prefix


@pytest.mark.parametrize("sent", ["/sam", ""], ids=["kept by the proxy", "taken away by the proxy"])
def test_paths_below_a_prefix(folder: Path, sent: str) -> None:
    """The checks and limits of a path are those of the path without the prefix."""
    with serving(folder, root_path="/sam", token=TOKEN, max_json_bytes=2000) as url:
        base = url + sent
        for path in ("/", "/static/js/main.js", "/ready"):
            assert httpx.get(base + path).status_code == 200, path
        for path in ("/health", "/model/decode.onnx", "/sample", "/openapi.json"):
            assert httpx.get(base + path).status_code == 401, path
        client = httpx.Client(headers={"Authorization": f"Bearer {TOKEN}"}, timeout=60)
        assert client.get(f"{base}/health").json()["status"] == "ok"
        assert client.get(f"{base}/openapi.json").json()["servers"] == [{"url": "/sam"}]
        content = encoded(picture(1))
        assert len(content) > 2000  # the limit of JSON, not of pictures
        answer = client.post(f"{base}/embed", content=content, headers=PNG)
        assert answer.status_code == 200, answer.text
        prompt = {"id": answer.json()["id"], "point_coords": [[9, 9]], "point_labels": [1]}
        assert client.post(f"{base}/masks", json=prompt).status_code == 200
        body = json.dumps(prompt)
        for path in ("/masks", "/everything"):
            plain = client.post(base + path, content=body, headers={"Content-Type": "text/plain"})
            assert plain.status_code == 415, path
        long = {**prompt, "point_coords": [[9, 9]] * 1000}
        assert client.post(f"{base}/masks", json=long).status_code == 413
        metrics = client.get(f"{base}/metrics").text
        assert 'route="/masks",status="200"' in metrics and "/sam/" not in metrics


def test_the_prefix_itself_leads_to_the_page(folder: Path) -> None:
    with serving(folder, root_path="/tools/sam", token=TOKEN) as url:
        answer = httpx.get(f"{url}/tools/sam")
        assert (answer.status_code, answer.headers["location"]) == (308, "sam/")
        assert httpx.get(f"{url}/tools/sam", follow_redirects=True).text == httpx.get(url).text
        for path in (
            "/tools/samx",
            "/tools",
            "/tools/sam/tools/sam/",
            "/tools/sam//",
            "//tools/sam",
        ):
            assert httpx.get(url + path).status_code == 401, path


@pytest.mark.parametrize("path", ["sam", "/sam?x", "/a b", "/sam/../x/..", "https://host/sam"])
def test_a_prefix_that_is_none_is_refused(path: str) -> None:
    from ipaddress import ip_address

    options = ServeOptions(Path("params"), root_path=path)
    with pytest.raises(InputError, match="--root-path"):
        network_settings(options, ip_address("127.0.0.1"))


def test_a_prefix_may_end_in_a_slash() -> None:
    from ipaddress import ip_address

    for given, kept in {"/sam/": "/sam", "/": "", "": "", "/a.b/c-d": "/a.b/c-d"}.items():
        options = ServeOptions(Path("params"), root_path=given)
        assert network_settings(options, ip_address("127.0.0.1")).root_path == kept
