"""Encoders on several GPUs of one process; run where there are two."""

import threading

import pytest
import torch
from test_callers import CONFIG, HOPPER_CONFIG, PARAMETERS
from triton_kernels import ON_GPU

from samtrt.checkpoints.config import EncoderConfig
from samtrt.encoders.cuda import FusedImageEncoder
from samtrt.encoders.load import encoder_from_parameters
from samtrt.errors import InputError

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not ON_GPU or torch.cuda.device_count() < 2, reason="needs two GPUs"),
    pytest.mark.parametrize("config", [CONFIG, HOPPER_CONFIG], ids=["portable", "hopper"]),
]


def make(config: EncoderConfig, device: str) -> FusedImageEncoder:
    return FusedImageEncoder(config, PARAMETERS[config].encoder(), "fp16", device)


def picture(config: EncoderConfig, device: str) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(1, 3, config.img_size, config.img_size, generator=generator).to(device)


@pytest.mark.parametrize("current", [0, 1])
@pytest.mark.parametrize("order", [("cuda:0", "cuda:1"), ("cuda:1", "cuda:0")], ids=str)
def test_each_gpu_has_its_encoder(
    config: EncoderConfig, order: tuple[str, str], current: int
) -> None:
    """Whichever came first, whichever is current; and nothing of one is on the other."""
    with torch.cuda.device(current):
        encoders = {device: make(config, device) for device in order}
        outputs = {}
        for device in (*order, *order):
            output = encoders[device](picture(config, device))
            assert output.device == torch.device(device)
            if device in outputs:
                assert torch.equal(output, outputs[device])
            outputs[device] = output
        assert torch.cuda.current_device() == current
    torch.testing.assert_close(*(outputs[name].cpu() for name in order), rtol=0, atol=1e-2)


def test_a_picture_on_the_other_gpu_is_refused(config: EncoderConfig) -> None:
    encoder = make(config, "cuda:0")
    with pytest.raises(InputError, match=r"on cuda:0, and got .* on cuda:1") as error:
        encoder(picture(config, "cuda:1"))
    assert "\n" not in str(error.value)


def test_no_index_is_the_current_gpu_when_it_is_made(config: EncoderConfig) -> None:
    with torch.cuda.device(1):
        encoder = encoder_from_parameters(PARAMETERS[config])
    assert encoder.device == torch.device("cuda:1")
    expected = make(config, "cuda:1")(picture(config, "cuda:1"))
    assert torch.equal(encoder(picture(config, "cuda:1")), expected)


def test_the_callers_stream_is_of_the_encoders_gpu(config: EncoderConfig) -> None:
    encoder = make(config, "cuda:1")
    x = picture(config, "cuda:1")
    expected = encoder(x)
    stream = torch.cuda.Stream("cuda:1")
    torch.cuda.synchronize(1)
    for _ in range(20):
        with torch.cuda.stream(stream), torch.cuda.device(0):
            torch.cuda.current_stream(1)  # `stream`, with the other GPU the current one
            late = torch.zeros_like(x)
            with torch.cuda.device(1):
                torch.cuda._sleep(300_000)
            late.copy_(x)
            output = encoder(late)
        stream.synchronize()
        assert torch.equal(output, expected)


def test_threads_on_both_gpus(config: EncoderConfig) -> None:
    """First calls at once, then many."""
    expected = {name: make(config, name)(picture(config, name)) for name in ("cuda:0", "cuda:1")}
    problems: list[object] = []

    def work(name: str) -> None:
        try:
            encoder, x = make(config, name), picture(config, name)
            for _ in range(200):
                if not torch.equal(encoder(x), expected[name]):
                    problems.append(name)
        except BaseException as error:
            problems.append(error)

    threads = [threading.Thread(target=work, args=(name,)) for name in [*expected, *expected]]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not problems
