"""The image encoder's TensorRT network as a folder, to build from where there is no torch."""

import shutil
from pathlib import Path

from samtrt.checkpoints.parameters import Parameters
from samtrt.checkpoints.tensor_file import Dtype, RawTensor, write_tensors
from samtrt.encoders.engine import EngineInfo
from samtrt.encoders.tensorrt import standalone
from samtrt.encoders.tensorrt.builder import DTYPES, raw_weights, record_network
from samtrt.errors import EngineError
from samtrt.files import replacing, sealing, sha256_of, writing
from samtrt.modeling.image_encoder import AttentionKind

SCRIPT = "build_engine.py"
_DTYPES: dict[str, Dtype] = {
    "float32": "F32",
    "float16": "F16",
    "bfloat16": "BF16",
    "int32": "I32",
    "uint8": "U8",
}


def write_network(
    parameters: Parameters,
    directory: str | Path,
    precision: str = "fp16",
    attention: AttentionKind = "plain",
    plugins: str = "none",
    max_batch_size: int = 1,
) -> None:
    """Writes a folder that ``build_engine.py`` in it makes an engine of.

    ``network.json`` has the layers, ``network.safetensors`` their weights in the network's types,
    and the script needs NumPy and TensorRT only.

    Args:
        precision: fp32, fp16 or bf16: the type of the weights and of the residual stream.
        attention: "plain" for every TensorRT, "fused" for 10.14 and later.
        plugins: one of ``PLUGINS``: what is our kernels.
        max_batch_size: with a library's plugins, the network is for 1…max_batch_size pictures.

    Raises:
        EngineError: another precision, or no plugins for it or for these sizes.
        SamtrtError: the folder cannot be written.
    """
    if precision not in DTYPES:
        raise EngineError(f"unknown precision {precision}; expected {', '.join(DTYPES)}")
    recording = record_network(
        parameters.encoder_config,
        parameters.encoder(),
        precision,
        attention,
        plugins,
        max_batch_size,
    )
    # The script fills in what is known where it runs.
    info = EngineInfo(
        "tensorrt",
        parameters.encoder_config,
        precision,
        max_batch_size,
        parameters.sha256,
        library="tensorrt",
        library_version="0",
        attention=attention,
        plugins=plugins,
        note=parameters.note,
    )
    weights = {
        name: RawTensor(_DTYPES[raw.type], raw.shape, raw.content)
        for name, raw in raw_weights(recording).items()
    }

    directory = Path(directory)
    with writing(directory):
        directory.mkdir(parents=True, exist_ok=True)
    with replacing(directory / SCRIPT) as script:
        shutil.copyfile(standalone.__file__, script)
    data, record = directory / standalone.WEIGHTS_FILE, directory / standalone.NETWORK_FILE
    with sealing(data, record, lambda file: _is_sealed(directory, file)) as made:
        with writing(made.path):
            write_tensors(made.path, weights)
        made.record = {
            "version": standalone.VERSION,
            "weights_sha256": sha256_of(made.path),
            "engine": info.to_json(),
            **recording.description(),
        }


def _is_sealed(directory: Path, file: Path) -> bool:
    try:
        description = standalone.read_description(directory)
    except standalone.NetworkError:
        return False
    return description.get("weights_sha256") == sha256_of(file)
