"""Scenes: the same whatever the batch, with masks that agree with one another."""

import pytest
import torch

from samtrt.reports.evaluation import deepest_points, distance_inside
from samtrt.scenes import drawing as scenes
from samtrt.scenes import shapes
from samtrt.scenes.drawing import SLOTS, STRIDE, generate
from samtrt.scenes.randomness import SceneRandom
from samtrt.scenes.textures import jpeg

SIZE = 256


@pytest.fixture(scope="module")
def batch() -> scenes.SceneBatch:
    return generate(3, range(6), SIZE)


def test_a_scene_does_not_depend_on_its_batch(batch: scenes.SceneBatch) -> None:
    alone = generate(3, [4], SIZE)
    assert torch.equal(alone.owner[0], batch.owner[4])
    assert torch.equal(alone.images[0], batch.images[4])
    assert torch.equal(alone.valid[0], batch.valid[4])


def test_seeds_and_indices_give_other_scenes(batch: scenes.SceneBatch) -> None:
    other = generate(4, [4], SIZE)
    assert not torch.equal(other.owner[0], batch.owner[4])
    assert not torch.equal(batch.owner[3], batch.owner[4])


def test_masks_partition_the_picture(batch: scenes.SceneBatch) -> None:
    """Objects, with their parts, and the background cover each pixel once."""
    for scene in range(len(batch.images)):
        entries = [*range(0, SLOTS, STRIDE), SLOTS]
        covered = torch.stack([batch.mask(scene, entry) for entry in entries]).sum(0)
        assert (covered == 1).all()


def test_parts_lie_in_their_objects(batch: scenes.SceneBatch) -> None:
    found = 0
    for scene in range(len(batch.images)):
        for entry in batch.valid[scene, :SLOTS].nonzero()[:, 0].tolist():
            mask = batch.mask(scene, entry)
            assert mask.sum() >= scenes.MIN_AREA * (SIZE / 1024) ** 2
            if entry % STRIDE:
                found += 1
                whole = batch.mask(scene, entry - entry % STRIDE)
                assert (mask & ~whole).sum() == 0
                assert mask.sum() < whole.sum()
    assert found > 0


def test_coverage_is_the_mean_of_a_mask(batch: scenes.SceneBatch) -> None:
    coverage = batch.coverage()
    for scene, entry in batch.valid.nonzero().tolist():
        mask = torch.zeros(SIZE, SIZE)
        height, width = batch.extent[scene].tolist()
        mask[:height, :width] = batch.mask(scene, entry).float()
        expected = mask.view(SIZE // 4, 4, SIZE // 4, 4).mean((1, 3))
        assert torch.equal(coverage[scene, entry].float(), expected)


def test_pictures_are_dark_outside_their_extent(batch: scenes.SceneBatch) -> None:
    assert (batch.extent < SIZE).any()
    for scene, (height, width) in enumerate(batch.extent.tolist()):
        assert batch.images[scene, :, height:].sum() == 0
        assert batch.images[scene, :, :, width:].sum() == 0
        assert batch.images[scene, :, :height, :width].float().std() > 5


def test_polygon_outline_is_exact_for_a_square() -> None:
    square = torch.tensor([[[2.0, 2.0], [-2.0, 2.0], [-2.0, -2.0], [2.0, -2.0]]])
    outline = shapes.polygon_outline(square)[0]
    angle = torch.arange(shapes.ANGLES) * (2 * torch.pi / shapes.ANGLES)
    expected = 2 / torch.maximum(angle.cos().abs(), angle.sin().abs())
    torch.testing.assert_close(outline, expected, rtol=1e-4, atol=1e-4)


def test_circle_and_stroke_have_their_areas() -> None:
    window = shapes.Window(0, 0, 200, 200)
    centre = torch.tensor([[100.0, 100.0]])
    circle = shapes.ellipse_outline(torch.tensor([[60.0, 60.0]]), torch.tensor([2.0]))
    field = shapes.radial_field(window, centre, circle, torch.tensor([0.3]))
    assert (field < 0).sum().item() == pytest.approx(torch.pi * 60**2, rel=5e-3)
    points = torch.tensor([[[50.0, 100.0], [150.0, 100.0]]])
    field = shapes.curve_field(window, points, torch.tensor([10.0]))
    assert (field < 0).sum().item() == pytest.approx(2000 + torch.pi * 100, rel=1e-2)


def test_draws_are_uniform_and_independent_of_device_state() -> None:
    torch.manual_seed(1)
    first = SceneRandom(9, torch.arange(4)).lattice(5000)
    torch.manual_seed(2)
    assert torch.equal(first, SceneRandom(9, torch.arange(4)).lattice(5000))
    assert first.mean().item() == pytest.approx(0.5, abs=0.01)
    assert first.var().item() == pytest.approx(1 / 12, rel=0.03)
    assert abs(torch.corrcoef(first)[0, 1].item()) < 0.05


def test_jpeg_at_full_quality_changes_little_and_at_low_quality_more() -> None:
    picture = torch.rand(2, 3, 8, 8).repeat_interleave(8, 2).repeat_interleave(8, 3)
    picture[1] = picture[0]
    change = (jpeg(picture, torch.tensor([100.0, 10.0])) - picture).abs().mean((1, 2, 3))
    assert change[0] < 0.005
    assert change[1] > 2 * change[0]


def test_distance_inside_is_exact() -> None:
    from scipy.ndimage import distance_transform_edt

    regions = torch.rand(3, 40, 50) > 0.02
    expected = [
        torch.from_numpy(distance_transform_edt(torch.nn.functional.pad(r, (1, 1, 1, 1))))
        for r in regions
    ]
    distance = distance_inside(regions)
    for row in range(3):
        torch.testing.assert_close(distance[row], expected[row][1:-1, 1:-1].float())
    place, depth = deepest_points(regions)
    x, y = place[0].tolist()
    assert distance[0, y, x] == depth[0] == distance[0].max()
