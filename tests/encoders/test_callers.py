"""Whoever calls, from whichever thread, in whichever of torch's modes, gets the same embedding.

For the CPU's encoder and for the cuda one: in Triton's interpreter, or on a GPU where there is one.
"""

import contextlib
import copy
import multiprocessing
import os
import pickle
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

import pytest
import torch
from oracle import meta_encoder, relative_l2, tiny_config
from triton_kernels import DEVICE, ON_GPU

from samtrt.checkpoints.config import EncoderConfig
from samtrt.checkpoints.parameters import random_parameters
from samtrt.encoders.cpu import CpuImageEncoder
from samtrt.encoders.cuda import FusedImageEncoder
from samtrt.encoders.load import encoder_from_parameters
from samtrt.encoders.protocol import ImageEncoder
from samtrt.errors import EngineError, InputError

pytestmark = pytest.mark.usefixtures("one_thread")

# 2 × 2 tokens of small patches: Triton's interpreter takes each row of a patch for itself.
CONFIG = tiny_config(depth=2, img_size=16, patch_size=8, window_size=3, global_attn_indexes=(1,))
# Sizes that Hopper has kernels of its own for.
HOPPER_CONFIG = tiny_config(embed_dim=192, num_heads=3, depth=2, img_size=256, window_size=14)
PARAMETERS = {config: random_parameters(config, 5) for config in (CONFIG, HOPPER_CONFIG)}


def pictures(encoder: ImageEncoder, count: int = 1) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    side = encoder.img_size
    return torch.randn(3, 3, side, side, generator=generator)[:count].to(encoder.device)


def make_cpu() -> ImageEncoder:
    return CpuImageEncoder(CONFIG, PARAMETERS[CONFIG].encoder(), "fp32", max_batch_size=2)


def make_cuda(config: EncoderConfig = CONFIG) -> ImageEncoder:
    return FusedImageEncoder(config, PARAMETERS[config].encoder(), "fp16", DEVICE, max_batch_size=2)


def make_hopper() -> ImageEncoder:
    return make_cuda(HOPPER_CONFIG)


ALL = {
    "cpu": make_cpu,
    "cuda": make_cuda,
    "hopper": pytest.param(
        make_hopper,
        marks=[pytest.mark.gpu, pytest.mark.skipif(not ON_GPU, reason="no NVIDIA GPU")],
    ),
}
MAKERS = pytest.mark.parametrize("make", ALL.values(), ids=ALL.keys())


@contextlib.contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


@contextlib.contextmanager
def deterministic() -> Iterator[None]:
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


MODES: dict[str, Callable[[], AbstractContextManager[Any]]] = {
    "inference mode": torch.inference_mode,
    "no_grad": torch.no_grad,
    "gradients": torch.enable_grad,
    "autocast cpu bf16": lambda: torch.autocast("cpu", torch.bfloat16),
    "autocast cpu fp16": lambda: torch.autocast("cpu", torch.float16),
    "autocast cuda fp16": lambda: torch.autocast(DEVICE.type, torch.float16),
    "default float64": lambda: default_dtype(torch.float64),
    "default bfloat16": lambda: default_dtype(torch.bfloat16),
    "default float16": lambda: default_dtype(torch.float16),
    "default device meta": lambda: torch.device("meta"),
    "default device of the test": lambda: torch.device(DEVICE),
    "deterministic": deterministic,
    "anomaly": torch.autograd.detect_anomaly,
}


@pytest.fixture(scope="module", params=ALL.values(), ids=ALL.keys())
def made(request: pytest.FixtureRequest) -> tuple[Callable[[], ImageEncoder], ImageEncoder, Any]:
    """How to make an encoder, one that has made nothing of its caller's, and its embedding."""
    encoder = request.param()
    return request.param, encoder, encoder(pictures(encoder))


def test_the_embedding_is_metas(made: tuple[Any, ImageEncoder, torch.Tensor]) -> None:
    make, encoder, embedding = made
    config = HOPPER_CONFIG if make is make_hopper else CONFIG
    with torch.no_grad():
        expected = meta_encoder(config, seed=5)(pictures(encoder).cpu())
    assert relative_l2(embedding.cpu(), expected) < 5e-3


@pytest.mark.filterwarnings("ignore:.*Anomaly Detection:UserWarning")
@pytest.mark.parametrize("mode", MODES)
def test_modes_change_nothing(
    mode: str, made: tuple[Callable[[], ImageEncoder], ImageEncoder, torch.Tensor]
) -> None:
    make, plain, expected = made
    x = pictures(plain)
    with MODES[mode]():
        inside = make()
        outputs = [inside(x), plain(x)]
    outputs.append(inside(x))  # buffers made inside serve outside
    for output in outputs:
        assert output.dtype == torch.float32 and output.device == plain.device
        assert torch.equal(output, expected)
        assert not output.is_inference() and not output.requires_grad
        output += 1  # the caller's own
    assert torch.equal(plain(x), expected)


@MAKERS
def test_pictures_may_be_of_any_kind(make: Callable[[], ImageEncoder]) -> None:
    encoder = make()
    x = pictures(encoder, 2)
    expected = encoder(x)
    with torch.inference_mode():
        inference = x.clone()
    strided = torch.stack([x, x], -1)[..., 0]
    channels_last = x.contiguous(memory_format=torch.channels_last)
    for picture in (inference, strided, channels_last, x.clone().requires_grad_()):
        assert torch.equal(encoder(picture), expected)


@MAKERS
def test_the_users_random_numbers_are_untouched(make: Callable[[], ImageEncoder]) -> None:
    torch.manual_seed(3)
    expected = torch.rand(4), torch.rand(4, device=DEVICE)
    torch.manual_seed(3)
    encoder = make()
    encoder(pictures(encoder))
    found = torch.rand(4), torch.rand(4, device=DEVICE)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@MAKERS
def test_threads_get_their_own_embeddings(make: Callable[[], ImageEncoder]) -> None:
    """Also in their first calls, at once; on a GPU each on a stream of its own."""
    reference = make()
    inputs = pictures(reference, 3).split(1)
    expected = [reference(x) for x in inputs]
    if ON_GPU:
        torch.cuda.synchronize()  # the threads' streams do not wait for the pictures
    encoder = make()
    start = threading.Barrier(3)
    wrong: list[object] = []

    def work(index: int) -> None:
        try:
            stream: AbstractContextManager[Any] = contextlib.nullcontext()
            if DEVICE.type == "cuda":
                stream = torch.cuda.stream(torch.cuda.Stream(DEVICE))
            with stream:
                start.wait(30)
                for _ in range(1 if DEVICE.type == "cpu" else 200):
                    if not torch.equal(encoder(inputs[index]), expected[index]):
                        wrong.append(index)
        except BaseException as error:
            wrong.append(error)

    threads = [threading.Thread(target=work, args=(index,)) for index in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@MAKERS
def test_parameters_take_any_number_of_pictures(make: Callable[[], ImageEncoder]) -> None:
    """As Meta's module does; an engine was built for a largest batch and keeps to it."""
    limited = make()
    config = HOPPER_CONFIG if make is make_hopper else CONFIG
    if make is not make_cpu and not ON_GPU:
        encoder: ImageEncoder = FusedImageEncoder(  # `load` knows no interpreter
            *(config, PARAMETERS[config].encoder(), "fp16", DEVICE),
            max_batch_size=2,
            any_batch_size=True,
        )
    else:
        precision = "fp32" if make is make_cpu else "fp16"
        encoder = encoder_from_parameters(
            PARAMETERS[config], "auto", limited.device, precision, max_batch_size=2
        )
    x = pictures(encoder, 3)
    assert torch.equal(encoder(x), torch.cat([limited(part) for part in x.split(2)]))
    with pytest.raises(InputError, match=rf"\[1…2, 3, {config.img_size}, {config.img_size}\]"):
        limited(x)
    with pytest.raises(InputError, match=r"\[1…, 3, "):
        encoder(x[:0])


def test_the_callers_tensors_are_not_kept() -> None:
    """Parameters that a caller goes on to train do not change the encoder by half."""
    parameters = PARAMETERS[CONFIG].encoder()
    tensors = {name: torch.tensor(value, device=DEVICE) for name, value in parameters.items()}
    encoder = FusedImageEncoder(CONFIG, tensors, device=DEVICE)
    x = pictures(encoder)
    expected = encoder(x)
    for tensor in tensors.values():
        tensor.zero_()
    assert torch.equal(encoder(x), expected)


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, pickle.dumps])
def test_an_encoder_of_a_gpu_is_not_copied(copied: Callable[[object], object]) -> None:
    with pytest.raises(EngineError, match="FusedImageEncoder holds a GPU's memory") as error:
        copied(make_cuda())
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda e: pickle.loads(pickle.dumps(e))])
def test_the_cpus_encoder_is_copied(copied: Callable[[ImageEncoder], ImageEncoder]) -> None:
    encoder = make_cpu()
    x = pictures(encoder, 2)
    assert torch.equal(copied(encoder)(x), encoder(x))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_in_a_forked_process_it_says_so() -> None:
    encoder = make_cuda()
    x = pictures(encoder)
    encoder(x)
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(False)

    def child() -> None:
        try:
            encoder(x)
            sender.send("no error")
        except Exception as error:
            sender.send(f"{type(error).__name__}: {error}")
        os._exit(0)  # (pytest's own teardown is the parent's)

    process = context.Process(target=child)
    process.start()
    assert receiver.poll(60)
    message = receiver.recv()
    process.join()
    assert message.startswith("EngineError: this image encoder was made before the process was")
    assert "spawn" in message and "\n" not in message
