"""build_engine, its progress display and its errors; the runtime's errors."""

import contextlib
import copy
import gc
import io
import logging
import signal
import subprocess
import sys
import threading
import time
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch
from oracle import tiny_config

from samtrt.checkpoints.parameters import random_parameters
from samtrt.encoders.engine import EngineInfo
from samtrt.encoders.tensorrt import library as tensorrt_library
from samtrt.encoders.tensorrt import runtime as trt_runtime
from samtrt.encoders.tensorrt.builder import INPUT, OUTPUT, build_engine, define_network
from samtrt.encoders.tensorrt.library import LIBRARIES, import_tensorrt, shared_log
from samtrt.encoders.tensorrt.progress import make_progress_monitor
from samtrt.errors import CheckpointError, EngineError, InputError

CFG = tiny_config(depth=2)


@pytest.fixture(scope="module")
def tensors():
    return random_parameters(CFG).encoder()


@pytest.mark.parametrize("attention", ["fused", "plain"])
@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
def test_builds(trt, tensors, precision, attention):
    engine = build_engine(
        CFG, tensors, precision=precision, attention=attention, max_batch_size=4, progress=False
    )
    weights = sum(tensor.nbytes for tensor in tensors.values()) / (1 if precision == "fp32" else 2)
    assert isinstance(engine, bytes)
    assert len(engine) > weights


def test_the_network_takes_one_float32_input_of_any_batch(trt, tensors):
    network = define_network(trt, trt.Builder(shared_log(trt)), CFG, tensors, "fp16")
    definition = network.definition
    image, embedding = definition.get_input(0), definition.get_output(0)
    assert (definition.num_inputs, definition.num_outputs) == (1, 1)
    assert (image.name, tuple(image.shape)) == (INPUT, (-1, 3, 128, 128))
    assert (embedding.name, tuple(embedding.shape)) == (OUTPUT, (-1, 256, 8, 8))
    assert image.dtype == embedding.dtype == trt.DataType.FLOAT


def test_compute_capability(trt, tensors):
    if trt.__name__ != "tensorrt_rtx":
        pytest.skip("a setting of TensorRT-RTX")
    for wanted in ("7.5", "8.9"):
        assert build_engine(CFG, tensors, compute_capability=wanted, progress=False)
    with pytest.raises(EngineError, match=r"capability 9\.0; expected one of 7\.5, 8\.0.*12\.0"):
        build_engine(CFG, tensors, compute_capability="9.0", progress=False)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"precision": "int8"}, "unknown precision int8; expected one of fp32, fp16, bf16"),
        ({"max_batch_size": 0}, "the largest batch is 0; expected 1 or more"),
        ({"attention": "flash"}, "unknown attention flash; expected fused or plain"),
    ],
)
def test_options_that_are_none(trt, tensors, options, message):
    with pytest.raises(EngineError, match=message):
        build_engine(CFG, tensors, **options)


def test_parameters_of_another_model(trt, tensors):
    with pytest.raises(CheckpointError, match=r"missing neck\.0\.weight"):
        build_engine(CFG, {k: v for k, v in tensors.items() if k != "neck.0.weight"})


def test_a_build_that_tensorrt_refuses_gives_its_reason(trt, tensors, monkeypatch):
    wrong = {**tensors, "blocks.0.norm1.weight": np.zeros(32, np.float32)}

    def fail(*args):
        shared_log(trt).log(trt.ILogger.Severity.ERROR, "no kernel\nfor this layer")

    monkeypatch.setattr(trt.Builder, "build_serialized_network", fail)
    with pytest.raises(EngineError) as error:
        build_engine(CFG, wrong, progress=False)
    text = str(error.value)
    assert "could not build the engine: no kernel for this layer; try --attention plain" in text
    assert "\n" not in text


# --------------------------------------------------------------- which library is there


@pytest.fixture
def no_tensorrt(monkeypatch):
    for name in LIBRARIES:
        monkeypatch.setitem(sys.modules, name, None)


def test_no_tensorrt_installed(no_tensorrt, tensors):
    with pytest.raises(EngineError) as error:
        build_engine(CFG, tensors)
    text = str(error.value)
    assert text.startswith("TensorRT is not installed; install it for data-centre GPUs (`")
    assert "--backend cuda or cpu" in text
    assert "\n" not in text


def test_tensorrt_is_preferred_and_rtx_the_other_choice(monkeypatch):
    modules = {name: ModuleType(name) for name in LIBRARIES}
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    assert import_tensorrt() is modules["tensorrt"]
    assert import_tensorrt("tensorrt_rtx") is modules["tensorrt_rtx"]
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    assert import_tensorrt() is modules["tensorrt_rtx"]


def test_a_library_that_does_not_load_says_so(monkeypatch):
    def fail(name):
        if name == "tensorrt":
            raise ImportError("libnvinfer.so.10: cannot open\nshared object file")
        raise ModuleNotFoundError(name=name)

    monkeypatch.setattr(tensorrt_library.importlib, "import_module", fail)
    with pytest.raises(EngineError, match=r"^tensorrt cannot be imported: libnvinfer.so.10: "):
        import_tensorrt()


def test_importing_the_package_imports_no_tensorrt():
    code = (
        "import sys, samtrt, samtrt.modeling.image_encoder\n"
        "import samtrt.encoders.tensorrt.builder, samtrt.encoders.tensorrt.runtime\n"
        "assert not {'tensorrt', 'tensorrt_rtx', 'triton'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_tensorrts_messages_go_to_logging(trt, caplog):
    log, severity = shared_log(trt), trt.ILogger.Severity
    log.errors.clear()
    with caplog.at_level(logging.WARNING, "samtrt.tensorrt"):
        log.log(severity.INFO, "at length")
        log.log(severity.WARNING, "mind this")
        log.log(severity.ERROR, "first\nerror")
        log.log(severity.ERROR, "second error")
    assert caplog.messages == ["mind this"]
    assert log.first_error() == "first error"
    assert log.errors == []
    assert log.first_error() == "TensorRT gave no reason"


# --------------------------------------------------------------- older TensorRT versions


class WithoutNewLayers:
    """An INetworkDefinition as TensorRT 10.14 has it, or with ``attention=False`` 10.13."""

    def __init__(self, definition, attention=True):
        self._definition = definition
        self._missing = {"add_attention_v2", "add_normalization_v2"}
        self._missing |= set() if attention else {"add_attention"}

    def __getattr__(self, name):
        if name in self._missing:
            raise AttributeError(name)
        return getattr(self._definition, name)


def older_builder(trt, **options):
    builder = trt.Builder(shared_log(trt))
    return SimpleNamespace(
        create_network=lambda flags: WithoutNewLayers(builder.create_network(flags), **options)
    )


@torch.inference_mode()
def test_older_layer_calls_define_the_same_network(trt, tensors):
    import trt_reader

    x = torch.randn(1, 3, 128, 128)
    newer = define_network(trt, trt.Builder(shared_log(trt)), CFG, tensors, "fp32")
    older = define_network(trt, older_builder(trt), CFG, tensors, "fp32")
    outputs = [
        trt_reader.evaluate(trt, definition, {INPUT: x})[OUTPUT]
        for definition in (newer.definition, older.definition._definition)
    ]
    assert torch.equal(*outputs)


def test_no_fused_attention_before_10_14(trt, tensors):
    with pytest.raises(EngineError, match=r"no fused attention layer; .* --attention plain"):
        define_network(trt, older_builder(trt, attention=False), CFG, tensors, "fp16")
    define_network(trt, older_builder(trt, attention=False), CFG, tensors, "fp16", "plain")


# --------------------------------------------------------------- progress


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_progress_without_a_terminal_is_a_line_for_each_main_phase(trt, tensors, capfd):
    build_engine(CFG, tensors)
    lines = capfd.readouterr().err.splitlines()
    assert lines[0].startswith("TensorRT: building engine (")
    assert 2 <= len(lines) <= 10
    assert all(line.startswith("TensorRT: ") and line.endswith(" s)") for line in lines)
    build_engine(CFG, tensors, progress=False)
    assert capfd.readouterr().err == ""


def test_progress_on_a_terminal_is_a_bar_that_only_grows(trt, monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    stream = Terminal()
    monitor = make_progress_monitor(trt, stream=stream)
    shown = []
    monitor.phase_start("Building engine", None, 4)
    for step in range(4):
        monitor.phase_start("Timing tactics", "Building engine", 10)
        time.sleep(0.11)  # the bar is drawn ten times a second at most
        for inner in range(10):
            assert monitor.step_complete("Timing tactics", inner)
            shown.append(monitor._bar.done)
        monitor.phase_finish("Timing tactics")
        monitor.step_complete("Building engine", step)
    assert shown == sorted(shown)
    assert shown[4] == pytest.approx(0.125)  # half of the first quarter
    assert monitor._bar.done == pytest.approx(1)
    monitor.close()
    assert "Timing tactics" in stream.getvalue()


def test_a_build_goes_on_when_nobody_reads_its_progress(trt):
    stream = io.StringIO()
    stream.write = lambda text: (_ for _ in ()).throw(BrokenPipeError())
    monitor = make_progress_monitor(trt, stream=stream)
    assert monitor.phase_start("Building engine", None, 4)
    assert monitor.step_complete("Building engine", 0)
    monitor.close()


def test_fp32_is_not_tf32(trt, tensors, monkeypatch):
    cleared = []
    monkeypatch.setattr(trt.IBuilderConfig, "clear_flag", lambda self, flag: cleared.append(flag))
    for precision in ("fp16", "fp32"):
        assert cleared == []
        build_engine(CFG, tensors, precision=precision, progress=False)
    assert cleared == [trt.BuilderFlag.TF32]


def test_ctrl_c_ends_a_build(trt, tensors, monkeypatch):
    steps = []

    def interrupt(self):
        steps.append(1)
        if len(steps) == 3:
            signal.raise_signal(signal.SIGINT)

    monitors = []

    def make(*args):
        monitor = make_progress_monitor(*args)
        monkeypatch.setattr(type(monitor), "_show", interrupt)
        monitors.append(monitor)
        return monitor

    monkeypatch.setattr("samtrt.encoders.tensorrt.builder.make_progress_monitor", make)
    # (what a shell starts in the background ignores the signal)
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            build_engine(CFG, tensors, progress=False)
    finally:
        signal.signal(signal.SIGINT, handler)
    assert len(steps) < 50  # a whole build has hundreds


# --------------------------------------------------------------- the runtime, with a fake library


class FakeStream:
    cuda_stream = 7

    def wait_stream(self, other):
        pass

    def synchronize(self):
        pass


class FakeContext:
    """Notes what it is given, and writes 1 to the output."""

    def __init__(self, works=True):
        self.works, self.shapes, self.addresses, self.streams = works, {}, {}, []

    def set_input_shape(self, name, shape):
        self.shapes[name] = shape
        return True

    def set_tensor_address(self, name, address):
        self.addresses[name] = address
        return True

    def execute_async_v3(self, stream):
        self.streams.append(stream)
        return self.works


@pytest.fixture
def fake(trt, monkeypatch, tmp_path):
    """A runtime of a fake library, on a fake GPU; ``fake.make()`` gives the encoder."""
    log = shared_log(trt)
    log.errors.clear()
    context = FakeContext()
    engine = SimpleNamespace(create_execution_context=lambda: context)
    runtime = SimpleNamespace(deserialize_cuda_engine=lambda data: engine)
    library = SimpleNamespace(
        __name__="tensorrt_rtx", __version__="1.7", Runtime=lambda log: runtime
    )
    monkeypatch.setattr(trt_runtime, "import_tensorrt", lambda _: library)
    monkeypatch.setattr(trt_runtime, "shared_log", lambda library: log)
    cuda = {
        "device": lambda device: contextlib.nullcontext(),
        "Stream": FakeStream,
        "current_stream": FakeStream,
        "get_device_name": lambda device: "NVIDIA H200",
        "get_device_capability": lambda device: (9, 0),
    }
    for name, value in cuda.items():
        monkeypatch.setattr(torch.cuda, name, value)
    file = tmp_path / "encoder.engine"
    file.write_bytes(b"engine")
    info = EngineInfo("tensorrt", CFG, "fp16", 2, "0" * 64, "tensorrt_rtx", "1.7")

    def make():
        return trt_runtime.TensorRTImageEncoder(file, info, torch.device("cpu"))

    def refuse(*args):
        log.log(trt.ILogger.Severity.ERROR, "compute capability 9.0\nis not supported")

    return SimpleNamespace(
        make=make, library=library, runtime=runtime, engine=engine, context=context, refuse=refuse
    )


def test_the_runtime_hands_tensorrt_the_tensors(fake):
    encoder, x = fake.make(), torch.randn(2, 3, 128, 128)
    output = encoder(x)
    assert (encoder.img_size, output.shape, output.dtype) == (128, (2, 256, 8, 8), torch.float32)
    assert fake.context.shapes == {INPUT: (2, 3, 128, 128)}
    assert fake.context.addresses == {INPUT: x.data_ptr(), OUTPUT: output.data_ptr()}
    assert fake.context.streams == [7]


def test_the_runtimes_output_is_float32_and_ordinary(fake):
    encoder, x = fake.make(), torch.randn(1, 3, 128, 128)
    torch.set_default_dtype(torch.float64)
    try:
        with torch.inference_mode(), torch.device("meta"):
            output = encoder(x)
    finally:
        torch.set_default_dtype(torch.float32)
    assert (output.dtype, output.device.type, output.is_inference()) == (x.dtype, "cpu", False)
    with pytest.raises(EngineError, match="cannot be copied or pickled"):
        copy.deepcopy(encoder)


@pytest.mark.parametrize("recording", [False, True])
def test_memory_is_kept_until_the_work_is_done(fake, monkeypatch, recording):
    waited, raised = [], []
    gc.collect()  # encoders of other tests
    monkeypatch.setattr(FakeStream, "synchronize", lambda stream: waited.append(stream))
    monkeypatch.setattr(sys, "unraisablehook", raised.append)  # what a finalizer raises
    if recording:  # amid which nobody may wait
        monkeypatch.setattr(torch.backends.cuda, "is_built", lambda: True)
        monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    encoder = fake.make()
    stream = encoder._stream
    del encoder
    gc.collect()
    assert raised == []
    assert waited == ([] if recording else [stream])


def test_one_thread_at_a_time_has_the_context(fake):
    """A call's shape and addresses are not another's when it runs."""
    encoder, context = fake.make(), fake.context
    seen, start = [], threading.Barrier(4)

    def run(stream):
        before = dict(context.addresses), dict(context.shapes)
        time.sleep(0.01)  # the others come
        seen.append(before == (context.addresses, context.shapes))
        return True

    context.execute_async_v3 = run

    def work(batch):
        start.wait(30)
        for _ in range(5):
            encoder(torch.zeros(batch, 3, 128, 128))

    threads = [threading.Thread(target=work, args=(1 + index % 2,)) for index in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen == [True] * 20


@pytest.mark.parametrize("stage", ["runtime", "engine", "context"])
def test_a_gpu_that_tensorrt_rtx_refuses(fake, stage):
    def no_runtime(log):
        fake.refuse()
        raise TypeError("pybind11::init(): factory function returned nullptr")

    if stage == "runtime":
        fake.library.Runtime = no_runtime
    elif stage == "engine":
        fake.runtime.deserialize_cuda_engine = fake.refuse
    else:
        fake.engine.create_execution_context = fake.refuse
    with pytest.raises(EngineError) as error:
        fake.make()
    assert str(error.value) == (
        "tensorrt_rtx 1.7 does not run this engine on NVIDIA H200 (compute capability 9.0): "
        "compute capability 9.0 is not supported; build it again for this GPU, or choose "
        "--backend cuda"
    )


def test_an_execution_that_fails(fake, trt):
    encoder = fake.make()
    fake.context.works = False
    shared_log(trt).log(trt.ILogger.Severity.ERROR, "out of memory")
    with pytest.raises(EngineError, match="tensorrt_rtx could not run: out of memory"):
        encoder(torch.zeros(1, 3, 128, 128))


@pytest.mark.parametrize("shape", [(3, 3, 128, 128), (1, 3, 64, 64), (3, 128, 128)])
def test_the_runtime_refuses_other_shapes(fake, shape):
    with pytest.raises(InputError):
        fake.make()(torch.zeros(shape))
