"""The prompt encoder and mask decoder on an NVIDIA GPU: half precision, one CUDA graph a call.

A decoder call is some hundred small kernels, and launching them one by one takes longer than
running them. Replayed as a graph they cost the GPU's time only.
"""

import copy
import importlib.util
from collections import OrderedDict
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from samtrt.modeling.mask_decoder import MaskDecoder, PromptedMaskDecoder, select_masks

# Where Triton is not installed (Windows), torch's own operators do the same, more slowly.
HAS_TRITON = importlib.util.find_spec("triton") is not None

# Captured graphs kept, one for each shape of prompt; the least recently used goes first.
_MAX_GRAPHS = 8


@dataclass
class _Graph:
    """A captured call: its buffers are filled, it is replayed, its outputs are read."""

    graph: torch.cuda.CUDAGraph
    coords: Tensor
    labels: Tensor
    mask_input: Tensor | None
    masks: Tensor
    scores: Tensor


class _RowNorm(nn.Module):
    """A LayerNorm over many short rows by our Triton kernel.

    torch's gives each row a thread block of its own, which for 64 or 256 channels reaches a tenth
    of the memory's rate.
    """

    def __init__(self, norm: nn.LayerNorm) -> None:
        super().__init__()
        self.eps = norm.eps
        # No parameters, so that they stay fp32, which the kernel reads, whatever the rows are.
        self.weight, self.bias = norm.weight.detach(), norm.bias.detach()
        self.shift = torch.zeros_like(self.bias)

    def forward(self, x: Tensor) -> Tensor:
        from samtrt.kernels.triton.norm import NormTiles, layer_norm  # needs triton

        rows = x.reshape(-1, x.shape[-1])
        out = torch.empty_like(rows)
        tiles = NormTiles(block_rows=1024 // rows.shape[1], programs_per_sm=16, num_warps=1)
        layer_norm(rows, self.shift, self.weight, self.bias, out, self.eps, tiles)
        return out.view(x.shape)


def _use_row_norms(decoder: MaskDecoder) -> None:
    """Replaces the norms over image tokens and pixels; those over a few tokens cost nothing."""
    for layer in decoder.transformer.layers:
        layer.norm4 = _RowNorm(layer.norm4)  # type: ignore[arg-type]
    for index, module in enumerate(decoder.output_upscaling):
        if isinstance(module, nn.LayerNorm):
            decoder.output_upscaling[index] = _RowNorm(module)


class GraphedMaskDecoder:
    """Masks of one picture for prompts of any shape; a shape's first call captures its graph.

    The prompt encoder stays in fp32: its Fourier angles reach tens of radians, where half
    precision loses the pixel. On the CPU the same computation runs without a graph.

    Args:
        decoder: the modules; they are copied.
        dtype: of the mask decoder's parameters and activations.
    """

    def __init__(self, decoder: PromptedMaskDecoder, dtype: torch.dtype = torch.float16) -> None:
        self.dtype = dtype
        self._prompt_encoder = decoder.prompt_encoder
        self._mask_decoder = copy.deepcopy(decoder.mask_decoder)
        if HAS_TRITON and decoder.image_pe.is_cuda and dtype != torch.float32:
            _use_row_norms(self._mask_decoder)
        self._mask_decoder.to(dtype)
        self._image_pe = decoder.image_pe.to(dtype)
        self._features = torch.empty_like(self._image_pe)
        self._graphs: OrderedDict[tuple[object, ...], _Graph] = OrderedDict()
        self._pool = torch.cuda.graph_pool_handle() if self._features.is_cuda else None

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return self._features.device

    def set_features(self, features: Tensor) -> None:
        """Takes the embedding [1, 256, h, w] of the picture that later calls are about."""
        self._features.copy_(features)

    @torch.no_grad()
    def __call__(
        self,
        coords: Tensor,
        labels: Tensor,
        mask_input: Tensor | None = None,
        multimask_output: bool = True,
    ) -> tuple[Tensor, Tensor]:
        """Mask logits and predicted IoUs, in buffers that the next call overwrites.

        Args:
            coords: [B, N, 2] in pixels of the model's frame, on any device.
            labels: [B, N]; see ``samtrt.modeling.prompt_encoder.prompt_points``.
            mask_input: [B, 1, 4h, 4w] logits of an earlier call, or None.
            multimask_output: three masks a prompt; otherwise one.

        Returns:
            Logits [B, C, 4h, 4w] and predicted IoUs [B, C], float32.
        """
        if not self._features.is_cuda:
            return self._decode(coords.float(), labels.float(), mask_input, multimask_output)
        key = (*labels.shape, mask_input is not None, multimask_output)
        captured = self._graphs.get(key)
        if captured is None:
            captured = self._capture(labels.shape, mask_input, multimask_output)
            self._graphs[key] = captured
            if len(self._graphs) > _MAX_GRAPHS:
                self._graphs.popitem(last=False)
        self._graphs.move_to_end(key)
        captured.coords.copy_(coords, non_blocking=True)
        captured.labels.copy_(labels, non_blocking=True)
        if captured.mask_input is not None and mask_input is not None:
            captured.mask_input.copy_(mask_input, non_blocking=True)
        captured.graph.replay()
        return captured.masks, captured.scores

    def _decode(
        self, coords: Tensor, labels: Tensor, mask_input: Tensor | None, multimask_output: bool
    ) -> tuple[Tensor, Tensor]:
        encoder = self._prompt_encoder
        dense = encoder.embed_no_mask() if mask_input is None else encoder.embed_masks(mask_input)
        masks, scores = self._mask_decoder.predict_masks(
            self._features,
            self._image_pe,
            encoder.embed_points(coords, labels).to(self.dtype),
            dense.to(self.dtype),
        )
        masks, scores = select_masks(masks, scores, multimask_output)
        return masks.float(), scores.float()

    def _capture(
        self, shape: torch.Size, mask_input: Tensor | None, multimask_output: bool
    ) -> _Graph:
        device = self._features.device
        coords = torch.zeros(*shape, 2, device=device)
        labels = torch.zeros(shape, device=device)
        if mask_input is not None:
            mask_input = torch.zeros(mask_input.shape, device=device)
        # Libraries allocate and choose algorithms in their first calls, which no graph may hold.
        warm_up = torch.cuda.Stream(device)
        warm_up.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(warm_up):
            for _ in range(2):
                self._decode(coords, labels, mask_input, multimask_output)
        torch.cuda.current_stream(device).wait_stream(warm_up)
        graph = torch.cuda.CUDAGraph()
        # thread_local: another thread of a server may allocate meanwhile.
        with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
            masks, scores = self._decode(coords, labels, mask_input, multimask_output)
        return _Graph(graph, coords, labels, mask_input, masks, scores)
