"""The training passes against Meta's, the losses against their formulas, and exact resuming."""

import csv
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from oracle import meta_sam, relative_l2, tiny_config
from PIL import Image

from samtrt.errors import InputError
from samtrt.scenes.randomness import SceneRandom
from training import model, objective, train
from training.optimization import Gradients, build_optimizers

ROOT = Path(__file__).resolve().parents[2]
TINY = ("--img-size", "128", "--batch-size", "2", "--masks", "2", "--rounds", "2")


def test_encoder_pass_equals_metas() -> None:
    sam = meta_sam(tiny_config())
    images = torch.randn(2, 3, 128, 128)
    with torch.no_grad():
        assert (
            relative_l2(model.encode(sam.image_encoder, images), sam.image_encoder(images)) < 1e-5
        )


@pytest.mark.parametrize("boxes", [False, True])
@pytest.mark.parametrize("with_mask", [False, True])
def test_decoder_pass_equals_metas(boxes: bool, with_mask: bool) -> None:
    """Two pictures with two prompts each, decoded together, as Meta's code does one by one."""
    sam = meta_sam(tiny_config())
    embeddings = torch.randn(2, 256, 8, 8)
    coords = torch.rand(4, 3, 2) * 127
    labels = torch.tensor([[2, 3, 0], [2, 3, 1]] * 2 if boxes else [[1, -1, 0], [1, -1, 1]] * 2)
    mask_input = torch.randn(4, 1, 32, 32) if with_mask else None
    with torch.no_grad():
        masks, ious = model.decode(sam, embeddings, coords, labels, mask_input)
        for image in range(2):
            rows = slice(2 * image, 2 * image + 2)
            points = (coords[rows, [0, 2]], labels[rows, [0, 2]])
            if boxes:
                points = (coords[rows, 2:], labels[rows, 2:])
            sparse, dense = sam.prompt_encoder(
                points=points,
                boxes=coords[rows, :2].flatten(1) if boxes else None,
                masks=None if mask_input is None else mask_input[rows],
            )
            expected, expected_ious = sam.mask_decoder.predict_masks(
                embeddings[image : image + 1], sam.prompt_encoder.get_dense_pe(), sparse, dense
            )
            assert relative_l2(masks[rows], expected) < 1e-5
            assert relative_l2(ious[rows], expected_ious) < 1e-5


def test_mask_losses_follow_the_paper() -> None:
    logits = torch.tensor([[[[2.0, -1.0], [0.5, -3.0]]]], dtype=torch.float64)
    target = torch.tensor([[[[1.0, 0.0], [1.0, 0.0]]]], dtype=torch.float64)
    p = logits.sigmoid()
    pt = torch.where(target > 0, p, 1 - p)
    alpha = torch.where(target > 0, 0.25, 0.75)
    focal = (-alpha * (1 - pt) ** 2 * pt.log()).mean()
    dice = 1 - (2 * (p * target).sum() + 1) / (p.sum() + target.sum() + 1)
    loss = objective.mask_losses(logits, target).item()
    assert loss == pytest.approx((20 * focal + dice).item(), rel=1e-5)


def test_only_the_best_of_three_masks_learns() -> None:
    """Of tokens 1 to 3, the loss of the worse two does not reach the objective."""
    logits = torch.randn(1, 4, 8, 8, requires_grad=True)
    target = (torch.rand(1, 1, 8, 8) > 0.5).float()
    losses = objective.mask_losses(logits, target)
    losses[:, 1:].amin(1).sum().backward()
    assert logits.grad is not None
    touched = logits.grad.abs().sum((0, 2, 3)) > 0
    assert touched.sum() == 1
    assert touched[1:][losses[0, 1:].argmin()]


def test_prompts_come_from_their_regions() -> None:
    region = torch.zeros(6, 16, 16, dtype=torch.bool)
    region[:, 3:6, 9:12] = True
    random = SceneRandom(5, torch.arange(6))
    clicks = objective.sample_pixels(region, random.lattice(256))
    assert (clicks[:, 0] >= 36).all()
    assert (clicks[:, 0] < 48).all()
    assert (clicks[:, 1] >= 12).all()
    assert (clicks[:, 1] < 24).all()
    assert len(clicks.unique(dim=0)) > 1
    boxes = objective.noisy_boxes(region[:, None].float(), random)
    assert (boxes - torch.tensor([[36.0, 12.0], [48.0, 24.0]])).abs().max() <= 20


def test_a_gradient_that_is_not_finite_becomes_zero() -> None:
    parameters = [torch.ones(3, requires_grad=True), torch.ones(2, 2, requires_grad=True)]
    gradients = Gradients(parameters, limit=1.0)
    gradients.flat[:] = 3.0
    assert gradients.finish(1).item() == pytest.approx(3 * 7**0.5)
    assert gradients.flat.norm().item() == pytest.approx(1)
    gradients.flat[2] = float("nan")
    assert not gradients.finish(1).isfinite()
    assert torch.equal(gradients.flat, torch.zeros(7))


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_every_parameter_has_one_optimizer(name: str) -> None:
    sam = meta_sam(tiny_config())
    optimizers = build_optimizers(sam, name, 1e-3, 0.1)
    taken = [p for o in optimizers for group in o.param_groups for p in group["params"]]
    assert len(taken) == len({id(p) for p in taken}) == len(list(sam.parameters()))


def test_a_stretch_with_other_options_is_refused(tmp_path: Path) -> None:
    options = train.parse_arguments(
        ["--output", str(tmp_path), "--steps", "4", "--img-size", "128"]
    )
    run = train.Training(options, train.World(0, 1, torch.device("cpu")))
    state = run.state_dict()
    options.masks = 3
    with pytest.raises(InputError, match=r"masks=8.*masks=3"):
        run.load_state_dict(state)


def train_in_shell(output: Path, *arguments: str, processes: int = 0) -> None:
    launcher = [sys.executable]
    if processes:
        launcher += ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node"]
        launcher += [str(processes)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [*launcher, "-m", "training.train", "--output", str(output), *TINY, *arguments]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]


def parameters(output: Path) -> torch.Tensor:
    weights = torch.load(output / "state.pt", weights_only=True)["sam"]
    return torch.cat([tensor.flatten() for tensor in weights.values()])


@pytest.mark.slow
def test_a_run_in_stretches_equals_one_run(tmp_path: Path) -> None:
    """Also with scenes from a worker process in one of the two."""
    schedule = ("--steps", "4", "--log-every", "2", "--warmup", "2")
    train_in_shell(tmp_path / "whole", *schedule, "--workers", "1")
    train_in_shell(tmp_path / "parts", *schedule, "--stop-after", "0")
    assert torch.load(tmp_path / "parts/state.pt", weights_only=True)["step"] == 2
    train_in_shell(tmp_path / "parts", *schedule)
    assert torch.equal(parameters(tmp_path / "whole"), parameters(tmp_path / "parts"))
    rows = list(csv.DictReader((tmp_path / "parts/log.csv").open()))
    assert [int(row["step"]) for row in rows] == [2, 4]
    plot = tmp_path / "plot.png"
    command = [sys.executable, "-m", "training.plot", str(tmp_path / "parts/log.csv"), str(plot)]
    subprocess.run(command, cwd=ROOT, check=True)
    assert Image.open(plot).size[0] > 500


@pytest.mark.slow
def test_two_processes_agree(tmp_path: Path) -> None:
    """Half the batch on each of two processes gives the gradient of the whole batch on one."""
    schedule = ("--steps", "1", "--log-every", "1", "--warmup", "1", "--masks", "1")
    train_in_shell(tmp_path / "one", *schedule, "--batch-size", "2")
    train_in_shell(tmp_path / "two", *schedule, "--batch-size", "1", processes=2)
    (one,) = csv.DictReader((tmp_path / "one/log.csv").open())
    (two,) = csv.DictReader((tmp_path / "two/log.csv").open())
    assert float(two["gradient_norm"]) == pytest.approx(float(one["gradient_norm"]), rel=1e-3)
