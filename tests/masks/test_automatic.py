"""Automatic masks against Meta's generator, and each step against Meta's function."""

import itertools
import sys
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import skimage.data
import torch
from oracle import meta_sam, tiny_config
from skimage.measure import label, regionprops

from samtrt.checkpoints.parameters import random_parameters
from samtrt.decoders import upscaling
from samtrt.decoders.prompts import Prompts
from samtrt.decoders.torch import TorchDecoder
from samtrt.encoders.embedded import EmbeddedPicture
from samtrt.errors import InputError, SamtrtError
from samtrt.masks import geometry as amg_utils
from samtrt.masks.automatic import SamAutomaticMaskGenerator
from samtrt.masks.runs import MaskRuns, area_from_rle, coco_decode_rle, coco_encode_rle, rle_to_mask
from samtrt.reports.peers import import_segment_anything
from samtrt.sam import Sam, sam_from_parameters

CONFIG = tiny_config()
SEED = 3  # its masks differ most from one another
PICTURE = skimage.data.astronaut()[:150, :200]
# Random weights predict low IoUs and rugged masks that all span the picture: thresholds that
# keep a good part of them, and no suppression by boxes unless a test asks for it.
ARGUMENTS: dict[str, Any] = {
    "points_per_side": 5,
    "points_per_batch": 16,
    "pred_iou_thresh": 0.1,
    "stability_score_thresh": 0.75,
    "stability_score_offset": 0.05,
    "box_nms_thresh": 1.0,
    "crop_nms_thresh": 1.0,
}


def loop_nms(boxes: torch.Tensor, scores: torch.Tensor, idxs: Any, iou_threshold: float) -> Any:
    """torchvision's batched_nms of one category, box by box; its binary needs a CUDA torch."""
    order = scores.argsort(descending=True, stable=True).tolist()
    rows = boxes.double().numpy()
    areas = (rows[:, 2] - rows[:, 0]) * (rows[:, 3] - rows[:, 1])
    kept: list[int] = []
    for i in order:
        low = np.maximum(rows[kept, :2], rows[i, :2])
        high = np.minimum(rows[kept, 2:], rows[i, 2:])
        inter = (high - low).clip(min=0).prod(axis=1)
        union = areas[kept] + areas[i] - inter
        if not (inter > iou_threshold * union).any():
            kept.append(i)
    return torch.tensor(kept, dtype=torch.long)


def connected_components(mask: np.ndarray, connectivity: int) -> Any:
    """OpenCV's connectedComponentsWithStats, by scikit-image."""
    regions, count = label(mask, connectivity=2, return_num=True)
    stats = np.zeros((count + 1, 5), np.int64)
    for region in regionprops(regions):
        stats[region.label, -1] = region.area
    return count + 1, regions, stats, None


@pytest.fixture
def meta(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Meta's package with the two libraries that it calls and that are not here."""
    package = import_segment_anything()
    monkeypatch.setattr(package.automatic_mask_generator, "batched_nms", loop_nms)
    cv2 = SimpleNamespace(connectedComponentsWithStats=connected_components)
    monkeypatch.setitem(sys.modules, "cv2", cv2)
    return package


def discs(features: torch.Tensor, coords: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """A decoder whose masks are what trained ones are and random ones are not: local.

    Three ragged discs around each point, with holes and islands; which of them score well goes by
    the picture's embedding, so that a crop's masks belong to that crop.

    Args:
        coords: [B, 1, 2] in pixels of the model's frame.

    Returns:
        Logits [B, 3, 32, 32] and predicted IoUs [B, 3].
    """
    points = coords[:, 0].float()
    centre = 4 * torch.arange(32) + 2
    x, y = centre[None, None, None, :], centre[None, None, :, None]
    radius = torch.tensor([7.0, 16.0, 30.0])[None, :, None, None]
    distance = (
        ((x - points[:, 0, None, None, None]) ** 2)
        .add((y - points[:, 1, None, None, None]) ** 2)
        .sqrt()
    )
    logits = (radius - distance) / 2 + 2.5 * torch.sin(1.1 * x) * torch.sin(0.9 * y + 1)
    phase = 50 * features.mean() + points.sum(dim=1, keepdim=True) + torch.arange(3)
    return logits, 0.8 + 0.2 * phase.sin()


class _DiscPrompts(torch.nn.Module):
    """Meta's prompt encoder, passing on the points as they are."""

    def forward(self, points: Any, boxes: Any, masks: Any) -> Any:
        return points[0], None

    def get_dense_pe(self) -> None:
        return None


class DiscDecoder:
    """Our decoder, replaced by ``discs``."""

    img_size, num_masks, parameters_sha256, note = CONFIG.img_size, 4, "", ""

    def __call__(
        self, picture: EmbeddedPicture, prompts: Prompts, multimask_output: bool
    ) -> tuple[torch.Tensor, torch.Tensor]:
        assert multimask_output
        return discs(picture.features, prompts.coords)


class _DiscDecoder(torch.nn.Module):
    """Meta's mask decoder, replaced by ``discs``."""

    def forward(self, image_embeddings: Any, sparse_prompt_embeddings: Any, **_: Any) -> Any:
        return discs(image_embeddings, sparse_prompt_embeddings)


@pytest.fixture(scope="module")
def disc_models() -> tuple[Any, Sam]:
    theirs = meta_sam(CONFIG, SEED)
    theirs.prompt_encoder, theirs.mask_decoder = _DiscPrompts(), _DiscDecoder()
    ours = sam_from_parameters(random_parameters(CONFIG, SEED), device="cpu", precision="fp32")
    return theirs, ours


@pytest.fixture(scope="module")
def models() -> tuple[Any, Sam]:
    ours = sam_from_parameters(random_parameters(CONFIG, SEED), device="cpu", precision="fp32")
    return meta_sam(CONFIG, SEED), ours


def random_masks(count: int, height: int, width: int, seed: int = 0) -> torch.Tensor:
    """Blobs, and among them an empty mask, a full one, and one that starts with foreground."""
    noise = torch.randn(count, 1, 5, 6, generator=torch.Generator().manual_seed(seed))
    masks = torch.nn.functional.interpolate(noise, (height, width), mode="bicubic")[:, 0] > 0.1
    masks[0], masks[1], masks[2, 0, 0] = False, True, True
    return masks


def mask_of(record: dict[str, Any]) -> np.ndarray:
    segmentation = record["segmentation"]
    if isinstance(segmentation, np.ndarray):
        return segmentation
    if isinstance(segmentation["counts"], list):
        return rle_to_mask(segmentation)
    return coco_decode_rle(segmentation)


def mean_best_iou(found: list[dict[str, Any]], expected: list[dict[str, Any]]) -> float:
    """Mean over the expected masks of the best IoU with any found one."""
    a = np.stack([mask_of(record).ravel() for record in expected]).astype(np.float32)
    b = np.stack([mask_of(record).ravel() for record in found]).astype(np.float32)
    inter = a @ b.T
    union = a.sum(axis=1)[:, None] + b.sum(axis=1)[None] - inter
    return float((inter / np.maximum(union, 1)).max(axis=1).mean())


@pytest.mark.parametrize(
    ("changes", "least"),
    [
        ({}, 25),
        ({"output_mode": "uncompressed_rle"}, 25),
        ({"output_mode": "coco_rle"}, 25),
        ({"min_mask_region_area": 60}, 25),
        ({"pred_iou_thresh": 0.0, "stability_score_thresh": 0.0}, 40),
        ({"points_per_side": None, "point_grids": [np.array([[0.2, 0.3], [0.7, 0.6]])]}, 2),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else None,
)
def test_random_weights_give_metas_masks(
    meta: Any, models: tuple[Any, Sam], changes: dict[str, Any], least: int
) -> None:
    arguments = {**ARGUMENTS, **changes}
    ours = SamAutomaticMaskGenerator(models[1], **arguments)
    assert_same_masks(meta, ours, models[0], arguments, least)


DISC_ARGUMENTS = {"points_per_side": 8, "stability_score_offset": 0.1, "pred_iou_thresh": 0.7}


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"box_nms_thresh": 0.3},
        {"stability_score_thresh": 0.97},
        {"min_mask_region_area": 30, "box_nms_thresh": 0.9},
        {"crop_n_layers": 1},
        {"crop_n_layers": 1, "min_mask_region_area": 30, "output_mode": "coco_rle"},
        {"crop_n_layers": 2, "crop_n_points_downscale_factor": 2, "crop_nms_thresh": 0.4},
        {"crop_n_layers": 1, "crop_overlap_ratio": 0.6, "output_mode": "uncompressed_rle"},
    ],
    ids=lambda changes: "-".join(changes),
)
def test_local_masks_are_filtered_as_metas(
    meta: Any, disc_models: tuple[Any, Sam], changes: dict[str, Any]
) -> None:
    arguments = {**DISC_ARGUMENTS, **changes}
    ours = SamAutomaticMaskGenerator(disc_models[1], decoder=DiscDecoder(), **arguments)
    records = assert_same_masks(meta, ours, disc_models[0], arguments, least=15)
    if "crop_n_layers" in changes:
        assert len({tuple(record["crop_box"]) for record in records}) > 2


def assert_same_masks(
    meta: Any, ours: Any, theirs: Any, arguments: dict[str, Any], least: int, picture: Any = PICTURE
) -> list[dict[str, Any]]:
    """Our records, after they were compared one by one with Meta's, of which there must be
    ``least``."""
    expected = meta.SamAutomaticMaskGenerator(theirs, **arguments).generate(picture)
    found = ours.generate(picture)
    assert len(expected) >= least, "the case shows nothing"
    assert len(found) == len(expected)
    for a, b in zip(found, expected, strict=True):  # in the same order
        assert a.keys() == b.keys()
        for key, value in b.items():
            assert type(a[key]) is type(value)
        np.testing.assert_allclose(a["bbox"], b["bbox"], rtol=0, atol=2)
        # Of a mask that is empty below both cuts, Meta's is 0/0.
        stability = np.nan_to_num(b["stability_score"])
        np.testing.assert_allclose(a["stability_score"], stability, rtol=0, atol=2e-3)
        for key in ("point_coords", "predicted_iou", "crop_box"):
            np.testing.assert_allclose(a[key], b[key], rtol=1e-4, atol=1e-4)
        assert abs(a["area"] - b["area"]) <= 0.01 * b["area"] + 2
        mine, wanted = mask_of(a), mask_of(b)
        union = (mine | wanted).sum()
        assert union == 0 or (mine & wanted).sum() >= 0.99 * union
    return found


def test_records_describe_their_masks(disc_models: tuple[Any, Sam]) -> None:
    arguments = {**DISC_ARGUMENTS, "crop_n_layers": 1}
    generator = SamAutomaticMaskGenerator(disc_models[1], decoder=DiscDecoder(), **arguments)
    records = generator.generate(PICTURE)
    assert len(records) >= 15
    for record in records:
        mask = record["segmentation"]
        assert mask.dtype == bool and mask.shape == PICTURE.shape[:2]
        rows, columns = mask.nonzero()
        x, y, width, height = record["bbox"]
        assert (x, y) == (columns.min(), rows.min())
        assert (x + width, y + height) == (columns.max(), rows.max())
        assert record["area"] == mask.sum()
        ((px, py),) = record["point_coords"]
        cx, cy, cw, ch = record["crop_box"]
        assert cx <= px <= cx + cw and cy <= py <= cy + ch
        assert record["predicted_iou"] > 0.7 and record["stability_score"] >= 0.95


def test_no_mask_passes(models: tuple[Any, Sam]) -> None:
    arguments = {**ARGUMENTS, "pred_iou_thresh": 1e9, "min_mask_region_area": 10}
    for mode in ("binary_mask", "uncompressed_rle", "coco_rle"):
        generator = SamAutomaticMaskGenerator(models[1], **arguments, output_mode=mode)
        assert generator.generate(PICTURE) == []


def test_memory_is_bounded_by_parts(
    models: tuple[Any, Sam], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Smaller parts give the same masks, and no more logits are upscaled at once than allowed."""
    generator = SamAutomaticMaskGenerator(models[1], **ARGUMENTS)
    whole = generator.generate(PICTURE)
    most = 0
    postprocess = upscaling.postprocess_masks

    def recording(masks: torch.Tensor, *sizes: Any) -> torch.Tensor:
        nonlocal most
        most = max(most, len(masks))
        return postprocess(masks, *sizes)

    monkeypatch.setattr(upscaling, "postprocess_masks", recording)
    monkeypatch.setattr(upscaling, "_LOGIT_BYTES", {"cpu": 3 * 4 * 150 * 200})
    parts = generator.generate(PICTURE)
    assert most == 3
    assert len(parts) == len(whole)
    for a, b in zip(parts, whole, strict=True):
        np.testing.assert_array_equal(a["segmentation"], b["segmentation"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"points_per_side": None}, "either points_per_side or point_grids"),
        ({"point_grids": [np.zeros((1, 2))]}, "either points_per_side or point_grids"),
        ({"output_mode": "png"}, "unknown output_mode 'png'"),
        ({"points_per_batch": 0}, "points_per_batch is 0"),
        (
            {"points_per_side": None, "point_grids": [np.zeros((1, 2))], "crop_n_layers": 1},
            "need 2 point_grids",
        ),
        ({"points_per_side": 0}, "points_per_side is 0, expected a whole number, at least 1"),
        ({"points_per_side": -1}, "points_per_side is -1"),
        ({"points_per_side": 2.5}, "points_per_side is 2.5"),
        ({"points_per_side": "32"}, "points_per_side is '32'"),
        ({"points_per_batch": 1.5}, "points_per_batch is 1.5"),
        ({"crop_n_layers": -1}, "crop_n_layers is -1"),
        ({"crop_n_layers": 40}, "crop_n_layers is 40, expected at most 8"),
        (
            {"crop_n_layers": 1, "crop_n_points_downscale_factor": 100},
            r"layer 1 would have 32 / 100\*\*1 points a side",
        ),
        ({"crop_n_points_downscale_factor": 0}, "factor is 0, expected a number above 0"),
        ({"crop_overlap_ratio": 1.0}, "crop_overlap_ratio is 1.0"),
        ({"crop_overlap_ratio": -0.1}, "crop_overlap_ratio is -0.1"),
        ({"min_mask_region_area": -1}, "min_mask_region_area is -1"),
        ({"pred_iou_thresh": float("nan")}, "pred_iou_thresh is nan, expected a finite number"),
        ({"box_nms_thresh": None}, "box_nms_thresh is None"),
        ({"stability_score_offset": "1"}, "stability_score_offset is '1'"),
        ({"points_per_side": None, "point_grids": [np.zeros(3)]}, r"float64 of shape \[3\]"),
        ({"points_per_side": None, "point_grids": [[[np.nan, 0]]]}, "not finite"),
        ({"decoder_precision": "fp8"}, "decoder_precision is 'fp8'"),
    ],
)
def test_bad_arguments(models: tuple[Any, Sam], changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        SamAutomaticMaskGenerator(models[1], **changes)


LIKE_META: list[tuple[Any, dict[str, Any], int]] = [
    (PICTURE, {"min_mask_region_area": 10**9}, 1),
    (PICTURE, {"crop_n_layers": 2, "crop_n_points_downscale_factor": 1.2}, 15),
    (PICTURE, {"crop_n_layers": 1, "crop_overlap_ratio": 0}, 15),
    (PICTURE, {"points_per_batch": 7}, 15),
    (PICTURE[::-1, ::-1], {}, 15),
    (np.zeros_like(PICTURE), {"crop_n_layers": 1}, 10),
    (PICTURE[:1, :1], {"stability_score_thresh": 0.0}, 1),
    (PICTURE[:3], {"crop_n_layers": 1, "stability_score_thresh": 0.0}, 1),
]


@pytest.mark.parametrize(("picture", "changes", "least"), LIKE_META)
def test_pictures_and_arguments_at_the_edge_are_as_metas(
    meta: Any, disc_models: tuple[Any, Sam], picture: Any, changes: dict[str, Any], least: int
) -> None:
    arguments = {**DISC_ARGUMENTS, **changes}
    ours = SamAutomaticMaskGenerator(disc_models[1], decoder=DiscDecoder(), **arguments)
    assert_same_masks(meta, ours, disc_models[0], arguments, least, picture)


@pytest.mark.parametrize(("height", "width", "layers"), [(1, 200, 1), (1, 1, 1), (5, 7, 2)])
def test_pictures_with_fewer_pixels_than_crops(
    models: tuple[Any, Sam], height: int, width: int, layers: int
) -> None:
    """Meta's generator divides by zero there."""
    generator = SamAutomaticMaskGenerator(
        models[1],
        points_per_side=2,
        pred_iou_thresh=-1.0,
        stability_score_thresh=-1.0,
        crop_n_layers=layers,
    )
    for record in generator.generate(PICTURE[:height, :width]):
        assert record["segmentation"].shape == (height, width)


@pytest.mark.parametrize("changes", [{}, {"min_mask_region_area": 10}, {"output_mode": "coco_rle"}])
def test_crops_of_which_no_mask_passes(models: tuple[Any, Sam], changes: dict[str, Any]) -> None:
    """Meta's generator fails with an IndexError (segment-anything, issue 614)."""
    generator = SamAutomaticMaskGenerator(
        models[1], points_per_side=3, pred_iou_thresh=9.0, crop_n_layers=1, **changes
    )
    assert generator.generate(PICTURE) == []


class EmptyMasks(DiscDecoder):
    """Masks 0 and 2 of three are empty below both cuts: their stability is 0/0."""

    def __call__(
        self, picture: EmbeddedPicture, prompts: Prompts, multimask_output: bool
    ) -> tuple[torch.Tensor, torch.Tensor]:
        logits = torch.full((len(prompts), 3, 32, 32), -100.0)
        logits[:, 1, 10:20, 10:20] = 100.0
        return logits, torch.full((len(prompts), 3), 0.9)


class _EmptyMasks(torch.nn.Module):
    """The same for Meta's."""

    def forward(self, image_embeddings: Any, sparse_prompt_embeddings: Any, **_: Any) -> Any:
        prompts = Prompts(sparse_prompt_embeddings, torch.ones(sparse_prompt_embeddings.shape[:2]))
        return EmptyMasks()(image_embeddings, prompts, True)


@pytest.mark.parametrize("threshold", [0.0, 0.5])
def test_empty_masks_have_a_stability_of_zero(meta: Any, threshold: float) -> None:
    """Meta's NaN is dropped by its filter and kept without it; so is our 0, which JSON can hold."""
    theirs = meta_sam(CONFIG, SEED)
    theirs.prompt_encoder, theirs.mask_decoder = _DiscPrompts(), _EmptyMasks()
    ours = sam_from_parameters(random_parameters(CONFIG, SEED), device="cpu", precision="fp32")
    arguments = {"points_per_side": 2, "stability_score_thresh": threshold}
    expected = meta.SamAutomaticMaskGenerator(theirs, **arguments).generate(PICTURE)
    generator = SamAutomaticMaskGenerator(ours, decoder=EmptyMasks(), **arguments)
    found = generator.generate(PICTURE)
    assert len(found) == len(expected) >= 1
    scores = [record["stability_score"] for record in found]
    assert scores == [float(np.nan_to_num(record["stability_score"])) for record in expected]
    assert (0.0 in scores) == (threshold == 0)


def test_an_embedded_picture_needs_no_pixels(models: tuple[Any, Sam]) -> None:
    sam = models[1]
    generator = SamAutomaticMaskGenerator(sam, **ARGUMENTS)
    expected = generator.generate(PICTURE)
    found = generator.generate_embedded(sam.embed(PICTURE))
    assert len(found) == len(expected) > 1
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_array_equal(a.pop("segmentation"), b.pop("segmentation"))
        assert a == b
    with pytest.raises(InputError, match="need the picture's pixels"):
        SamAutomaticMaskGenerator(sam, crop_n_layers=1).generate_embedded(sam.embed(PICTURE))


def test_the_callers_check_ends_the_work(models: tuple[Any, Sam]) -> None:
    class StopError(Exception):
        pass

    calls = 0

    def check(masks: int, nbytes: int) -> None:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise StopError

    generator = SamAutomaticMaskGenerator(models[1], points_per_side=4, points_per_batch=2)
    with pytest.raises(StopError):
        generator.generate(PICTURE, check)
    assert calls == 3
    calls = -1000
    generator.generate(PICTURE, check)
    assert calls >= -1000 + 1 + 8  # the crop, each batch, and the masks of each


def test_what_is_no_picture(models: tuple[Any, Sam]) -> None:
    for image in ("picture.png", PICTURE[..., 0], PICTURE / 255):
        with pytest.raises(InputError, match="expected a uint8 array"):
            SamAutomaticMaskGenerator(models[1]).generate(image)


def test_coco_rle_without_pycocotools(
    models: tuple[Any, Sam], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pycocotools", None)
    with pytest.raises(SamtrtError, match="pip install pycocotools"):
        SamAutomaticMaskGenerator(models[1], output_mode="coco_rle")


def test_defaults_are_metas(meta: Any, models: tuple[Any, Sam]) -> None:
    ours = SamAutomaticMaskGenerator(models[1])
    theirs = meta.SamAutomaticMaskGenerator(models[0])
    for name, value in vars(theirs).items():
        if name == "point_grids":
            np.testing.assert_array_equal(ours.point_grids, value)
        elif name != "predictor":
            assert getattr(ours, name) == value


def test_grids_and_crops_are_metas(meta: Any) -> None:
    for side, layers, factor in ((32, 0, 1), (7, 2, 2), (9, 3, 2)):
        ours = amg_utils.layer_point_grids(side, layers, factor)
        theirs = meta.utils.amg.build_all_layer_point_grids(side, layers, factor)
        for a, b in zip(ours, theirs, strict=True):
            np.testing.assert_allclose(a, b, rtol=0, atol=1e-15)
    for size, layers in itertools.product(((480, 640), (1, 7), (1000, 333)), range(4)):
        ours = amg_utils.crop_boxes(size, layers, 512 / 1500)
        assert ours == meta.utils.amg.generate_crop_boxes(size, layers, 512 / 1500)


def test_boxes_stability_and_edges_are_metas(meta: Any) -> None:
    theirs = meta.utils.amg
    masks = random_masks(9, 41, 57)
    boxes = amg_utils.mask_boxes(masks)
    assert torch.equal(boxes, theirs.batched_mask_to_box(masks))
    logits = 3 * torch.randn(9, 41, 57)
    logits[0] = -10  # Meta's score of an empty mask is 0 / 0
    expected = theirs.calculate_stability_score(logits, 0.0, 1.0)
    assert expected[0].isnan()
    expected[0] = 0.0
    found = upscaling.stability_scores(logits, 0.0, 1.0)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
    boxes = torch.randint(0, 90, (200, 4))
    crop, picture = [30, 0, 130, 100], [0, 0, 400, 100]
    expected = theirs.is_box_near_crop_edge(boxes, crop, picture)
    assert expected.any() and not expected.all()
    assert torch.equal(amg_utils.is_box_near_crop_edge(boxes, crop, picture), expected)


@pytest.mark.parametrize("threshold", [0.0, 0.3, 0.7, 1.0])
def test_nms_is_the_greedy_loop(threshold: float, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = torch.Generator().manual_seed(0)
    corners = torch.randint(0, 40, (700, 2), generator=rng)
    sizes = torch.randint(0, 25, (700, 2), generator=rng)  # some boxes are empty
    boxes = torch.cat([corners, corners + sizes], dim=1).float()
    scores = torch.randint(0, 50, (700,), generator=rng) / 50  # with ties
    expected = loop_nms(boxes, scores, None, threshold)
    assert torch.equal(amg_utils.nms(boxes, scores, threshold), expected)
    monkeypatch.setattr(amg_utils, "_NMS_BLOCK", 64)
    assert torch.equal(amg_utils.nms(boxes, scores, threshold), expected)
    assert amg_utils.nms(boxes[:0], scores[:0], threshold).shape == (0,)


def test_nms_follows_a_long_chain() -> None:
    """Each box suppresses only the next, so every second one stays: the worst case."""
    left = 4.0 * torch.arange(301)
    boxes = torch.stack([left, torch.zeros(301), left + 10, torch.ones(301)], dim=1)
    scores = torch.linspace(1, 0, 301)
    assert amg_utils.nms(boxes, scores, 0.4).tolist() == list(range(0, 301, 2))


@pytest.mark.parametrize("mode", ["holes", "islands"])
@pytest.mark.parametrize("min_area", [1, 8, 40, 10_000])
def test_small_regions_are_metas(meta: Any, mode: str, min_area: int) -> None:
    masks = torch.rand(12, 1, 20, 24, generator=torch.Generator().manual_seed(2))
    masks = torch.nn.functional.interpolate(masks, (60, 72), mode="bilinear")[:, 0] > 0.55
    masks[0], masks[1] = False, True
    changed = 0
    for mask in masks.numpy():
        found, was_changed = amg_utils.remove_small_regions(mask, min_area, mode)
        expected, expected_change = meta.utils.amg.remove_small_regions(mask, min_area, mode)
        np.testing.assert_array_equal(found, expected)
        assert was_changed == expected_change
        changed += was_changed
    assert changed or min_area == 1
    with pytest.raises(ValueError, match="both"):
        amg_utils.remove_small_regions(masks[0].numpy(), 1, "both")


def test_rle_is_metas_and_turns_back(meta: Any) -> None:
    masks = random_masks(11, 37, 23)
    runs = MaskRuns.from_masks(masks)
    ours = runs.to_coco()
    assert ours == meta.utils.amg.mask_to_rle_pytorch(masks)
    for rle, array, mask in zip(ours, runs.to_arrays(), masks.numpy(), strict=True):
        np.testing.assert_array_equal(array, mask)
        np.testing.assert_array_equal(rle_to_mask(rle), mask)
        assert area_from_rle(rle) == mask.sum()
        np.testing.assert_array_equal(coco_decode_rle(coco_encode_rle(rle)), mask)
        assert coco_encode_rle(rle) == meta.utils.amg.coco_encode_rle(rle)


def test_runs_select_and_concatenate() -> None:
    masks = random_masks(8, 12, 9)
    first, second = MaskRuns.from_masks(masks[:3]), MaskRuns.from_masks(masks[3:])
    both = MaskRuns.concatenate([first, MaskRuns.empty((12, 9)), second])
    assert len(both) == 8
    order = torch.tensor([7, 0, 2, 2])
    for found, expected in zip(both.select(order).to_arrays(), masks[order].numpy(), strict=True):
        np.testing.assert_array_equal(found, expected)
    assert MaskRuns.empty((12, 9)).to_coco() == []


def test_work_ends_where_its_check_says_so(disc_models: tuple[Any, Sam]) -> None:
    """The check hears how many masks are held, and stops the work at any of its steps."""
    arguments = {**DISC_ARGUMENTS, "points_per_batch": 16, "min_mask_region_area": 4}
    generator = SamAutomaticMaskGenerator(disc_models[1], decoder=DiscDecoder(), **arguments)
    heard: list[tuple[int, int]] = []
    whole = generator.generate(PICTURE, lambda *held: heard.append(held))
    assert whole and heard[-1][0] == len(whole) and all(size >= 8 * n for n, size in heard)
    assert max(masks for masks, _ in heard) > len(whole)  # duplicates were held too
    for step in range(0, len(heard), len(heard) // 5):
        calls = 0

        def stop(masks: int, nbytes: int, step: int = step) -> None:
            nonlocal calls
            calls += 1
            if calls > step:
                raise InterruptedError

        with pytest.raises(InterruptedError):
            generator.generate(PICTURE, stop)
        assert calls == step + 1


def test_a_decoder_that_decodes_otherwise_is_what_decodes(models: tuple[Any, Sam]) -> None:
    class Sure(TorchDecoder):
        def all_masks(
            self, picture: EmbeddedPicture, prompts: Prompts
        ) -> tuple[torch.Tensor, torch.Tensor]:
            masks, scores = super().all_masks(picture, prompts)
            return masks, scores + 10

    sure = Sure(models[1].decoder)
    arguments = {"points_per_side": 2, "stability_score_thresh": 0.0, "pred_iou_thresh": 8.0}
    assert SamAutomaticMaskGenerator(models[1], **arguments).generate(PICTURE) == []
    records = SamAutomaticMaskGenerator(models[1], decoder=sure, **arguments).generate(PICTURE)
    assert records and all(record["predicted_iou"] > 8 for record in records)
