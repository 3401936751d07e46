"""SamPredictor against Meta's, by one script that runs on both packages with the same weights."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from oracle import meta_sam, tiny_config

from samtrt.checkpoints.parameters import random_parameters, save_parameters
from samtrt.decoders import upscaling
from samtrt.decoders.torch import TorchDecoder
from samtrt.encoders import accelerated
from samtrt.errors import CheckpointError, EngineError, InputError
from samtrt.masks.predictor import ImageNotSetError, SamPredictor
from samtrt.reports.peers import import_segment_anything
from samtrt.sam import Sam, load_sam, sam_from_parameters, sam_model_registry

CONFIG = tiny_config(img_size=256)


@pytest.fixture(scope="module")
def packages() -> list[tuple[Any, Any]]:
    """(predictor class, model) of Meta's package and of ours, same weights."""
    ours = sam_from_parameters(random_parameters(CONFIG, 3), device="cpu", precision="fp32")
    meta = import_segment_anything()
    return [(meta.SamPredictor, meta_sam(CONFIG, 3)), (SamPredictor, ours)]


@pytest.fixture(scope="module")
def model(packages: list[tuple[Any, Any]]) -> Sam:
    return packages[1][1]


def picture(seed: int, height: int = 150, width: int = 200) -> np.ndarray:
    """Smooth random colours: a picture whose resizing matters but does not ring."""
    rng = np.random.default_rng(seed)
    coarse = torch.from_numpy(rng.uniform(0, 255, (1, 3, 6, 8)))
    fine = torch.nn.functional.interpolate(coarse, (height, width), mode="bicubic")
    return fine[0].permute(1, 2, 0).clamp(0, 255).to(torch.uint8).numpy()


def iou(a: np.ndarray, b: np.ndarray) -> float:
    union = np.logical_or(a, b).sum()
    return 1.0 if union == 0 else np.logical_and(a, b).sum() / union


def assert_same(meta: Any, ours: Any) -> None:
    """Arrays of one shape and type; masks at an IoU of 0.995, numbers to 1e-3."""
    meta, ours = (
        [x.numpy() if isinstance(x, torch.Tensor) else x for x in found] for found in (meta, ours)
    )
    for expected, found in zip(meta, ours, strict=True):
        assert found.shape == expected.shape and found.dtype == expected.dtype
        if expected.dtype == bool:
            for a, b in zip(
                expected.reshape(-1, *expected.shape[-2:]),
                found.reshape(-1, *found.shape[-2:]),
                strict=True,
            ):
                assert iou(a, b) >= 0.995
        else:
            np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-3)


POINT = np.array([[60, 70]])
POINTS = np.array([[60, 70], [120.5, 30], [10, 140]])
LABELS = np.array([1, 0, 1])
BOX = np.array([20, 30, 160, 120])
BOXES = np.array([[20, 30, 160, 120], [0, 0, 60, 60], [100, 80, 199, 149]])


def one_point(predictor: Any) -> Any:
    return predictor.predict(point_coords=POINT, point_labels=LABELS[:1])


def one_point_one_mask(predictor: Any) -> Any:
    return predictor.predict(POINT, LABELS[:1], multimask_output=False)


def several_points(predictor: Any) -> Any:
    return predictor.predict(POINTS, LABELS)


def box(predictor: Any) -> Any:
    return predictor.predict(box=BOX, multimask_output=False)


def box_of_one_row(predictor: Any) -> Any:
    return predictor.predict(box=BOX[None])


def box_and_points(predictor: Any) -> Any:
    return predictor.predict(POINTS, LABELS, box=BOX)


def logits(predictor: Any) -> Any:
    return predictor.predict(POINT, LABELS[:1], return_logits=True)


def mask_input(predictor: Any) -> Any:
    _, _, low_res = predictor.predict(POINT, LABELS[:1], multimask_output=False)
    return predictor.predict(POINTS, LABELS, mask_input=low_res, multimask_output=False)


def mask_input_alone(predictor: Any) -> Any:
    _, _, low_res = predictor.predict(POINT, LABELS[:1], multimask_output=False)
    return predictor.predict(mask_input=low_res)


def nothing(predictor: Any) -> Any:
    return predictor.predict()


def batched_boxes(predictor: Any) -> Any:
    boxes = torch.as_tensor(BOXES, device=predictor.device)
    boxes = predictor.transform.apply_boxes_torch(boxes, (150, 200))
    return predictor.predict_torch(None, None, boxes, multimask_output=False)


def batched_points_and_boxes(predictor: Any) -> Any:
    boxes = predictor.transform.apply_boxes_torch(torch.as_tensor(BOXES), (150, 200))
    points = predictor.transform.apply_coords_torch(torch.as_tensor(POINTS), (150, 200))
    return predictor.predict_torch(points[:, None], torch.as_tensor(LABELS)[:, None], boxes)


def batched_masks(predictor: Any) -> Any:
    points = predictor.transform.apply_coords_torch(torch.as_tensor(POINTS), (150, 200))[:, None]
    labels = torch.as_tensor(LABELS)[:, None]
    _, _, low_res = predictor.predict_torch(points, labels, multimask_output=False)
    return predictor.predict_torch(points, labels, mask_input=low_res, return_logits=True)


def repeated_calls(predictor: Any) -> Any:
    first = one_point(predictor)
    box(predictor)
    again = one_point(predictor)
    return [*first, *again]


def embedding(predictor: Any) -> Any:
    return [predictor.get_image_embedding()]


def torch_image(predictor: Any) -> Any:
    resized = predictor.transform.apply_image(picture(5))
    predictor.set_torch_image(torch.as_tensor(resized).permute(2, 0, 1)[None], (150, 200))
    return several_points(predictor)


def bgr(predictor: Any) -> Any:
    predictor.set_image(picture(6)[..., ::-1], image_format="BGR")
    return one_point(predictor)


def portrait(predictor: Any) -> Any:
    predictor.set_image(picture(7, height=310, width=90))
    return box(predictor)


def no_points(predictor: Any) -> Any:
    return predictor.predict(np.zeros((0, 2)), np.zeros(0))


def one_mask_for_all_boxes(predictor: Any) -> Any:
    boxes = predictor.transform.apply_boxes_torch(torch.as_tensor(BOXES), (150, 200))
    _, _, low_res = predictor.predict(POINT, LABELS[:1], multimask_output=False)
    return predictor.predict_torch(None, None, boxes, mask_input=torch.as_tensor(low_res)[None])


def reversed_prompts(predictor: Any) -> Any:
    # Copied for Meta's, which takes no negative strides.
    coords, labels = POINTS[::-1], LABELS[::-1]
    if type(predictor) is not SamPredictor:
        coords, labels = coords.copy(), labels.copy()
    return predictor.predict(coords, labels)


def features_set_by_hand(predictor: Any) -> Any:
    kept = predictor.features.clone(), predictor.original_size, predictor.input_size
    predictor.set_image(picture(9, 80, 60))
    predictor.reset_image()
    predictor.features, predictor.original_size, predictor.input_size = kept
    predictor.is_image_set = True
    return several_points(predictor)


def views_of_pictures(predictor: Any) -> Any:
    image, found = picture(4), []
    for view in (
        image[..., ::-1], image[::-1], image[:, ::-1], image.transpose(1, 0, 2),
        np.asfortranarray(image), np.broadcast_to(image[:1], image.shape),
        np.repeat(image, 2, 1)[:, ::2],
    ):  # fmt: skip
        predictor.set_image(view)
        found += one_point(predictor)
    return found


SCRIPTS = [
    no_points, one_mask_for_all_boxes, reversed_prompts, features_set_by_hand, views_of_pictures,
    one_point, one_point_one_mask, several_points, box, box_of_one_row, box_and_points, logits,
    mask_input, mask_input_alone, nothing, batched_boxes, batched_points_and_boxes, batched_masks,
    repeated_calls, embedding, torch_image, bgr, portrait,
]  # fmt: skip


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.__name__)
def test_same_script_on_both_packages(
    packages: list[tuple[Any, Any]], script: Callable[[Any], Any]
) -> None:
    results = []
    for predictor_class, sam in packages:
        predictor = predictor_class(sam)
        predictor.set_image(picture(4))
        results.append(script(predictor))
    assert_same(*results)


def test_no_boxes_give_no_masks(model: Sam) -> None:
    predictor = SamPredictor(model)
    predictor.set_image(picture(4))
    for multimask, count in ((True, 3), (False, 1)):
        found = predictor.predict_torch(None, None, torch.zeros(0, 4), multimask_output=multimask)
        assert [tuple(x.shape) for x in found] == [
            (0, count, 150, 200), (0, count), (0, count, 64, 64)
        ]  # fmt: skip
        assert [x.dtype for x in found] == [torch.bool, torch.float32, torch.float32]


def test_tensors_given_to_predict_are_taken(model: Sam) -> None:
    predictor = SamPredictor(model)
    predictor.set_image(picture(4))
    expected = predictor.predict(POINTS, LABELS, BOX)
    found = predictor.predict(torch.tensor(POINTS), torch.tensor(LABELS), torch.tensor(BOX))
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_array_equal(a, b)


def test_another_decoder_is_passed_in(model: Sam) -> None:
    """Nobody overrides anything to have masks of another decoder."""
    asked = []

    class Recording(TorchDecoder):
        def __call__(self, *question: Any) -> Any:
            asked.append(question)
            return super().__call__(*question)

    predictor = SamPredictor(model, Recording(model.decoder))
    predictor.set_image(picture(4))
    found = one_point(predictor)
    ((embedded, prompts, multimask),) = asked
    assert embedded.features is predictor.features and len(prompts) == 1 and multimask
    plain = SamPredictor(model)
    plain.set_image(picture(4))
    for a, b in zip(found, one_point(plain), strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_picture_embedded_before_is_set(model: Sam) -> None:
    predictor = SamPredictor(model)
    predictor.set_image(picture(4))
    expected = one_point(predictor)
    other = SamPredictor(model)
    other.set_embedded_picture(model.embed(picture(4)))
    for a, b in zip(one_point(other), expected, strict=True):
        np.testing.assert_array_equal(a, b)
    smaller = sam_from_parameters(random_parameters(tiny_config(), 3), device="cpu")
    with pytest.raises(InputError, match="for 128² pixels and this one is for 256²"):
        other.set_embedded_picture(smaller.embed(picture(4)))
    assert other.is_image_set


def test_results_survive_the_next_call_and_the_next_picture(model: Sam) -> None:
    predictor = SamPredictor(model)
    predictor.set_image(picture(4))
    first = one_point(predictor)
    kept = [array.copy() for array in first]
    predictor.set_image(picture(5, 100, 80))
    assert box(predictor)[0].shape == (1, 100, 80)
    for a, b in zip(first, kept, strict=True):
        np.testing.assert_array_equal(a, b)
        assert a.flags.writeable


def test_model_attributes_that_programs_use(packages: list[tuple[Any, Any]]) -> None:
    def facts(predictor_class: Any, sam: Any) -> dict[str, Any]:
        predictor = predictor_class(sam)
        predictor.set_image(picture(4))
        found = {
            "device": predictor.device,
            "threshold": predictor.model.mask_threshold,
            "format": predictor.model.image_format,
            "size": predictor.model.image_encoder.img_size,
            "target": predictor.transform.target_length,
            "original_size": tuple(predictor.original_size),
            "input_size": tuple(predictor.input_size),
            "set": predictor.is_image_set,
            "same model": sam.to(device="cpu").eval() is sam,
        }
        predictor.reset_image()
        return {**found, "after reset": predictor.is_image_set, "features": predictor.features}

    meta, ours = packages
    assert facts(*ours) == facts(*meta)


def test_prompt_encoder_and_mask_decoder_are_called_as_metas(
    packages: list[tuple[Any, Any]],
) -> None:
    def decode(predictor_class: Any, sam: Any) -> Any:
        predictor = predictor_class(sam)
        predictor.set_image(picture(4))
        with torch.no_grad():
            sparse, dense = sam.prompt_encoder(
                points=(torch.tensor([[[60.0, 70.0]]]), torch.ones(1, 1)), boxes=None, masks=None
            )
            return sam.mask_decoder(
                image_embeddings=predictor.get_image_embedding(),
                image_pe=sam.prompt_encoder.get_dense_pe(),
                sparse_prompt_embeddings=sparse,
                dense_prompt_embeddings=dense,
                multimask_output=True,
            )

    meta, ours = packages
    assert_same(decode(*meta), decode(*ours))


def test_sam_called_directly_on_several_pictures(packages: list[tuple[Any, Any]]) -> None:
    def call(predictor_class: Any, sam: Any) -> list[Any]:
        transform = predictor_class(sam).transform
        records = []
        for seed, size in ((8, (150, 200)), (9, (180, 120))):
            resized = torch.as_tensor(transform.apply_image(picture(seed, *size)))
            records.append(
                {
                    "image": resized.permute(2, 0, 1).contiguous(),
                    "original_size": size,
                    "boxes": transform.apply_boxes_torch(torch.as_tensor(BOXES), size),
                }
            )
        points = transform.apply_coords_torch(torch.as_tensor(POINTS), (180, 120))[:, None]
        records[1] |= {"point_coords": points, "point_labels": torch.ones(3, 1)}
        outputs = sam(records, multimask_output=True)
        keys = ("masks", "iou_predictions", "low_res_logits")
        return [output[key] for output in outputs for key in keys]

    meta, ours = packages
    assert_same(call(*meta), call(*ours))


def test_second_picture_never_sees_the_first_ones_embedding(model: Sam) -> None:
    fresh = SamPredictor(model)
    fresh.set_image(picture(11))
    expected = one_point(fresh)

    used = SamPredictor(model)
    used.set_image(picture(10))
    first = one_point(used)
    held = used.get_image_embedding()
    before = held.clone()
    used.set_image(picture(11))
    for found, wanted in zip(one_point(used), expected, strict=True):
        np.testing.assert_array_equal(found, wanted)
    assert not np.array_equal(first[2], expected[2])
    assert torch.equal(held, before), "an embedding that was handed out was overwritten"


def test_a_picture_that_fails_leaves_none_set(model: Sam, monkeypatch: pytest.MonkeyPatch) -> None:
    predictor = SamPredictor(model)
    predictor.set_image(picture(4))

    def fail(*_: Any) -> None:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(type(model.image_encoder), "__call__", fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        predictor.set_image(picture(5))
    with pytest.raises(ImageNotSetError):
        predictor.predict(POINT, LABELS[:1])


def test_masks_of_many_boxes_are_cut_in_bounded_memory(
    model: Sam, monkeypatch: pytest.MonkeyPatch
) -> None:
    predictor = SamPredictor(model)
    predictor.set_image(picture(4))
    at_once = batched_boxes(predictor)
    sizes = []
    postprocess = upscaling.postprocess_masks

    def recording(masks: torch.Tensor, *sizes_: Any) -> torch.Tensor:
        sizes.append(len(masks))
        return postprocess(masks, *sizes_)

    monkeypatch.setattr(upscaling, "_LOGIT_BYTES", {"cpu": 2 * 4 * 256 * 256})
    monkeypatch.setattr(upscaling, "postprocess_masks", recording)
    in_parts = batched_boxes(predictor)
    assert sizes == [2, 1]
    for a, b in zip(at_once, in_parts, strict=True):
        assert torch.equal(a, b)
    sizes.clear()
    predictor.predict(POINT, LABELS[:1], return_logits=True)
    assert sizes == [2, 1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"point_coords": POINT}, "without point_labels"),
        ({"point_coords": POINTS, "point_labels": LABELS[:2]}, r"\[3, 2\] and point_labels \[2\]"),
        ({"point_coords": POINT[0], "point_labels": LABELS[:1]}, "do not fit"),
        ({"box": BOXES}, "predict_torch"),
    ],
)
def test_bad_prompts(model: Sam, arguments: dict[str, Any], message: str) -> None:
    predictor = SamPredictor(model)
    predictor.set_image(picture(4))
    with pytest.raises(InputError, match=message):
        predictor.predict(**arguments)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (picture(0).astype(np.float32), "float32"),
        (picture(0)[..., 0], r"\[150, 200\]"),
        (np.zeros((5, 5, 4), np.uint8), r"\[5, 5, 4\]"),
        (np.zeros((0, 5, 3), np.uint8), r"\[0, 5, 3\]"),
        ("picture.png", "a str"),
    ],
)
def test_bad_pictures(model: Sam, image: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        SamPredictor(model).set_image(image)


def test_what_needs_a_picture_says_so(model: Sam) -> None:
    predictor = SamPredictor(model)
    for call in (
        lambda: predictor.predict(POINT, LABELS[:1]),
        lambda: predictor.predict_torch(None, None),
        predictor.get_image_embedding,
        lambda: predictor.save_embedding("nowhere.safetensors"),
    ):
        # RuntimeError is what Meta's predictor raises.
        with pytest.raises(RuntimeError, match="set_image"):
            call()
    with pytest.raises(InputError, match="image_format"):
        predictor.set_image(picture(0), image_format="HSV")
    with pytest.raises(InputError, match="long side of 256"):
        predictor.set_torch_image(torch.zeros(1, 3, 100, 200), (100, 200))


def test_registry_reads_metas_checkpoint(
    packages: list[tuple[Any, Any]], tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    (meta_class, meta), _ = packages
    checkpoint = tmp_path / "sam.pth"
    torch.save(meta.state_dict(), checkpoint)
    made = []
    real = accelerated.encoder_from_tensors

    def recording(config: Any, tensors: Any, backend: str, device: Any, precision: str) -> Any:
        made.append((device.type, precision))
        return real(config, tensors, backend, device, precision)

    monkeypatch.setattr(accelerated, "encoder_from_tensors", recording)
    for name in ("default", "vit_b", "vit_l", "vit_h"):
        sam = sam_model_registry[name](checkpoint=checkpoint)
    sam.to(device="cpu")
    assert made == [], "the encoder is made before it is known where it will run"
    results = []
    for predictor in (meta_class(meta), SamPredictor(sam)):
        predictor.set_image(picture(4))
        results.append(one_point(predictor))
    assert_same(*results)
    assert made == [("cpu", "fp32")]


def test_load_sam_from_a_parameter_folder(tmp_path: Any, model: Sam) -> None:
    save_parameters(random_parameters(CONFIG, 3), tmp_path / "parameters")
    loaded = load_sam(tmp_path / "parameters", device="cpu", precision="fp32")
    results = []
    for sam in (model, loaded):
        predictor = SamPredictor(sam)
        predictor.set_image(picture(4))
        results.append(one_point(predictor))
    assert_same(*results)
    with pytest.raises(CheckpointError, match="parameter folder"):
        load_sam(tmp_path / "nothing")
    with pytest.raises(EngineError, match="decoder"):
        load_sam(tmp_path / "parameters", decoder=tmp_path / "parameters")
