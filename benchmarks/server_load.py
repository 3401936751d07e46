"""The server under honest and hostile clients at once: every honest answer must be the right one.

    python benchmarks/server_load.py --seconds 3600 --output benchmarks/results/server_hour.json
    python benchmarks/server_load.py --report benchmarks/results/server_hour.json

A server process with a tiny seeded model and its default limits, on the loopback. Honest clients
have a known picture segmented, again and again, and compare what comes back with what the
predictor gives in this process. Meanwhile the clients of ``hostile_clients.py`` do their worst.
``--report`` writes the record's table into docs/reliability.md.
"""

import argparse
import json
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import httpx
import numpy as np
import psutil
from PIL import Image
from pycocotools import mask as mask_utils

from benchmarks.hostile_clients import KINDS, PATIENCE, Hostile, encoded
from benchmarks.record import ROOT, write_table
from samtrt.building.build import BuildOptions, build_encoder
from samtrt.checkpoints.config import EncoderConfig
from samtrt.checkpoints.parameters import random_parameters, save_parameters
from samtrt.errors import SamtrtError
from samtrt.files import write_json
from samtrt.masks.automatic import SamAutomaticMaskGenerator
from samtrt.masks.predictor import SamPredictor
from samtrt.reports.benchmarking import environment
from samtrt.sam import Sam, load_sam

DOCUMENT = ROOT / "docs" / "reliability.md"
CONFIG = EncoderConfig(
    embed_dim=32, depth=3, num_heads=2, global_attn_indexes=(1,), window_size=5, img_size=256
)
PICTURES = 24
POINT = [100, 75]
EVERYTHING = {"points_per_side": 4, "pred_iou_thresh": 0.0, "stability_score_thresh": 0.0}
BUSY = (429, 503)
RIGHT_REFUSALS = {"400", "401", "403", "404", "405", "408", "413", "415", "421", "422"}
HARMLESS = RIGHT_REFUSALS | {"200", "429", "503", "504", "closed", "left"}


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=120, help="default: 120")
    parser.add_argument("--honest", type=int, default=4, help="honest clients (default: 4)")
    parser.add_argument("--output", type=Path, help="JSON record to write")
    parser.add_argument("--report", type=Path, help="write the table of this record, no load")
    return parser.parse_args()


class Expected:
    """What the server must answer for each picture, computed in this process."""

    def __init__(self, sam: Sam) -> None:
        self.files, self.embeddings, self.masks, self.everything = [], [], [], []
        predictor = SamPredictor(sam)
        generator = SamAutomaticMaskGenerator(sam, output_mode="coco_rle", **EVERYTHING)  # type: ignore[arg-type]
        for seed in range(PICTURES):
            coarse = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
            small = Image.fromarray(coarse)
            image = np.asarray(small.resize((200, 150), Image.Resampling.BICUBIC))
            self.files.append(encoded(image, "PNG"))
            predictor.set_image(image)
            self.embeddings.append(predictor.get_image_embedding().numpy().astype("<f4").tobytes())
            masks, scores, _ = predictor.predict(np.array([POINT]), np.array([1]))
            runs = mask_utils.encode(np.asfortranarray(masks.transpose(1, 2, 0)))
            order = np.argsort(-scores)
            self.masks.append([runs[index]["counts"].decode("ascii") for index in order])
            records = generator.generate(image)
            self.everything.append([record["segmentation"]["counts"] for record in records])


class Honest(threading.Thread):
    """Embeds a picture, asks for masks, now and then for the embedding and for everything."""

    def __init__(self, number: int, url: str, stop: threading.Event, expected: Expected) -> None:
        super().__init__(name=f"honest {number}", daemon=True)
        self.random = random.Random(number)
        self.url, self.stop, self.expected = url, stop, expected
        self.address = f"127.0.1.{number + 1}"
        self.asks_for_everything = number == 0  # the others do not wait for hostile ones' turns
        self.seconds: dict[str, list[float]] = {}
        self.answers: Counter[int] = Counter()
        self.right = 0
        self.wrong: list[str] = []
        self.error: BaseException | None = None

    def run(self) -> None:
        transport = httpx.HTTPTransport(local_address=self.address, retries=2)
        try:
            with httpx.Client(transport=transport, base_url=self.url, timeout=PATIENCE) as client:
                while not self.stop.wait(self.random.uniform(0, 0.5)):
                    self.one_round(client)
        except BaseException as error:
            self.error = error

    def one_round(self, client: httpx.Client) -> None:
        which, expected = self.random.randrange(PICTURES), self.expected
        body = {"content": expected.files[which], "headers": {"Content-Type": "image/png"}}
        name = self.ask(client, "POST", "/embed", **body).json()["id"]
        prompt = {"id": name, "point_coords": [POINT], "point_labels": [1]}
        masks = self.ask(client, "POST", "/masks", json=prompt)
        if masks.status_code == 404:
            return  # evicted between the two requests; the next round embeds it again
        found = [mask["segmentation"]["counts"] for mask in masks.json()["masks"]]
        self.judge(f"masks of picture {which}", found == expected.masks[which])
        if self.random.random() < 0.2:
            answer = self.ask(client, "GET", f"/embed/{name}")
            if answer.status_code == 200:
                right = answer.content == expected.embeddings[which]
                self.judge(f"embedding of picture {which}", right)
        if self.asks_for_everything and self.random.random() < 0.2:
            answer = self.ask(client, "POST", "/everything", json={"id": name, **EVERYTHING})
            if answer.status_code == 200:
                counts = [
                    annotation["segmentation"]["counts"]
                    for annotation in answer.json()["annotations"]
                ]
                self.judge(f"everything of picture {which}", counts == expected.everything[which])

    def judge(self, what: str, right: bool) -> None:
        if right:
            self.right += 1
        else:
            self.wrong.append(what)

    def ask(self, client: httpx.Client, method: str, path: str, **body: Any) -> httpx.Response:
        """Asks until there is room: what a polite client does; the time is that of all tries."""
        started = time.perf_counter()
        while True:
            answer = client.request(method, path, **body)
            self.answers[answer.status_code] += 1
            if answer.status_code not in BUSY:
                break
            time.sleep(int(answer.headers["retry-after"]) * self.random.uniform(0.5, 1))
        if answer.status_code not in (200, 404):
            self.wrong.append(f"{method} {path.split('/')[1]}: {answer.status_code} {answer.text}")
        kind = "GET /embed" if method == "GET" else path
        self.seconds.setdefault(kind, []).append(time.perf_counter() - started)
        return answer


class Watch(threading.Thread):
    """Memory, threads and files of the server and of the processes that decode for it."""

    def __init__(self, process: psutil.Process, url: str, stop: threading.Event) -> None:
        super().__init__(name="watch", daemon=True)
        self.process, self.url, self.stop = process, url, stop
        self.cache: list[int] = []
        self.server: list[int] = []
        self.decoders: list[int] = []
        self.files: list[int] = []

    def run(self) -> None:
        while not self.stop.wait(1):
            decoders = 0
            for child in self.process.children():
                try:
                    decoders += child.memory_info().rss
                except psutil.NoSuchProcess:
                    continue
            if len(self.server) % 10 == 0:
                text = httpx.get(f"{self.url}/metrics", timeout=PATIENCE).text
                cached = int(float(re.findall(r"^samtrt_cache_bytes (\S+)", text, re.M)[0]))
            self.server.append(self.process.memory_info().rss)
            self.cache.append(cached)
            self.decoders.append(decoders)
            self.files.append(self.process.num_fds())


@contextmanager
def tiny_model() -> Iterator[tuple[Path, Expected]]:
    """A folder with a seeded model and its engine, and what a server of it must answer."""
    with tempfile.TemporaryDirectory(prefix="samtrt-load-") as name:
        folder = Path(name)
        parameters = random_parameters(CONFIG, 3)
        save_parameters(parameters, folder)
        options = BuildOptions("cpu", "fp32", skip_parity_gate=True)
        build_encoder(parameters, folder / "engine", [], options)
        yield folder, Expected(load_sam(folder / "engine", folder))


def start_server(folder: Path, *flags: str) -> tuple["subprocess.Popen[str]", str, list[str]]:
    """The process, its URL, and what it says from then on."""
    command = [sys.executable, "-m", "samtrt.server", "--params", str(folder)]
    command += ["--port", "0", "--no-page", "--backend", "cpu", *flags]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    before: list[str] = []
    said: list[str] = []
    for line in process.stderr:
        before.append(line)
        for word in line.split():
            if word.startswith("http://"):
                reader = threading.Thread(target=lambda: said.extend(process.stderr), daemon=True)
                reader.start()
                return process, word, said
    raise SamtrtError(f"the server did not start: {''.join(before)}")


def quantiles(seconds: list[float]) -> dict[str, float]:
    return {
        "count": len(seconds),
        "p50_ms": round(1e3 * float(np.percentile(seconds, 50)), 1),
        "p99_ms": round(1e3 * float(np.percentile(seconds, 99)), 1),
        "max_ms": round(1e3 * max(seconds), 1),
    }


def run(seconds: float, honest_clients: int) -> dict[str, Any]:
    """The record of one run."""
    with tiny_model() as (folder, expected):
        process, url, said = start_server(folder)
        try:
            return {
                "environment": environment(),
                "command": " ".join(["python", "benchmarks/server_load.py", *sys.argv[1:]]),
                **load(process, url, said, expected, seconds, honest_clients),
            }
        finally:
            process.kill()
            process.wait()


def load(
    process: "subprocess.Popen[str]",
    url: str,
    said: list[str],
    expected: Expected,
    seconds: float,
    honest_clients: int,
) -> dict[str, Any]:
    stop, over = threading.Event(), threading.Event()
    honest = [Honest(number, url, stop, expected) for number in range(honest_clients)]
    hostile = [
        Hostile(kind, url, f"127.0.2.{number + 1}", stop, pause)
        for number, (kind, pause) in enumerate(KINDS.items())
    ]
    watch = Watch(psutil.Process(process.pid), url, over)
    started = time.monotonic()
    threads: list[threading.Thread] = [watch, *honest, *hostile]
    for thread in threads:
        thread.start()
    while time.monotonic() < started + seconds and process.poll() is None:
        time.sleep(1)
    stop.set()
    took = time.monotonic() - started
    clients = (*honest, *hostile)
    unanswered = []
    for client in clients:
        client.join(PATIENCE + 60)
        if client.is_alive():
            unanswered.append(client.name)
    over.set()
    watch.join()
    health = httpx.get(f"{url}/health", timeout=60).json()
    ready = httpx.get(f"{url}/ready", timeout=60).status_code
    process.send_signal(signal.SIGTERM)
    status = process.wait(60)
    outcomes = Counter(counted for client in hostile for counted in client.counts.elements())
    half = len(watch.server) // 2
    failures = [
        f"{client.name}: {client.error!r}" for client in (*honest, *hostile) if client.error
    ]
    times: dict[str, list[float]] = {}
    for client in honest:
        for kind, values in client.seconds.items():
            times.setdefault(kind, []).extend(values)
    return {
        "seconds": round(took),
        "honest": {
            "clients": honest_clients,
            "right": sum(client.right for client in honest),
            "wrong": [what for client in honest for what in client.wrong],
            "answers": dict(sorted(sum((c.answers for c in honest), Counter()).items())),
            "times": {kind: quantiles(values) for kind, values in sorted(times.items())},
        },
        "hostile": {client.name: dict(sorted(client.counts.items())) for client in hostile},
        "harmful": {what: n for what, n in outcomes.items() if what not in HARMLESS},
        "unanswered": unanswered,
        "failures": failures,
        "memory_mib": {
            "server_first_half": max(watch.server[:half], default=0) >> 20,
            "server_second_half": max(watch.server[half:], default=0) >> 20,
            "decoders": max(watch.decoders, default=0) >> 20,
            "cache_first_half": max(watch.cache[:half], default=0) >> 20,
            "cache_second_half": max(watch.cache[half:], default=0) >> 20,
        },
        "files": max(watch.files, default=0),
        "pending_at_the_end": sum(lane["pending"] for lane in health["lanes"].values()),
        "ready_at_the_end": ready,
        "status": status,
        "tracebacks": sum("Traceback" in line for line in said),
        "said": dict(Counter(line.strip() for line in said).most_common(20)),
    }


def refused(record: dict[str, Any]) -> list[str]:
    """Honest requests that were not answered as they should be: method, path and status."""
    wrong = record["honest"]["wrong"]
    return [what[: what.index(":") + 5] for what in wrong if what.startswith(("GET ", "POST "))]


def different(record: dict[str, Any]) -> list[str]:
    """Honest answers that were not the predictor's."""
    return [what for what in record["honest"]["wrong"] if not what.startswith(("GET ", "POST "))]


def verdict(record: dict[str, Any]) -> list[str]:
    """What is wrong with a run; nothing, if it held."""
    memory = record["memory_mib"]
    checks = {
        "wrong answers": different(record),
        "honest requests that were refused": refused(record),
        "no honest answer": not record["honest"]["right"],
        "answers that no client should see": record["harmful"],
        "clients without an answer": record["unanswered"],
        "clients that failed": record["failures"],
        "tracebacks": record["tracebacks"],
        "work left at the end": record["pending_at_the_end"],
        "not ready at the end": record["ready_at_the_end"] != 200,
        "not ended by SIGTERM": record["status"] != -signal.SIGTERM,
        "memory grew": grew(memory),
    }
    return [f"{what}: {told(found)}" for what, found in checks.items() if found]


def grew(memory: dict[str, int]) -> str:
    """How the server's memory grew from the first half to the second, beside its cache."""
    first, second = memory["server_first_half"], memory["server_second_half"]
    cached = memory.get("cache_second_half", 0) - memory.get("cache_first_half", 0)
    return f"{first} to {second} MiB" if second - cached > 1.1 * first + 32 else ""


def told(found: Any) -> str:
    """A fault as text: what is there several times is counted."""
    if not isinstance(found, list):
        return str(found)
    return ", ".join(f"{n} × {what}" for what, n in Counter(found).items())


def table(record: dict[str, Any]) -> str:
    """The record as Markdown."""
    honest, memory = record["honest"], record["memory_mib"]
    lines = [
        f"{record['seconds'] / 60:.0f} minutes, {honest['clients']} honest clients beside "
        f"{len(record['hostile'])} hostile ones on {record['environment']['cpu']}, "
        "a tiny model, all limits at their defaults:",
        "",
        "| honest requests | answered | p50 | p99 | slowest |",
        "|---|---|---|---|---|",
    ]
    for kind, row in honest["times"].items():
        times = " | ".join(f"{row[name]:,.0f} ms" for name in ("p50_ms", "p99_ms", "max_ms"))
        lines.append(f"| `{kind}` | {row['count']:,} | {times} |")
    lines += [
        "",
        f"Of {honest['right'] + len(different(record)):,} answers that were compared with the "
        f"predictor's, {len(different(record))} were wrong. Times are until a request is answered, "
        "with the waits that 429 and 503 asked for. Memory of the server: at most "
        f"{memory['server_first_half']:,} MiB in the first half and "
        f"{memory['server_second_half']:,} MiB in the second; of the processes that decode "
        f"pictures, {memory['decoders']:,} MiB. Tracebacks: {record['tracebacks']}.",
        "",
        "| hostile client | what came of it |",
        "|---|---|",
    ]
    descriptions = {kind.__name__: (kind.__doc__ or "").strip().rstrip(".") for kind in KINDS}
    for name, counts in record["hostile"].items():
        came = ", ".join(f"{what}: {count:,}" for what, count in counts.items())
        lines.append(f"| {descriptions.get(name, name)} | {came} |")
    lines += ["", f"What did not hold: {'; '.join(verdict(record)) or 'nothing'}."]
    return "\n".join(lines) + "\n"


def report_or_run(
    part: str,
    arguments: argparse.Namespace,
    run: Callable[[], dict[str, Any]],
    table: Callable[[dict[str, Any]], str],
    verdict: Callable[[dict[str, Any]], list[str]],
) -> int:
    """What a load does: with ``--report`` a record's table goes into that part of
    docs/reliability.md; else it runs, and the exit status says whether it held."""
    if arguments.report:
        write_table(DOCUMENT, part, table(json.loads(arguments.report.read_text("utf-8"))))
        return 0
    os.nice(5)
    record = run()
    if arguments.output:
        write_json(arguments.output, record)
    print(table(record))
    problems = verdict(record)
    for problem in problems:
        print(f"FAILED  {problem}")
    return bool(problems)


def main() -> int:
    arguments = parse_arguments()
    return report_or_run(
        "server load", arguments, lambda: run(arguments.seconds, arguments.honest), table, verdict
    )


if __name__ == "__main__":
    from samtrt.console import run_script

    sys.exit(run_script(main))
