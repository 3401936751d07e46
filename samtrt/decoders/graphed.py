"""The prompt encoder and mask decoder on an NVIDIA GPU: half precision, one CUDA graph a call.

A decoder call is some hundred small kernels, and launching them one by one takes longer than
running them. Replayed as a graph they cost the GPU's time only.
"""

import copy
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from samtrt.decoders.prompts import Prompts
from samtrt.decoders.protocol import check_channels, check_fits, no_masks
from samtrt.encoders.embedded import EmbeddedPicture
from samtrt.kernels import HAS_TRITON
from samtrt.kernels.graph import GraphedWork
from samtrt.modeling.layers import LayerNorm2d, Layers
from samtrt.modeling.mask_decoder import MaskDecoder
from samtrt.modeling.prompt_encoder import LABEL_PADDING
from samtrt.modeling.prompted_decoder import PromptedMaskDecoder
from samtrt.torch_state import any_algorithm, as_written

_Result = TypeVar("_Result")

# Prompts of one graph. A batch is cut into these sizes, so that every number of prompts is
# answered by a few graphs.
_BATCHES = (64, 32, 16, 8, 4, 2, 1)
# Captured graphs kept, one for each batch and number of points; the least recently used goes.
_MAX_GRAPHS = 32


def batches(count: int) -> list[int]:
    """Sizes of ``_BATCHES`` that hold ``count`` prompts; the last may be filled up by a quarter."""
    sizes = []
    while count > 0:
        size = next(size for size in reversed(_BATCHES) if count <= size or size == _BATCHES[0])
        if count < size and 4 * count < 3 * size:
            size //= 2
        sizes.append(size)
        count -= size
    return sizes


class GraphedDecoder:
    """A ``Decoder`` of half precision; the first call of a shape captures its graph.

    It computes with the modules' parameters as they are at each call. The prompt encoder stays in
    fp32: its Fourier angles reach tens of radians, where half precision loses the pixel. On the
    CPU the same computation runs without a graph.

    Calls share buffers: a lock orders threads, an event orders streams, and what is returned is
    the caller's own.

    Args:
        module: the prompt encoder and mask decoder.
        dtype: of the mask decoder's parameters and activations.
        parameters_sha256, note: see ``Decoder``.
    """

    num_masks = 4

    def __init__(
        self,
        module: PromptedMaskDecoder,
        dtype: torch.dtype = torch.float16,
        parameters_sha256: str = "",
        note: str = "",
    ) -> None:
        self.module = module
        self.dtype = dtype
        self.img_size = module.prompt_encoder.input_image_size[0]
        self.parameters_sha256 = parameters_sha256
        self.note = note
        self._lock = threading.Lock()
        self._copy: _Copy | None = None

    def __str__(self) -> str:
        precision = {torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16"}
        graphs = ", CUDA graphs" if self.device.type == "cuda" else ""
        return f"torch, {precision.get(self.dtype, self.dtype)}{graphs}, on {self.device}"

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return self.module.prompt_encoder.no_mask_embed.weight.device

    def __call__(
        self, picture: EmbeddedPicture, prompts: Prompts, multimask_output: bool
    ) -> tuple[Tensor, Tensor]:
        check_fits(self, picture.img_size, multimask_output)
        check_channels(picture, self.module.mask_decoder.embedding_chans)
        if not len(prompts):
            kinds = self.module.mask_decoder.answers(multimask_output)
            return no_masks(picture, kinds, self.device)
        with self._lock, as_written():
            if self._copy is not None:
                # It is looked at while a GPU is at work, and where it is out of date that was in
                # vain.
                try:
                    found = self._copy.decode(picture, prompts, multimask_output)
                except Exception:
                    if self._copy.is_current():
                        raise
                else:
                    if self._copy.is_current():
                        return found
                self._drop()  # the old one's memory goes first
            self._copy = _Copy(self.module, self.dtype)
            return self._copy.decode(picture, prompts, multimask_output)

    def is_of(self, prompt_encoder: nn.Module, mask_decoder: nn.Module) -> bool:
        """Whether it is these modules' decoder."""
        own = self.module
        return own.prompt_encoder is prompt_encoder and own.mask_decoder is mask_decoder

    def release(self) -> None:
        """Gives back the memory of copy and graphs; the next call makes them again."""
        with self._lock:
            self._drop()

    def _drop(self) -> None:
        if self._copy is not None:
            self._copy.wait()
            self._copy = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_lock": None, "_copy": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _lock=threading.Lock())


class _Copy:
    """The modules in half precision, brought up to date before each call, and their graphs.

    A change in place cannot be seen in general (``parameter.data.mul_`` leaves no trace), and
    converting all parameters takes a GPU microseconds.
    """

    def __init__(self, module: PromptedMaskDecoder, dtype: torch.dtype) -> None:
        self._watch = _Watch(module)
        self._live, self._dtype = module, dtype
        self._hq_token_only = _hq_token_only(module)
        live = _tensors_of(module)
        module = copy.deepcopy(module).float().requires_grad_(False)
        own = _tensors_of(module)
        self._prompt_encoder = module.prompt_encoder
        self._mask_decoder = module.mask_decoder
        self.device = self._prompt_encoder.no_mask_embed.weight.device
        if HAS_TRITON and self.device.type == "cuda" and dtype != torch.float32:
            _use_row_norms(self._mask_decoder)
        self._mask_decoder.to(dtype)
        # Own and live tensors by their dtypes: torch copies a list of one kind in a few kernels.
        self._pairs: dict[tuple[torch.dtype, torch.dtype], tuple[list[Tensor], list[Tensor]]] = {}
        for name, tensor in live.items():
            kind = own[name].dtype, tensor.dtype
            mine, theirs = self._pairs.setdefault(kind, ([], []))
            mine.append(own[name].detach())
            theirs.append(tensor.detach())
        positions = self._prompt_encoder.pe_layer
        self._centres = positions.centres(self._prompt_encoder.image_embedding_size)
        self._image_pe = self._prompt_encoder.get_dense_pe().to(dtype)
        _, _, height, width = self._image_pe.shape
        channels = self._mask_decoder.embedding_chans
        self._features = self._image_pe.new_empty(1, channels, height, width)
        self._graphs: OrderedDict[tuple[int, int, bool, bool], _Graph] = OrderedDict()
        if self.device.type == "cuda":
            with torch.cuda.device(self.device):
                self._pool = torch.cuda.graph_pool_handle()
                self._last_use = torch.cuda.Event()

    def is_current(self) -> bool:
        """Whether the modules still are where they were, and compute what they did."""
        same = self._hq_token_only == _hq_token_only(self._live)
        return same and self._watch.is_unchanged()

    def wait(self) -> None:
        """Until nothing runs any more that uses the buffers, so that others may get them."""
        if self.device.type == "cuda":
            self._last_use.synchronize()

    def _refresh(self) -> None:
        """Takes over the parameters and buffers as they are now."""
        for own, live in self._pairs.values():
            torch._foreach_copy_(own, live)
        self._image_pe.copy_(self._prompt_encoder.pe_layer.of_centres(self._centres))

    def decode(
        self, picture: EmbeddedPicture, prompts: Prompts, multimask_output: bool
    ) -> tuple[Tensor, Tensor]:
        if self.device.type != "cuda":
            self._refresh()
            self._features.copy_(picture.features)
            parts = [
                self._forward(part.coords, part.labels, part.mask_input)
                for part in prompts.split(_BATCHES[0])
            ]
            masks, scores = (torch.cat(tensors).float() for tensors in zip(*parts, strict=True))
            return self._mask_decoder.select(masks, scores, multimask_output)
        count, points = prompts.labels.shape
        side, kinds = picture.mask_side, self._mask_decoder.answers(multimask_output)
        found = (
            torch.empty(count, kinds, side, side, dtype=torch.float32, device=self.device),
            torch.empty(count, kinds, dtype=torch.float32, device=self.device),
        )
        labelled = torch.cat((prompts.coords, prompts.labels[..., None]), dim=-1)
        with torch.cuda.device(self.device), self._in_turn():
            self._features.copy_(picture.features, non_blocking=True)
            start = 0
            for size in batches(count):
                part = slice(start, min(start + size, count))
                start += size
                mask = None if prompts.mask_input is None else prompts.mask_input[part]
                graph = self._graph(size, points, mask is not None, part.start == 0)
                graph.fill(labelled[part], mask)
                masks, scores = graph.work(partial(_freely, self._of, graph))
                used = part.stop - part.start
                answers = self._mask_decoder.select(masks[:used], scores[:used], multimask_output)
                for out, answer in zip(found, answers, strict=True):
                    out[part].copy_(answer)
        return found

    @contextmanager
    def _in_turn(self) -> Iterator[None]:
        """After the last use of the buffers, on whatever stream that was."""
        stream = torch.cuda.current_stream()
        stream.wait_event(self._last_use)
        try:
            yield
        finally:
            self._last_use.record(stream)

    def _graph(self, batch: int, points: int, has_mask: bool, refreshes: bool) -> "_Graph":
        key = (batch, points, has_mask, refreshes)
        if key not in self._graphs:
            if len(self._graphs) >= _MAX_GRAPHS:
                self.wait()
                self._graphs.popitem(last=False)
            self._graphs[key] = self._capture(*key)
        self._graphs.move_to_end(key)
        return self._graphs[key]

    def _of(self, graph: "_Graph") -> tuple[Tensor, Tensor]:
        if graph.refreshes:
            self._refresh()
        return self._forward(graph.labelled[..., :2], graph.labelled[..., 2], graph.mask_input)

    def _forward(
        self, coords: Tensor, labels: Tensor, mask_input: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        encoder = self._prompt_encoder
        dense = encoder.embed_no_mask() if mask_input is None else encoder.embed_masks(mask_input)
        return self._mask_decoder.predict_masks(
            self._features,
            self._image_pe,
            encoder.embed_points(coords, labels).to(self._dtype),
            dense.to(self._dtype),
        )

    def _capture(self, batch: int, points: int, has_mask: bool, refreshes: bool) -> "_Graph":
        def zeros(*shape: int) -> Tensor:
            return torch.zeros(shape, dtype=torch.float32, device=self.device)

        side = 4 * self._features.shape[-1]
        mask_input = zeros(batch, 1, side, side) if has_mask else None
        work: GraphedWork[tuple[Tensor, Tensor]] = GraphedWork(self.device, self._pool)
        return _Graph(work, zeros(batch, points, 3), mask_input, refreshes)


def _hq_token_only(module: PromptedMaskDecoder) -> bool:
    # (`getattr` would have `nn.Module` make an error of an attribute that is not there.)
    return bool(vars(module.mask_decoder).get("hq_token_only", False))


def _freely(work: Callable[..., _Result], *given: Any) -> _Result:
    with any_algorithm():
        return work(*given)


@dataclass
class _Graph:
    """A call and its buffers, which are filled before each.

    Attributes:
        labelled: [B, N, 3], x, y and label of each point: one buffer is one transfer.
        refreshes: whether it takes over the parameters first, as the first one of a call does.
    """

    work: GraphedWork[tuple[Tensor, Tensor]]
    labelled: Tensor
    mask_input: Tensor | None
    refreshes: bool

    def fill(self, labelled: Tensor, mask_input: Tensor | None) -> None:
        """With at most as many prompts as there is room for."""
        count = len(labelled)
        self.labelled[:count].copy_(labelled, non_blocking=True)
        if self.mask_input is not None and mask_input is not None:
            self.mask_input[:count].copy_(mask_input, non_blocking=True)
        if count < len(self.labelled):
            self.labelled[count:, :, 2].fill_(LABEL_PADDING)


class _Watch:
    """Sees whether a module's parameters, buffers and layers are still the same objects, and in
    the same memory."""

    def __init__(self, module: nn.Module) -> None:
        self._layers = Layers(module)
        self._absent: list[tuple[dict[str, Any], str]] = []
        self._tensors: list[tuple[dict[str, Any], str, Tensor, int]] = []
        for part in module.modules():
            for owner in (part._parameters, part._buffers):
                for name, tensor in owner.items():
                    if tensor is None:  # such as the bias of a layer without
                        self._absent.append((owner, name))
                    else:
                        self._tensors.append((owner, name, tensor, tensor.data_ptr()))

    def is_unchanged(self) -> bool:
        if not self._layers.are_in_place():
            return False
        for owner, name in self._absent:  # loops: generators take twice as long
            if owner.get(name) is not None:
                return False
        for owner, name, tensor, address in self._tensors:
            if owner.get(name) is not tensor or tensor.data_ptr() != address:
                return False
        return True


def _tensors_of(module: nn.Module) -> dict[str, Tensor]:
    return {**dict(module.named_parameters()), **dict(module.named_buffers())}


class _RowNorm(nn.Module):
    """A LayerNorm over many short rows by our Triton kernel.

    torch's gives each row a thread block of its own, which for 64 or 256 channels reaches a tenth
    of the memory's rate.
    """

    def __init__(self, norm: nn.LayerNorm | LayerNorm2d) -> None:
        super().__init__()
        self.eps = norm.eps
        # No parameters, so that they stay fp32, which the kernel reads, whatever the rows are.
        self.weight, self.bias = norm.weight.detach(), norm.bias.detach()
        self.shift = torch.zeros_like(self.bias)

    def over_last(self, x: Tensor) -> Tensor:
        """As ``LayerNorm2d``'s."""
        return self.forward(x)

    def forward(self, x: Tensor) -> Tensor:
        from samtrt.kernels.triton.norm import NormTiles, layer_norm  # needs triton

        rows = x.reshape(-1, x.shape[-1])
        out = torch.empty_like(rows)
        tiles = NormTiles(block_rows=1024 // rows.shape[1], programs_per_sm=16, num_warps=1)
        layer_norm(rows, self.shift, self.weight, self.bias, out, self.eps, tiles)
        return out.view(x.shape)


def _use_row_norms(decoder: MaskDecoder) -> None:
    """Replaces the norms over image tokens and pixels; those over a few tokens cost nothing."""
    layers: Any = decoder.transformer.layers
    for layer in layers:
        layer.norm4 = _RowNorm(layer.norm4)
    upscaling: Any = decoder.output_upscaling
    for index, module in enumerate(upscaling):
        if isinstance(module, LayerNorm2d):
            upscaling[index] = _RowNorm(module)
