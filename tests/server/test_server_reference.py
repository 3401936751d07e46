"""The API's description as a page, and as a client that is made of it."""

import importlib
import subprocess
import sys
from dataclasses import replace
from typing import Any

import httpx
import numpy as np
import pytest
from pycocotools import mask as mask_utils
from server_support import encoded, picture, running, tiny_model

from samtrt.masks.predictor import SamPredictor
from samtrt.sam import Sam, load_sam
from samtrt.server.api.documentation import SCRIPT
from samtrt.server.app import create_app
from samtrt.server.assets import VENDOR
from samtrt.server.settings import Settings

TOKEN = "a-token-of-sixteen-letters-or-more"


@pytest.fixture(scope="module")
def sam() -> Sam:
    return load_sam(tiny_model() / "engine", tiny_model())


@pytest.mark.skipif(not (VENDOR / SCRIPT).is_file(), reason="the page's assets are not installed")
def test_the_page_needs_no_token_and_nothing_from_elsewhere(sam: Sam) -> None:
    settings = replace(Settings(), token=TOKEN)
    with running(create_app(sam, settings=settings)) as url, httpx.Client(base_url=url) as client:
        page = client.get("/docs")
        assert page.status_code == 200 and "//" not in page.text
        for name in ("swagger-ui-bundle.js", "swagger-ui.css", "start.js"):
            assert f'"docs/{name}"' in page.text
            file = client.get(f"/docs/{name}")
            assert file.status_code == 200 and len(file.content) > 50
        assert client.get("/docs/inter.woff2").status_code == 404
        assert client.get("/docs/..%2Fserver.md").status_code == 404
        assert client.get("/openapi.json").status_code == 401
        headers = {"Authorization": f"Bearer {TOKEN}"}
        document = client.get("/openapi.json", headers=headers).json()
        assert document["components"]["securitySchemes"]["token"]["scheme"] == "bearer"
        assert client.get("/health").status_code == 401


@pytest.fixture(scope="module")
def generated(tmp_path_factory: pytest.TempPathFactory, sam: Sam) -> Any:
    """The package that openapi-python-client makes."""
    pytest.importorskip("openapi_python_client", reason="`make test` installs it")
    folder = tmp_path_factory.mktemp("client")
    with running(create_app(sam)) as url:
        (folder / "openapi.json").write_bytes(httpx.get(f"{url}/openapi.json").content)
    command = [sys.executable, "-m", "openapi_python_client", "generate", "--meta", "none"]
    command += ["--path", "openapi.json", "--output-path", "samtrt_client"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    sys.path.insert(0, str(folder))
    try:
        yield importlib.import_module("samtrt_client")
    finally:
        sys.path.remove(str(folder))


def test_a_client_that_is_made_of_the_description_works(generated: Any, sam: Sam) -> None:
    def module(name: str) -> Any:
        return importlib.import_module(f"samtrt_client.{name}")

    models, types = module("models"), module("types")
    image = picture(1)
    predictor = SamPredictor(sam)
    predictor.set_image(image)
    wanted, scores, _ = predictor.predict(np.array([[60, 70]]), np.array([1]))
    settings = replace(Settings(), token=TOKEN)
    with running(create_app(sam, settings=settings)) as url:
        client = generated.AuthenticatedClient(base_url=url, token=TOKEN)
        file = types.File(payload=encoded(image), file_name="picture.png")
        embedded = module("api.model.embed").sync(client=client, body=file)
        assert embedded.original_size == [150, 200]
        prompts = [
            models.MaskPrompt(
                point_coords=[[60, 70]], point_labels=[models.MaskPromptPointLabelsItem(1)]
            ),
            models.MaskPrompt(box=[20, 30, 120, 140]),
        ]
        request = models.MaskRequest(id=embedded.id, prompts=prompts)
        found = module("api.model.masks").sync(client=client, body=request).masks
        assert [mask.prompt for mask in found] == [0, 0, 0, 1, 1, 1]
        for mask, index in zip(found, np.argsort(-scores), strict=False):
            rle = mask.segmentation.to_dict()
            rle["counts"] = rle["counts"].encode()
            assert (mask_utils.decode(rle) != wanted[index]).sum() <= 2  # sums of a batch
        polygons = models.MaskRequest(
            id=embedded.id, box=[20, 30, 120, 140], format_=models.MaskRequestFormat("polygon")
        )
        first = module("api.model.masks").sync(client=client, body=polygons).masks[0]
        assert isinstance(first.segmentation[0][0], float)
        data = module("api.model.get_embedding").sync(embedded.id, client=client)
        assert len(data.payload.read()) == 4 * 256 * 16 * 16
        assert module("api.operation.health").sync(client=client).status == "ok"
        refused = module("api.model.masks").sync_detailed(
            client=client, body=models.MaskRequest(id=embedded.id)
        )
        assert refused.status_code == 422 and "nothing is asked" in refused.parsed.detail
