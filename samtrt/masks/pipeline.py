"""A decoded picture in host memory in, masks in host memory out, everything between on the GPU.

The picture crosses the bus once as uint8, is resized, normalised and padded on the device,
encoded, decoded by one CUDA graph, and its masks are upscaled and cut there; what comes back is
one byte a pixel, straight into page-locked memory. On the CPU the same stages run in place.
"""

import time
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from samtrt.decoders.graphed import GraphedMaskDecoder
from samtrt.errors import InputError
from samtrt.masks.predictor import ImageNotSetError, check_picture
from samtrt.modeling.prompt_encoder import prompt_points
from samtrt.pictures.transforms import ResizeLongestSide, normalize_and_pad, preprocess
from samtrt.sam import Sam

IMAGE_STAGES = ("upload", "preprocess", "encode")
PROMPT_STAGES = ("decode", "upscale", "download")

UPLOAD_BYTES = 1 << 20

Mark = Callable[[str], None]


def _unmeasured(stage: str) -> None:
    """The mark of a call that nobody times."""


class Pipeline:
    """The shortest way from a picture to masks; ``SamPredictor`` is the convenient one.

    Not for several threads at once: the buffers are reused from call to call.

    Args:
        sam: the model; its device decides where everything runs.
        dtype: of the mask decoder; by default float16 on a GPU and float32 on the CPU.
    """

    def __init__(self, sam: Sam, dtype: torch.dtype | None = None) -> None:
        self.sam = sam
        self.device = sam.device
        if dtype is None:
            dtype = torch.float16 if self.device.type == "cuda" else torch.float32
        self._decoder = GraphedMaskDecoder(sam.decoder, dtype)
        self._transform = ResizeLongestSide(sam.img_size)
        self._sizes: tuple[tuple[int, int], tuple[int, int]] | None = None

    @torch.no_grad()
    def set_image(self, image: np.ndarray, mark: Mark = _unmeasured) -> None:
        """Encodes a picture; on a GPU it returns before the work is done.

        Args:
            image: [H, W, 3] uint8 RGB.
            mark: called with the name of each of ``IMAGE_STAGES`` once it has been queued.

        Raises:
            InputError: another shape or dtype.
        """
        check_picture(image)
        self._sizes = None
        if self.device.type == "cuda":
            picture = self._upload(torch.from_numpy(np.ascontiguousarray(image)))
            mark("upload")
            resized = self._transform.apply_image_torch(picture.permute(2, 0, 1)[None])
            height, width = resized.shape[-2:]
            frame = normalize_and_pad(resized, self.sam.img_size)
        else:
            mark("upload")
            frame, (height, width) = preprocess(image, self.sam.img_size)
        mark("preprocess")
        self._decoder.set_features(self.sam.image_encoder(frame))
        self._sizes = (height, width), image.shape[:2]
        mark("encode")

    @torch.no_grad()
    def predict(
        self,
        point_coords: np.ndarray | None = None,
        point_labels: np.ndarray | None = None,
        box: np.ndarray | None = None,
        multimask_output: bool = True,
        mark: Mark = _unmeasured,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Masks for one prompt on the picture that is set.

        Args:
            point_coords: [N, 2] points (x, y) in pixels of the picture.
            point_labels: [N], 1 for foreground and 0 for background.
            box: [4], x0, y0, x1, y1 in pixels of the picture.
            multimask_output: three masks; otherwise one.
            mark: called with the name of each of ``PROMPT_STAGES``.

        Returns:
            Masks [C, H, W] bool and predicted IoUs [C] float32, C = 3 or 1, in host memory of
            their own.

        Raises:
            ImageNotSetError: no picture is set.
            InputError: no prompt, or points without as many labels.
        """
        if self._sizes is None:
            raise ImageNotSetError("no image is set; call set_image before predict")
        input_size, original_size = self._sizes
        coords, labels = self._prompt(point_coords, point_labels, box, original_size)
        low_res, scores = self._decoder(coords, labels, None, multimask_output)
        mark("decode")
        logits = self.sam.postprocess_masks(low_res, input_size, original_size)
        masks = logits[0] > self.sam.mask_threshold
        mark("upscale")
        found = self._download(masks), self._download(scores[0])
        if masks.is_cuda:
            torch.cuda.current_stream(self.device).synchronize()
        mark("download")
        return found[0].numpy(), found[1].numpy()

    def __call__(
        self,
        image: np.ndarray,
        point_coords: np.ndarray | None = None,
        point_labels: np.ndarray | None = None,
        box: np.ndarray | None = None,
        multimask_output: bool = True,
    ) -> tuple[np.ndarray, np.ndarray]:
        """``set_image``, then ``predict``."""
        self.set_image(image)
        return self.predict(point_coords, point_labels, box, multimask_output)

    def _upload(self, x: Tensor) -> Tensor:
        """A copy on the GPU, on its way: in parts, each to page-locked memory by all CPU threads
        while the one before it crosses the bus."""
        found = torch.empty(x.shape, dtype=x.dtype, device=self.device)
        locked = torch.empty(x.shape, dtype=x.dtype, pin_memory=True)
        flat, source, target = locked.view(-1), x.view(-1), found.view(-1)
        for first in range(0, x.numel(), UPLOAD_BYTES):
            part = slice(first, first + UPLOAD_BYTES)
            target[part].copy_(flat[part].copy_(source[part]), non_blocking=True)
        return found

    def _download(self, x: Tensor) -> Tensor:
        """A copy in host memory, on its way: torch recycles page-locked blocks once unused."""
        if not x.is_cuda:
            return x.clone()
        return torch.empty(x.shape, dtype=x.dtype, pin_memory=True).copy_(x, non_blocking=True)

    def _prompt(
        self,
        point_coords: np.ndarray | None,
        point_labels: np.ndarray | None,
        box: np.ndarray | None,
        original_size: tuple[int, int],
    ) -> tuple[Tensor, Tensor]:
        points = boxes = None
        if point_coords is not None:
            coords = self._transform.apply_coords(np.asarray(point_coords), original_size)
            labels = np.asarray([] if point_labels is None else point_labels)
            if labels.shape != coords.shape[:1]:
                raise InputError(
                    f"{len(coords)} points came with {labels.size} labels; "
                    "give one label for each point"
                )
            points = torch.from_numpy(coords)[None], torch.from_numpy(labels)[None]
        if box is not None:
            boxes = torch.from_numpy(self._transform.apply_boxes(np.asarray(box), original_size))
        coords_tensor, labels_tensor = prompt_points(points, boxes)
        if coords_tensor is None or labels_tensor is None:
            raise InputError("predict was called without a prompt; give points or a box")
        return coords_tensor, labels_tensor


class StageClock:
    """Milliseconds of each stage between ``start`` and the last mark, on the stage's own device.

    On a GPU the stages are timed by events in the stream, so that what overlaps with the host is
    not counted twice.
    """

    def __init__(self, device: torch.device) -> None:
        self._cuda = device.type == "cuda"
        self._marks: list[tuple[str, float | torch.cuda.Event]] = []
        self("start")

    def __call__(self, stage: str) -> None:
        if self._cuda:
            event = torch.cuda.Event(enable_timing=True)
            event.record()
            self._marks.append((stage, event))
        else:
            self._marks.append((stage, time.perf_counter()))

    def milliseconds(self) -> dict[str, float]:
        """Each stage's time; on a GPU, waits for the last one."""
        if self._cuda:
            torch.cuda.synchronize()
        times = {}
        for (_, before), (stage, after) in zip(self._marks, self._marks[1:], strict=False):
            if isinstance(before, torch.cuda.Event) and isinstance(after, torch.cuda.Event):
                times[stage] = before.elapsed_time(after)
            elif isinstance(before, float) and isinstance(after, float):
                times[stage] = 1e3 * (after - before)
        return times
