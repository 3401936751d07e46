"""``samtrt.accelerate`` on transformers' own modules, where that package is installed."""

from typing import Any

import pytest
import torch
from oracle import relative_l2

import samtrt
from samtrt.encoders.accelerated import acceleration_of
from samtrt.reports.peers import import_segment_anything

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def transformers() -> Any:
    import_segment_anything()  # declares what torchvision asks of a CPU build of torch
    return pytest.importorskip("transformers")


def small_model(transformers: Any, kind: str = "Sam") -> Any:
    config = getattr(transformers, f"{kind}Config")(
        vision_config={
            "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2,
            "image_size": 128, "global_attn_indexes": [1], "window_size": 5, "mlp_dim": 128,
        },
        prompt_encoder_config={"image_size": 128, "patch_size": 16},
        mask_decoder_config={"vit_dim": 32} if kind == "SamHQ" else {},
    )  # fmt: skip
    torch.manual_seed(0)
    model = getattr(transformers, f"{kind}Model")(config).eval()
    with torch.no_grad():
        for parameter in model.vision_encoder.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model


@torch.no_grad()
def test_sam_model(transformers: Any, tmp_path: Any) -> None:
    """With transformers 5.23 embeddings differed by 8.2e-7 in relative L2, masks by 9.9e-7."""
    model = small_model(transformers)
    kind = type(model.vision_encoder)
    given = {
        "pixel_values": torch.randn(2, 3, 128, 128),
        "input_points": 100 * torch.rand(2, 1, 2, 2),
    }
    expected = model(**given)
    plain = model.vision_encoder(given["pixel_values"])
    assert samtrt.accelerate(model) is model
    found = model(**given)
    assert acceleration_of(model.vision_encoder).runtime_of(model.vision_encoder) is not None
    assert relative_l2(found.pred_masks, expected.pred_masks) < 1e-4
    answer = model.vision_encoder(pixel_values=given["pixel_values"])
    assert type(answer) is type(plain)
    assert relative_l2(answer.last_hidden_state, plain.last_hidden_state) < 1e-5
    # What the runtime does not give comes from the module's own code.
    states = model.vision_encoder(given["pixel_values"], output_hidden_states=True)
    assert states.hidden_states is not None
    model.save_pretrained(tmp_path)
    again = transformers.SamModel.from_pretrained(tmp_path).eval()
    assert relative_l2(again(**given).pred_masks, expected.pred_masks) < 1e-6
    assert type(samtrt.restore(model).vision_encoder) is kind


@torch.no_grad()
def test_sam_hq_model(transformers: Any) -> None:
    """Its encoder gives early features, and tuples where they are asked for."""
    model = small_model(transformers, "SamHQ")
    given = {
        "pixel_values": torch.randn(2, 3, 128, 128),
        "input_points": 100 * torch.rand(2, 1, 2, 2),
        "original_sizes": torch.tensor([[90, 120], [90, 120]]),  # as processors give them
        "reshaped_input_sizes": torch.tensor([[96, 128], [96, 128]]),
    }
    expected, plain = model(**given), model.vision_encoder(given["pixel_values"])
    found = samtrt.accelerate(model)(**given)
    assert relative_l2(found.pred_masks, expected.pred_masks) < 1e-4
    for as_tuple in (True, False, True):
        answer = model.vision_encoder(given["pixel_values"], return_dict=not as_tuple)
        assert isinstance(answer, tuple) == as_tuple
        assert relative_l2(answer[0], plain[0]) < 1e-5
        assert relative_l2(answer[1][0], plain[1][0]) < 1e-5
