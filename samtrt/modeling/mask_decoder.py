"""SAM's mask decoder as a torch module with Meta's parameter names.

Written from the paper (Segment Anything, arXiv:2304.02643, section A "Model details") and the
shapes in Meta's checkpoints. Two things differ from Meta's modules, and neither changes a value:
nothing depends on the values in a tensor (no boolean indexing), so that the modules can be
captured in a CUDA graph and exported to ONNX; and the work on the thousands of image tokens is cut
down: what all prompts share is computed once, projections move to the tokens' side, and channels
come last, so that nothing large is transposed.

Shapes: B prompts, N points a prompt, T tokens, C = 256 channels, a grid of h×w image tokens.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from samtrt.checkpoints.config import NUM_MULTIMASK_OUTPUTS
from samtrt.modeling.layers import LayerNorm2d, are_plain, in_rows, is_hooked
from samtrt.modeling.transformer import TwoWayTransformer


class MLP(nn.Module):
    """Linear layers with ReLU between them, and a sigmoid at the end if asked for."""

    def __init__(
        self,
        input_dim: int,
        hidden_dim: int,
        output_dim: int,
        num_layers: int,
        sigmoid_output: bool = False,
    ) -> None:
        super().__init__()
        self.num_layers = num_layers
        widths = (input_dim, *[hidden_dim] * (num_layers - 1), output_dim)
        self.layers = nn.ModuleList(
            nn.Linear(fan_in, fan_out) for fan_in, fan_out in pairwise(widths)
        )
        self.sigmoid_output = sigmoid_output

    def forward(self, x: Tensor) -> Tensor:
        *hidden, last = self.layers
        for layer in hidden:
            x = F.relu(layer(x))
        x = last(x)
        return F.sigmoid(x) if self.sigmoid_output else x


def split_pixels(layer: nn.ConvTranspose2d, x: Tensor) -> Tensor:
    """[..., C_in] → [..., 4, C_out]: each pixel becomes 2×2 pixels of its own, row by row.

    A transposed convolution whose stride is its kernel's size is one matrix product where channels
    come last, and so nothing is transposed on the way.
    """
    assert layer.bias is not None
    weight = layer.weight.permute(2, 3, 1, 0).flatten(0, 2)
    return F.linear(x, weight, layer.bias.repeat(4)).unflatten(-1, (4, -1))


class MaskDecoder(nn.Module):
    """Image and prompt embeddings → mask logits and predicted IoUs.

    Mask 0 is the single answer for a prompt that is not ambiguous; masks 1…3 are whole, part and
    subpart.

    Args:
        transformer_dim: channels C.
        transformer: lets tokens and image attend to each other.
        num_multimask_outputs: masks beside mask 0.
        activation: of the upscaling.
        iou_head_depth, iou_head_hidden_dim: layers and channels of the head that predicts IoUs.
    """

    def __init__(
        self,
        *,
        transformer_dim: int,
        transformer: nn.Module,
        num_multimask_outputs: int = NUM_MULTIMASK_OUTPUTS,
        activation: type[nn.Module] = nn.GELU,
        iou_head_depth: int = 3,
        iou_head_hidden_dim: int = 256,
    ) -> None:
        super().__init__()
        channels = transformer_dim
        self.transformer_dim = transformer_dim
        self.transformer = transformer
        self.num_multimask_outputs = num_multimask_outputs
        self.embedding_chans = channels  # of the image embeddings that it takes
        self.iou_token = nn.Embedding(1, channels)
        self.num_mask_tokens = num_multimask_outputs + 1
        self.mask_tokens = nn.Embedding(self.num_mask_tokens, channels)
        self.output_upscaling = nn.Sequential(
            nn.ConvTranspose2d(channels, channels // 4, kernel_size=2, stride=2),
            LayerNorm2d(channels // 4),
            activation(),
            nn.ConvTranspose2d(channels // 4, channels // 8, kernel_size=2, stride=2),
            activation(),
        )
        self.output_hypernetworks_mlps = nn.ModuleList(
            MLP(channels, channels, channels // 8, 3) for _ in range(self.num_mask_tokens)
        )
        self.iou_prediction_head = MLP(
            channels, iou_head_hidden_dim, self.num_mask_tokens, iou_head_depth
        )

    def forward(
        self,
        image_embeddings: Tensor,
        image_pe: Tensor,
        sparse_prompt_embeddings: Tensor,
        dense_prompt_embeddings: Tensor,
        multimask_output: bool,
    ) -> tuple[Tensor, Tensor]:
        """``predict_masks``, of which masks 1…3 (multimask) or mask 0 are kept."""
        masks, iou_predictions = self.predict_masks(
            image_embeddings, image_pe, sparse_prompt_embeddings, dense_prompt_embeddings
        )
        return self.select(masks, iou_predictions, multimask_output)

    def select(
        self, masks: Tensor, iou_predictions: Tensor, multimask_output: bool
    ) -> tuple[Tensor, Tensor]:
        """What a caller gets of [B, 4, …]; see ``select_masks``."""
        return select_masks(masks, iou_predictions, multimask_output)

    def answers(self, multimask_output: bool) -> int:
        """How many masks ``select`` keeps."""
        return NUM_MULTIMASK_OUTPUTS if multimask_output else 1

    def prepare(self, image_embeddings: Tensor) -> Tensor | None:
        """What depends on a picture alone, for any number of ``predict_masks``; None for none."""
        return None

    def predict_masks(
        self,
        image_embeddings: Tensor,
        image_pe: Tensor,
        sparse_prompt_embeddings: Tensor,
        dense_prompt_embeddings: Tensor,
        prepared: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """All four masks of each prompt.

        Args:
            image_embeddings: [1, C, h, w], shared by all prompts, or [B, C, h, w].
            image_pe: [1, C, h, w] of ``PromptEncoder.get_dense_pe``.
            sparse_prompt_embeddings: [B, T, C].
            dense_prompt_embeddings: [B, C, h, w], or of batch 1 and shared by all prompts.
            prepared: what ``prepare`` has made of these image embeddings.

        Returns:
            Logits [B, 4, 4h, 4w] and predicted IoUs [B, 4].
        """
        tokens, image = self.attend(
            image_embeddings, image_pe, sparse_prompt_embeddings, dense_prompt_embeddings
        )
        masks = self.draw(tokens, image, image_embeddings, prepared)
        return masks, self.predict_ious(tokens)

    def predict_ious(self, tokens: Tensor) -> Tensor:
        """Predicted IoUs [B, 4] of what ``attend`` has made of the tokens; no mask is needed."""
        found: Tensor = self.iou_prediction_head(tokens[:, 0])
        return found

    def draw(
        self,
        tokens: Tensor,
        image: Tensor,
        image_embeddings: Tensor,
        prepared: Tensor | None = None,
    ) -> Tensor:
        """Upscales the image tokens four times and multiplies each pixel with each mask's vector.

        Args:
            tokens, image: [B, T, C] and [B, h·w, C] that ``attend`` has made.
            image_embeddings, prepared: ``predict_masks``'s.

        Returns:
            Logits [B, 4, 4h, 4w].
        """
        hyper, grid = self._hypernetworks(tokens), image_embeddings.shape[-2:]
        if not _is_as_made(self.output_upscaling):
            return self._times(hyper, self._pixels(image, grid))
        vectors = hyper.transpose(1, 2)
        masks = in_rows(lambda few: self._upscaled(few) @ vectors, image)
        return self._to_grid(masks, grid)

    def _output_tokens(self) -> Tensor:
        """[T, C]: the token of the IoUs, and one a mask."""
        return torch.cat((self.iou_token.weight, self.mask_tokens.weight))

    def attend(
        self, image_embeddings: Tensor, image_pe: Tensor, sparse: Tensor, dense: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Tokens [B, T, C] and image [B, h·w, C] after the transformer; output tokens first.

        The arguments are ``predict_masks``'s.
        """
        outputs = self._output_tokens()
        tokens = torch.cat((outputs.expand(sparse.shape[0], -1, -1), sparse), dim=1)
        image = image_embeddings + dense
        transformer: Any = self.transformer
        found: tuple[Tensor, Tensor]
        if are_plain(TwoWayTransformer, transformer):
            image = image.flatten(2).transpose(1, 2).contiguous()
            if image.shape[0] == 1:
                image = image[0]  # shared: what depends on it alone is computed once
            found = transformer.on_tokens(image, image_pe[0].flatten(1).t(), tokens)
        else:
            batch = sparse.shape[0]
            image, pe = (x.expand(batch, -1, -1, -1) for x in (image, image_pe))
            found = transformer(image, pe, tokens)
        return found

    def _hypernetworks(self, tokens: Tensor) -> Tensor:
        """Each mask's vector [B, 4, C / 8]."""
        return torch.stack(
            [mlp(tokens[:, 1 + i]) for i, mlp in enumerate(self.output_hypernetworks_mlps)], dim=1
        )

    @staticmethod
    def _times(hyper: Tensor, pixels: Tensor) -> Tensor:
        """Vectors [B, M, K] times pixels [B, K, H, W]: [B, M, H, W]."""
        return (hyper @ pixels.flatten(2)).unflatten(2, pixels.shape[-2:])

    def _pixels(self, image: Tensor, grid: Sequence[int]) -> Tensor:
        """What masks are drawn on, [B, C / 8, 4h, 4w]."""
        if _is_as_made(self.output_upscaling):
            return self._to_grid(in_rows(self._upscaled, image), grid)
        found: Tensor = self.output_upscaling(image.transpose(1, 2).unflatten(2, tuple(grid)))
        return found

    def _upscaled(self, image: Tensor) -> Tensor:
        """``output_upscaling`` on channels that come last: [B, T, C] → [B, T · 16, C / 8].

        Each pixel is a row, and so nothing large is transposed.
        """
        layers: list[Any] = list(self.output_upscaling)
        first, norm, activation, second, last = layers
        image = activation(norm.over_last(split_pixels(first, image)))
        found: Tensor = last(split_pixels(second, image))
        return found.flatten(1, 3)

    @staticmethod
    def _to_grid(pixels: Tensor, grid: Sequence[int]) -> Tensor:
        """Values of tokens' pixels, [B, h · w · 16, K], as [B, K, 4h, 4w]."""
        height, width = grid
        # (h, w, 2, 2, 2, 2): row and column of the token, of the first split, of the second
        pixels = pixels.unflatten(1, (height, width, 2, 2, 2, 2))
        return pixels.permute(0, 7, 1, 3, 5, 2, 4, 6).flatten(5, 7).flatten(2, 4)


def _is_as_made(upscaling: nn.Module) -> bool:
    """Whether the parameters say all that the upscaling computes."""
    if not are_plain(nn.Sequential, upscaling) or len(layers := list(upscaling.children())) != 5:
        return False
    first, norm, _, second, _ = layers
    return (
        are_plain(nn.ConvTranspose2d, first, second)
        and hasattr(norm, "over_last")
        and not is_hooked(norm)
        and all(
            (layer.kernel_size, layer.stride, layer.padding, layer.output_padding)
            == ((2, 2), (2, 2), (0, 0), (0, 0))
            for layer in (first, second)
        )
    )


def select_masks(
    masks: Tensor, iou_predictions: Tensor, multimask_output: bool
) -> tuple[Tensor, Tensor]:
    """Of [B, 4, …] keeps masks 1…3 for ``multimask_output``, mask 0 otherwise."""
    kept = slice(1, None) if multimask_output else slice(0, 1)
    return masks[:, kept], iou_predictions[:, kept]
