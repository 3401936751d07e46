"""The model as one object: made once, moved, copied, sent to another process."""

import copy
import io
import multiprocessing
import pickle
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from oracle import meta_sam, tiny_config

import samtrt
from samtrt.checkpoints.parameters import random_parameters
from samtrt.encoders.load import encoder_from_parameters
from samtrt.encoders.modules import LazyImageEncoder
from samtrt.errors import EngineError, InputError
from samtrt.masks.automatic import SamAutomaticMaskGenerator
from samtrt.masks.predictor import SamPredictor
from samtrt.sam import Sam, sam_from_parameters

CONFIG = tiny_config()
PICTURE = np.random.default_rng(0).integers(0, 256, (90, 120, 3), dtype=np.uint8)
POINT, LABEL = np.array([[40, 50]]), np.array([1])


def make_sam(seed: int = 3) -> Sam:
    parameters = random_parameters(CONFIG, seed)
    return sam_from_parameters(parameters, device="cpu", precision="fp32")


@pytest.fixture
def sam() -> Sam:
    return make_sam()


def answer(predictor: SamPredictor) -> tuple[np.ndarray, ...]:
    return predictor.predict(POINT, LABEL)


def ready(sam: Sam, **options: Any) -> SamPredictor:
    predictor = SamPredictor(sam, **options)
    predictor.set_image(PICTURE)
    return predictor


def assert_same(found: Any, expected: Any) -> None:
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_array_equal(a, b)


def test_threads_that_ask_first_share_one_encoder() -> None:
    parameters = random_parameters(CONFIG, 3)
    made = []

    def make(device: torch.device) -> Any:
        encoder = encoder_from_parameters(parameters, device="cpu", precision="fp32")
        made.append(encoder)
        return encoder

    sam = make_sam()
    sam.image_encoder = LazyImageEncoder(make, CONFIG.img_size)
    barrier = threading.Barrier(8)

    def ask(_: int) -> Any:
        barrier.wait()
        return sam.image_encoder.encoder

    with ThreadPoolExecutor(8) as threads:
        found = list(threads.map(ask, range(8)))
    assert len(made) == 1 and all(encoder is made[0] for encoder in found)


def test_a_predictor_a_thread_on_one_model(sam: Sam) -> None:
    pictures = [np.roll(PICTURE, 17 * i, axis=1) for i in range(6)]

    def one(index: int) -> np.ndarray:
        predictor = SamPredictor(sam)
        predictor.set_image(pictures[index % 6])
        return answer(predictor)[2]

    expected = [one(index) for index in range(6)]
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        with ThreadPoolExecutor(6) as threads:
            found = list(threads.map(one, range(18)))
    finally:
        sys.setswitchinterval(interval)
    for index, logits in enumerate(found):
        np.testing.assert_allclose(logits, expected[index % 6], atol=1e-4)


def test_encoder_and_graphs_go_where_the_model_goes(sam: Sam) -> None:
    assert sam.computed_by  # made when it is asked for
    half = sam.get_decoder("fp16")
    half(sam.embed(PICTURE), ready(sam)._picture() and _prompts(sam), True)
    assert half._copy is not None  # type: ignore[attr-defined]
    assert sam.to("cpu") is sam and sam.image_encoder._encoder is not None  # nothing has moved
    sam._apply(lambda tensor: tensor.to("meta"))
    assert sam.image_encoder._encoder is None and half._copy is None  # type: ignore[attr-defined]


def _prompts(sam: Sam) -> Any:
    from samtrt.decoders.prompts import Prompts

    return Prompts.from_arrays(sam.embed(PICTURE), POINT, LABEL)


def test_a_model_of_half_precision_still_answers(sam: Sam) -> None:
    expected = answer(ready(sam))
    found = answer(ready(sam.half()))
    assert sam.prompt_encoder.no_mask_embed.weight.dtype == torch.float16
    assert found[2].dtype == np.float32
    assert np.linalg.norm(found[2] - expected[2]) < 0.02 * np.linalg.norm(expected[2])


def test_decoders_are_shared(sam: Sam) -> None:
    first, second = (
        SamPredictor(sam, decoder_precision="fp16"),
        SamPredictor(sam, decoder_precision="fp16"),
    )
    generators = [SamAutomaticMaskGenerator(sam, decoder_precision="fp16") for _ in range(3)]
    assert first.decoder is second.decoder
    assert all(generator.predictor.decoder is first.decoder for generator in generators)
    with pytest.raises(InputError, match="decoder_precision is 'fp8'"):
        SamPredictor(sam, decoder_precision="fp8")
    with pytest.raises(InputError, match="leave one out"):
        SamPredictor(sam, first.decoder, "fp16")


@pytest.mark.parametrize("precision", ["auto", "fp16"])
def test_changed_decoder_weights_are_seen(sam: Sam, precision: str) -> None:
    predictor = ready(sam, decoder_precision=precision)
    before = answer(predictor)
    sam.load_state_dict(make_sam(5).state_dict())
    expected = answer(ready(make_sam(5)))
    predictor.set_image(PICTURE)
    found = predictor.predict(POINT, LABEL, return_logits=True)
    # The encoder keeps its parameters, so that only the decoder is another.
    other = make_sam(3)
    other.load_state_dict(make_sam(5).state_dict())
    wanted = ready(other).predict(POINT, LABEL, return_logits=True)
    scale = np.abs(wanted[2]).max()
    assert np.abs(found[2] - wanted[2]).max() < 0.02 * scale
    assert np.abs(found[2] - before[2]).max() > 0.1 * scale
    assert expected[2].shape == found[2].shape


@pytest.mark.parametrize("duplicate", ["deepcopy", "pickle", "torch.save"])
def test_copies_answer_alike_and_are_their_own(sam: Sam, duplicate: str) -> None:
    predictor = ready(sam)
    expected = answer(predictor)
    answer(ready(sam, decoder_precision="fp16"))  # graphs are no part of a copy
    if duplicate == "deepcopy":
        other = copy.deepcopy(predictor)
    elif duplicate == "pickle":
        other = pickle.loads(pickle.dumps(predictor))
    else:
        buffer = io.BytesIO()
        torch.save(predictor, buffer)
        buffer.seek(0)
        other = torch.load(buffer, weights_only=False)
    assert_same(answer(other), expected)
    assert other.model is not sam
    other.set_image(PICTURE)
    assert_same(answer(other), expected)
    with torch.no_grad():
        other.model.mask_decoder.iou_token.weight.mul_(3)
    assert_same(answer(predictor), expected)


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@contextmanager
def default_device(device: str) -> Iterator[None]:
    torch.set_default_device(device)
    try:
        yield
    finally:
        torch.set_default_device(None)


@contextmanager
def deterministic() -> Iterator[None]:
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


STATES: dict[str, Callable[[], Any]] = {
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "inference mode": torch.inference_mode,
    "no grad": torch.no_grad,
    "float64": lambda: default_dtype(torch.float64),
    "bfloat16": lambda: default_dtype(torch.bfloat16),
    "meta": lambda: default_device("meta"),
    "deterministic": deterministic,
    "anomalies": torch.autograd.detect_anomaly,
}


@pytest.mark.filterwarnings("ignore:Anomaly Detection")
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("state", STATES)
def test_torchs_settings_change_nothing(state: str, precision: str) -> None:
    """Whatever is made, embedded or decoded within the setting, and used within or outside."""
    options = {"decoder_precision": precision}
    plain = ready(make_sam(), **options)
    expected = answer(plain)
    everything = {
        "points_per_side": 2,
        "pred_iou_thresh": 0.0,
        "stability_score_thresh": 0.0,
        "box_nms_thresh": 1.0,
    }
    records = SamAutomaticMaskGenerator(plain.model, **everything, **options).generate(PICTURE)
    torch.manual_seed(7)
    random_state = torch.get_rng_state()
    with STATES[state]():
        inside = ready(make_sam(), **options)
        assert_same(answer(inside), expected)
        assert inside.features.dtype == torch.float32
        assert_same(answer(plain), expected)
        generator = SamAutomaticMaskGenerator(inside.model, **everything, **options)
        found = generator.generate(PICTURE)
        batch = inside.predict_torch(None, None, torch.tensor([[5.0, 5, 60, 60]], device="cpu"))
        assert batch[2].dtype == torch.float32
    assert_same(answer(inside), expected)
    inside.set_image(PICTURE)
    assert_same(answer(inside), expected)
    assert len(found) == len(records) > 1
    for a, b in zip(found, records, strict=True):
        np.testing.assert_array_equal(a["segmentation"], b["segmentation"])
        assert a["predicted_iou"] == b["predicted_iou"]
    assert torch.equal(torch.get_rng_state(), random_state)
    weight = torch.ones(1, requires_grad=True)
    (plain.get_image_embedding() * weight).sum().backward()
    assert weight.grad is not None


def test_a_forked_process_is_told_to_spawn(sam: Sam, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "_is_in_bad_fork", lambda: True)
    assert ready(sam).is_image_set  # the CPU does not mind
    monkeypatch.setattr(Sam, "device", property(lambda _: torch.device("cuda")))
    for use in (lambda: sam.embed(PICTURE), sam.get_decoder):
        with pytest.raises(EngineError, match=r"forked from one that uses CUDA.*spawn"):
            use()


def spawned(predictor: SamPredictor, queue: Any) -> None:
    predictor.set_image(PICTURE)
    queue.put(answer(predictor))


def test_spawned_processes_take_a_predictor(sam: Sam) -> None:
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    process = context.Process(target=spawned, args=(SamPredictor(sam), queue))
    process.start()
    found = queue.get(timeout=120)
    process.join()
    for a, b in zip(found, answer(ready(sam)), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4)


def test_names_that_programs_of_segment_anything_use(sam: Sam) -> None:
    theirs = meta_sam(CONFIG, 3)
    assert torch.equal(sam.pixel_mean, theirs.pixel_mean)
    assert torch.equal(sam.pixel_std, theirs.pixel_std)
    for name in ("build_sam", "build_sam_vit_h", "build_sam_vit_l", "build_sam_vit_b"):
        assert callable(getattr(samtrt, name)) and name in samtrt.__all__


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"original_size": None}, "no original_size"),
        ({"image": torch.zeros(3, 50, 60)}, "long side of 128"),
        ({"image": torch.zeros(1, 96, 128)}, r"\[1, 3, h, w\]"),
        ({"point_coords": torch.zeros(2, 1, 2)}, "without point_labels"),
        (
            {"point_coords": torch.zeros(2, 1, 2), "point_labels": torch.ones(1, 1)},
            "do not fit",
        ),
        ({"mask_inputs": torch.zeros(1, 1, 8, 8)}, "mask_input has shape"),
    ],
)
def test_what_sam_itself_refuses(sam: Sam, change: dict[str, Any], message: str) -> None:
    record = {"image": torch.zeros(3, 96, 128), "original_size": (90, 120), **change}
    record = {name: value for name, value in record.items() if value is not None}
    with pytest.raises(InputError, match=message):
        sam([record], multimask_output=True)
