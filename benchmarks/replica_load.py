"""Replicas under more than they can do, one of them killed again and again.

    python benchmarks/replica_load.py --seconds 3600 --output benchmarks/results/replicas_hour.json
    python benchmarks/replica_load.py --report benchmarks/results/replicas_hour.json

`samtrt serve --workers N` with a tiny seeded model, and with ``--store`` a Valkey or Redis of its
own, on the loopback. First its capacity is measured: as many requests as come back from clients
that always ask. Then requests arrive by themselves, at random and 1.5 times as often, whether
earlier ones are answered or not, and every minute a replica is killed. Every answer must be the
predictor's, or a refusal that says when to come again, or that the picture is to be sent again.
``--report`` writes the record's table into docs/reliability.md.
"""

import argparse
import asyncio
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import httpx
import numpy as np
import psutil

from benchmarks.server_load import (
    PICTURES,
    POINT,
    Expected,
    quantiles,
    report_or_run,
    start_server,
    tiny_model,
    told,
)
from samtrt.errors import SamtrtError
from samtrt.reports.benchmarking import environment

PATIENCE = 120.0  # seconds until a request counts as lost
AT_ONCE = 128  # requests without an answer, past which those that arrive are not sent
WARM_UP = 10.0
CAPACITY_CLIENTS = 8
# What a request is, and how often.
MIX = {"masks": 0.6, "embed": 0.25, "embedding": 0.15}


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=180, help="of the load (default: 180)")
    parser.add_argument("--workers", type=int, default=2, help="replicas (default: 2)")
    parser.add_argument("--factor", type=float, default=1.5, help="times capacity (default: 1.5)")
    parser.add_argument(
        "--kill-every", type=float, default=60, help="seconds between two kills (default: 60)"
    )
    parser.add_argument("--store", action="store_true", help="with a store that they share")
    parser.add_argument("--output", type=Path, help="JSON record to write")
    parser.add_argument("--report", type=Path, help="write the table of this record, no load")
    return parser.parse_args()


@contextmanager
def store(wanted: bool) -> Iterator[str | None]:
    """A store on a free port; yields its address, or None."""
    if not wanted:
        yield None
        return
    program = shutil.which("valkey-server") or shutil.which("redis-server")
    if program is None:
        raise SamtrtError("--store needs valkey-server or redis-server; install one of them")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [program, "--port", str(port), "--bind", "127.0.0.1", "--save", ""]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            try:
                socket.create_connection(("127.0.0.1", port), 1).close()
                break
            except OSError:
                time.sleep(0.05)
        yield f"valkey://127.0.0.1:{port}"
    finally:
        process.kill()
        process.wait()


@contextmanager
def server(folder: Path, workers: int, address: str | None) -> Iterator[tuple[psutil.Process, str]]:
    """The server; yields its process and URL. It must end in order."""
    flags = ["--workers", str(workers)]
    # All requests here come from one address.
    many = ["--max-requests-per-client", "--max-connections-per-client"]
    flags += [word for flag in many for word in (flag, str(2 * AT_ONCE))]
    flags += [] if address is None else ["--store", address]
    process, url, _ = start_server(folder, *flags)
    try:
        yield psutil.Process(process.pid), url
        process.send_signal(signal.SIGTERM)
        status = process.wait(60)
        if status != -signal.SIGTERM:
            raise SamtrtError(f"the server ended with status {status} at SIGTERM")
    finally:
        process.kill()


class Load:
    """Requests of all kinds on known pictures, and what came of them."""

    def __init__(self, client: httpx.AsyncClient, expected: Expected) -> None:
        self.client, self.expected = client, expected
        self.random = random.Random(1)
        self.ids: dict[int, str] = {}
        self.outcomes: Counter[str] = Counter()
        self.wrong: list[str] = []
        self.lost: list[str] = []
        self.seconds: list[float] = []

    async def one(self) -> None:
        """One request, of a random kind on a random picture."""
        which = self.random.randrange(PICTURES)
        (kind,) = self.random.choices(list(MIX), list(MIX.values()))
        if which not in self.ids:
            kind = "embed"
        started = time.perf_counter()
        try:
            answer = await self._ask(kind, which)
        except httpx.TransportError as error:
            self.lost.append(f"{kind}: {type(error).__name__}")
            return
        self.outcomes[f"{kind} {answer.status_code}"] += 1
        if answer.status_code == 200:
            self.seconds.append(time.perf_counter() - started)
            self._judge(kind, which, answer)
        elif answer.status_code in (429, 503):
            if int(answer.headers.get("retry-after", 0)) < 1:
                self.wrong.append(f"{kind}: {answer.status_code} without Retry-After")
        elif answer.status_code == 404 and kind != "embed":
            self.ids.pop(which, None)  # it is told to be sent again
        else:
            self.wrong.append(f"{kind}: {answer.status_code} {answer.text[:80]}")

    async def _ask(self, kind: str, which: int) -> httpx.Response:
        if kind == "embed":
            headers = {"Content-Type": "image/png"}
            content = self.expected.files[which]
            return await self.client.post("/v1/embed", content=content, headers=headers)
        if kind == "embedding":
            return await self.client.get(f"/v1/embed/{self.ids[which]}")
        body = {"id": self.ids[which], "point_coords": [POINT], "point_labels": [1]}
        return await self.client.post("/v1/masks", json=body)

    def _judge(self, kind: str, which: int, answer: httpx.Response) -> None:
        if kind == "embed":
            name = answer.json()["id"]
            right = self.ids.setdefault(which, name) == name
        elif kind == "embedding":
            right = answer.content == self.expected.embeddings[which]
        else:
            found = [mask["segmentation"]["counts"] for mask in answer.json()["masks"]]
            right = found == self.expected.masks[which]
        if not right:
            self.wrong.append(f"{kind} of picture {which}")


async def capacity(load: Load, seconds: float) -> float:
    """Requests a second that are answered 200, from clients that always ask."""
    ends = time.monotonic() + seconds

    async def ask() -> None:
        while time.monotonic() < ends:
            await load.one()

    before, started = len(load.seconds), time.monotonic()
    await asyncio.gather(*(ask() for _ in range(CAPACITY_CLIENTS)))
    return (len(load.seconds) - before) / (time.monotonic() - started)


async def arrivals(load: Load, rate: float, seconds: float) -> tuple[int, int]:
    """Requests that arrive at random, ``rate`` a second on average; how many, and how many of them
    were not sent."""
    pending: set[asyncio.Task[None]] = set()
    started = next_one = time.monotonic()
    count = unsent = 0
    while next_one < started + seconds:
        await asyncio.sleep(max(0.0, next_one - time.monotonic()))
        count += 1
        next_one += load.random.expovariate(rate)
        if len(pending) >= AT_ONCE:
            unsent += 1
            continue
        task = asyncio.create_task(load.one())
        pending.add(task)
        task.add_done_callback(pending.discard)
    if pending:
        await asyncio.wait(pending)
    return count, unsent


async def kills(process: psutil.Process, every: float, chosen: random.Random) -> int:
    """Kills a replica again and again, until it is cancelled."""
    count = 0
    try:
        while True:
            await asyncio.sleep(every)
            found = [
                child
                for child in process.children()
                if "samtrt.server.replicas.worker" in child.cmdline()
            ]
            if found:
                chosen.choice(found).kill()
                count += 1
    except asyncio.CancelledError:
        return count


async def memory(process: psutil.Process, samples: list[tuple[float, int]]) -> None:
    """Samples the front's memory, until it is cancelled: (seconds, bytes)."""
    started = time.monotonic()
    while True:
        samples.append((time.monotonic() - started, process.memory_info().rss))
        await asyncio.sleep(1)


def slope(samples: list[tuple[float, int]]) -> float:
    """MB an hour, by least squares over the second half."""
    half = samples[len(samples) // 2 :]
    if len(half) < 2:
        return 0.0
    times, sizes = np.array(half, dtype=float).T
    return float(np.polyfit(times, sizes, 1)[0]) * 3600 / 1e6


async def under_load(
    process: psutil.Process, url: str, expected: Expected, arguments: argparse.Namespace
) -> dict[str, Any]:
    limits = httpx.Limits(max_connections=AT_ONCE, max_keepalive_connections=AT_ONCE)
    timeout = httpx.Timeout(PATIENCE)
    async with httpx.AsyncClient(base_url=url, limits=limits, timeout=timeout) as client:
        first = Load(client, expected)
        await capacity(first, WARM_UP)
        measured = await capacity(first, WARM_UP)
        load = Load(client, expected)
        load.ids = dict(first.ids)
        samples: list[tuple[float, int]] = []
        watch = asyncio.create_task(memory(process, samples))
        killer = asyncio.create_task(kills(process, arguments.kill_every, random.Random(2)))
        started = time.monotonic()
        count, unsent = await arrivals(load, arguments.factor * measured, arguments.seconds)
        took = time.monotonic() - started
        killer.cancel()
        watch.cancel()
        killed = await killer
    return {
        "seconds": round(took),
        "workers": arguments.workers,
        "store": arguments.store,
        "capacity_per_second": round(measured, 1),
        "arrived": count,
        "unsent": unsent,
        "arrived_per_second": round(count / arguments.seconds, 1),
        "killed": killed,
        "outcomes": dict(sorted(load.outcomes.items())),
        "wrong": first.wrong + load.wrong,
        "lost": first.lost + load.lost,
        "answered": quantiles(load.seconds),
        "front_memory_mib": samples[-1][1] >> 20,
        "front_memory_slope_mb_per_hour": round(slope(samples), 1),
    }


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """The record of one run."""
    with (
        tiny_model() as (folder, expected),
        store(arguments.store) as address,
        server(folder, arguments.workers, address) as (process, url),
    ):
        found = asyncio.run(under_load(process, url, expected, arguments))
    command = " ".join(["python", "benchmarks/replica_load.py", *sys.argv[1:]])
    return {"environment": environment(), "command": command, **found}


def verdict(record: dict[str, Any]) -> list[str]:
    """What is wrong with a run; nothing, if it held."""
    times = record["answered"]
    slow = times["p99_ms"] > 10 * times["p50_ms"]
    checks = {
        "wrong answers": record["wrong"],
        "requests without an answer": record["lost"],
        "nothing was answered": not times["count"],
        "no replica was killed": not record["killed"],
        "p99 above ten times p50": slow and f"{times['p99_ms']:g} and {times['p50_ms']:g} ms",
    }
    if record["seconds"] >= 3000:  # before, pools and allocators fill
        growth = record["front_memory_slope_mb_per_hour"]
        checks["memory grew"] = growth > 1 and f"{growth:g} MB an hour"
    return [f"{what}: {told(found)}" for what, found in checks.items() if found]


def table(record: dict[str, Any]) -> str:
    """The record as Markdown."""
    times = record["answered"]
    statuses: Counter[str] = Counter()
    for outcome, count in record["outcomes"].items():
        statuses[outcome.split()[1]] += count
    rows = {
        "requests that arrived": f"{record['arrived']:,}",
        "capacity, arrivals a second": f"{record['capacity_per_second']:g}, "
        f"{record['arrived_per_second']:g}",
        f"not sent, with {AT_ONCE} unanswered": f"{record['unsent']:,}",
        "replicas killed": str(record["killed"]),
        **{f"answered {status}": f"{count:,}" for status, count in sorted(statuses.items())},
        "without an answer": str(len(record["lost"])),
        "wrong": str(len(record["wrong"])),
        "time until 200: p50, p99, slowest": ", ".join(
            f"{times[name]:,.0f} ms" for name in ("p50_ms", "p99_ms", "max_ms")
        ),
        "memory of the process in front, slope": f"{record['front_memory_mib']:,} MiB, "
        f"{record['front_memory_slope_mb_per_hour']:g} MB/h",
    }
    with_store = "with a store" if record["store"] else "without a store"
    lines = [
        f"{record['seconds'] / 60:.0f} minutes, {record['workers']} replicas {with_store} on "
        f"{record['environment']['cpu']}, a tiny model (`{record['command']}`):",
        "",
        "| what | |",
        "|---|---|",
        *(f"| {what} | {value} |" for what, value in rows.items()),
        "",
        f"What did not hold: {'; '.join(verdict(record)) or 'nothing'}.",
    ]
    return "\n".join(lines) + "\n"


def main() -> int:
    arguments = parse_arguments()
    return report_or_run("replica load", arguments, lambda: run(arguments), table, verdict)


if __name__ == "__main__":
    from samtrt.console import run_script

    sys.exit(run_script(main))
