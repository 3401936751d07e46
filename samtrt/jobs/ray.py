"""Workers on all GPUs of a machine or of a cluster: Ray Data.

Pictures go through three stages: read and decoded by tasks on any CPU, segmented by actors that
hold the model, one a GPU, finished by tasks again. Ray Data hands them on while the next ones are
being read, holds back whoever runs ahead, and does again what a process or a machine that died has
taken along. Files are written by the process that began the job, and by no other.
"""

import logging
import os
import pickle
import socket
import warnings
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from samtrt.errors import InputError, SamtrtError
from samtrt.formats.parquet import require_pyarrow
from samtrt.hints import install
from samtrt.jobs.segmenting import (
    AT_ONCE,
    Failed,
    Identity,
    Item,
    Outcome,
    Resumed,
    Segmenter,
    Settings,
    attempt,
    finish,
    read,
)
from samtrt.sam import Sam

_MOST_AT_ONCE = 8  # pictures that a worker takes, and loses when it dies
_SHARES = 4  # that each worker's part of a small job is cut into
_MOST_BLOCKS = 10_000
_TRIES = 2  # of pictures whose worker died; then each is tried alone as often
_SECONDS_TO_REACH = 10.0
_STATUS_BROKEN = 70  # of a worker whose GPU no longer answers


@dataclass(frozen=True)
class Workers:
    """Who shares a job's work.

    Attributes:
        count: how many; None for one a GPU, or one a machine where there are no GPUs.
        address: of a Ray cluster, as ``ray.init`` takes it; None for this machine alone.
    """

    count: int | None = None
    address: str | None = None


class Crew:
    """Workers that are ready.

    Attributes:
        identity: of the model that all of them have.
        count: how many they are.
        together: as ``Alone.together``.
    """

    together = True

    def __init__(
        self, load: Callable[[], Sam], settings: Settings, identity: Identity, count: int
    ) -> None:
        self.identity = identity
        self.count = count
        self._load = load
        self._settings = settings

    def outcomes(
        self, items: Iterable[Item | Failed | Resumed], progress: Any = None
    ) -> Generator[Outcome, None, None]:
        """What becomes of each picture, in the order in which they are done.

        ``progress`` hears nothing of a picture that is under way elsewhere.

        Pictures of a worker that dies again and again are tried once more, each alone, so that
        the one that is to blame is found.
        """
        waiting: dict[int, Item] = {}
        for value in items:
            if isinstance(value, Item):
                if isinstance(value.place, Path):  # workers may stand in another folder
                    value = replace(value, place=value.place.absolute())
                waiting[value.number] = value
            else:
                yield value
        share = -(-len(waiting) // (self.count * _SHARES))
        for at_once in (min(share, _MOST_AT_ONCE), 1):
            if waiting:
                for outcome in self._pass(list(waiting.values()), at_once):
                    del waiting[outcome.item.number]
                    yield outcome
        for item in waiting.values():
            yield Failed(item, f"its workers died, {_TRIES} of them with this picture alone")

    def _pass(self, items: list[Item], at_once: int) -> Generator[Outcome, None, None]:
        ray = require_ray()

        chunks = [items[start : start + at_once] for start in range(0, len(items), at_once)]
        finisher = partial(_finished, settings=self._settings, identity=self.identity)
        uses_gpu = self.identity.device != "cpu"
        # Alone means alone: what is at a worker that dies, or waits there, has lost a try as well.
        together = AT_ONCE[self.identity.device] if at_once > 1 else 1
        cores = int(ray.cluster_resources().get("CPU", 1))
        # Without a bound a picture that kills its worker would be tried for ever. Ray 2.60 calls
        # such arguments deprecated and has no others.
        bounded = {"max_retries": _TRIES - 1}
        with _data_context(), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="`ray_remote_args` is deprecated")
            dataset = ray.data.from_items(
                [_row(chunk) for chunk in chunks],
                override_num_blocks=min(len(chunks), _MOST_BLOCKS),
            )
            dataset = dataset.flat_map(_read, num_cpus=1, **bounded)
            dataset = dataset.map_batches(
                _Worker,
                batch_size=None,
                batch_format="pyarrow",  # whose bytes need not be copied
                zero_copy_batch=True,
                fn_constructor_args=(self._load, self._settings, max(1, cores // self.count)),
                compute=ray.data.ActorPoolStrategy(
                    size=self.count,
                    max_tasks_in_flight_per_actor=1 if at_once == 1 else None,
                    max_concurrent_calls_per_actor=together,
                    enable_true_multi_threading=together > 1,
                ),
                num_gpus=1 if uses_gpu else 0,
                num_cpus=0,  # the CPUs are the readers'
                scheduling_strategy="SPREAD",  # for without CPUs any machine would do
                max_task_retries=_TRIES - 1,
            )
            dataset = dataset.map(finisher, num_cpus=1, **bounded)
            for row in dataset.iter_rows():
                yield pickle.loads(row["value"])


@contextmanager
def started(load: Callable[[], Sam], settings: Settings, workers: Workers) -> Iterator[Crew]:
    """Ray, connected to or started on this machine, with a model that was loaded once to try it.

    A program that has called ``ray.init`` keeps what it has.

    Args:
        load: loads the model; called in each worker.

    Raises:
        SamtrtError: Ray is not installed or not reached, there are too few GPUs, or the model
            cannot be loaded or used with these settings.
    """
    ray = require_ray()
    is_ours = not ray.is_initialized()
    if is_ours:
        _connect(ray, workers.address)
    try:
        resources = ray.cluster_resources()
        gpus = int(resources.get("GPU", 0))
        try_model = ray.remote(num_cpus=0, num_gpus=min(gpus, 1))(_identify)
        try:
            identity = ray.get(try_model.remote(load, settings))
        except ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, SamtrtError):
                raise error.cause from None
            raise
        machines = sum(1 for node in ray.nodes() if node["Alive"])
        count = workers.count or (gpus if identity.device != "cpu" else machines)
        if identity.device != "cpu" and count > gpus:
            raise InputError(f"{count} workers were asked for, and there are {gpus} GPUs")
        yield Crew(load, settings, identity, count)
    finally:
        if is_ours:
            ray.shutdown()


def require_ray() -> Any:
    """Ray, or one line on how to get it.

    Raises:
        SamtrtError: it is not installed.
    """
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise SamtrtError(
            f"several workers need Ray Data, which is not installed ({error}); run "
            f"`{install('ray')}`, or leave --workers and --ray out for one process"
        ) from error
    return ray


def _connect(ray: Any, address: str | None) -> None:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # it would tell its makers
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # it would write across the bar
    quiet = {"log_to_driver": False, "logging_level": logging.ERROR}
    if address is None:
        ray.init(address="local", include_dashboard=False, **quiet)
        return
    host, _, port = address.removeprefix("ray://").rpartition(":")
    try:
        if host and port.isdigit():  # Ray itself would try for minutes
            socket.create_connection((host, int(port)), _SECONDS_TO_REACH).close()
        ray.init(address=address, **quiet)
    except (OSError, ValueError, OverflowError, RuntimeError) as error:
        reason = str(error).partition("\n")[0]
        raise InputError(
            f"no Ray cluster is reached at {address} ({reason}); give the address that "
            "`ray start --head` printed, as in --ray 10.0.0.1:6379"
        ) from error


@contextmanager
def _data_context() -> Iterator[None]:
    """Ray Data without bars of its own, and going on where pictures are lost."""
    from ray.data import DataContext

    wanted = {
        "enable_progress_bars": False,
        "print_on_execution_start": False,
        "max_errored_blocks": -1,  # ``outcomes`` notices
    }
    context = DataContext.get_current()
    before = {name: getattr(context, name) for name in wanted}
    logger = logging.getLogger("ray.data")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    for name, value in wanted.items():
        setattr(context, name, value)
    try:
        yield
    finally:
        logger.setLevel(level)
        for name, value in before.items():
            setattr(context, name, value)


def _identify(load: Callable[[], Sam], settings: Settings) -> Identity:
    sam = load()
    Segmenter(sam, settings)
    return Identity.of(sam)


class _Worker:
    """An actor: the model, loaded once."""

    def __init__(self, load: Callable[[], Sam], settings: Settings, threads: int) -> None:
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        sam = load()
        self.device = sam.device
        if self.device.type == "cpu":
            torch.set_num_threads(threads)
        self.segmenter = Segmenter(sam, settings)

    def __call__(self, table: Any) -> Any:
        return _table([_row(self._one(value)) for value in _values(table)])

    def _one(self, picture: Any) -> Any:
        found = attempt(self.segmenter.segment, picture)
        if isinstance(found, Failed) and found.error and self.device.type == "cuda":
            try:
                torch.cuda.synchronize(self.device)
            except Exception:
                os._exit(_STATUS_BROKEN)  # Ray starts another, whose GPU works
        return found


def _read(row: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for item in pickle.loads(row["value"]):
        yield _row(attempt(read, item))


def _finished(row: dict[str, Any], settings: Settings, identity: Identity) -> dict[str, Any]:
    step = partial(finish, settings=settings, identity=identity)
    return _row(attempt(step, _value(row["value"], row["pixels"])))


def _row(value: Any) -> dict[str, Any]:
    """A value between two stages; the pixels of its picture apart, so that the next need not copy
    them."""
    if isinstance(value, Failed):
        value = replace(value, error=None)  # which may not be picklable; its traceback is
    apart: list[pickle.PickleBuffer] = []

    def stays(buffer: pickle.PickleBuffer) -> bool:
        if not apart:
            apart.append(buffer)
            return False
        return True

    packed = pickle.dumps(value, protocol=5, buffer_callback=stays)
    return {"value": packed, "pixels": bytes(apart[0].raw()) if apart else b""}


def _value(packed: bytes, pixels: Any) -> Any:
    return pickle.loads(packed, buffers=[pixels])


def _values(table: Any) -> Iterator[Any]:
    """Those of a table of pyarrow's, whose memory their pictures use."""
    for packed, pixels in zip(table["value"], table["pixels"], strict=True):
        yield _value(packed.as_py(), pixels.as_buffer())


def _table(rows: list[dict[str, Any]]) -> Any:
    pyarrow = require_pyarrow()
    kind = pyarrow.large_binary()
    columns = {
        name: pyarrow.array([row[name] for row in rows], kind) for name in ("value", "pixels")
    }
    return pyarrow.table(columns)
