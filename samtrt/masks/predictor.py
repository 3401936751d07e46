"""Masks of one picture at a time, for any number of prompts.

Signatures, returns and attributes are those of ``segment_anything/predictor.py``; saving and
loading an embedding are ours.
"""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from samtrt.errors import InputError
from samtrt.masks import embedding as embeddings
from samtrt.masks.embedding import Embedding, image_sha256
from samtrt.pictures.transforms import ResizeLongestSide, Size, preprocess
from samtrt.sam import Sam

# Upscaled logits held at once while masks are cut out of them, in bytes: many boxes on a large
# picture would otherwise need several gigabytes for logits that nobody asked for.
_LOGIT_BYTES = 256 << 20


class ImageNotSetError(InputError, RuntimeError):
    """A prediction or an embedding was asked for before a picture was set."""


class SamPredictor:
    """Encodes a picture once, then predicts masks for prompts on it.

    Args:
        sam_model: the model.

    Attributes:
        model: the model.
        transform: maps pictures, points and boxes into the model's frame.
        is_image_set: whether a picture is set.
        features: its embedding [1, 256, S/16, S/16], or None.
        original_size: its (H, W), or None.
        input_size: the (h, w) that it takes up in the model's frame, or None.
    """

    is_image_set: bool
    features: Tensor | None
    original_size: Size | None
    input_size: Size | None
    _image: np.ndarray | None  # what a saved embedding is bound to

    def __init__(self, sam_model: Sam) -> None:
        self.model = sam_model
        self.transform = ResizeLongestSide(sam_model.img_size)
        self.reset_image()

    def set_image(self, image: np.ndarray, image_format: str = "RGB") -> None:
        """Encodes a picture, which all later predictions are about.

        Args:
            image: [H, W, 3] uint8.
            image_format: ``"RGB"`` or ``"BGR"``, the order of its channels.

        Raises:
            InputError: another shape, dtype or format.
        """
        image = self._in_model_format(image, image_format)
        self.reset_image()
        picture, input_size = preprocess(image, self.model.img_size, self.device)
        self._set_input(picture, input_size, image.shape[:2])
        self._image = image

    def set_torch_image(
        self, transformed_image: Tensor, original_image_size: tuple[int, ...]
    ) -> None:
        """Encodes a picture that ``transform`` has resized already.

        Args:
            transformed_image: [1, 3, h, w] in the model's channel order, 0…255, its long side
                ``model.image_encoder.img_size`` pixels.
            original_image_size: (H, W) before it was resized.

        Raises:
            InputError: another shape.
        """
        side = self.model.img_size
        shape = tuple(transformed_image.shape)
        if len(shape) != 4 or shape[:2] != (1, 3) or max(shape[2:]) != side:
            raise InputError(
                f"set_torch_image takes [1, 3, h, w] with a long side of {side}, got {list(shape)};"
                " resize the picture with predictor.transform"
            )
        self.reset_image()
        self._set_input(self.model.preprocess(transformed_image), shape[2:], original_image_size)

    @torch.no_grad()
    def _set_input(
        self, picture: Tensor, input_size: tuple[int, ...], original_size: tuple[int, ...]
    ) -> None:
        # An encoder may hand out its own output buffer, which its next call overwrites.
        features = self.model.image_encoder(picture).clone()
        self._set_features(features, input_size, original_size)

    def _set_features(
        self, features: Tensor, input_size: tuple[int, ...], original_size: tuple[int, ...]
    ) -> None:
        self.features = features
        self.input_size = (input_size[0], input_size[1])
        self.original_size = (original_size[0], original_size[1])
        self.is_image_set = True

    def predict(
        self,
        point_coords: np.ndarray | None = None,
        point_labels: np.ndarray | None = None,
        box: np.ndarray | None = None,
        mask_input: np.ndarray | None = None,
        multimask_output: bool = True,
        return_logits: bool = False,
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Masks for one prompt on the picture that is set.

        Args:
            point_coords: [N, 2] points (x, y) in pixels of the picture.
            point_labels: [N], 1 for foreground and 0 for background.
            box: [4], x0, y0, x1, y1 in pixels of the picture.
            mask_input: [1, S/4, S/4] logits that an earlier call returned (256×256 for S 1024).
            multimask_output: three masks, from which the predicted IoU chooses, where the prompt
                is ambiguous; otherwise one.
            return_logits: logits in place of bool masks.

        Returns:
            Masks [C, H, W] bool (or float32 logits), predicted IoUs [C] float32, and low
            resolution logits [C, S/4, S/4] float32 for ``mask_input``; C is 3 or 1.

        Raises:
            ImageNotSetError: no picture is set.
            InputError: prompts of other shapes, or points without labels.
        """
        _, _, original_size = self._require_image()
        points = None
        if point_coords is not None:
            if point_labels is None:
                raise InputError(
                    "point_coords was given without point_labels; give a label for each point, "
                    "1 for foreground and 0 for background"
                )
            coords = np.asarray(point_coords)
            if (
                coords.ndim != 2
                or coords.shape[1] != 2
                or np.shape(point_labels) != coords.shape[:1]
            ):
                raise InputError(
                    f"point_coords {list(coords.shape)} and point_labels "
                    f"{list(np.shape(point_labels))} do not fit; expected [N, 2] and [N]"
                )
            points = (
                self._tensor(self.transform.apply_coords(coords, original_size))[None],
                torch.as_tensor(point_labels, dtype=torch.int, device=self.device)[None],
            )
        boxes = None
        if box is not None:
            if np.size(box) != 4:
                raise InputError(
                    f"box has shape {list(np.shape(box))}, expected [4] (x0, y0, x1, y1); "
                    "several boxes at once go to predict_torch"
                )
            boxes = self._tensor(self.transform.apply_boxes(np.asarray(box), original_size))
        masks, scores, low_res = self.predict_torch(
            points[0] if points else None,
            points[1] if points else None,
            boxes,
            None if mask_input is None else self._tensor(mask_input)[None],
            multimask_output,
            return_logits,
        )
        return masks[0].cpu().numpy(), scores[0].cpu().numpy(), low_res[0].cpu().numpy()

    @torch.no_grad()
    def predict_torch(
        self,
        point_coords: Tensor | None,
        point_labels: Tensor | None,
        boxes: Tensor | None = None,
        mask_input: Tensor | None = None,
        multimask_output: bool = True,
        return_logits: bool = False,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Masks for a batch of prompts, in the model's frame, on the picture that is set.

        Args:
            point_coords: [B, N, 2], mapped by ``transform.apply_coords_torch``.
            point_labels: [B, N], 1 for foreground and 0 for background.
            boxes: [B, 4], mapped by ``transform.apply_boxes_torch``.
            mask_input: [B, 1, S/4, S/4] logits that an earlier call returned.
            multimask_output: three masks a prompt; otherwise one.
            return_logits: logits in place of bool masks.

        Returns:
            Masks [B, C, H, W] bool (or float32 logits), predicted IoUs [B, C], and low resolution
            logits [B, C, S/4, S/4], all on the model's device.

        Raises:
            ImageNotSetError: no picture is set.
            InputError: points without labels.
        """
        features, _, _ = self._require_image()
        points = None
        if point_coords is not None:
            if point_labels is None:
                raise InputError("point_coords was given without point_labels")
            points = (point_coords, point_labels)
        low_res, scores = self.model.decode(features, points, boxes, mask_input, multimask_output)
        return self._upscale(low_res, return_logits), scores, low_res

    def _upscale(self, low_res: Tensor, return_logits: bool) -> Tensor:
        """Masks or logits [B, C, H, W] of low resolution logits [B, C, S/4, S/4]."""
        _, input_size, original_size = self._require_image()
        if return_logits:
            return self.model.postprocess_masks(low_res, input_size, original_size)
        shape = (*low_res.shape[:2], *original_size)
        masks = torch.empty(shape, dtype=torch.bool, device=low_res.device)
        prompt_bytes = (
            4 * low_res.shape[1] * max(self.model.img_size**2, original_size[0] * original_size[1])
        )
        step = max(1, _LOGIT_BYTES // prompt_bytes)
        for out, logits in zip(masks.split(step), low_res.split(step), strict=True):
            upscaled = self.model.postprocess_masks(logits, input_size, original_size)
            torch.gt(upscaled, self.model.mask_threshold, out=out)
        return masks

    def get_image_embedding(self) -> Tensor:
        """The embedding of the picture that is set: [1, 256, S/16, S/16] float32.

        Raises:
            ImageNotSetError: no picture is set.
        """
        return self._require_image()[0]

    def save_embedding(self, path: str | Path) -> None:
        """Writes the embedding of the picture that is set (safetensors).

        Raises:
            ImageNotSetError: no picture is set.
            InputError: it was set by ``set_torch_image``, which does not know the picture.
            SamtrtError: the file cannot be written.
        """
        features, input_size, original_size = self._require_image()
        if self._image is None:
            raise InputError(
                "set_torch_image does not see the picture that an embedding is bound to; "
                "use set_image before save_embedding"
            )
        embedding = Embedding(
            features,
            original_size,
            input_size,
            image_sha256(self._image),
            self.model.engine_sha256,
        )
        embeddings.save_embedding(path, embedding)

    def load_embedding(
        self, path: str | Path, image: np.ndarray, image_format: str = "RGB"
    ) -> None:
        """Sets a picture whose embedding was saved, without encoding it.

        Args:
            path: what ``save_embedding`` wrote.
            image: [H, W, 3] uint8, the picture itself.
            image_format: ``"RGB"`` or ``"BGR"``.

        Raises:
            InputError: the file is missing or damaged, or stale: of another picture or engine.
        """
        image = self._in_model_format(image, image_format)
        found = embeddings.load_embedding(path, image_sha256(image), self.model.engine_sha256)
        self.reset_image()
        features = found.features.to(self.device)
        self._set_features(features, found.input_size, found.original_size)
        self._image = image

    @property
    def device(self) -> torch.device:
        """The model's device."""
        return self.model.device

    def reset_image(self) -> None:
        """Forgets the picture."""
        self.is_image_set = False
        self.features = self.original_size = self.input_size = None
        self._image = None

    def _require_image(self) -> tuple[Tensor, Size, Size]:
        """features, input_size and original_size of the picture that is set."""
        if self.features is None or self.input_size is None or self.original_size is None:
            raise ImageNotSetError(
                "no image is set; call set_image before a mask or an embedding is asked for"
            )
        return self.features, self.input_size, self.original_size

    def _in_model_format(self, image: np.ndarray, image_format: str) -> np.ndarray:
        """A private, contiguous copy of the picture in the model's channel order."""
        if image_format not in ("RGB", "BGR"):
            raise InputError(f"image_format is {image_format!r}, expected 'RGB' or 'BGR'")
        check_picture(image)
        if image_format != self.model.image_format:
            image = image[..., ::-1]
        return image.copy()

    def _tensor(self, values: np.ndarray) -> Tensor:
        return torch.as_tensor(values, dtype=torch.float, device=self.device)


def check_picture(image: np.ndarray) -> None:
    """Refuses what is not a picture, before it fails somewhere inside.

    Raises:
        InputError: anything but a uint8 array of shape [H, W, 3] with at least one pixel.
    """
    if not isinstance(image, np.ndarray):
        found = f"a {type(image).__name__}"
    elif image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
        found = f"a {image.dtype} array of shape {list(image.shape)}"
    else:
        return
    raise InputError(f"the image is {found}, expected a uint8 array of shape [H, W, 3]")
