"""Resizing, padding, coordinates and masks against Meta's code."""

from typing import Any

import numpy as np
import pytest
import torch
from oracle import meta_sam, tiny_config

from samtrt.checkpoints.config import PIXEL_STD
from samtrt.pictures import transforms
from samtrt.pictures.transforms import ResizeLongestSide
from samtrt.reports.peers import import_segment_anything

SIZES = [(480, 640), (640, 480), (333, 1000), (1024, 1024), (1500, 2250), (37, 41), (1, 1)]
CONFIG = tiny_config(img_size=256, window_size=14)


@pytest.fixture(scope="module")
def meta() -> Any:
    return meta_sam(CONFIG)


@pytest.fixture(scope="module")
def meta_resize() -> Any:
    import_segment_anything()
    from segment_anything.utils.transforms import ResizeLongestSide as MetaResize

    return MetaResize


def picture(height: int, width: int, seed: int = 0) -> np.ndarray:
    """Smooth shapes with sharp edges and some noise."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width].astype(np.float32)
    wave = np.stack([np.sin(x / 9 + c) + np.cos(y / (7 + c)) for c in range(3)], axis=-1)
    edges = ((x // 23 + y // 17) % 2)[..., None]
    values = 128 + 40 * wave + 50 * edges + rng.normal(0, 12, wave.shape)
    return values.clip(0, 255).astype(np.uint8)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("target", [1024, 256])
def test_resized_picture_equals_metas(meta_resize: Any, size: tuple[int, int], target: int) -> None:
    image = picture(*size)
    expected = meta_resize(target).apply_image(image)
    np.testing.assert_array_equal(ResizeLongestSide(target).apply_image(image), expected)


@pytest.mark.parametrize("size", SIZES)
def test_resize_on_tensors_agrees_with_pillow(size: tuple[int, int]) -> None:
    image = picture(*size)
    transform = ResizeLongestSide(256)
    tensor = torch.from_numpy(image).permute(2, 0, 1)[None]
    resized = transform.apply_image_torch(tensor)
    assert resized.dtype == torch.uint8
    expected = transform.apply_image(image).astype(int)
    difference = np.abs(resized[0].permute(1, 2, 0).numpy().astype(int) - expected)
    assert difference.max() <= 1  # Pillow's weights are fixed-point numbers
    assert difference.mean() < 0.03
    exact = transform.apply_image_torch(tensor.float())
    assert exact.dtype == torch.float32
    assert (exact - resized.float()).abs().max() <= 1.001  # each of two passes is rounded


def test_a_side_never_vanishes() -> None:
    assert ResizeLongestSide.get_preprocess_shape(10, 20_000, 1024) == (1, 1024)
    assert ResizeLongestSide.get_preprocess_shape(20_000, 5, 1024) == (1024, 1)
    assert ResizeLongestSide(64).apply_image(picture(5, 2000)).shape == (1, 64, 3)


@pytest.mark.parametrize("size", SIZES)
def test_coordinates_equal_metas(meta_resize: Any, size: tuple[int, int]) -> None:
    rng = np.random.default_rng(1)
    points = rng.uniform(0, 1, (5, 2)) * (size[1], size[0])
    boxes = rng.uniform(0, 1, (3, 4)) * (size[1], size[0], size[1], size[0])
    ours, meta = ResizeLongestSide(1024), meta_resize(1024)
    np.testing.assert_allclose(ours.apply_coords(points, size), meta.apply_coords(points, size))
    np.testing.assert_allclose(ours.apply_boxes(boxes, size), meta.apply_boxes(boxes, size))
    np.testing.assert_allclose(
        ours.apply_coords_torch(torch.from_numpy(points), size),
        meta.apply_coords_torch(torch.from_numpy(points), size),
        rtol=1e-6,
    )
    np.testing.assert_allclose(
        ours.apply_boxes_torch(torch.from_numpy(boxes), size),
        meta.apply_boxes_torch(torch.from_numpy(boxes), size),
        rtol=1e-6,
    )


def test_coordinates_leave_their_argument_alone() -> None:
    points = np.array([[10, 20]])
    ResizeLongestSide(1024).apply_coords(points, (100, 50))
    assert points.tolist() == [[10, 20]]


@pytest.mark.parametrize("size", [(480, 640), (640, 480), (37, 41), (256, 256)])
def test_preprocess_equals_metas(meta: Any, meta_resize: Any, size: tuple[int, int]) -> None:
    image = picture(*size)
    ours, input_size = transforms.preprocess(image, CONFIG.img_size)
    resized = meta_resize(CONFIG.img_size).apply_image(image)
    expected = meta.preprocess(torch.from_numpy(resized).permute(2, 0, 1)[None])
    assert input_size == resized.shape[:2]
    assert ours.shape == (1, 3, 256, 256) and ours.dtype == torch.float32
    torch.testing.assert_close(ours, expected)


def test_padding_comes_after_normalising() -> None:
    """The padding is zero, which is the mean colour and not black."""
    padded = transforms.normalize_and_pad(torch.zeros(1, 3, 10, 20, dtype=torch.uint8), 64)
    assert padded[..., 10:, :].abs().max() == 0 and padded[..., 20:].abs().max() == 0
    assert padded[..., :10, :20].max() < -1.5


@pytest.mark.parametrize("size", [(480, 640), (640, 480), (37, 41), (1, 400)])
def test_masks_are_upscaled_as_metas(meta: Any, meta_resize: Any, size: tuple[int, int]) -> None:
    input_size = meta_resize.get_preprocess_shape(*size, CONFIG.img_size)
    logits = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    expected = meta.postprocess_masks(logits, input_size, size)
    ours = transforms.postprocess_masks(logits, input_size, size, CONFIG.img_size)
    assert ours.shape == (2, 3, *size)
    torch.testing.assert_close(ours, expected, rtol=0, atol=0)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
@pytest.mark.parametrize("size", [(480, 640), (1080, 1920), (37, 41)])
def test_preprocess_on_the_gpu_agrees(size: tuple[int, int]) -> None:
    image = picture(*size)
    expected, expected_size = transforms.preprocess(image)
    ours, input_size = transforms.preprocess(image, device="cuda")
    assert input_size == expected_size and ours.is_cuda
    one_grey_level = 1 / min(PIXEL_STD)
    assert (ours.cpu() - expected).abs().max() <= 1.01 * one_grey_level
