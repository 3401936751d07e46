"""Jobs on one GPU and on several: pictures a second, how busy the GPUs are, and segment_anything.

    python benchmarks/gpu_jobs.py --output benchmarks/results/h200_jobs.json

Every job is `samtrt everything` in a process of its own, on the same 1080p JPEGs: box prompts, and
everything. Its pace is that of the middle of the job, between a quarter and nine tenths of its
files: what start-up costs is told by the whole job's seconds. How busy a GPU is comes from
`nvidia-smi`, over the same time: the share in which at least one kernel ran. The files of all ways
to work are compared.

Seeded random weights predict noise: masks of a hundred thousand run lengths, of which no filter
lets one pass, or all. So the decoder does its work, and its masks are replaced: those of boxes by
ellipses in them, everything's by discs around the points, of which some ninety stay, as many as a
trained model finds (`benchmarks/end_to_end.py`). In Meta's loop boxes have ellipses as well, drawn
after its own masks; its generator keeps its own, none of which passes its first filter: it has less
to do.
"""

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from benchmarks.end_to_end import DiscDecoder, random_picture
from samtrt.checkpoints import config as sizes
from samtrt.checkpoints.parameters import load_parameters, random_parameters, save_parameters
from samtrt.console import run_script
from samtrt.decoders.prompts import Prompts
from samtrt.encoders.embedded import EmbeddedPicture
from samtrt.errors import SamtrtError
from samtrt.files import write_json
from samtrt.reports.benchmarking import describe, environment, markdown_table
from samtrt.reports.peers import import_segment_anything, meta_sam
from samtrt.sam import Sam, load_sam

ROOT = Path(__file__).resolve().parent.parent
SIZE = (1080, 1920)
BOXES = 16  # a picture
STEADY = (0.25, 0.9)  # of a job's files, between which its pace is taken
META = ("segment_anything fp32", "segment_anything, autocast fp16")
_SAMPLE_MS = 200
_META_WARM_UP = 2  # pictures
WORKS = ("boxes", "everything")


class EllipseDecoder(DiscDecoder):
    """Decodes as ever, then hands on an ellipse in each box in place of its masks."""

    def __call__(
        self, picture: EmbeddedPicture, prompts: Prompts, multimask_output: bool
    ) -> tuple[Tensor, Tensor]:
        boxes = prompts.coords[:, -2:].flatten(1).to(picture.features)  # first, as in discs
        low_res, scores = self.decoder(picture, prompts, multimask_output)
        side = 4 * low_res.shape[-1]
        return ellipses(boxes, (side, side), 4)[:, None].expand_as(low_res), scores


def ellipses(boxes: Tensor, size: tuple[int, int], step: int = 1) -> Tensor:
    """Logits [B, H / step, W / step] of ellipses in boxes [B, 4] of a picture (H, W)."""
    x0, y0, x1, y1 = boxes[:, :, None, None].unbind(1)
    y, x = (
        torch.arange(step / 2, length, step, dtype=boxes.dtype, device=boxes.device)
        for length in size
    )
    across = (x - (x0 + x1) / 2) / ((x1 - x0) / 2)
    down = (y[:, None] - (y0 + y1) / 2) / ((y1 - y0) / 2)
    return (1 - (across**2 + down**2).sqrt()) * 8


def load_with_ellipses(*arguments: Any) -> Sam:
    """``load_sam`` with a decoder that hands on ellipses; in every worker."""
    return _with_decoder(load_sam(*arguments), EllipseDecoder)


def load_with_discs(*arguments: Any) -> Sam:
    """``load_sam`` with a decoder that hands on discs; in every worker."""
    return _with_decoder(load_sam(*arguments), DiscDecoder)


def _with_decoder(sam: Sam, kind: type[DiscDecoder]) -> Sam:
    decoder = sam.get_decoder()
    sam.get_decoder = lambda precision="auto": kind(decoder)  # type: ignore[method-assign, assignment, return-value]
    return sam


def run_job(at_once: int | None, work: str, arguments: Sequence[str]) -> None:
    """The command, with masks that are replaced, and otherwise many pictures on a GPU."""
    import samtrt.sam
    from samtrt.cli import commands
    from samtrt.jobs.segmenting import AT_ONCE

    # The command takes it from there.
    samtrt.sam.load_sam = load_with_ellipses if work == "boxes" else load_with_discs
    if at_once is not None:
        AT_ONCE["cuda"] = at_once
    sys.exit(run_script(lambda: commands.run(list(arguments))))


class Meta:
    """``segment_anything`` as its examples use it: a picture after the other."""

    def __init__(self, model: Path, device: str, points_per_side: int, is_half: bool) -> None:
        package = import_segment_anything()
        parameters = load_parameters(model)
        sam = meta_sam(parameters.encoder_config)
        tensors = {name: torch.from_numpy(value) for name, value in parameters.tensors.items()}
        sam.load_state_dict(tensors)
        sam.to(device)
        self.device, self.is_half = device, is_half
        self.predictor = package.SamPredictor(sam)
        self.generator = package.SamAutomaticMaskGenerator(
            sam, points_per_side=points_per_side, output_mode="coco_rle"
        )

    def __call__(self, picture: Path, boxes: np.ndarray | None, out: Path) -> None:
        """Everything in a picture, or the masks of boxes [N, 4]; as JSON."""
        from pycocotools import mask as coco

        image = np.asarray(Image.open(picture).convert("RGB"))
        dtype = torch.float16 if self.is_half else None
        with torch.autocast(self.device.partition(":")[0], dtype, enabled=self.is_half):
            if boxes is None:
                records = self.generator.generate(image)
            else:
                self.predictor.set_image(image)
                on_device = torch.from_numpy(boxes).to(self.device)
                mapped = self.predictor.transform.apply_boxes_torch(on_device, image.shape[:2])
                masks, scores, _ = self.predictor.predict_torch(
                    None, None, mapped, multimask_output=False
                )
                drawn = ellipses(on_device, image.shape[:2]) > 0
                assert drawn.shape == masks[:, 0].shape
                rles = coco.encode(np.asfortranarray(drawn.cpu().numpy().transpose(1, 2, 0)))
                records = [
                    {"segmentation": rle, "predicted_iou": score}
                    for rle, score in zip(rles, scores[:, 0].tolist(), strict=True)
                ]
        for record in records:
            counts = record["segmentation"]["counts"]
            if isinstance(counts, bytes):
                record["segmentation"]["counts"] = counts.decode()
        out.write_text(json.dumps(records))


def run_meta(arguments: dict[str, Any]) -> None:
    """Prints what a picture takes in a loop, as JSON."""
    pictures = sorted(Path(arguments["pictures"]).iterdir())
    boxes = draw_boxes(len(pictures)) if arguments["work"] == "boxes" else [None] * len(pictures)
    meta = Meta(
        Path(arguments["model"]),
        arguments["device"],
        arguments["points_per_side"],
        arguments["is_half"],
    )
    times: list[float] = []
    with tempfile.TemporaryDirectory() as name:
        end = time.perf_counter() + arguments["seconds"]
        for picture, few in zip(pictures, boxes, strict=True):
            if len(times) > _META_WARM_UP and time.perf_counter() > end:
                break
            start = time.perf_counter()
            meta(picture, few, Path(name) / "masks.json")
            times.append(time.perf_counter() - start)
    timed = times[_META_WARM_UP:]
    print(json.dumps({"pictures": len(timed), "pictures_per_second": len(timed) / sum(timed)}))


def draw_boxes(count: int) -> list[np.ndarray]:
    """[16, 4] float32 of each picture: x0, y0, x1, y1."""
    rng = np.random.default_rng(0)
    height, width = SIZE
    found = []
    for _ in range(count):
        sides = rng.uniform(40, 500, (BOXES, 2))
        corners = rng.uniform(0, 1, (BOXES, 2)) * (np.array([width, height]) - sides)
        found.append(np.hstack([corners, corners + sides]).round(1).astype(np.float32))
    return found


def draw_pictures(folder: Path, count: int) -> None:
    """1080p JPEGs, no two alike, and as many boxes on each in boxes.csv beside the folder."""
    folder.mkdir()
    drawn = [random_picture(SIZE, seed) for seed in range(8)]

    def draw(number: int) -> None:
        image = np.roll(drawn[number % len(drawn)], 37 * number, axis=1)
        Image.fromarray(image).save(folder / f"{number:05}.jpg", quality=90)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(draw, range(count)))
    rows = ["file_name,x0,y0,x1,y1"]
    for number, boxes in enumerate(draw_boxes(count)):
        rows += [f"{number:05}.jpg,{','.join(map(str, box))}" for box in boxes.tolist()]
    folder.with_name("boxes.csv").write_text("\n".join(rows))


class Load:
    """How busy each GPU is, as ``nvidia-smi`` samples it in the background."""

    def __init__(self) -> None:
        self._samples: list[tuple[float, str]] = []
        command = ["stdbuf", "-oL", "nvidia-smi", "--query-gpu=index,utilization.gpu"]
        command += ["--format=csv,noheader,nounits", "-lms", str(_SAMPLE_MS)]
        self._process: subprocess.Popen[str] | None = None
        if torch.cuda.is_available():
            self._process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
            threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self._process is not None and self._process.stdout is not None
        for line in self._process.stdout:
            self._samples.append((time.time(), line))

    def between(self, begin: float, end: float) -> dict[str, float]:
        """GPU → share of the time in which a kernel ran, 0 to 1; by the wall clock."""
        return shares([line for moment, line in self._samples if begin <= moment <= end])

    def close(self) -> None:
        """Ends the sampling."""
        if self._process is not None:
            self._process.terminate()
            self._process.wait()


def shares(lines: Sequence[str]) -> dict[str, float]:
    """From lines of ``number, percent``; lines that say something else are left out."""
    seen: dict[str, list[float]] = {}
    for line in lines:
        try:
            number, percent = line.split(",")
            seen.setdefault(number.strip(), []).append(float(percent))
        except ValueError:
            continue
    return {number: sum(found) / len(found) / 100 for number, found in seen.items()}


def steady(moments: Sequence[float]) -> tuple[float, float, float]:
    """From the moments at which files were done: begin and end of the time that counts, and files a
    second in it, by a line through them (a worker's come some at a time)."""
    ordered = np.sort(moments)
    first, last = (round(share * (len(ordered) - 1)) for share in STEADY)
    middle = ordered[first : last + 1]
    times = middle - middle.mean()
    spread = float((times**2).sum())
    pace = float((times * np.arange(len(middle))).sum()) / spread if spread else float("nan")
    return float(middle[0]), float(middle[-1]), pace


def ways(gpus: int) -> dict[str, tuple[int, list[str]]]:
    """Name → GPUs that are seen, options of the command."""
    found: dict[str, tuple[int, list[str]]] = {
        "one GPU, one process": (1, ["--workers", "1"]),
        "one GPU, a Ray worker": (1, ["--workers", "1", "--ray", "local"]),
    }
    if gpus > 1:
        found[f"{gpus} GPUs"] = (gpus, [])
    return found


class Bench:
    """A model, pictures, and what is run on them, below a folder."""

    def __init__(self, folder: Path, arguments: argparse.Namespace) -> None:
        self.folder = folder
        self.arguments = arguments
        self.gpus = torch.cuda.device_count()
        self.model = arguments.params or folder / "model"
        if arguments.params is None:
            save_parameters(random_parameters(getattr(sizes, arguments.model)(), 0), self.model)
        self._samtrt(
            *("build", "--params", self.model, "--output-dir", folder / "engine"),
            *(("--precision", "fp16") if self.gpus else ("--backend", "cpu")),
        )
        self.pictures = {
            "boxes": folder / "boxes" / "pictures",
            "everything": folder / "everything" / "pictures",
        }
        for work, pictures in self.pictures.items():
            pictures.parent.mkdir()
            draw_pictures(pictures, getattr(arguments, f"{work}_pictures"))
        self.load = Load()

    def _environ(self, gpus: int) -> dict[str, str]:
        seen = os.environ.get("CUDA_VISIBLE_DEVICES", ",".join(map(str, range(self.gpus))))
        few = ",".join(seen.split(",")[:gpus])
        return {**os.environ, "PYTHONPATH": python_path(), "CUDA_VISIBLE_DEVICES": few}

    def _run(self, command: Sequence[Any], gpus: int) -> str:
        done = subprocess.run(
            list(map(str, command)), env=self._environ(gpus), capture_output=True, text=True
        )
        if done.returncode:
            raise SamtrtError(f"{' '.join(map(str, command[:6]))} … failed: {done.stderr[-1500:]}")
        return done.stdout

    def _samtrt(self, *arguments: Any) -> None:
        self._run([sys.executable, "-m", "samtrt", *arguments], self.gpus)

    def job(self, work: str, gpus: int, options: Sequence[str]) -> dict[str, Any]:
        """One job: its pace, the GPUs' load, and a digest of its files."""
        pictures, out = self.pictures[work], self.folder / "out"
        given = [
            *("everything", pictures, "--params", self.model, "--engine", self.folder / "engine"),
            *("--output-dir", out, "--format", "json", "--json", self.folder / "report.json"),
            *options,
        ]
        if work == "boxes":
            given += ["--prompts", pictures.with_name("boxes.csv")]
        else:
            given += ["--points-per-side", self.arguments.points_per_side]
        call = f"run_job({self.arguments.at_once}, {work!r}, sys.argv[1:])"
        code = f"import sys; from benchmarks.gpu_jobs import run_job; {call}"
        start = time.perf_counter()
        self._run([sys.executable, "-c", code, *given], gpus)
        seconds = time.perf_counter() - start
        report = json.loads((self.folder / "report.json").read_text())
        files = sorted(out.rglob("*.json"))
        begin, end, pace = steady([file.stat().st_mtime for file in files])
        digest = hashlib.sha256()
        for file in files:
            digest.update(file.read_bytes())
        shutil.rmtree(out)
        if len(files) != len(list(pictures.iterdir())):
            raise SamtrtError(f"{len(files)} pictures were done: {report['failed']}")
        return {
            "pictures": len(files),
            "masks": report["masks"],
            "workers": report["workers"],
            "pictures_per_second": pace,
            "seconds": seconds,
            "workers_at_work": report["workers_at_work"],
            "gpus_at_work": self.load.between(begin, end),
            "files_sha256": digest.hexdigest(),
        }

    def meta(self, work: str, name: str) -> dict[str, Any]:
        """Meta's package in a loop on one GPU."""
        arguments = {
            "model": str(self.model),
            "pictures": str(self.pictures[work]),
            "work": work,
            "device": "cuda" if self.gpus else "cpu",
            "points_per_side": self.arguments.points_per_side,
            "is_half": name == META[1],
            "seconds": self.arguments.meta_seconds,
        }
        code = "import sys, json; from benchmarks.gpu_jobs import run_meta as run"
        code += "; run(json.loads(sys.argv[1]))"
        found: dict[str, Any] = json.loads(
            self._run([sys.executable, "-c", code, json.dumps(arguments)], 1).splitlines()[-1]
        )
        return found

    def rows(self) -> Iterator[tuple[str, str, dict[str, Any]]]:
        """Work, way and figures, as they are measured."""
        for work in self.arguments.works:
            for name, (gpus, options) in ways(self.gpus).items():
                yield work, name, self.job(work, gpus, options)
            for name in META if self.arguments.meta_seconds else ():
                if self.gpus or name == META[0]:
                    yield work, name, self.meta(work, name)


def python_path() -> str:
    """This checkout before what is there."""
    return os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))


def table(record: dict[str, Any]) -> str:
    """Every row, with how many times the pace of the best on one GPU it has."""
    lines = []
    for work, rows in record["works"].items():
        alone = [row["pictures_per_second"] for name, row in rows.items() if "one GPU" in name]
        for name, row in rows.items():
            busy = ", ".join(f"{100 * one:.0f} %" for one in row.get("gpus_at_work", {}).values())
            ours = "seconds" in row
            lines.append([
                work,
                name,
                f"{row['pictures_per_second']:.3g}",
                f"{row['pictures_per_second'] / max(alone):.2f}",
                f"{row['seconds']:.0f} s" if ours else "",
                busy,
                f"{100 * row['workers_at_work']:.0f} %" if ours else "",
            ])  # fmt: skip
    header = ("", "", "pictures/s", "× one GPU", "whole job", "GPUs busy", "workers at work")
    return markdown_table(header, lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="vit_h", choices=("vit_b", "vit_l", "vit_h"))
    parser.add_argument("--params", type=Path, help="parameter folder, in place of --model")
    parser.add_argument("--works", nargs="+", choices=WORKS, default=WORKS, help="(default: both)")
    parser.add_argument("--boxes-pictures", type=int, default=2000)
    parser.add_argument("--everything-pictures", type=int, default=240)
    parser.add_argument("--points-per-side", type=int, default=32)
    parser.add_argument(
        "--meta-seconds", type=float, default=6.0, help="of each of Meta's loops; 0 for none"
    )
    parser.add_argument("--at-once", type=int, help="pictures that a GPU is given at once")
    parser.add_argument("--folder", type=Path, help="where work goes (default: the system's)")
    parser.add_argument("--output", type=Path, help="where the record goes")
    arguments = parser.parse_args()
    record: dict[str, Any] = {
        "environment": environment(),
        "gpus": torch.cuda.device_count(),
        "model": arguments.params.name if arguments.params else arguments.model,
        "at_once": arguments.at_once,
        "works": {},
    }
    print(f"{record['gpus']} GPUs; {describe(record['environment'])}", flush=True)
    start = time.perf_counter()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        bench = Bench(Path(name), arguments)
        print(f"prepared in {time.perf_counter() - start:.0f} s", flush=True)
        for work, way, row in bench.rows():
            record["works"].setdefault(work, {})[way] = row
            after = time.perf_counter() - start
            print(f"{after:4.0f} s  {work}, {way}: {json.dumps(row)}", flush=True)
            if arguments.output:
                write_json(arguments.output, record)
        bench.load.close()
    print(table(record))
    for work, rows in record["works"].items():
        if len({row["files_sha256"] for row in rows.values() if "files_sha256" in row}) != 1:
            raise SamtrtError(f"{work}: the ways to work have written different files")


if __name__ == "__main__":
    sys.exit(run_script(main))
