"""``samtrt.accelerate`` on Meta's own modules, and on what others make of them."""

import copy
import gc
import logging
import pickle
import threading
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from oracle import meta_encoder, meta_sam, relative_l2, tiny_config
from torch import Tensor, nn

import samtrt
from samtrt.encoders import accelerated
from samtrt.encoders.accelerated import acceleration_of
from samtrt.errors import InputError
from samtrt.reports.peers import import_segment_anything

pytestmark = pytest.mark.usefixtures("one_thread")

CONFIG = tiny_config()


def images(batch: int = 1, seed: int = 1) -> Tensor:
    side = CONFIG.img_size
    return torch.randn(batch, 3, side, side, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def encoder() -> Any:
    return samtrt.accelerate(meta_encoder(CONFIG))


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many pictures the runtime has computed, call by call."""
    calls: list[int] = []
    make = accelerated.encoder_from_tensors

    def recording(*arguments: Any) -> Any:
        runtime = make(*arguments)

        class Counting:
            img_size, device, computed_by = runtime.img_size, runtime.device, runtime.computed_by

            def __call__(self, x: Tensor) -> Tensor:
                calls.append(len(x))
                return runtime(x)

        return Counting()

    monkeypatch.setattr(accelerated, "encoder_from_tensors", recording)
    return calls


@torch.no_grad()
def assert_computes(encoder: Any, reference: Any, bound: float = 1e-5) -> None:
    x = images(2)
    assert relative_l2(encoder(x), reference(x)) <= bound


def test_the_runtime_computes_and_all_else_stays(computed: list[int]) -> None:
    sam, reference = meta_sam(CONFIG, 0), meta_encoder(CONFIG)
    decoder, kind = sam.mask_decoder, type(sam.image_encoder)
    own = list(sam.state_dict().items())
    assert samtrt.accelerate(sam) is sam
    assert isinstance(sam.image_encoder, kind) and sam.mask_decoder is decoder
    assert repr(sam.image_encoder) == repr(reference)
    for (name, before), (other, now) in zip(own, sam.state_dict().items(), strict=True):
        assert name == other and torch.equal(before, now)
    assert_computes(sam.image_encoder, reference)
    assert computed == [1, 2]  # the first picture once more, beside the own code's
    predictor = import_segment_anything().SamPredictor(sam)
    predictor.set_image(torch.zeros(50, 60, 3, dtype=torch.uint8).numpy())
    assert computed == [1, 2, 1]


def test_restore_undoes_it(encoder: Any, computed: list[int]) -> None:
    fresh = meta_encoder(CONFIG)
    names = set(fresh.__dict__)
    assert samtrt.restore(encoder) is encoder
    assert type(encoder) is type(fresh) and set(encoder.__dict__) == names
    assert_computes(encoder, fresh, 0.0)
    assert computed == []
    assert samtrt.restore(fresh) is fresh


def in_place(encoder: Any) -> None:
    with torch.no_grad():
        encoder.blocks[0].attn.proj.weight.mul_(2)


def by_data(encoder: Any) -> None:
    encoder.blocks[1].mlp.lin2.weight.data[3, 5] += 4


def by_data_small(encoder: Any) -> None:
    encoder.neck[1].weight.data.neg_()


def data_replaced(encoder: Any) -> None:
    encoder.pos_embed.data = encoder.pos_embed.data.flip(1)


def parameter_replaced(encoder: Any) -> None:
    encoder.patch_embed.proj.bias = nn.Parameter(torch.ones(CONFIG.embed_dim))


def loaded(encoder: Any) -> None:
    encoder.load_state_dict(meta_encoder(CONFIG, 9).state_dict())


def assigned(encoder: Any) -> None:
    encoder.load_state_dict(meta_encoder(CONFIG, 9).state_dict(), assign=True)


def layer_replaced(encoder: Any) -> None:
    encoder.neck[2] = meta_encoder(CONFIG, 4).neck[2]


def blocks_dropped(encoder: Any) -> None:
    encoder.blocks = encoder.blocks[:2]


def window_changed(encoder: Any) -> None:
    for block in encoder.blocks:
        block.window_size = 4 if block.window_size else 0


SEEN = [
    in_place, by_data, by_data_small, data_replaced, parameter_replaced, loaded, assigned,
    layer_replaced, blocks_dropped, window_changed,
]  # fmt: skip


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("change", SEEN, ids=lambda change: change.__name__)
def test_changes_are_seen_and_the_runtime_goes_on(
    change: Callable[[Any], None], precision: str, computed: list[int]
) -> None:
    """In bf16 the runtime has a copy of the parameters."""
    encoder = samtrt.accelerate(meta_encoder(CONFIG), precision)
    reference = meta_encoder(CONFIG)
    bound = 1e-5 if precision == "fp32" else 0.03
    assert_computes(encoder, reference, bound)
    with torch.no_grad():
        before = reference(images(2))
    for module in (encoder, reference):
        change(module)
    calls = len(computed)
    assert_computes(encoder, reference, bound)
    assert len(computed) > calls
    with torch.no_grad():
        assert relative_l2(reference(images(2)), before) > 2 * bound


class Adapted(nn.Module):
    """A layer wrapped by one more."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer
        self.scale = nn.Parameter(torch.tensor(1.5))

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * self.layer(x)


def lora(encoder: Any) -> None:
    encoder.blocks[1].attn.qkv = Adapted(encoder.blocks[1].attn.qkv)


def hook(encoder: Any) -> None:
    encoder.blocks[1].mlp.register_forward_hook(lambda module, given, found: 3 * found)


def pre_hook(encoder: Any) -> None:
    encoder.blocks[1].norm1.register_forward_pre_hook(lambda module, given: (3 * given[0],))


def own_forward(encoder: Any) -> None:
    layer = encoder.blocks[2].mlp.lin1
    forward = layer.forward
    layer.forward = lambda x: 2 * forward(x)


def own_activation(encoder: Any) -> None:
    encoder.blocks[0].mlp.act = nn.ReLU()


def tanh_activation(encoder: Any) -> None:
    encoder.blocks[0].mlp.act = nn.GELU(approximate="tanh")


def adapter(encoder: Any) -> None:
    encoder.blocks[2].attn.extra = nn.Parameter(torch.ones(3))


def dilated(encoder: Any) -> None:
    encoder.neck[2].dilation = (2, 2)
    encoder.neck[2].padding = (2, 2)


OWN = {
    lora: r"blocks\.1\.attn\.qkv is a Adapted, expected torch's Linear",
    hook: r"blocks\.1\.mlp has a hook",
    pre_hook: r"blocks\.1\.norm1 has a hook",
    own_forward: r"blocks\.2\.mlp\.lin1 has a hook, or a forward",
    own_activation: r"blocks\.0\.mlp\.act is a ReLU, which computes something else",
    tanh_activation: r"blocks\.0\.mlp\.act is a GELU, which computes something else",
    adapter: r"blocks\.2\.attn\.extra is no parameter of SAM's",
    dilated: r"neck\.2 is a convolution",
}


@pytest.mark.parametrize(
    ("change", "message"), OWN.items(), ids=lambda value: getattr(value, "__name__", "")
)
def test_what_is_not_sams_is_refused_and_later_takes_its_own_code(
    change: Callable[[Any], None],
    message: str,
    computed: list[int],
    caplog: pytest.LogCaptureFixture,
) -> None:
    reference = meta_encoder(CONFIG)
    change(reference)
    with pytest.raises(InputError, match=message) as error:
        samtrt.accelerate(copy.deepcopy(reference))
    assert "\n" not in str(error.value)
    with pytest.raises(InputError, match=rf"^image_encoder\.{message}"):
        sam = meta_sam(CONFIG, 0)
        change(sam.image_encoder)
        samtrt.accelerate(sam)

    encoder = samtrt.accelerate(meta_encoder(CONFIG))
    assert_computes(encoder, meta_encoder(CONFIG))
    change(encoder)
    calls = len(computed)
    with caplog.at_level(logging.WARNING):
        assert_computes(encoder, reference, 0.0)
        assert_computes(encoder, reference, 0.0)
    assert len(computed) == calls
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == 1 and "computes by its own code" in said[0]


def test_gradients_and_training_take_the_own_code(
    encoder: Any, computed: list[int], caplog: pytest.LogCaptureFixture
) -> None:
    reference, x = meta_encoder(CONFIG), images()
    with caplog.at_level(logging.WARNING):
        for module in (encoder, reference):
            module(x).square().sum().backward()
        assert torch.equal(encoder.pos_embed.grad, reference.pos_embed.grad)
        encoder(x)
        encoder.train()
        with torch.no_grad():
            encoder(x)
            encoder(x)
    assert computed == []
    reasons = [record.getMessage().split(": ")[1].split(";")[0] for record in caplog.records]
    assert reasons == ["gradients are on and required", "it is in training mode"]
    encoder.eval().requires_grad_(False)
    encoder(x)
    assert len(computed) == 2
    given = x.clone().requires_grad_()
    encoder(given).sum().backward()
    assert given.grad is not None and len(computed) == 2


@pytest.mark.filterwarnings("ignore")
def test_traces_and_exports_are_the_own_code(encoder: Any, computed: list[int]) -> None:
    reference, x = meta_encoder(CONFIG), images()
    with torch.no_grad():
        encoder(x)
        del computed[:]
        traced = torch.jit.trace(encoder, x, check_trace=False)
        exported = torch.export.export(encoder, (x,)).module()
        assert computed == []
        other = images(seed=5)
        assert relative_l2(traced(other), reference(other)) <= 1e-5
        assert relative_l2(exported(other), reference(other)) <= 1e-5


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_keeps_its_types(dtype: torch.dtype, computed: list[int]) -> None:
    encoder, reference = samtrt.accelerate(meta_encoder(CONFIG)), meta_encoder(CONFIG)
    assert_computes(encoder, reference)
    encoder.to(dtype)
    with torch.no_grad():
        found = encoder(images().to(dtype))
        expected = reference.to(dtype)(images().to(dtype))
        assert found.dtype == expected.dtype == dtype
        # Exact sums of rounded weights, against rounded sums.
        assert relative_l2(found, expected) < 0.05
        with pytest.raises(RuntimeError):  # the own code's own refusal
            encoder(images())
    assert computed == [1, 2, 1]


def test_torchs_modes_change_nothing(encoder: Any) -> None:
    x = images()
    with torch.no_grad():
        expected = encoder(x)
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(encoder(x), expected)
            rounded = encoder(x.bfloat16())
        assert relative_l2(rounded, expected) < 0.05 and rounded.dtype == torch.float32
    with torch.inference_mode():
        found = encoder(x)
    assert torch.equal(found, expected) and not found.is_inference()


@pytest.mark.parametrize("duplicate", ["deepcopy", "pickle"])
def test_copies_are_their_own(encoder: Any, duplicate: str, computed: list[int]) -> None:
    with torch.no_grad():
        encoder(images())
    other = (
        copy.deepcopy(encoder) if duplicate == "deepcopy" else pickle.loads(pickle.dumps(encoder))
    )
    assert acceleration_of(other) is not acceleration_of(encoder)
    in_place(encoder)
    calls = len(computed)
    assert_computes(other, meta_encoder(CONFIG))
    assert len(computed) > calls
    assert type(samtrt.restore(other)) is type(meta_encoder(CONFIG))


def test_del_and_moves_give_the_runtimes_memory_back(encoder: Any) -> None:
    gc.disable()
    try:
        with torch.no_grad():
            encoder(images())
        acceleration = acceleration_of(encoder)
        assert acceleration is not None
        runtime = weakref.ref(acceleration.runtime_of(encoder))
        changes = acceleration.changes
        encoder._apply(lambda tensor: tensor.clone())
        assert runtime() is None and acceleration.changes == changes  # moved, and the same
        with torch.no_grad():
            encoder(images())
        runtime = weakref.ref(acceleration.runtime_of(encoder))
        weight = weakref.ref(encoder.pos_embed)
        del encoder, acceleration
        # (The fixture holds the module; its own list of fixtures does not count here.)
        assert runtime() is not None and weight() is not None
    finally:
        gc.enable()


def test_nothing_is_left_of_a_deleted_model() -> None:
    gc.disable()
    try:
        sam = samtrt.accelerate(meta_sam(CONFIG, 0))
        with torch.no_grad():
            sam.image_encoder(images())
        runtime = weakref.ref(acceleration_of(sam.image_encoder).runtime_of(sam.image_encoder))
        weight = weakref.ref(sam.image_encoder.pos_embed)
        del sam
        assert runtime() is None and weight() is None
    finally:
        gc.enable()


def test_threads_that_call_first_share_one_runtime(monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    make = accelerated.encoder_from_tensors

    def recording(*arguments: Any) -> Any:
        made.append(1)
        return make(*arguments)

    monkeypatch.setattr(accelerated, "encoder_from_tensors", recording)
    encoder, barrier = samtrt.accelerate(meta_encoder(CONFIG)), threading.Barrier(6)
    with torch.no_grad():
        expected = meta_encoder(CONFIG)(images())

    def call(_: int) -> float:
        barrier.wait()
        with torch.no_grad():
            return relative_l2(encoder(images()), expected)

    with ThreadPoolExecutor(6) as threads:
        assert max(threads.map(call, range(6))) <= 1e-5
    assert made == [1]


def forked(change: Callable[[str], str]) -> Any:
    """Meta's encoder out of a copy of its file that was changed, as forks have it."""
    package = import_segment_anything()
    folder = Path(package.__file__).parent / "modeling"
    source = change((folder / "image_encoder.py").read_text("utf-8"))
    module = ModuleType("vendored")
    source = source.replace("from .common", "from segment_anything.modeling.common")
    exec(compile(source, "vendored.py", "exec"), module.__dict__)
    from samtrt.modeling.image_encoder import encoder_arguments

    encoder = module.ImageEncoderViT(**encoder_arguments(CONFIG)).eval()
    encoder.load_state_dict(meta_encoder(CONFIG).state_dict())
    return encoder


def test_a_vendored_copy_is_a_sam(computed: list[int]) -> None:
    encoder = samtrt.accelerate(forked(lambda source: source))
    assert_computes(encoder, meta_encoder(CONFIG))
    assert computed == [1, 2]


FORKS = {
    "scaled": ("x = shortcut + x", "x = shortcut + 0.5 * x", "computes something else"),
    "early features": (
        "        return x\n\n\nclass Block",
        "        return x, [x]\n\n\nclass Block",
        r"returns 2 values \(Tensor, list\) beside",
    ),
    "no neck": (
        "x = self.neck(x.permute(0, 3, 1, 2))",
        "x = x.permute(0, 3, 1, 2)",
        "computes something else",
    ),
}


@pytest.mark.parametrize(("old", "new", "message"), FORKS.values(), ids=FORKS.keys())
def test_a_fork_of_the_same_names_that_computes_something_else_is_found_out(
    old: str, new: str, message: str
) -> None:
    encoder = forked(lambda source: source.replace(old, new))
    with torch.no_grad():
        assert (
            not isinstance(encoder(images()), Tensor)
            or relative_l2(encoder(images())[:, :16], meta_encoder(CONFIG)(images())[:, :16]) > 0.05
        )
    samtrt.accelerate(encoder)
    for _ in range(2):
        with torch.no_grad(), pytest.raises(InputError, match=message) as error:
            encoder(images())
        assert "\n" not in str(error.value) and "samtrt.restore" in str(error.value)
    samtrt.restore(encoder)
    with torch.no_grad():
        encoder(images())


class Elsewhere(nn.Module):
    """A model whose image encoder is no ViT of SAM's."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.image_encoder = encoder


class TinyViT(nn.Module):
    """MobileSAM's: of the same outer names."""

    def __init__(self) -> None:
        super().__init__()
        self.patch_embed = nn.Sequential(nn.Conv2d(3, 8, 3))
        self.layers = nn.ModuleList([nn.Conv2d(8, 8, 1)])
        self.neck = nn.Sequential(nn.Conv2d(8, 8, 1))


class Hiera(nn.Module):
    """SAM 2's trunk."""

    def __init__(self) -> None:
        super().__init__()
        self.patch_embed = nn.Module()
        self.patch_embed.proj = nn.Conv2d(3, 8, 7, 4, 3)
        self.pos_embed = nn.Parameter(torch.zeros(1, 8, 7, 7))
        self.blocks = nn.ModuleList([nn.Linear(8, 8)])


UNSUPPORTED = {
    "TinyViT": (lambda: Elsewhere(TinyViT()), "image_encoder is a TinyViT, and not SAM's"),
    "Hiera": (lambda: Elsewhere(Hiera()), "image_encoder.patch_embed.proj does not cut pictures"),
    "nothing": (lambda: nn.Linear(3, 3), "it is a Linear, and not SAM's image encoder"),
}


@pytest.mark.parametrize(("make", "message"), UNSUPPORTED.values(), ids=UNSUPPORTED.keys())
def test_other_models_are_refused_in_a_line(make: Callable[[], nn.Module], message: str) -> None:
    model = make()
    with pytest.raises(InputError, match=message) as error:
        samtrt.accelerate(model)
    assert "\n" not in str(error.value)
    assert samtrt.restore(model) is model


class Program:
    """A predictor's like: no module, and has one."""

    def __init__(self) -> None:
        self.net, self.name = meta_encoder(CONFIG), "program"


@pytest.mark.parametrize("call", [samtrt.accelerate, samtrt.restore])
def test_what_is_no_module_is_refused_with_the_modules_that_it_has(call: Any) -> None:
    with pytest.raises(InputError, match=r"got a Program; its modules are \.net$"):
        call(Program())
    with pytest.raises(InputError, match=r"takes a torch module, and got a str$"):
        call("sam_vit_b.pth")


def test_an_unknown_precision_is_refused() -> None:
    with pytest.raises(InputError, match="precision is 'int8', expected auto, fp32"):
        samtrt.accelerate(meta_encoder(CONFIG), "int8")
