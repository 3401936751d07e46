"""Masks of one picture at a time, for any number of prompts: the shortest way there is.

Signatures, returns and attributes are those of ``segment_anything/predictor.py``; saving and
loading an embedding are ours.

On a GPU the picture crosses the bus once as uint8, is resized, normalised and padded there,
encoded, decoded by CUDA graphs, and its masks are upscaled and cut there; what comes back is one
byte a pixel. On the CPU the same stages run in place.
"""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from samtrt.decoders.prompts import Prompts
from samtrt.decoders.protocol import Decoder
from samtrt.decoders.upscaling import cut_out, upscaled_logits
from samtrt.encoders.embedded import EmbeddedPicture, check_picture
from samtrt.errors import InputError
from samtrt.masks import embedding as embeddings
from samtrt.masks.transfer import to_host
from samtrt.pictures.transforms import Mark, ResizeLongestSide, Size, unmeasured
from samtrt.sam import Sam

IMAGE_STAGES = ("upload", "preprocess", "encode")
PROMPT_STAGES = ("decode", "upscale", "download")


class ImageNotSetError(InputError, RuntimeError):
    """A prediction or an embedding was asked for before a picture was set."""


class SamPredictor:
    """Encodes a picture once, then predicts masks for prompts on it.

    For one thread; any number of predictors may share a model, in threads and streams of their
    own.

    Args:
        sam_model: the model.
        decoder: what decodes in place of the model's own mask decoder, such as an ``OnnxDecoder``.
        decoder_precision: of the model's own: ``"auto"`` is fp16 on a GPU and fp32 on the CPU,
            ``"fp32"`` computes as Meta's code does. docs/end_to_end.md has how far they agree.

    Attributes:
        model: the model.
        transform: maps pictures, points and boxes into the model's frame.
        is_image_set: whether a picture is set.
        features: its embedding [1, 256, S/16, S/16], or None.
        original_size: its (H, W), or None.
        input_size: the (h, w) that it takes up in the model's frame, or None.
        mark: called with the name of each of ``IMAGE_STAGES`` and ``PROMPT_STAGES`` once its work
            has been queued.

    Raises:
        InputError: both a decoder and a precision, or an unknown precision.
    """

    is_image_set: bool
    features: Tensor | None
    original_size: Size | None
    input_size: Size | None
    # Features beside the picture that they are of, and beside what computed them: programs set
    # `features` by hand.
    _source: tuple[Tensor | None, np.ndarray | None]
    _computed: tuple[Tensor | None, str, str]

    def __init__(
        self,
        sam_model: Sam,
        decoder: Decoder | None = None,
        decoder_precision: str = "auto",
    ) -> None:
        if decoder is not None and decoder_precision != "auto":
            raise InputError(
                "a decoder was given and decoder_precision too, which is the model's own decoder's;"
                " leave one out"
            )
        self.model = sam_model
        self.transform = ResizeLongestSide(sam_model.img_size)
        self.mark: Mark = unmeasured
        self._given_decoder = decoder
        self._decoder_precision = decoder_precision
        if decoder is None:
            sam_model.get_decoder(decoder_precision)  # an unknown precision fails here
        self.reset_image()

    def set_image(self, image: np.ndarray, image_format: str = "RGB") -> None:
        """Encodes a picture, which all later predictions are about.

        On a GPU it returns before the work is done.

        Args:
            image: [H, W, 3] uint8.
            image_format: ``"RGB"`` or ``"BGR"``, the order of its channels.

        Raises:
            InputError: another shape, dtype or format; the picture that was set stays.
        """
        image = self._in_model_format(image, image_format)
        self.reset_image()
        self._set_picture(self.model.embed(image, self.mark))
        # A copy, which the caller does not change; made while a GPU is at work.
        self._source = (self.features, image.copy())

    def set_torch_image(
        self, transformed_image: Tensor, original_image_size: tuple[int, ...]
    ) -> None:
        """Encodes a picture that ``transform`` has resized already.

        Args:
            transformed_image: [1, 3, h, w] in the model's channel order, 0…255, its long side
                ``model.image_encoder.img_size`` pixels; or [B, 3, h, w], which are encoded as one
                batch, for ``features``: masks are predicted of one picture.
            original_image_size: (H, W) before it was resized.

        Raises:
            InputError: another shape.
        """
        height, width = original_image_size
        images = transformed_image.split(1)
        pictures = self.model.embed_resized(images, [(height, width)] * len(images))
        self.reset_image()
        self._set_picture(pictures[0])
        if len(pictures) > 1:
            self.features = torch.cat([picture.features for picture in pictures])

    def set_embedded_picture(self, picture: EmbeddedPicture) -> None:
        """Sets a picture that was embedded before, such as by ``Sam.embed``.

        Raises:
            InputError: it is of a model of another size.
        """
        if picture.img_size != self.model.img_size:
            raise InputError(
                f"the picture was embedded by a model for {picture.img_size}² pixels and this one "
                f"is for {self.model.img_size}²; embed it again"
            )
        self.reset_image()
        self._set_picture(picture.to(self.device))

    def _set_picture(self, picture: EmbeddedPicture) -> None:
        self.features = picture.features
        self.input_size = picture.input_size
        self.original_size = picture.original_size
        self.is_image_set = True
        self._computed = (picture.features, picture.computed_by, picture.parameters_sha256)

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
            InputError: what ``Prompts.from_arrays`` refuses.
        """
        picture = self._picture()
        prompts = Prompts.from_arrays(picture, point_coords, point_labels, box, mask_input)
        masks, scores, low_res = self._predict(picture, prompts, multimask_output, return_logits)
        found = to_host(masks[0], scores[0], low_res[0])
        self.mark("download")
        return found[0], found[1], found[2]

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
            mask_input: [B, 1, S/4, S/4] logits that an earlier call returned; one for all
                prompts is [1, 1, S/4, S/4].
            multimask_output: three masks a prompt; otherwise one.
            return_logits: logits in place of bool masks.

        Returns:
            Masks [B, C, H, W] bool (or float32 logits), predicted IoUs [B, C], and low resolution
            logits [B, C, S/4, S/4], all on the model's device.

        Raises:
            ImageNotSetError: no picture is set.
            InputError: what ``Prompts.from_tensors`` refuses.
        """
        picture = self._picture()
        prompts = Prompts.from_tensors(picture, point_coords, point_labels, boxes, mask_input)
        return self._predict(picture, prompts, multimask_output, return_logits)

    def _predict(
        self,
        picture: EmbeddedPicture,
        prompts: Prompts,
        multimask_output: bool,
        return_logits: bool,
    ) -> tuple[Tensor, Tensor, Tensor]:
        low_res, scores = self.decoder(picture, prompts, multimask_output)
        self.mark("decode")
        if return_logits:
            masks = upscaled_logits(low_res, picture)
        else:
            masks = cut_out(low_res, picture, self.model.mask_threshold)
        self.mark("upscale")
        return masks, scores, low_res

    def get_image_embedding(self) -> Tensor:
        """The embedding of the picture that is set: [1, 256, S/16, S/16] float32.

        After ``set_torch_image`` of B pictures [B, 256, S/16, S/16].

        Raises:
            ImageNotSetError: no picture is set.
        """
        if self.is_image_set and self.features is not None and len(self.features) > 1:
            return self.features.float()
        return self._picture().features

    def save_embedding(self, path: str | Path) -> None:
        """Writes the embedding of the picture that is set: safetensors, or zarr where the name ends
        in .zarr.zip.

        Raises:
            ImageNotSetError: no picture is set.
            InputError: it was set by ``set_torch_image`` or by hand, so that the picture is not
                known.
            SamtrtError: the file cannot be written.
        """
        picture = self._picture()
        features, image = self._source
        if image is None or features is not self.features:
            raise InputError(
                "set_torch_image does not see the picture that an embedding is bound to; "
                "use set_image before save_embedding"
            )
        embeddings.save_embedding(path, picture, embeddings.image_sha256(image))

    def load_embedding(
        self,
        path: str | Path,
        image: np.ndarray,
        image_format: str = "RGB",
        same_encoder: bool = True,
    ) -> None:
        """Sets a picture whose embedding was saved, without encoding it.

        Args:
            path: what ``save_embedding`` wrote.
            image: [H, W, 3] uint8, the picture itself.
            image_format: ``"RGB"`` or ``"BGR"``.
            same_encoder: refuse what another encoder of the same parameters has computed, such as
                one of another precision or backend. With False the model's encoder is not made.

        Raises:
            InputError: the file is missing or damaged, or stale: of another picture, of other
                parameters or of another encoder.
        """
        image = self._in_model_format(image, image_format)
        found = embeddings.load_embedding(path, image, self.model, same_encoder)
        self.set_embedded_picture(found)
        self._source = (self.features, image.copy())

    @property
    def device(self) -> torch.device:
        """The model's device."""
        return self.model.device

    @property
    def decoder(self) -> Decoder:
        """What decodes: the decoder that was given, or the model's own."""
        return self._given_decoder or self.model.get_decoder(self._decoder_precision)

    def reset_image(self) -> None:
        """Forgets the picture."""
        self.is_image_set = False
        self.features = self.original_size = self.input_size = None
        self._source = (None, None)
        self._computed = (None, "", "")

    def _picture(self) -> EmbeddedPicture:
        """The picture that is set."""
        features = self.features
        if (
            not self.is_image_set
            or features is None
            or self.input_size is None
            or self.original_size is None
        ):
            raise ImageNotSetError(
                "no image is set; call set_image before a mask or an embedding is asked for"
            )
        computed = self._computed if self._computed[0] is features else (None, "", "")
        return EmbeddedPicture(
            features.float(),
            (self.original_size[0], self.original_size[1]),
            (self.input_size[0], self.input_size[1]),
            self.model.img_size,
            *computed[1:],
        )

    def _in_model_format(self, image: np.ndarray, image_format: str) -> np.ndarray:
        """The picture in the model's channel order."""
        if image_format not in ("RGB", "BGR"):
            raise InputError(f"image_format is {image_format!r}, expected 'RGB' or 'BGR'")
        check_picture(image)
        if image_format != self.model.image_format:
            image = image[..., ::-1]
        return image
