"""The network with plugins: what its launches say, evaluated, is Meta's encoder."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from oracle import meta_encoder, relative_l2
from plugin_replay import Description, evaluate, told_apart

from samtrt.checkpoints.config import EncoderConfig
from samtrt.checkpoints.parameters import random_parameters
from samtrt.encoders.tensorrt.builder import (
    INPUT,
    OUTPUT,
    add_recording,
    raw_weights,
    record_network,
)
from samtrt.encoders.tensorrt.library import shared_log
from samtrt.encoders.tensorrt.standalone import PLUGIN
from samtrt.errors import EngineError
from samtrt.kernels.hopper.compiler import Program

pytestmark = pytest.mark.usefixtures("one_thread")

# Windows of 7 on 16 × 16 tokens, which need padding; heads of 64; parts of 128 and 192 channels.
CFG = EncoderConfig(
    embed_dim=384, depth=3, num_heads=6, global_attn_indexes=(1,), window_size=7, img_size=256
)
PARAMETERS = random_parameters(CFG)


@pytest.fixture
def no_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Program, "machine_code", told_apart)


@pytest.mark.usefixtures("no_compiler")
@pytest.mark.parametrize("plugins", ["attention", "all"])
@torch.inference_mode()
def test_the_network_is_metas_encoder(plugins: str) -> None:
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(3, 3, CFG.img_size, CFG.img_size, generator=generator)
    meta = meta_encoder(CFG)
    reference = meta(x)
    allowed = 1.5 * relative_l2(meta.half()(x.half()), reference)
    recording = record_network(CFG, PARAMETERS.encoder(), "fp16", "plain", plugins, 3)
    kinds = [layer.kind for layer in recording.layers]
    assert kinds.count("plugin") == (CFG.depth if plugins == "attention" else 1 + 5 * CFG.depth)
    assert "softmax" not in kinds and "pad" not in kinds
    for batch in (1, 3):
        output = evaluate(recording, {INPUT: x[:batch]})[OUTPUT]
        assert relative_l2(output, reference[:batch]) <= allowed


CHANGED = ("get_plugin_registry", "INetworkDefinition")


class Registry:
    """Has the plugin, and keeps what it is made of."""

    def __init__(self, version_3: bool) -> None:
        self.version_3 = version_3
        self.made: list[tuple[str, list[bytes]]] = []
        name, version, namespace = PLUGIN
        creator = SimpleNamespace(name=name, plugin_version=version, plugin_namespace=namespace)
        creator.create_plugin = self.create
        setattr(self, "all_creators" if version_3 else "plugin_creator_list", [creator])

        def get(*plugin: str) -> Any:
            assert plugin == PLUGIN
            return creator

        setattr(self, "get_creator" if version_3 else "get_plugin_creator", get)

    def create(self, name: str, fields: Any, *phase: Any) -> Any:
        assert [str(each) for each in phase] == ["TensorRTPhase.BUILD"] * self.version_3
        contents = [np.asarray(field.data).astype(np.int8).tobytes() for field in fields]
        self.made.append((name, contents))
        return contents


class Definition:
    """The installed library's, whose plugins' outputs are inputs of the network: the layers around
    them are NVIDIA's."""

    def __init__(self, trt: Any, definition: Any, version_3: bool) -> None:
        self.trt, self.definition, self.version_3 = trt, definition, version_3
        self.plugins: list[tuple[list[str], Any]] = []

    def __getattr__(self, name: str) -> Any:
        if name == ("add_plugin_v3" if self.version_3 else "add_plugin_v2"):
            return self.add_plugin
        assert not name.startswith("add_plugin")
        return getattr(self.definition, name)

    def add_plugin(self, inputs: list[Any], *rest: Any) -> Any:
        *shape_inputs, contents = rest
        assert shape_inputs == [[]] * self.version_3
        description = Description(contents[0])
        types = {torch.float32: self.trt.DataType.FLOAT, torch.float16: self.trt.DataType.HALF}
        assert [tensor.dtype for tensor in inputs] == [types[each] for each in description.inputs]
        self.plugins.append(([tensor.name for tensor in inputs], contents))
        made = [
            self.definition.add_input(
                f"plugin {len(self.plugins)}.{index}", types[dtype], (-1, *shape)
            )
            for index, (dtype, shape) in enumerate(description.outputs)
        ]
        return SimpleNamespace(num_outputs=len(made), get_output=made.__getitem__)


@pytest.mark.usefixtures("no_compiler")
@pytest.mark.parametrize("version_3", [False, True])
@pytest.mark.parametrize("plugins", ["attention", "all"])
def test_tensorrt_is_given_what_is_recorded(trt: Any, plugins: str, version_3: bool) -> None:
    registry, definitions = Registry(version_3), []

    def create_network(flags: int) -> Definition:
        definitions.append(Definition(trt, builder.create_network(flags), version_3))
        return definitions[0]

    builder = trt.Builder(shared_log(trt))
    offered = {"add_plugin_v3" if version_3 else "add_plugin_v2": None}
    library = SimpleNamespace(
        **{name: getattr(trt, name) for name in dir(trt) if name not in CHANGED},
        get_plugin_registry=lambda: registry,
        INetworkDefinition=SimpleNamespace(**offered),
    )
    recording = record_network(CFG, PARAMETERS.encoder(), "fp16", "plain", plugins, 3)
    add_recording(library, SimpleNamespace(create_network=create_network), recording)
    layers = [layer for layer in recording.layers if layer.kind == "plugin"]
    weights = raw_weights(recording)
    assert [name for name, _ in registry.made] == [layer.output.name for layer in layers]
    for layer, (_, contents) in zip(layers, registry.made, strict=True):
        assert contents == [weights[name].content.tobytes() for name in layer.settings["fields"]]
    assert [contents for _, contents in definitions[0].plugins] == [c for _, c in registry.made]


def test_what_has_no_plugins_is_refused() -> None:
    def record(precision: str = "fp16", **changes: int) -> None:
        config = EncoderConfig(**{**CFG.to_json(), **changes})
        parameters = random_parameters(config).encoder()
        record_network(config, parameters, precision, "plain", "all")

    with pytest.raises(EngineError, match="the plugins compute in fp16"):
        record("fp32")
    with pytest.raises(EngineError, match="no kernels for the sizes"):
        record(num_heads=12)
