"""SAM's image encoder in somebody else's hands: found by names and shapes, whatever its class.

Three layouts are known: that of Meta's ``ImageEncoderViT`` and of its forks and copies, that of
Hugging Face's ``SamVisionEncoder``, and Cellpose-SAM's, where Meta's stands within a model that
calls its layers. Layers that are not torch's own are tried on numbers; whether the whole computes
what SAM's encoder does, its first picture shows (``accelerated.py``).
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from samtrt.checkpoints.config import READOUT_LAYER, EncoderConfig
from samtrt.errors import InputError
from samtrt.modeling.image_encoder import ImageEncoderViT
from samtrt.modeling.layers import is_hooked
from samtrt.torch_state import as_written


@dataclass(frozen=True)
class _Layout:
    """What a package calls the layers; the rest is alike."""

    patches: str
    blocks: str
    norms: tuple[str, str]
    neck: tuple[str, str, str, str]
    trunk: str = ""  # where all that stands, with a dot behind it
    places: str = ""  # of a readout's channels among the pixels: a parameter, the identity
    idle: frozenset[str] = frozenset()  # parameters that do not compute

    def find(self, module: nn.Module) -> bool:
        """Whether the module has it."""
        trunk: Any = getattr(module, self.trunk.removesuffix("."), None) if self.trunk else module
        return (
            isinstance(trunk, nn.Module)
            and all(hasattr(trunk, name) for name in ("patch_embed", "pos_embed"))
            and isinstance(getattr(trunk, self.blocks, None), nn.ModuleList)
            and (not self.places or isinstance(getattr(module, self.places, None), nn.Parameter))
        )


_META = _Layout(
    "patch_embed.proj", "blocks", ("norm1", "norm2"), ("neck.0", "neck.1", "neck.2", "neck.3")
)
_HUGGING_FACE = _Layout(
    "patch_embed.projection",
    "layers",
    ("layer_norm1", "layer_norm2"),
    ("neck.conv1", "neck.layer_norm1", "neck.conv2", "neck.layer_norm2"),
)
# Cellpose's ``CPSAM`` (``Transformer`` before 4.2): a readout behind Meta's encoder.
_CELLPOSE = replace(
    _META, trunk="encoder.", places="W2", idle=frozenset(("W2", "diam_labels", "diam_mean"))
)
_LINEAR = ("attn.qkv", "attn.proj", "mlp.lin1", "mlp.lin2")
_TABLES = ("attn.rel_pos_h", "attn.rel_pos_w")


@dataclass(frozen=True)
class RecognizedEncoder:
    """What was found.

    Attributes:
        config: the encoder's sizes.
        names: each parameter's name in Meta's package, and its own.
    """

    config: EncoderConfig
    names: dict[str, str]

    def tensors(self, encoder: nn.Module) -> dict[str, Tensor]:
        """The parameters as they are now, by Meta's names; their memory, without gradients."""
        found = dict(encoder.named_parameters(remove_duplicate=False))
        return {meta: found[own].detach() for meta, own in self.names.items()}


def find_encoders(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """All that looks like SAM's image encoder in a model, with its path ("" for the model itself).

    Raises:
        InputError: nothing does; names the layer that stands in its place.
    """
    found = [(path, module) for path, module in model.named_modules() if _layout(module)]
    paths = {path for path, _ in found}
    # (Within Cellpose's, Meta's is never called itself.)
    found = [(path, module) for path, module in found if paths.isdisjoint(_above(path))]
    if found:
        return found
    place, module = "", model
    for name in ("image_encoder", "vision_encoder", "encoder", "model"):
        if isinstance(child := getattr(model, name, None), nn.Module):
            place, module = name, child
            break
    raise InputError(
        f"{_called(place)}{' is' if place else 'it is'} a {type(module).__name__}, and not SAM's "
        "image encoder; expected patch_embed, blocks (or layers) and neck, as ImageEncoderViT and "
        "SamVisionEncoder have them"
    )


def recognize(encoder: nn.Module, path: str = "") -> RecognizedEncoder:
    """The sizes and the names of SAM's image encoder.

    Args:
        path: of the encoder in its model, for messages.

    Raises:
        InputError: something in it is not as in SAM's; names the layer.
    """
    layout = _layout(encoder)
    if layout is None:
        raise InputError(f"{_called(path)} has no patch_embed, blocks (or layers) and neck")
    try:
        with as_written():
            return _Recognition(encoder, layout).result()
    except InputError as error:
        raise InputError(f"{path}{'.' if path else ''}{error}") from None


def _called(path: str) -> str:
    return path or "the model"


def _layout(module: nn.Module) -> _Layout | None:
    layouts = _META, _HUGGING_FACE, _CELLPOSE
    return next((layout for layout in layouts if layout.find(module)), None)


class _Recognition:
    """One encoder under examination; what is wrong is raised with the layer's path first."""

    def __init__(self, encoder: nn.Module, layout: _Layout) -> None:
        self._encoder = encoder
        self._layout = layout
        self._known: set[str] = set()  # paths of layers that were examined
        self._names: dict[str, str] = {}

    def result(self) -> RecognizedEncoder:
        layout = self._layout
        patch_embed = layout.trunk + layout.patches
        patches = self._layer(patch_embed, nn.Conv2d, "patch_embed.proj", ("weight", "bias"))
        channels, in_channels, patch, patch_width = patches.weight.shape
        self._require(
            in_channels == 3
            and patch == patch_width
            and _convolution(patches) == ((patch, patch), (0, 0)),
            patch_embed,
            "does not cut pictures of 3 channels into square patches",
        )
        positions = f"{layout.trunk}pos_embed"
        grid: Any = self._get(layout.trunk.removesuffix(".")).pos_embed
        self._require(
            isinstance(grid, nn.Parameter)
            and grid.ndim == 4
            and grid.shape[1] == grid.shape[2]
            and grid.shape[3] == channels,
            positions,
            "is no position embedding of a square grid, [1, h, h, C]",
        )
        self._names["pos_embed"] = positions
        path = layout.trunk + layout.blocks
        blocks = [
            self._block(f"{path}.{index}", f"blocks.{index}", channels)
            for index, _ in enumerate(self._get(path).children())
        ]
        out_channels = self._neck(channels)
        readout = self._readout(out_channels, patch) if layout.places else 0
        self._nothing_else()
        config = self._config(blocks, grid.shape[1], patch, channels, out_channels)
        return RecognizedEncoder(replace(config, readout_chans=readout), self._names)

    def _block(self, path: str, meta: str, channels: int) -> "_Block":
        norms = [
            self._layer(f"{path}.{own}", nn.LayerNorm, f"{meta}.{name}", ("weight", "bias"))
            for own, name in zip(self._layout.norms, _META.norms, strict=True)
        ]
        linear = [
            self._layer(f"{path}.{name}", nn.Linear, f"{meta}.{name}", ("weight", "bias"))
            for name in _LINEAR
        ]
        self._try(f"{path}.mlp.act", lambda act, x: act(x), F.gelu, (3, 33))
        attention: Any = self._get(f"{path}.attn")
        block = self._get(path)
        heads = getattr(attention, "num_heads", getattr(attention, "num_attention_heads", 0))
        self._require(
            isinstance(heads, int) and heads > 0,
            f"{path}.attn",
            "has no num_heads",
        )
        for name in _TABLES:
            table = getattr(attention, name.removeprefix("attn."), None)
            self._require(
                isinstance(table, nn.Parameter) and table.ndim == 2,
                f"{path}.{name}",
                "is not there: attention has no relative positions",
            )
            self._names[f"{meta}.{name}"] = f"{path}.{name}"
        hidden, head_dim = linear[2].out_features, attention.rel_pos_h.shape[1]
        inner = heads * head_dim
        shapes = [(channels, 3 * inner), (inner, channels)]
        shapes += [(channels, hidden), (hidden, channels)]
        for name, layer, shape in zip(_LINEAR, linear, shapes, strict=True):
            self._require(
                (layer.in_features, layer.out_features) == shape,
                f"{path}.{name}",
                f"maps {layer.in_features} channels to {layer.out_features}, expected "
                f"{shape[0]} to {shape[1]}",
            )
        window = getattr(block, "window_size", -1)
        self._require(isinstance(window, int) and window >= 0, path, "has no window_size")
        eps = {norm.eps for norm in norms}
        self._require(len(eps) == 1, path, f"has norms of eps {sorted(eps)}; expected one")
        return _Block(path, heads, head_dim, hidden, window, eps.pop())

    def _neck(self, channels: int) -> int:
        conv1, norm1, conv2, norm2 = (self._layout.trunk + name for name in self._layout.neck)
        narrow = self._layer(conv1, nn.Conv2d, "neck.0", ("weight",))
        out_channels = int(narrow.out_channels)
        wide = self._layer(conv2, nn.Conv2d, "neck.2", ("weight",))
        for path, layer, shape, geometry in (
            (conv1, narrow, (out_channels, channels, 1, 1), ((1, 1), (0, 0))),
            (conv2, wide, (out_channels, out_channels, 3, 3), ((1, 1), (1, 1))),
        ):
            self._require(
                tuple(layer.weight.shape) == shape and _convolution(layer) == geometry,
                path,
                f"is a convolution of shape {list(layer.weight.shape)}, expected {list(shape)}",
            )
        for path, meta in ((norm1, "neck.1"), (norm2, "neck.3")):
            self._try(path, _call, self._layer_norm_2d(path), (2, out_channels, 2, 3))
            for name in ("weight", "bias"):
                self._names[f"{meta}.{name}"] = f"{path}.{name}"
        return out_channels

    def _readout(self, channels: int, patch: int) -> int:
        """Each token's channels become its patch's pixels, [B, C·P², h, w] → [B, C, h·P, w·P]."""
        layer = self._layer(READOUT_LAYER, nn.Conv2d, READOUT_LAYER, ("weight", "bias"))
        found, pixels = layer.out_channels, patch**2
        self._require(
            tuple(layer.weight.shape) == (found, channels, 1, 1)
            and _convolution(layer) == ((1, 1), (0, 0))
            and found % pixels == 0,
            READOUT_LAYER,
            f"is a convolution of shape {list(layer.weight.shape)}, expected "
            f"[C·{pixels}, {channels}, 1, 1]",
        )
        path = self._layout.places
        places: Any = self._encoder.get_parameter(path)
        fits = tuple(places.shape) == (found, found // pixels, patch, patch)
        if fits and not places.is_meta:
            identity = torch.eye(found, dtype=places.dtype, device=places.device)
            fits = torch.equal(places.detach().reshape(found, found), identity)
        self._require(fits, path, "does not put each channel at one pixel: it was changed")
        return int(found // pixels)

    def _layer_norm_2d(self, path: str) -> Callable[[Tensor], Tensor]:
        norm = self._get(path)
        own = dict(norm.named_parameters())
        self._require(set(own) == {"weight", "bias"}, path, "is no LayerNorm2d")

        def expected(x: Tensor) -> Tensor:
            weight, bias = own["weight"].float(), own["bias"].float()
            y = F.layer_norm(x.float().movedim(1, -1), weight.shape, weight, bias, 1e-6)
            return y.movedim(-1, 1)

        return expected

    def _config(
        self, blocks: "list[_Block]", grid: int, patch: int, channels: int, out_channels: int
    ) -> EncoderConfig:
        self._require(bool(blocks), self._layout.trunk + self._layout.blocks, "is empty")
        first = blocks[0]
        window = next((block.window for block in blocks if block.window), grid)
        for block in blocks:
            for what, own, others in (
                ("heads", block.heads, first.heads),
                ("as eps", block.eps, first.eps),
                ("as window_size", block.window or window, window),
            ):
                fault = f"has {own} {what} where others have {others}; expected one for all"
                self._require(own == others, block.path, fault)
        head_dims = tuple(block.head_dim for block in blocks)
        mlp_dims = tuple(block.hidden for block in blocks)
        taps = self._encoder.taps if isinstance(self._encoder, ImageEncoderViT) else ()
        return EncoderConfig(
            embed_dim=channels,
            depth=len(blocks),
            num_heads=first.heads,
            global_attn_indexes=tuple(i for i, block in enumerate(blocks) if not block.window),
            window_size=window,
            img_size=grid * patch,
            patch_size=patch,
            mlp_dim=max(mlp_dims),
            out_chans=out_channels,
            layer_norm_eps=first.eps,
            head_dims=() if set(head_dims) == {channels / first.heads} else head_dims,
            mlp_dims=() if len(set(mlp_dims)) == 1 else mlp_dims,
            taps=taps,
        )

    # ------------------------------------------------------------------ single layers

    def _get(self, path: str) -> nn.Module:
        module: Any = self._encoder
        for position, name in enumerate(path.split(".") if path else ()):
            above = ".".join(path.split(".")[:position])
            below = module._modules.get(name)
            if below is None:
                raise InputError(f"{above or 'the encoder'} is a {_kind(module)} without {name}")
            module = below
            self._plain(module, ".".join(path.split(".")[: position + 1]))
        return module

    def _plain(self, module: nn.Module, path: str) -> None:
        self._require(not is_hooked(module), path, "has a hook, or a forward set from outside")

    def _layer(self, path: str, kind: Any, meta: str, parameters: tuple[str, ...]) -> Any:
        """One of torch's own layers with these parameters, computing as torch does."""
        module = self._get(path)
        self._require(
            isinstance(module, kind) and type(module).forward is kind.forward,
            path,
            f"is a {_kind(module)}, expected torch's {kind.__name__}",
        )
        own = {name for name, value in module._parameters.items() if value is not None}
        self._require(
            own == set(parameters),
            path,
            f"has {' and '.join(sorted(own)) or 'nothing'} as parameters, expected "
            f"{' and '.join(parameters)}",
        )
        self._known.add(path)
        for name in parameters:
            self._names[f"{meta}.{name}"] = f"{path}.{name}"
        return module

    def _try(
        self,
        path: str,
        call: Callable[[Any, Tensor], Tensor],
        expected: Callable[[Tensor], Tensor],
        shape: tuple[int, ...],
    ) -> None:
        """Whether a layer that is not torch's own computes what it should."""
        module = self._get(path)
        reference = next(module.parameters(), next(self._encoder.parameters()))
        self._known.add(path)
        if reference.is_meta:
            return
        generator = torch.Generator().manual_seed(1)
        x = 3 * torch.randn(*shape, generator=generator, dtype=torch.float32, device="cpu")
        x = x.to(reference.device, reference.dtype)
        try:
            found = call(module, x)
        except Exception as error:
            raise InputError(f"{path} is a {_kind(module)}, which fails ({error})") from error
        right = expected(x).float()
        tolerance = 1e-5 if reference.dtype == torch.float32 else 0.05
        is_right = isinstance(found, Tensor) and torch.allclose(
            found.float(), right, atol=tolerance, rtol=tolerance
        )
        self._require(is_right, path, f"is a {_kind(module)}, which computes something else")

    def _nothing_else(self) -> None:
        names = {*self._names.values(), *self._layout.idle}
        for name, _ in self._encoder.named_parameters(remove_duplicate=False):
            self._require(name in names, name, "is no parameter of SAM's image encoder")
        for path, module in self._encoder.named_modules():
            if path and not any(known in (path, *_above(path)) for known in self._known):
                self._plain(module, path)
                is_inner = any(known.startswith(f"{path}.") for known in self._known)
                is_idle = isinstance(module, nn.Identity | nn.Dropout)
                self._require(is_inner or is_idle, path, f"is a {_kind(module)}, beside SAM's")

    @staticmethod
    def _require(condition: bool, path: str, fault: str) -> None:
        if not condition:
            raise InputError(f"{path} {fault}")


@dataclass(frozen=True)
class _Block:
    path: str
    heads: int
    head_dim: int
    hidden: int
    window: int
    eps: float


def _kind(module: nn.Module) -> str:
    return type(module).__name__


def _call(module: Any, x: Tensor) -> Tensor:
    return module(x)


def _above(path: str) -> Iterator[str]:
    """The paths of the modules around it, the root's "" last."""
    while path:
        path = path.rpartition(".")[0]
        yield path


def _convolution(layer: nn.Conv2d) -> tuple[Any, Any] | None:
    """Stride and padding; None where it has dilation, groups or another kind of padding."""
    if layer.dilation != (1, 1) or layer.groups != 1 or layer.padding_mode != "zeros":
        return None
    return layer.stride, layer.padding
