"""``Sam`` as the tree that Meta's is: its names, its parameters, and what stands in them."""

import copy
import gc
import io
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from oracle import meta_sam, relative_l2, tiny_config
from torch import Tensor, nn

import samtrt
from samtrt.checkpoints.config import EncoderConfig, vit_b
from samtrt.checkpoints.parameters import random_parameters
from samtrt.encoders.accelerated import acceleration_of
from samtrt.errors import InputError
from samtrt.masks.automatic import SamAutomaticMaskGenerator
from samtrt.masks.predictor import SamPredictor
from samtrt.reports.peers import import_segment_anything
from samtrt.sam import Sam, load_sam

pytestmark = pytest.mark.usefixtures("one_thread")

CONFIG = tiny_config()
PICTURE = np.random.default_rng(0).integers(0, 256, (90, 120, 3), dtype=np.uint8)
POINT, LABEL = np.array([[40, 50]]), np.array([1])


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tree") / "sam.pth"
    torch.save(meta_sam(CONFIG, 3).state_dict(), path)
    return path


@pytest.fixture
def sam(checkpoint: Path) -> Sam:
    return samtrt.sam_model_registry["vit_b"](checkpoint=checkpoint)


@pytest.fixture
def meta() -> Any:
    return meta_sam(CONFIG, 3)


def answers(package: Any, model: Any) -> list[np.ndarray]:
    """Low resolution logits and scores of a point, of a box with a mask, and the features."""
    predictor = package.SamPredictor(model)
    predictor.set_image(PICTURE)
    _, scores, logits = predictor.predict(POINT, LABEL)
    _, more_scores, more = predictor.predict(
        box=np.array([10, 12, 80, 60]), mask_input=logits[:1], multimask_output=False
    )
    features = predictor.get_image_embedding().detach().numpy()
    return [features, logits, scores, more, more_scores]


def assert_alike(found: list[np.ndarray], expected: list[np.ndarray], bound: float = 2e-5) -> None:
    for a, b in zip(found, expected, strict=True):
        assert relative_l2(torch.from_numpy(a), torch.from_numpy(b)) <= bound


def test_state_dict_is_metas(sam: Sam, meta: Any) -> None:
    expected, found = meta.state_dict(), sam.state_dict()
    assert list(found) == list(expected)
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert [n for n, _ in sam.named_parameters()] == [n for n, _ in meta.named_parameters()]
    assert all(p.requires_grad for p in sam.parameters())
    assert dict(sam.named_buffers()).keys() == dict(meta.named_buffers()).keys()
    other = meta_sam(CONFIG, 5)
    assert str(sam.load_state_dict(other.state_dict())) == "<All keys matched successfully>"
    assert str(other.load_state_dict(sam.state_dict())) == "<All keys matched successfully>"
    assert_alike(answers(samtrt, sam), answers(import_segment_anything(), other))


@pytest.mark.parametrize("arguments", [{}, {"checkpoint": None}])
def test_untrained_it_is_metas_of_the_same_seed(
    arguments: dict[str, None], monkeypatch: pytest.MonkeyPatch
) -> None:
    small: EncoderConfig = tiny_config()
    monkeypatch.setitem(samtrt.sam._SIZES, "vit_l", lambda: small)
    torch.manual_seed(11)
    found = samtrt.sam_model_registry["vit_l"](**arguments)
    from samtrt.reports.peers import meta_sam as fresh_meta_sam

    torch.manual_seed(11)
    expected = fresh_meta_sam(small)
    ours, theirs = found.state_dict(), expected.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert not found.training
    assert_alike(answers(samtrt, found), answers(import_segment_anything(), expected))


def test_an_untrained_model_has_its_names_sizes() -> None:
    with torch.device("meta"):
        sam = samtrt.sam_model_registry["vit_b"]()
    assert len(sam.image_encoder.blocks) == vit_b().depth
    assert sam.image_encoder.patch_embed.proj.out_channels == 768
    assert samtrt.sam._SIZES["default"]().depth == 32


def test_types_and_gradients_are_metas(sam: Sam, meta: Any) -> None:
    x = torch.randn(2, 3, 128, 128, generator=torch.Generator().manual_seed(4))
    coords, labels = torch.tensor([[[20.0, 30.0]], [[70.0, 11.0]]]), torch.ones(2, 1)
    gradients = []
    for model in (sam, meta):
        model.train()
        features = model.image_encoder(x)
        sparse, dense = model.prompt_encoder(points=(coords, labels), boxes=None, masks=None)
        masks, scores = model.mask_decoder(
            image_embeddings=features[1:],
            image_pe=model.prompt_encoder.get_dense_pe(),
            sparse_prompt_embeddings=sparse,
            dense_prompt_embeddings=dense,
            multimask_output=True,
        )
        (masks.square().mean() + scores.sum() + features.square().mean()).backward()
        gradients.append({n: p.grad for n, p in model.named_parameters()})
    for name, expected in gradients[1].items():
        found = gradients[0][name]
        if expected is None:  # not used; ours takes all points' embeddings from one table
            assert found is None or not found.any(), name
        # What a softmax cancels is rounding: Meta's k_proj.bias has it, ours none.
        if expected is not None and found is not None and expected.norm() > 1e-6:
            assert relative_l2(found, expected) <= 1e-3, name


class Scaled(nn.Module):
    """Somebody else's encoder."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.inner = encoder
        self.img_size = CONFIG.img_size

    def forward(self, x: Tensor) -> Tensor:
        return 0.5 * self.inner(x)


class LowRank(nn.Module):
    """LoRA on a linear layer, which still shows the layer's weight."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        torch.manual_seed(linear.in_features)
        self.linear = linear
        self.weight, self.bias = linear.weight, linear.bias
        self.a = nn.Linear(linear.in_features, 4, bias=False)
        self.b = nn.Linear(4, linear.out_features, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x) + self.b(self.a(x))


def wrap_encoder(model: Any) -> None:
    model.image_encoder = Scaled(model.image_encoder)


def lora_on_qkv(model: Any) -> None:
    for block in model.image_encoder.blocks:
        block.attn.qkv = LowRank(block.attn.qkv)


def lora_in_decoder(model: Any) -> None:
    transformer = model.mask_decoder.transformer
    for attention in (
        transformer.layers[0].self_attn,
        transformer.layers[0].cross_attn_token_to_image,
        transformer.layers[1].cross_attn_image_to_token,
        transformer.final_attn_token_to_image,
    ):
        for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
            setattr(attention, name, LowRank(getattr(attention, name)))


def hook_on_block(model: Any) -> None:
    model.image_encoder.blocks[1].register_forward_hook(lambda module, given, found: 2 * found)


def hook_on_upscaling(model: Any) -> None:
    model.mask_decoder.output_upscaling[3].register_forward_hook(lambda m, g, found: 2 * found)


def hook_on_projection(model: Any) -> None:
    attention = model.mask_decoder.transformer.layers[0].cross_attn_token_to_image
    attention.v_proj.register_forward_hook(lambda module, given, found: 2 * found)


def metas_decoder(model: Any) -> None:
    model.mask_decoder = meta_sam(CONFIG, 8).mask_decoder


def metas_prompt_encoder(model: Any) -> None:
    model.prompt_encoder = meta_sam(CONFIG, 8).prompt_encoder


def metas_transformer(model: Any) -> None:
    model.mask_decoder.transformer = meta_sam(CONFIG, 8).mask_decoder.transformer


def metas_upscaling(model: Any) -> None:
    model.mask_decoder.output_upscaling = meta_sam(CONFIG, 8).mask_decoder.output_upscaling


def metas_encoder(model: Any) -> None:
    model.image_encoder = meta_sam(CONFIG, 8).image_encoder


def other_statistics(model: Any) -> None:
    model.pixel_mean = torch.full((3, 1, 1), 100.0)
    model.pixel_std = torch.full((3, 1, 1), 50.0)


def train(model: Any) -> None:
    model.train()


def weight_written(model: Any) -> None:
    model.image_encoder.blocks[2].mlp.lin1.weight.data.mul_(1.5)


def bias_replaced(model: Any) -> None:
    model.image_encoder.neck[1].bias = nn.Parameter(torch.ones(256))


CHANGES = [
    wrap_encoder,
    lora_on_qkv,
    lora_in_decoder,
    hook_on_block,
    hook_on_upscaling,
    hook_on_projection,
    metas_decoder,
    metas_prompt_encoder,
    metas_transformer,
    metas_upscaling,
    metas_encoder,
    other_statistics,
    train,
    weight_written,
    bias_replaced,
]


@pytest.mark.parametrize("used_before", [False, True], ids=["at once", "after use"])
@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_what_stands_in_the_tree_is_what_runs(
    sam: Sam, meta: Any, change: Any, used_before: bool
) -> None:
    before = answers(samtrt, sam) if used_before else None
    sha256, computed_by = sam.parameters_sha256, sam.encoder.computed_by
    for model in (sam, meta):
        change(model)
    package = import_segment_anything()
    expected, found = answers(package, meta), answers(samtrt, sam)
    assert_alike(found, expected, 1e-4)
    if before is not None and change is not train:
        assert max(np.abs(a - b).max() for a, b in zip(found, before, strict=True)) > 0.01
    picture = sam.embed(PICTURE)
    is_named = change in (train, weight_written, bias_replaced, other_statistics)
    if change is not train:
        same = picture.computed_by == computed_by and picture.parameters_sha256 == sha256
        decoder_only = change in (hook_on_upscaling, hook_on_projection)
        assert same == decoder_only, "embeddings pretend to be what they were"
    if not is_named and sam.image_encoder is not None and "encoder" in change.__name__:
        predictor = SamPredictor(sam)
        predictor.set_image(PICTURE)
        if picture.computed_by == "":
            with pytest.raises(InputError, match="not known which encoder"):
                predictor.save_embedding("never.written")


def test_a_precision_that_was_asked_for_is_not_dropped(sam: Sam) -> None:
    lora_in_decoder(sam)
    with pytest.raises(InputError, match=r"q_proj was replaced or hooked.*'fp16'"):
        SamPredictor(sam, decoder_precision="fp16")


def own_forward(model: Any) -> Any:
    layer = model.mask_decoder.output_hypernetworks_mlps[2].layers[0]
    layer.forward = torch.relu
    return lambda: delattr(layer, "forward")


def hook_of_a_call(model: Any) -> Any:
    layer = model.prompt_encoder.point_embeddings[1]
    return layer.register_forward_pre_hook(lambda module, given: given).remove


def other_class(model: Any) -> Any:
    layer = model.mask_decoder.iou_prediction_head.layers[1]
    layer.__class__ = type("Scaled", (nn.Linear,), {})
    return lambda: setattr(layer, "__class__", nn.Linear)


def child_of_a_sequential(model: Any) -> Any:
    sequential = model.mask_decoder.output_upscaling
    sequential.append(LowRank(nn.Linear(1, 1)))
    return lambda: sequential.__delitem__(-1)


@pytest.mark.parametrize(
    "touch",
    [own_forward, hook_of_a_call, other_class, child_of_a_sequential],
    ids=lambda f: f.__name__,
)
def test_a_decoder_that_is_in_use_is_looked_at_before_each_call(sam: Sam, touch: Any) -> None:
    in_use = sam.get_decoder("fp16")
    assert sam.get_decoder("fp16") is in_use
    undo = touch(sam)
    for _ in range(2):
        with pytest.raises(InputError, match="was replaced or hooked"):
            sam.get_decoder("fp16")
    undo()
    assert sam.get_decoder("fp16") is in_use


def test_a_batch_of_pictures(sam: Sam, meta: Any) -> None:
    theirs = import_segment_anything().SamPredictor(meta)
    ours = SamPredictor(sam)
    batch = torch.randint(0, 256, (3, 3, 96, 128), generator=torch.Generator().manual_seed(2))
    for predictor in (theirs, ours):
        predictor.set_torch_image(batch.float(), (90, 120))
    expected = theirs.get_image_embedding()
    assert ours.features.shape == (3, 256, 8, 8)
    assert relative_l2(ours.get_image_embedding(), expected) <= 1e-5
    assert relative_l2(ours.features, theirs.features) <= 1e-5
    with pytest.raises(InputError, match=r"\[3, 256, 8, 8\]"):
        ours.predict(POINT, LABEL)
    with torch.no_grad():
        frames = sam.preprocess(batch)
        assert relative_l2(sam.image_encoder(frames), meta.image_encoder(frames)) <= 1e-5


def test_forward_encodes_its_pictures_as_one_batch(
    sam: Sam, meta: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    records = [
        {
            "image": torch.randint(0, 256, (3, *size)).float(),
            "original_size": size,
            "point_coords": torch.tensor([[[30.0, 40.0]]]),
            "point_labels": torch.ones(1, 1),
        }
        for size in ((96, 128), (128, 80))
    ]
    batches = []
    encode = type(sam.image_encoder).forward

    def counting(self: Any, x: Tensor) -> Tensor:
        batches.append(len(x))
        return encode(self, x)

    monkeypatch.setattr(type(sam.image_encoder), "forward", counting)
    found, expected = sam(records, True), meta(records, True)
    assert batches == [2]
    for mine, theirs in zip(found, expected, strict=True):
        assert mine["masks"].shape == theirs["masks"].shape
        for name in ("iou_predictions", "low_res_logits"):
            assert relative_l2(mine[name], theirs[name]) <= 1e-5
    assert sam([], True) == []


@pytest.mark.parametrize("duplicate", ["deepcopy", "torch.save"])
def test_copies_are_their_own(sam: Sam, duplicate: str) -> None:
    expected, sha256 = answers(samtrt, sam), sam.parameters_sha256
    if duplicate == "deepcopy":
        other = copy.deepcopy(sam)
    else:
        buffer = io.BytesIO()
        torch.save(sam, buffer)
        buffer.seek(0)
        other = torch.load(buffer, weights_only=False)
    assert other.parameters_sha256 == sha256
    with torch.no_grad():
        sam.image_encoder.pos_embed.mul_(2)
    for found, wanted in zip(answers(samtrt, other), expected, strict=True):
        np.testing.assert_array_equal(found, wanted)
    assert acceleration_of(other.image_encoder) is not acceleration_of(sam.image_encoder)


def test_del_gives_the_memory_back_at_once(checkpoint: Path) -> None:
    gc.disable()
    try:
        sam = samtrt.sam_model_registry["vit_b"](checkpoint=checkpoint)
        answers(samtrt, sam)
        weight = weakref.ref(sam.image_encoder.blocks[0].mlp.lin1.weight)
        runtime = weakref.ref(acceleration_of(sam.image_encoder).runtime_of(sam.image_encoder))
        del sam
        assert weight() is None and runtime() is None
    finally:
        gc.enable()


def test_the_sha256_is_the_checkpoints_until_something_changes(sam: Sam) -> None:
    sha256 = random_parameters(CONFIG, 3).sha256
    assert sam.parameters_sha256 == sha256
    state = {name: tensor.clone() for name, tensor in sam.state_dict().items()}
    assert sam.to("cpu").parameters_sha256 == sha256
    for parameter in (sam.image_encoder.neck[3].weight, sam.mask_decoder.iou_token.weight):
        parameter.data += 1
        changed = sam.parameters_sha256
        assert changed != sha256
        parameter.data -= 1
    # The digest is of the values, however they came to be there.
    sam.load_state_dict(state)
    assert sam.parameters_sha256 == sha256
    assert sam.half().parameters_sha256 != sha256


def test_a_model_for_inference_says_what_it_has_not(checkpoint: Path, meta: Any) -> None:
    sam = load_sam(checkpoint, device="cpu", precision="fp32")
    assert_alike(answers(samtrt, sam), answers(import_segment_anything(), meta))
    assert not [name for name in sam.state_dict() if name.startswith("image_encoder")]
    assert list(sam.image_encoder.parameters()) == []
    assert sam.image_encoder.img_size == 128
    for name in ("blocks", "patch_embed", "neck", "pos_embed"):
        with pytest.raises(AttributeError, match=f"no {name}; sam_model_registry"):
            getattr(sam.image_encoder, name)
    assert samtrt.accelerate(sam) is sam


def test_generators_take_a_tree_that_was_taken_apart(sam: Sam, meta: Any) -> None:
    """On Meta's modules in all three places nothing of ours is left but the generator."""
    other = Sam(meta.image_encoder, meta.prompt_encoder, meta.mask_decoder)
    options = {
        "points_per_side": 2,
        "pred_iou_thresh": 0.0,
        "stability_score_thresh": 0.0,
        "box_nms_thresh": 1.0,
    }
    found = SamAutomaticMaskGenerator(other, **options).generate(PICTURE)
    expected = SamAutomaticMaskGenerator(sam, **options).generate(PICTURE)
    assert len(found) == len(expected) > 1
    for a, b in zip(found, expected, strict=True):
        assert (a["segmentation"] == b["segmentation"]).mean() > 0.999


def test_what_an_encoder_returns_is_checked(sam: Sam) -> None:
    class Pair(Scaled):
        def forward(self, x: Tensor) -> Any:
            return self.inner(x), []

    sam.image_encoder = Pair(sam.image_encoder)
    with pytest.raises(InputError, match="image_encoder is a Pair, which returns tuple"):
        sam.embed(PICTURE)


def test_box_labels_mean_nothing_to_the_prompt_encoder(sam: Sam, meta: Any) -> None:
    coords = torch.tensor([[[10.0, 20], [30, 40], [50, 60], [5, 5]]])
    labels = torch.tensor([[2, 3, 1, -1]])
    boxes = torch.tensor([[3.0, 4, 50, 60]])
    points = coords, labels
    for given in ((None, boxes, None), (points, None, None), (points, boxes, None)):
        found, expected = sam.prompt_encoder(*given), meta.prompt_encoder(*given)
        for mine, theirs in zip(found, expected, strict=True):
            torch.testing.assert_close(mine, theirs)
    with pytest.raises(InputError, match=r"a point has the label 2.*a box goes into its own"):
        ready(sam).predict(np.array([[3, 4]]), np.array([2]))


def ready(sam: Sam) -> SamPredictor:
    predictor = SamPredictor(sam)
    predictor.set_image(PICTURE)
    return predictor
