"""The decoder of half precision: near fp32, never stale, one answer for every thread and stream."""

import copy
import pickle
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from oracle import tiny_config

from samtrt.checkpoints.parameters import random_parameters
from samtrt.decoders.graphed import GraphedDecoder, _Watch, batches
from samtrt.decoders.prompts import Prompts
from samtrt.decoders.torch import TorchDecoder
from samtrt.encoders.embedded import EmbeddedPicture
from samtrt.modeling.prompted_decoder import PromptedMaskDecoder, build_mask_decoder

pytestmark = pytest.mark.usefixtures("one_thread")

CONFIG = tiny_config()
DTYPES = {"cpu": torch.float32, "cuda": torch.float16}  # a CPU takes its time in fp16
GPU = pytest.mark.gpu
DEVICES = [
    "cpu",
    pytest.param(
        "cuda",
        marks=[GPU, pytest.mark.skipif(not torch.cuda.is_available(), reason="no NVIDIA GPU here")],
    ),
]


def make_module(device: str = "cpu", seed: int = 0) -> PromptedMaskDecoder:
    return build_mask_decoder(random_parameters(CONFIG, seed).decoder(), CONFIG).to(device)


def embedded(seed: int = 0) -> EmbeddedPicture:
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(1, 256, CONFIG.grid_size, CONFIG.grid_size, generator=generator)
    return EmbeddedPicture(features, (96, 128), (96, 128), CONFIG.img_size)


def clicks(count: int, points: int = 1, mask: bool = False, seed: int = 1) -> Prompts:
    generator = torch.Generator().manual_seed(seed)
    coords = 128 * torch.rand(count, points, 2, generator=generator)
    side = 4 * CONFIG.grid_size
    masks = torch.randn(count, 1, side, side, generator=generator) if mask else None
    labels = torch.ones(count, points)
    return Prompts.from_tensors(embedded(), coords, labels, mask_input=masks)


def assert_near(found: Any, expected: Any) -> None:
    """What half precision loses, and no more."""
    masks, scores = (x.cpu() for x in found)
    wanted, wanted_scores = (x.cpu() for x in expected)
    assert masks.dtype == torch.float32 and masks.shape == wanted.shape
    assert (masks - wanted).norm() <= 5e-3 * wanted.norm()
    assert (scores - wanted_scores).abs().max() <= 0.02
    inter = ((masks > 0) & (wanted > 0)).sum()
    assert inter / ((masks > 0) | (wanted > 0)).sum() >= 0.99


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("count", [1, 3, 32, 100])
@pytest.mark.parametrize("mask", [False, True])
def test_half_precision_stays_close(device: str, count: int, mask: bool) -> None:
    if device == "cpu" and count > 3:
        pytest.skip("minutes on a CPU, which has no fast fp16")
    decoder = GraphedDecoder(make_module(device))
    expected = TorchDecoder(make_module())
    for points in (1, 2):
        question = embedded(), clicks(count, points, mask)
        for multimask in (True, False):
            found = decoder(*question, multimask)
            assert found[0].device.type == device
            assert_near(found, expected(*question, multimask))


def test_batches_hold_all_prompts_and_waste_little() -> None:
    assert batches(100) == [64, 32, 4] and batches(63) == [64] and batches(0) == []
    for count in range(1, 200):
        sizes = batches(count)
        assert sum(sizes[:-1]) < count <= sum(sizes) <= 4 * count / 3
        assert all(size & (size - 1) == 0 and size <= 64 for size in sizes)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(
    "change",
    [
        lambda module: module.mask_decoder.iou_token.weight.data.mul_(2),
        lambda module: module.prompt_encoder.point_embeddings[1].weight.data.add_(1),
        lambda module: module.prompt_encoder.pe_layer.positional_encoding_gaussian_matrix.mul_(0.5),
        lambda module: module.load_state_dict(make_module(seed=5).state_dict()),
        lambda module: module.mask_decoder.load_state_dict(
            make_module(
                str(module.mask_decoder.iou_token.weight.device), 5
            ).mask_decoder.state_dict(),
            assign=True,
        ),
        lambda module: setattr(
            module.mask_decoder,
            "iou_prediction_head",
            make_module(
                str(module.mask_decoder.iou_token.weight.device), 5
            ).mask_decoder.iou_prediction_head,
        ),
    ],
    ids=["in place", "prompt encoder", "buffer", "load_state_dict", "assign", "child replaced"],
)
def test_changed_parameters_are_seen(
    device: str, change: Callable[[PromptedMaskDecoder], Any]
) -> None:
    module = make_module(device)
    decoder = GraphedDecoder(module)
    question = embedded(), clicks(2), True
    before = decoder(*question)
    with torch.no_grad():
        change(module)
    after = decoder(*question)
    assert max(float((a - b).abs().max()) for a, b in zip(after, before, strict=True)) > 0.01
    assert_near(after, TorchDecoder(module)(*question))


@pytest.mark.parametrize("is_current", [True, False])
def test_a_copy_that_fails_is_made_again_where_it_is_out_of_date(
    is_current: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoder = GraphedDecoder(make_module(), torch.float32)
    question = embedded(), clicks(1), True
    expected = decoder(*question)
    copied: Any = decoder._copy
    error = RuntimeError("sizes differ")
    monkeypatch.setattr(copied, "decode", lambda *given: (_ for _ in ()).throw(error))
    monkeypatch.setattr(copied, "is_current", lambda: is_current)
    if is_current:
        with pytest.raises(RuntimeError, match="sizes differ"):
            decoder(*question)
        return
    for found, wanted in zip(decoder(*question), expected, strict=True):
        assert torch.equal(found, wanted)
    assert decoder._copy is not copied


def test_the_watch_is_quiet_while_nothing_changes() -> None:
    module = make_module()
    watch = _Watch(module)
    TorchDecoder(module)(embedded(), clicks(2), True)
    assert watch.is_unchanged()


def test_a_parameter_that_was_not_there_is_seen() -> None:
    module = make_module()
    projection: Any = module.mask_decoder.transformer.final_attn_token_to_image.q_proj
    bias, projection.bias = projection.bias, None
    watch = _Watch(module)
    assert watch.is_unchanged()
    projection.bias = bias
    assert not watch.is_unchanged()


@pytest.mark.parametrize("device", DEVICES)
def test_threads_and_streams_get_their_own_answers(device: str) -> None:
    decoder = GraphedDecoder(make_module(device), DTYPES[device])
    questions = [(embedded(seed), clicks(1 + seed % 3, seed=seed), True) for seed in range(6)]
    expected = [[x.cpu() for x in decoder(*question)] for question in questions]
    barrier = threading.Barrier(6)
    turns, tolerance = (10, 0.0) if device == "cuda" else (2, 1e-4)

    def ask(index: int) -> None:
        stream = torch.cuda.Stream() if device == "cuda" else None
        barrier.wait()
        for turn in range(turns):
            which = (index + turn) % len(questions)
            if stream is None:
                found = decoder(*questions[which])
            else:
                with torch.cuda.stream(stream):
                    found = decoder(*questions[which])
                stream.synchronize()
            for a, b in zip(found, expected[which], strict=True):
                # On a CPU the number of threads, and so the order of sums, is the caller's.
                torch.testing.assert_close(a.cpu(), b, rtol=0, atol=tolerance)

    with ThreadPoolExecutor(6) as threads:
        list(threads.map(ask, range(6)))


@pytest.mark.parametrize("device", DEVICES)
def test_answers_are_the_callers_own(device: str) -> None:
    decoder = GraphedDecoder(make_module(device))
    first = decoder(embedded(1), clicks(2), True)
    kept = [x.clone() for x in first]
    decoder(embedded(2), clicks(2, seed=7), True)
    for a, b in zip(first, kept, strict=True):
        assert torch.equal(a, b)


@contextmanager
def deterministic() -> Iterator[None]:
    torch.use_deterministic_algorithms(True)
    try:
        yield
        assert torch.are_deterministic_algorithms_enabled()
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("device", DEVICES)
def test_torchs_settings_change_nothing(device: str) -> None:
    dtype = DTYPES[device]
    decoder = GraphedDecoder(make_module(device), dtype)
    question = embedded(), clicks(2), True
    expected = decoder(*question)
    state = torch.get_rng_state()
    makers: list[Callable[[], Any]] = [
        torch.inference_mode,
        torch.enable_grad,
        lambda: torch.autocast(device, torch.bfloat16),
        deterministic,
    ]
    for make in makers:
        for fresh in (GraphedDecoder(make_module(device), dtype), decoder):
            with make():
                inside = fresh(*question)
            outside = fresh(*question)  # buffers made inside are used outside
            for found in (inside, outside):
                assert not found[0].is_inference() and not found[0].requires_grad
                for a, b in zip(found, expected, strict=True):
                    assert torch.equal(a, b)
    assert torch.equal(torch.get_rng_state(), state)


def test_copies_and_pickles_make_graphs_of_their_own() -> None:
    decoder = GraphedDecoder(make_module())
    question = embedded(), clicks(2), True
    expected = decoder(*question)
    for other in (copy.deepcopy(decoder), pickle.loads(pickle.dumps(decoder))):
        assert other._copy is None and other.module is not decoder.module
        for a, b in zip(other(*question), expected, strict=True):
            np.testing.assert_array_equal(a, b)


@GPU
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no NVIDIA GPU here")
def test_released_memory_is_free() -> None:
    module = make_module("cuda")
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    decoder = GraphedDecoder(module)
    for count in (1, 64):
        decoder(embedded(), clicks(count), True)
    assert torch.cuda.memory_allocated() > before + (1 << 20)
    decoder.release()
    torch.cuda.synchronize()
    assert torch.cuda.memory_allocated() - before < 1 << 20
