"""What is no SAM that can be read is refused in one line: the file, what it seems to be, advice.

The names are those of the projects' own checkpoints, a few of each.
"""

from pathlib import Path

import pytest
import safetensors.torch
import torch
from oracle import tiny_config, to_torch

from samtrt.checkpoints.meta import read_checkpoint
from samtrt.checkpoints.parameters import random_parameters
from samtrt.errors import CheckpointError

STATE = to_torch(random_parameters(tiny_config()).tensors)
ONE = torch.ones(1)
SAM = ("image_encoder.patch_embed.proj.weight", "mask_decoder.iou_token.weight")
DECODER = ("prompt_encoder.not_a_point_embed.weight", "mask_decoder.iou_token.weight")


def refused(path: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        read_checkpoint(path)
    text = str(caught.value)
    assert text.startswith(str(path)) and "\n" not in text and len(text) < 1200
    return text


@pytest.mark.parametrize(
    ("names", "named"),
    [
        (("image_encoder.trunk.blocks.0.attn.qkv.weight", *DECODER), "SAM 2"),
        (("memory_attention.layers.0.norm1.weight", "maskmem_tpos_enc"), "SAM 2"),
        (("vision_encoder.backbone.blocks.0.attn.qkv.weight", *DECODER), "SAM 2"),
        (("detector.backbone.vision_backbone.trunk.pos_embed", "tracker.x.weight"), "SAM 3"),
        (("detr_encoder.layers.0.x", "detr_decoder.x", "vision_encoder.backbone.x"), "SAM 3"),
        (("image_encoder.patch_embed.seq.0.c.weight", *DECODER), "MobileSAM"),
        (("mask_decoder.final_output_upscaling_layers.0.0.weight", *SAM), "EfficientSAM"),
        (("image_encoder.backbone.input_stem.op_list.0.conv.weight", *DECODER), "EfficientViT-SAM"),
        (("image_encoder.features.0.0.c.weight", *DECODER), "EdgeSAM"),
        (("image_encoder.blocks.0.attn.qkv.linear_a_q.weight", *SAM), "an adapter (LoRA, PEFT)"),
        (("base_model.model.vision_encoder.layers.0.attn.qkv.lora_A.weight",), "an adapter"),
        (("image_encoder.blocks.0.Adapter.channel.0.weight", *SAM), "a SAM with adapters"),
        (("model.0.conv.weight", "model.22.cv2.0.0.conv.weight"), "YOLO"),
        (("patch_embed.projection.weight", "layers.0.attn.rel_pos_h"), "vision encoder alone"),
        (("encoder.cls_token", "encoder.blocks.0.attn.qkv.weight"), "a plain ViT"),
        (("text_model.x", "vision_model.x", "logit_scale"), "a CLIP model"),
        (("model.embed_tokens.weight", "lm_head.weight"), "a language model"),
        (("backbone.x", "roi_heads.box_head.fc1.weight"), "a detector"),
        (("conv1.weight", "layer1.0.conv1.weight", "layer4.0.bn1.bias"), "a ResNet"),
        (("bias", "weight"), "another model (2 tensors: bias, weight)"),
        (tuple(f"a\n{i}" for i in range(5000)), "and 4995 more"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_other_models_are_named(tmp_path: Path, names: tuple[str, ...], named: str) -> None:
    state = dict.fromkeys(names, ONE)
    torch.save({"model": state, "epoch": 3}, tmp_path / "a.pth")
    text = refused(tmp_path / "a.pth")
    assert f"it seems to be {named}" in text or named in text
    assert "samtrt reads SAM's" in text or "save" in text
    safetensors.torch.save_file({n: ONE.clone() for n in names}, tmp_path / "a.safetensors")
    assert named in refused(tmp_path / "a.safetensors")


@pytest.mark.parametrize("prefix", ["", "image_encoder.", "sam.image_encoder.", "module."])
def test_an_encoder_alone_is_named(tmp_path: Path, prefix: str) -> None:
    name = "image_encoder."
    encoder = {prefix + n.removeprefix(name): t for n, t in STATE.items() if n.startswith(name)}
    torch.save(encoder, tmp_path / "encoder.pth")
    text = refused(tmp_path / "encoder.pth")
    assert "image encoder alone" in text and "save the whole SAM's state_dict" in text


def test_a_decoder_alone_is_named(tmp_path: Path) -> None:
    decoder = {n: t for n, t in STATE.items() if not n.startswith("image_encoder.")}
    torch.save(decoder, tmp_path / "decoder.pth")
    assert "prompt encoder and mask decoder alone" in refused(tmp_path / "decoder.pth")


def test_lists_of_keys_are_capped(tmp_path: Path) -> None:
    extra = {f"image_encoder.extra{i}": ONE for i in range(3000)}
    torch.save(STATE | extra, tmp_path / "sam.pth")
    text = refused(tmp_path / "sam.pth")
    assert "unexpected image_encoder.extra0" in text and "and 2992 more" in text
    left = {n: t for n, t in STATE.items() if not n.startswith("mask_decoder.transformer.")}
    torch.save(left, tmp_path / "sam.pth")
    assert "missing mask_decoder.transformer.layers.0" in refused(tmp_path / "sam.pth")


def test_sizes_that_cannot_be_name_the_file(tmp_path: Path) -> None:
    wrong = {"image_encoder.pos_embed": torch.ones(1, 8, 7, 32)}
    torch.save(STATE | wrong, tmp_path / "sam.pth")
    assert "an 8×7 token grid" in refused(tmp_path / "sam.pth").replace("a 8", "an 8")


@pytest.mark.parametrize("copy", ["model_ema.", "ema.", "ema_model.module.", "teacher."])
def test_a_second_copy_of_the_weights_is_left_out(tmp_path: Path, copy: str) -> None:
    sha256 = random_parameters(tiny_config()).sha256
    first = {f"model.{n}": t for n, t in STATE.items()}
    second = {f"{copy}{n}": t + 1 for n, t in STATE.items()}
    torch.save({"state_dict": first | second, "optimizer": {"state": {0: {"step": ONE}}}},
               tmp_path / "a.pth")  # fmt: skip
    assert read_checkpoint(tmp_path / "a.pth").sha256 == sha256
    torch.save({"state_dict": STATE, "ema_state_dict": second}, tmp_path / "b.pth")
    assert read_checkpoint(tmp_path / "b.pth").sha256 == sha256


def test_micro_sams_export_is_read(tmp_path: Path) -> None:
    """``model_state`` under ``sam.``, beside the state of its own decoder."""
    state = {f"sam.{n}": t for n, t in STATE.items()}
    torch.save({"model_state": state, "decoder_state": {"w": ONE}}, tmp_path / "a.pt")
    assert read_checkpoint(tmp_path / "a.pt").sha256 == random_parameters(tiny_config()).sha256
