"""SAM's prompt encoder as a torch module with Meta's parameter names.

Written from the paper (Segment Anything, arXiv:2304.02643) and the shapes in Meta's checkpoints.
Nothing depends on the values in a tensor (no boolean indexing), so that the module can be
captured in a CUDA graph and exported to ONNX.

Shapes: B prompts, N points a prompt, C = 256 channels, a grid of h×w image tokens.
"""

import math

import torch
from torch import Tensor, nn

from samtrt.modeling.layers import LayerNorm2d

# What a point's label means (segment_anything/modeling/prompt_encoder.py and utils/onnx.py).
LABEL_PADDING = -1
LABEL_BACKGROUND = 0
LABEL_FOREGROUND = 1
LABEL_BOX_TOP_LEFT = 2
LABEL_BOX_BOTTOM_RIGHT = 3
LABEL_UNKNOWN = 4  # any that has no embedding of its own


class PositionEmbeddingRandom(nn.Module):
    """Random Fourier features of positions in the unit square.

    Args:
        num_pos_feats: frequencies; there are twice as many features.
        scale: standard deviation of the frequencies; 1 for None or what is not above 0.
    """

    positional_encoding_gaussian_matrix: Tensor

    def __init__(self, num_pos_feats: int = 64, scale: float | None = None) -> None:
        super().__init__()
        scale = scale if scale is not None and scale > 0 else 1.0
        matrix = scale * torch.randn(2, num_pos_feats)
        self.register_buffer("positional_encoding_gaussian_matrix", matrix)

    def forward(self, size: tuple[int, int]) -> Tensor:
        """Of the centres of a grid of (h, w): [2 · num_pos_feats, h, w]."""
        return self.of_centres(self.centres(size))

    def centres(self, size: tuple[int, int]) -> Tensor:
        """The centres (x, y) of a grid of (h, w) in the unit square, [h, w, 2]."""
        height, width = size
        device = self.positional_encoding_gaussian_matrix.device
        y = (torch.arange(height, dtype=torch.float32, device=device) + 0.5) / height
        x = (torch.arange(width, dtype=torch.float32, device=device) + 0.5) / width
        return torch.stack((x.expand(height, width), y[:, None].expand(height, width)), dim=-1)

    def of_centres(self, centres: Tensor) -> Tensor:
        """Of ``centres`` [h, w, 2]: [2 · num_pos_feats, h, w]."""
        return self._pe_encoding(centres).permute(2, 0, 1)

    def forward_with_coords(self, coords_input: Tensor, image_size: tuple[int, int]) -> Tensor:
        """Of points [..., 2] (x, y) in pixels of a frame of (H, W): [..., 2 · num_pos_feats]."""
        height, width = image_size
        if height == width:
            return self._pe_encoding(coords_input / height)
        return self._pe_encoding(coords_input / coords_input.new_tensor((width, height)))

    def _pe_encoding(self, coords: Tensor) -> Tensor:
        """[..., 2] positions (x, y) in 0…1 → [..., 2 · num_pos_feats]; the angles are in fp32."""
        matrix = self.positional_encoding_gaussian_matrix
        angles = (2 * math.pi) * ((2 * coords.float() - 1) @ matrix.float())
        return torch.cat((angles.sin(), angles.cos()), dim=-1).to(matrix.dtype)


class PromptEncoder(nn.Module):
    """Points, boxes and masks → sparse [B, T, C] and dense [B, C, h, w] embeddings.

    Args:
        embed_dim: channels C.
        image_embedding_size: (h, w) of the grid of image tokens.
        input_image_size: (H, W) of the model's frame, in pixels.
        mask_in_chans: hidden channels of what embeds masks.
        activation: of that.
    """

    def __init__(
        self,
        embed_dim: int,
        image_embedding_size: tuple[int, int],
        input_image_size: tuple[int, int],
        mask_in_chans: int,
        activation: type[nn.Module] = nn.GELU,
    ) -> None:
        super().__init__()
        self.embed_dim = embed_dim
        self.input_image_size = input_image_size
        self.image_embedding_size = image_embedding_size
        self.pe_layer = PositionEmbeddingRandom(embed_dim // 2)
        self.num_point_embeddings = 4  # background, foreground, a box's two corners
        self.point_embeddings = nn.ModuleList(
            nn.Embedding(1, embed_dim) for _ in range(self.num_point_embeddings)
        )
        self.not_a_point_embed = nn.Embedding(1, embed_dim)
        self.mask_input_size = (4 * image_embedding_size[0], 4 * image_embedding_size[1])
        self.mask_downscaling = nn.Sequential(
            nn.Conv2d(1, mask_in_chans // 4, kernel_size=2, stride=2),
            LayerNorm2d(mask_in_chans // 4),
            activation(),
            nn.Conv2d(mask_in_chans // 4, mask_in_chans, kernel_size=2, stride=2),
            LayerNorm2d(mask_in_chans),
            activation(),
            nn.Conv2d(mask_in_chans, embed_dim, kernel_size=1),
        )
        self.no_mask_embed = nn.Embedding(1, embed_dim)

    def get_dense_pe(self) -> Tensor:
        """The positional encoding of the image tokens' centres, [1, C, h, w]."""
        return self.pe_layer(self.image_embedding_size)[None]

    def embed_points(self, coords: Tensor, labels: Tensor) -> Tensor:
        """Embeds points, box corners and padding points.

        Args:
            coords: [B, N, 2] (x, y) in pixels of the model's frame, float.
            labels: [B, N] of any dtype: −1 padding, 0 background, 1 foreground, 2 a box's top
                left corner, 3 its bottom right corner. Any other label gets no embedding of its
                own, as in Meta's code.

        Returns:
            [B, N, C].
        """
        # + 0.5: the centre of the pixel
        position = self.pe_layer.forward_with_coords(coords + 0.5, self.input_image_size)
        kinds = [self.not_a_point_embed, *self.point_embeddings]
        table = torch.cat([kind.weight for kind in kinds])  # rows: labels −1, 0, 1, 2, 3
        codes = torch.arange(LABEL_PADDING, len(kinds) - 1, device=labels.device)
        kind_of_point = (labels[..., None] == codes).to(table.dtype)
        is_point = (labels != LABEL_PADDING)[..., None].to(table.dtype)
        return position * is_point + kind_of_point @ table

    def embed_masks(self, masks: Tensor) -> Tensor:
        """[B, 1, 4h, 4w] mask logits of an earlier call → [B, C, h, w]."""
        return self.mask_downscaling(masks)

    def embed_no_mask(self) -> Tensor:
        """What stands for a missing mask, [1, C, 1, 1]: the same at every position."""
        return self.no_mask_embed.weight[:, :, None, None]

    def forward(
        self,
        points: tuple[Tensor, Tensor] | None,
        boxes: Tensor | None,
        masks: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        """Embeds prompts, with the signature of Meta's module.

        Args:
            points: coords [B, N, 2] in pixels of the model's frame and labels [B, N], or None. Here
                only −1, 0 and 1 mean something; of any other label the position alone counts, as
                in Meta's module, also of 2 and 3.
            boxes: [B, 4] (x0, y0, x1, y1) in the same frame, or None.
            masks: [B, 1, 4h, 4w] logits, or None.

        Returns:
            Sparse embeddings [B, T, C] and dense embeddings [B, C, h, w]. Points without a box
            get one padding point more, as in training; without points and boxes T is 0.
        """
        batch = next((len(p) for p in (points and points[0], boxes, masks) if p is not None), 1)
        if points is not None:
            corners = (points[1] == LABEL_BOX_TOP_LEFT) | (points[1] == LABEL_BOX_BOTTOM_RIGHT)
            points = points[0], points[1].masked_fill(corners, LABEL_UNKNOWN)
        coords, labels = prompt_points(points, boxes)
        if coords is None or labels is None:
            weight = self.no_mask_embed.weight
            sparse = weight.new_empty((batch, 0, self.embed_dim))
        else:
            sparse = self.embed_points(coords, labels)
        dense = self.embed_no_mask() if masks is None else self.embed_masks(masks)
        return sparse, dense.expand(batch, -1, *self.image_embedding_size)


def prompt_points(
    points: tuple[Tensor, Tensor] | None, boxes: Tensor | None
) -> tuple[Tensor | None, Tensor | None]:
    """Points and boxes as the one list of labelled points that the decoder takes.

    A box is two points with the labels 2 and 3, after the others. Points without a box are
    followed by a padding point (0, 0) with the label −1.

    Args:
        points: coords [B, N, 2] and labels [B, N], or None.
        boxes: [B, 4], or None.

    Returns:
        coords [B, N', 2] and labels [B, N'] float32, or (None, None) without points and boxes.
    """
    coords_parts, labels_parts = [], []
    if points is not None:
        coords_parts.append(points[0].float())
        labels_parts.append(points[1].float())
    if boxes is not None:
        coords_parts.append(boxes.reshape(-1, 2, 2).float())
        corners = torch.arange(
            LABEL_BOX_TOP_LEFT, LABEL_BOX_BOTTOM_RIGHT + 1, dtype=torch.float32, device=boxes.device
        )
        labels_parts.append(corners.expand(coords_parts[-1].shape[0], 2))
    elif points is not None:
        coords, labels = coords_parts[0], labels_parts[0]
        coords_parts.append(coords.new_zeros(len(coords), 1, 2))  # also where there is no point
        labels_parts.append(labels.new_full((len(labels), 1), LABEL_PADDING))
    if not coords_parts:
        return None, None
    return torch.cat(coords_parts, dim=1), torch.cat(labels_parts, dim=1)
