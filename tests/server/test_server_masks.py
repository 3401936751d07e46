"""Masks over HTTP: lists of prompts, forms of a mask, masks as prompts; all as the predictor's."""

import base64
import io
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as mask_utils
from server_support import encoded, picture, running, tiny_model

from samtrt.decoders.torch import TorchDecoder
from samtrt.masks.predictor import SamPredictor
from samtrt.sam import Sam, load_sam
from samtrt.server.app import create_app
from samtrt.server.settings import Settings

IMAGE = picture(1)
PROMPTS: list[dict[str, Any]] = [
    {"point_coords": [[60, 70]], "point_labels": [1]},
    {"box": [20, 30, 120, 140]},
    {"point_coords": [[10, 20], [150, 100]], "point_labels": [1, 0]},
    {"point_coords": [[120, 70]], "point_labels": [1]},
    {"box": [50, 10, 190, 100]},
    {"point_coords": [[60, 70]], "point_labels": [0], "box": [20, 30, 120, 140]},
]


class Counting(TorchDecoder):
    """The model's decoder, which counts its calls and their prompts."""

    batches: list[int]

    def __call__(self, picture: Any, prompts: Any, multimask_output: bool) -> Any:
        self.batches.append(len(prompts))
        return super().__call__(picture, prompts, multimask_output)


@pytest.fixture(scope="module")
def sam() -> Sam:
    return load_sam(tiny_model() / "engine", tiny_model())


@pytest.fixture(scope="module")
def decoder(sam: Sam) -> Counting:
    decoder = Counting(sam.decoder)
    decoder.batches = []
    return decoder


@pytest.fixture(scope="module")
def client(sam: Sam, decoder: Counting) -> Iterator[httpx.Client]:
    app = create_app(sam)
    app.state.studio.decoder = decoder
    with running(app) as url, httpx.Client(base_url=f"{url}/v1", timeout=60) as client:
        yield client


@pytest.fixture(scope="module")
def embedding_id(client: httpx.Client) -> str:
    headers = {"Content-Type": "image/png"}
    found: str = client.post("embed", content=encoded(IMAGE), headers=headers).json()["id"]
    return found


@pytest.fixture(scope="module")
def predictor(sam: Sam) -> SamPredictor:
    predictor = SamPredictor(sam)
    predictor.set_image(IMAGE)
    return predictor


def ask(client: httpx.Client, **body: Any) -> list[dict[str, Any]]:
    response = client.post("masks", json=body)
    assert response.status_code == 200, response.text
    found: list[dict[str, Any]] = response.json()["masks"]
    return found


def refusal(client: httpx.Client, **body: Any) -> str:
    response = client.post("masks", json=body)
    assert response.status_code == 422, response.text
    detail: str = response.json()["detail"]
    return detail


def decode(rle: dict[str, Any]) -> np.ndarray:
    return np.asarray(mask_utils.decode({**rle, "counts": rle["counts"].encode()})).astype(bool)


def expected(
    predictor: SamPredictor, prompt: dict[str, Any], multimask_output: bool = True
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Logits at the picture's size, scores and low resolution logits, the best first."""
    arrays = {name: np.array(value) for name, value in prompt.items()}
    logits, scores, low_res = predictor.predict(
        **arrays, multimask_output=multimask_output, return_logits=True
    )
    order = np.argsort(-scores)
    return logits[order], scores[order], low_res[order]


def assert_is_cut(mask: np.ndarray, logits: np.ndarray) -> None:
    """The mask of these logits, but where they are zero to the rounding of a batch's sums."""
    sure = np.abs(logits) > 1e-4 * np.abs(logits).max()
    assert sure.mean() > 0.99
    np.testing.assert_array_equal(mask[sure], logits[sure] > 0)


@pytest.mark.parametrize("multimask_output", [True, False])
def test_a_list_of_prompts_is_as_each_alone(
    client: httpx.Client,
    embedding_id: str,
    predictor: SamPredictor,
    decoder: Counting,
    multimask_output: bool,
) -> None:
    decoder.batches.clear()
    found = ask(client, id=embedding_id, prompts=PROMPTS, multimask_output=multimask_output)
    # One call for each number of points: a point and its padding or a box, and two sorts of three.
    assert sorted(decoder.batches) == [2, 4]
    each = 3 if multimask_output else 1
    assert [mask["prompt"] for mask in found] == [n for n in range(6) for _ in range(each)]
    for number, prompt in enumerate(PROMPTS):
        logits, scores, _ = expected(predictor, prompt, multimask_output)
        masks = found[number * each : (number + 1) * each]
        for mask, of_mask, score in zip(masks, logits, scores, strict=True):
            assert_is_cut(decode(mask["segmentation"]), of_mask)
            assert mask["predicted_iou"] == pytest.approx(float(score), abs=1e-5)


def test_an_earlier_mask_is_refined(
    client: httpx.Client, embedding_id: str, predictor: SamPredictor
) -> None:
    prompt = PROMPTS[0]
    first = ask(client, id=embedding_id, **prompt, low_res_logits=True)
    _, _, low_res = expected(predictor, prompt)
    for mask, logits in zip(first, low_res, strict=True):
        sent = np.frombuffer(base64.b64decode(mask["low_res_logits"]), "<f4").reshape(64, 64)
        np.testing.assert_allclose(sent, logits, atol=1e-5)

    more = {"point_coords": [[60, 70], [20, 20]], "point_labels": [1, 0]}
    text = first[0]["low_res_logits"]
    together = ask(
        client,
        id=embedding_id,
        prompts=[more, {**more, "mask_input": text}, {"mask_input": text}],
    )
    mask_input = low_res[:1]
    wanted = [
        expected(predictor, more)[0],
        expected(predictor, {**more, "mask_input": mask_input})[0],
        expected(predictor, {"mask_input": mask_input})[0],
    ]
    assert not np.array_equal(wanted[0] > 0, wanted[1] > 0)
    for mask, logits in zip(together, np.concatenate(wanted), strict=True):
        assert_is_cut(decode(mask["segmentation"]), logits)


def test_forms_of_a_mask(client: httpx.Client, embedding_id: str) -> None:
    """PNG and exact polygons have the pixels of the run lengths."""
    prompts = PROMPTS[:2]
    runs = ask(client, id=embedding_id, prompts=prompts)
    pngs = ask(client, id=embedding_id, prompts=prompts, format="png")
    polygons = ask(client, id=embedding_id, prompts=prompts, format="polygon")
    simple = ask(client, id=embedding_id, prompts=prompts, format="polygon", polygon_tolerance=2.0)
    for run, png, polygon, rough in zip(runs, pngs, polygons, simple, strict=True):
        mask = decode(run["segmentation"])
        assert mask.any() and run["png"] is None and png["segmentation"] is None
        image = Image.open(io.BytesIO(base64.b64decode(png["png"])))
        assert image.mode == "1" and image.size == (200, 150)
        np.testing.assert_array_equal(np.array(image), mask)
        parts = mask_utils.frPyObjects(polygon["segmentation"], 150, 200)
        np.testing.assert_array_equal(mask_utils.decode(mask_utils.merge(parts)), mask)
        assert run["area"] == png["area"] == polygon["area"] == mask.sum()
        assert run["bbox"] == png["bbox"] == polygon["bbox"]
        assert sum(map(len, rough["segmentation"])) < sum(map(len, polygon["segmentation"]))


def test_what_is_no_list_of_prompts(client: httpx.Client, embedding_id: str) -> None:
    good, side = PROMPTS[0], 64
    assert "beside `prompts`" in refusal(client, id=embedding_id, prompts=[good], box=[1, 1, 5, 5])
    assert "64 is the limit" in refusal(client, id=embedding_id, prompts=[good] * 65)
    assert "prompts" in refusal(client, id=embedding_id, prompts=[])
    outside = {"point_coords": [[1000, 1]], "point_labels": [1]}
    detail = refusal(client, id=embedding_id, prompts=[good, outside])
    assert "prompts.1: " in detail and "outside" in detail
    assert "nothing is asked" in refusal(client, id=embedding_id, prompts=[good, {}])
    assert "not base64" in refusal(client, id=embedding_id, mask_input="nonsense!")
    short = base64.b64encode(bytes(4 * side)).decode()
    assert "expected 16,384: 64 × 64" in refusal(client, id=embedding_id, mask_input=short)
    infinite = np.full((side, side), np.inf, "<f4").tobytes()
    assert "not finite" in refusal(
        client, id=embedding_id, mask_input=base64.b64encode(infinite).decode()
    )
    assert "format" in refusal(client, id=embedding_id, **good, format="bmp")


def test_polygons_of_intricate_masks_are_refused(sam: Sam) -> None:
    settings = replace(Settings(), max_polygon_runs=10, max_prompts=2)
    app = create_app(sam, settings=settings)
    with running(app) as url, httpx.Client(base_url=f"{url}/v1", timeout=60) as client:
        headers = {"Content-Type": "image/png"}
        name = client.post("embed", content=encoded(IMAGE), headers=headers).json()["id"]
        assert "up to 10;" in refusal(client, id=name, **PROMPTS[0], format="polygon")
        assert ask(client, id=name, **PROMPTS[0], format="png")
        assert "2 is the limit" in refusal(client, id=name, prompts=PROMPTS[:3])
        assert client.get(f"{url}/health").json()["max_prompts"] == 2
