"""Meta's image encoder in other runtimes: the peers that ``samtrt benchmark --peers`` adds."""

import importlib.util
import shutil
import tempfile
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from samtrt.checkpoints.parameters import Parameters
from samtrt.encoders.cpu import has_fast_bf16
from samtrt.encoders.protocol import ImageEncoder
from samtrt.errors import InputError, SamtrtError
from samtrt.hints import install
from samtrt.reports.contestants import Contestant, MetaImageEncoder, meta_module

PEERS = ("torch.compile", "onnxruntime", "openvino")


def peer_contestants(
    parameters: Parameters,
    names: Sequence[str],
    device: torch.device,
    batch_sizes: Sequence[int] = (1,),
) -> list[Contestant]:
    """The peers of these names, in the precisions that they are fast in on this device.

    Args:
        names: of ``PEERS``.
        batch_sizes: pictures in a call: OpenVINO and torch.compile make a program for each.

    Raises:
        InputError: ONNX Runtime or OpenVINO on a GPU: those tried here compute on the CPU.
        SamtrtError: one that is not installed, or torch.compile without a C++ compiler.
    """
    found = []
    for name in dict.fromkeys(names):
        if device.type != "cpu" and name != "torch.compile":
            raise InputError(
                f"{name} is compared on the CPU alone, and this run is on {device}; "
                "give --backend cpu, or leave it out of --peers"
            )
        _require(name, device)
        precisions = ["fp32"]
        if device.type == "cuda":
            precisions.append("fp16")
        elif has_fast_bf16() and name != "onnxruntime":  # whose CPU kernels are fp32
            precisions.append("bf16")
        made: dict[str, Callable[..., ImageEncoder]] = {
            "torch.compile": partial(CompiledImageEncoder, device=device),
            "onnxruntime": OnnxRuntimeImageEncoder,
            "openvino": partial(OpenVinoImageEncoder, batch_sizes=batch_sizes),
        }
        found += [
            Contestant(
                f"{name} {precision}", partial(made[name], parameters, precision), ours=False
            )
            for precision in precisions
        ]
    return found


class CompiledImageEncoder(MetaImageEncoder):
    """Meta's module through ``torch.compile``; an ``ImageEncoder``.

    A batch size is compiled at its first call, which takes minutes.
    """

    def __init__(self, parameters: Parameters, precision: str, device: torch.device) -> None:
        super().__init__(parameters, precision, device)
        self.computed_by = f"torch.compile {precision}, torch {torch.__version__}"
        # On the CPU the search of max-autotune takes tens of minutes.
        mode = "max-autotune" if device.type == "cuda" else "default"
        self._module = torch.compile(self._module, mode=mode, dynamic=False)


class OnnxRuntimeImageEncoder:
    """Meta's module as an ONNX file, by ONNX Runtime on the CPU in fp32; an ``ImageEncoder``."""

    def __init__(self, parameters: Parameters, precision: str = "fp32") -> None:
        import onnxruntime

        self.img_size = parameters.encoder_config.img_size
        self.device = torch.device("cpu")
        self.computed_by = f"ONNX Runtime {onnxruntime.__version__} {precision}"
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "encoder.onnx"
            torch.onnx.export(
                meta_module(parameters),
                (torch.zeros(2, 3, self.img_size, self.img_size),),
                path,
                input_names=["image"],
                dynamic_shapes=({0: torch.export.Dim("batch")},),
                external_data=True,  # a file of protocol buffers ends at 2 GB
                dynamo=True,
                verbose=False,
            )
            options = onnxruntime.SessionOptions()
            options.intra_op_num_threads = torch.get_num_threads()
            self._session = onnxruntime.InferenceSession(
                path, options, providers=["CPUExecutionProvider"]
            )

    def __call__(self, x: Tensor) -> Tensor:
        """Pictures [B, 3, S, S] float32, normalised and padded → [B, 256, S/16, S/16] float32."""
        (output,) = self._session.run(None, {"image": x.numpy()})
        return torch.from_numpy(output)


class OpenVinoImageEncoder:
    """Meta's module converted and compiled by OpenVINO for the CPU; an ``ImageEncoder``.

    Its latency mode, as many threads as torch has, and activations in the precision.
    """

    def __init__(
        self, parameters: Parameters, precision: str, batch_sizes: Sequence[int] = (1,)
    ) -> None:
        import openvino

        self.img_size = parameters.encoder_config.img_size
        self.device = torch.device("cpu")
        self.computed_by = f"OpenVINO {openvino.__version__} {precision}"
        module = meta_module(parameters)
        core = openvino.Core()
        options = {
            "INFERENCE_PRECISION_HINT": {"fp32": "f32", "bf16": "bf16"}[precision],
            "INFERENCE_NUM_THREADS": torch.get_num_threads(),
            "PERFORMANCE_HINT": "LATENCY",
        }
        self._compiled = {}
        for batch_size in dict.fromkeys(batch_sizes):
            shape = [batch_size, 3, self.img_size, self.img_size]
            # The window's padding is traced, and so is the batch size: one program each.
            with torch.no_grad(), warnings.catch_warnings():
                warnings.simplefilter("ignore", torch.jit.TracerWarning)
                model = openvino.convert_model(
                    module, example_input=torch.zeros(shape), input=[shape]
                )
            self._compiled[batch_size] = core.compile_model(model, "CPU", options)

    def __call__(self, x: Tensor) -> Tensor:
        """Pictures [B, 3, S, S] float32, normalised and padded → [B, 256, S/16, S/16] float32.

        Raises:
            InputError: a batch size that it was not made for.
        """
        compiled = self._compiled.get(len(x))
        if compiled is None:
            sizes = ", ".join(map(str, self._compiled))
            raise InputError(f"{len(x)} pictures in a call; OpenVINO's programs are for {sizes}")
        return torch.from_numpy(compiled(x.numpy())[0].copy())


def _require(name: str, device: torch.device) -> None:
    if name == "torch.compile":
        if device.type == "cpu" and not any(map(shutil.which, ("c++", "g++", "clang++"))):
            raise SamtrtError(
                "torch.compile needs a C++ compiler on the CPU, and there is none; install g++, or "
                "leave torch.compile out of --peers"
            )
        return
    needed = ("onnxruntime", "onnx", "onnxscript") if name == "onnxruntime" else (name,)
    for package in needed:
        if importlib.util.find_spec(package) is None:
            raise SamtrtError(f"{package} is not installed; run `{install('peers')}`")
