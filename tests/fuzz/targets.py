"""Everything that reads what others wrote, each with a valid input and what is right for others."""

import http.client
import io
import json
import logging
import os
import socket
import tempfile
import warnings
import zipfile
from contextlib import ExitStack, suppress
from dataclasses import replace
from functools import cache, partial
from http import HTTPStatus
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import onnx
import torch
from harness import OTHER, SAME, Case, Target, WrongError, same_or_wrong
from hugging_face_names import to_hugging_face, write_folder
from mutations import mutated, mutated_head, mutated_json, resealed_png
from oracle import tiny_config, to_torch
from PIL import Image, ImageOps
from server_support import running

from samtrt.checkpoints.meta import read_checkpoint
from samtrt.checkpoints.parameters import (
    Parameters,
    load_parameters,
    random_parameters,
    save_parameters,
)
from samtrt.checkpoints.shapes import parameter_shapes
from samtrt.decoders.export import export_decoder
from samtrt.decoders.onnx import OnnxDecoder
from samtrt.decoders.prompts import Prompt
from samtrt.encoders.engine import EngineInfo, read_engine_info, writing_engine
from samtrt.encoders.load import load_encoder
from samtrt.encoders.packed import write_packed
from samtrt.errors import InputError, SamtrtError
from samtrt.files import sha256_of
from samtrt.jobs.folder import FolderReport, segment_folder
from samtrt.kernels.hopper.code_cache import CACHE_VARIABLE, keep_code, read_code
from samtrt.masks.automatic import SamAutomaticMaskGenerator
from samtrt.masks.predictor import SamPredictor
from samtrt.pictures.reading import load_image
from samtrt.sam import sam_from_parameters
from samtrt.server.app import create_app
from samtrt.server.decoding import PictureReader
from samtrt.server.problems import RequestError
from samtrt.server.settings import PICTURE_TYPES, Settings

Generator = np.random.Generator


@cache
def parameters() -> Parameters:
    """A tiny model's, in half precision: the mask decoder's sizes are fixed."""
    made = random_parameters(tiny_config(), seed=5)
    halves = {name: tensor.astype(np.float16) for name, tensor in made.tensors.items()}
    return replace(made, tensors=halves)


def a_picture() -> np.ndarray:
    """[60, 80, 3] uint8."""
    return np.random.default_rng(4).integers(0, 256, (60, 80, 3), dtype=np.uint8)


# Pictures


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


@cache
def pictures(kind: str) -> tuple[bytes, ...]:
    """Files of a format, in the modes and options that it has."""
    generator = np.random.default_rng(6)
    coarse = Image.fromarray(generator.integers(0, 256, (5, 7, 3), dtype=np.uint8))
    rgb = coarse.resize((40, 30), Image.Resampling.BICUBIC)
    rgba = rgb.copy()
    rgba.putalpha(rgb.convert("L"))
    grey16 = Image.fromarray(generator.integers(0, 65536, (30, 40), dtype=np.uint16))
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "a picture"
    frames: dict[str, Any] = {"save_all": True, "append_images": [rgb.rotate(90)]}
    grey, palette = rgb.convert("L"), rgb.quantize(16)
    made: dict[str, list[tuple[Image.Image, dict[str, Any]]]] = {
        "PNG": [(rgb, {"exif": exif}), (rgba, {}), (grey16, {}), (palette, {"transparency": 3}),
                (rgb.convert("1"), {}), (rgb, frames)],
        "JPEG": [(rgb, {}), (rgb, {"progressive": True, "exif": exif}), (grey, {}),
                 (rgb.convert("CMYK"), {}), (rgb, {"restart_marker_blocks": 1, "subsampling": 0})],
        "MPO": [(rgb, frames)],
        "WEBP": [(rgb, {"exif": exif}), (rgba, {"lossless": True}), (rgb, frames)],
        "BMP": [(rgb, {}), (grey, {}), (palette, {}), (rgba, {})],
        "GIF": [(palette, {}), (rgb, frames), (palette, {"transparency": 3})],
        "TIFF": [(rgb, {"exif": exif}), (grey16, {}), (rgba, {"compression": "tiff_lzw"}),
                 (rgb, {"compression": "jpeg"}), (rgb, {"compression": "tiff_adobe_deflate"}),
                 (rgb.convert("1"), {"compression": "group4"}), (rgb, frames)],
        "PPM": [(rgb, {}), (grey, {}), (rgb.convert("1"), {}), (grey16, {})],
        "JPEG2000": [(rgb, {}), (rgba, {}), (grey, {"irreversible": True}),
                     (rgb, {"tile_size": (16, 16), "quality_layers": [20, 5]})],
        "AVIF": [(rgb, {"exif": exif}), (rgba, {"quality": 90})],
    }  # fmt: skip
    return tuple(encoded(image, kind, **options) for image, options in made[kind])


def mutated_picture(kind: str, generator: Generator) -> bytes:
    valid = pictures(kind)
    content = mutated(valid[int(generator.integers(len(valid)))], generator, valid)
    return resealed_png(content) if kind == "PNG" and generator.random() < 0.5 else content


def open_pictures(kind: str, _: Path) -> Case:
    """Pixels that are accepted are those of Pillow, where one call of it gives them."""

    def case(generator: Generator) -> str:
        content = mutated_picture(kind, generator)
        pixels = load_image(content)
        if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3:
            raise WrongError(f"a picture of {pixels.dtype} {pixels.shape}")
        expected = _by_pillow(content)
        if expected is not None and not np.array_equal(pixels, expected):
            raise WrongError("other pixels than Pillow's")
        return SAME if content in pictures(kind) else OTHER

    return case


def _by_pillow(content: bytes) -> np.ndarray | None:
    """A picture without transparency or 16 bits, whose metadata Pillow can write anew."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(content)) as image:
                image.load()
                image = ImageOps.exif_transpose(image)
                if image.has_transparency_data or image.mode not in ("L", "1", "P", "RGB", "CMYK"):
                    return None
                return np.asarray(image.convert("RGB"))
    except Exception:
        return None


def open_server_pictures(_: Path) -> Case:
    """The server's decoding process answers as this one does, and survives."""
    read = PictureReader(replace(Settings(), read_workers=1))
    types = list(PICTURE_TYPES.items())

    def case(generator: Generator) -> str:
        media_type, kind = types[int(generator.integers(len(types)))]
        if generator.random() < 0.1:
            kind = str(generator.choice(["MPO", "GIF", "PNG", "AVIF"]))
        content = mutated_picture(kind, generator)
        try:
            expected = load_image(content)
        except SamtrtError:
            expected = None
        pixels = read(content, media_type)
        if expected is None or not np.array_equal(pixels, expected):
            raise WrongError("other pixels than load_image's")
        return SAME if content in pictures(kind) else OTHER

    return case


# Checkpoints and parameter folders


def open_checkpoint(legacy: bool, folder: Path) -> Case:
    path = folder / "sam.pth"
    torch.save(to_torch(parameters().tensors), path, _use_new_zipfile_serialization=not legacy)
    content = path.read_bytes()

    def case(generator: Generator) -> str:
        path.write_bytes(mutated(content, generator))
        found = read_checkpoint(path)
        if not legacy:
            return same_or_wrong(found.sha256 == parameters().sha256, "another model")
        # PyTorch's format before 1.6 has no checksums: other values cannot be told.
        return SAME if found.sha256 == parameters().sha256 else _complete(found)

    return case


def _complete(found: Parameters) -> str:
    """Another model's parameters, of which none is missing or of another shape."""
    shapes = {name: tensor.shape for name, tensor in found.tensors.items()}
    if shapes != dict(parameter_shapes(found.encoder_config)):
        raise WrongError(f"parameters that do not fit {found.encoder_config}")
    return OTHER


def open_forged_checkpoint(folder: Path) -> Case:
    """A zip file with right checksums whose pickle, or list of parts, is not torch's."""
    path = folder / "sam.pth"
    torch.save(to_torch(parameters().tensors), path)
    with zipfile.ZipFile(path) as archive:
        parts = {entry.filename: archive.read(entry) for entry in archive.infolist()}
    pickled = next(name for name in parts if name.endswith("data.pkl"))

    def case(generator: Generator) -> str:
        forged = dict(parts)
        if generator.random() < 0.8:
            forged[pickled] = mutated(parts[pickled], generator)
        else:
            name, other = (str(generator.choice(list(parts))) for _ in range(2))
            forged[other] = mutated(parts[name][:5000], generator)
        with zipfile.ZipFile(path, "w") as archive:
            for name, content in forged.items():
                archive.writestr(name, content)
        found = read_checkpoint(path)
        return SAME if found.sha256 == parameters().sha256 else _complete(found)

    return case


def open_hugging_face(name: str, folder: Path) -> Case:
    """A file of a sharded folder: its tensors have no checksums, so other values cannot be told."""
    theirs = to_hugging_face(parameters().tensors, tiny_config().depth)
    write_folder(folder, theirs, tiny_config(), shards=2)
    path = min(folder.glob(name))
    content = path.read_bytes()

    def case(generator: Generator) -> str:
        by_field = name.endswith(".json") and generator.random() < 0.7
        if by_field:
            path.write_bytes(mutated_json(content.decode(), generator).encode())
        else:
            path.write_bytes(mutated(content, generator))
        found = read_checkpoint(folder)
        return SAME if found.sha256 == parameters().sha256 else _complete(found)

    return case


def open_parameters(name: str, folder: Path) -> Case:
    save_parameters(parameters(), folder)
    content = (folder / name).read_bytes()

    def case(generator: Generator) -> str:
        by_field = name.endswith(".json") and generator.random() < 0.7
        changed = (
            mutated_json(content.decode(), generator).encode()
            if by_field
            else mutated(content, generator)
        )
        (folder / name).write_bytes(changed)
        found = load_parameters(folder)
        same = (found.sha256, found.encoder_config) == (parameters().sha256, tiny_config())
        return same_or_wrong(same, "another model")

    return case


# Engine folders


def make_engine(folder: Path) -> None:
    info = EngineInfo("cpu", tiny_config(), "fp32", 2, parameters().sha256)
    with writing_engine(folder) as engine:
        write_packed(engine.file, parameters().encoder(), info)
        engine.info = info


def open_engine(name: str, folder: Path) -> Case:
    """A file of an engine folder: what is accepted computes what it did."""
    make_engine(folder)
    content = (folder / name).read_bytes()
    said = read_engine_info(folder).content
    x = torch.randn(1, 3, 128, 128, generator=torch.Generator().manual_seed(0))
    expected = load_encoder(folder)(x)

    def case(generator: Generator) -> str:
        by_field = name.endswith(".json") and generator.random() < 0.8
        changed = (
            mutated_json(content.decode(), generator).encode()
            if by_field
            else mutated(content, generator)
        )
        (folder / name).write_bytes(changed)
        encoder = load_encoder(folder)
        same = read_engine_info(folder).content == said and torch.equal(encoder(x), expected)
        return same_or_wrong(same, "another encoder")

    return case


def open_forged_engine(folder: Path) -> Case:
    """A forger who knows the digest: other weights cannot be told, but nothing falls over."""
    make_engine(folder)
    engine, sidecar = folder / "encoder.engine", folder / "encoder.json"
    content, record = engine.read_bytes(), json.loads(sidecar.read_text())
    x = torch.randn(1, 3, 128, 128, generator=torch.Generator().manual_seed(0))

    def case(generator: Generator) -> str:
        engine.write_bytes(mutated(content, generator))
        sidecar.write_text(json.dumps(record | {"engine_sha256": sha256_of(engine)}))
        shape = tuple(load_encoder(folder)(x).shape)
        if shape != (1, 256, 8, 8):
            raise WrongError(f"an embedding of {shape}")
        return OTHER

    return case


# Embeddings and mask decoders


def open_embedding(folder: Path) -> Case:
    image = a_picture()
    predictor = SamPredictor(sam_from_parameters(parameters(), device="cpu", precision="fp32"))
    predictor.set_image(image)
    expected = predictor.features.clone()
    path = folder / "embedding"
    predictor.save_embedding(path)
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])

    def with_header(value: object) -> bytes:
        text = json.dumps(value).encode()
        return len(text).to_bytes(8, "little") + text + content[8 + length :]

    def case(generator: Generator) -> str:
        kind = generator.random()
        if kind < 0.4:
            record = mutated_json(header["__metadata__"]["embedding"], generator)
            metadata = {**header["__metadata__"], "embedding": record}
            path.write_bytes(with_header({**header, "__metadata__": metadata}))
        elif kind < 0.6:
            path.write_bytes(with_header(json.loads(mutated_json(json.dumps(header), generator))))
        else:
            path.write_bytes(mutated(content, generator))
        predictor.load_embedding(path, image)
        sizes = predictor.original_size, predictor.input_size
        same = sizes == ((60, 80), (96, 128)) and torch.equal(predictor.features, expected)
        return same_or_wrong(same, "another embedding")

    return case


@cache
def _exported_decoder() -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "mask_decoder.onnx"
        export_decoder(random_parameters(tiny_config(), 5), path)
        return path.read_bytes()


def open_onnx_decoder(with_digest: bool, folder: Path) -> Case:
    """A file of ours, or one that says nothing of its content, as Meta's."""
    path = folder / "mask_decoder.onnx"
    path.write_bytes(_exported_decoder())
    if not with_digest:
        model = onnx.load(path)
        model.producer_name = "pytorch"
        del model.metadata_props[:]
        onnx.save(model, path)
    content = path.read_bytes()
    picture = sam_from_parameters(parameters(), device="cpu", precision="fp32").embed(a_picture())
    prompts = Prompt(((30, 20),), (1,)).to_model_frame(picture)
    expected = OnnxDecoder(path)(picture, prompts, True)

    def case(generator: Generator) -> str:
        path.write_bytes(mutated(content, generator))
        masks, scores = OnnxDecoder(path)(picture, prompts, True)
        same = torch.equal(masks, expected[0]) and torch.equal(scores, expected[1])
        if with_digest or same:
            return same_or_wrong(same, "another mask decoder")
        if (masks.shape, scores.shape) != (expected[0].shape, expected[1].shape):
            raise WrongError(f"masks of {tuple(masks.shape)}, scores of {tuple(scores.shape)}")
        return OTHER

    return case


# What a job finds in its output folder, and cached machine code


def open_job_outputs(folder: Path) -> Case:
    """Outputs of an earlier run: made again where they are altered, never another's replaced."""
    (folder / "in").mkdir()
    Image.fromarray(a_picture()).save(folder / "in/a.png")
    sam = sam_from_parameters(parameters(), device="cpu", precision="fp32")
    outputs = [folder / "out/a.png.json", folder / "out/a.png.png"]

    def run() -> FolderReport:
        return segment_folder(
            sam, folder / "in", folder / "out", show_progress=False, points_per_side=1,
            pred_iou_thresh=0.0, stability_score_thresh=0.0,
        )  # fmt: skip

    run()
    valid = {path: path.read_bytes() for path in outputs}

    def case(generator: Generator) -> str:
        path = outputs[int(generator.integers(2))]
        by_field = path.suffix == ".json" and generator.random() < 0.6
        changed = (
            mutated_json(valid[path].decode(), generator).encode()
            if by_field
            else mutated(valid[path], generator)
        )
        for output, content in valid.items():
            output.write_bytes(content)
        path.write_bytes(changed)
        failed = run().failed
        if failed:
            if path.read_bytes() != changed:
                raise WrongError("a file that is not ours was replaced")
            raise InputError(failed[Path("a.png")])
        # A JSON that is laid out otherwise, or has a surplus note of its origin, is the same.
        found = {output: output.read_bytes() for output in outputs}
        same = found == valid or (
            found[outputs[1]] == valid[outputs[1]]
            and _dataset(found[outputs[0]]) == _dataset(valid[outputs[0]])
        )
        return same_or_wrong(same, "altered outputs were taken for done")

    return case


def _dataset(content: bytes) -> dict[str, Any]:
    value: dict[str, Any] = json.loads(content)
    value.pop("samtrt")
    return value


def open_cached_code(folder: Path) -> Case:
    here = {CACHE_VARIABLE: str(folder / "cache")}
    code = np.random.default_rng(7).bytes(5000)
    with patch.dict(os.environ, here):
        keep_code("kernel", code)
    (path,) = (folder / "cache").iterdir()
    content = path.read_bytes()

    def case(generator: Generator) -> str:
        path.write_bytes(mutated(content, generator))
        with patch.dict(os.environ, here):
            found = read_code("kernel")
        if found is None:
            raise InputError("damaged: that kernel is compiled anew")
        return same_or_wrong(found == code, "other machine code")

    return case


# HTTP


_COMPARED = ("area", "predicted_iou")


class Failures(logging.Handler):
    """Exceptions that the server logs."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.texts.append(logging.Formatter().format(record))


class Service:
    """A server with a tiny model on the loopback, and what it has to answer."""

    def __init__(self, folder: Path) -> None:
        self.sam = sam_from_parameters(parameters(), device="cpu", precision="fp32")
        settings = replace(Settings(), read_workers=1, head_timeout=0.3, body_timeout=0.3)
        self.stack = ExitStack()
        self.url = self.stack.enter_context(running(create_app(self.sam, settings=settings)))
        self.port = int(self.url.rsplit(":", 1)[1])
        self.failures = Failures()
        for name in ("samtrt.server", "uvicorn.error", "asyncio"):
            logging.getLogger(name).addHandler(self.failures)
        self.image = a_picture()
        self.file = encoded(Image.fromarray(self.image), "PNG")
        status, answer = self.send(_request("/embed", self.file, "image/png"))
        assert status == 200, answer
        self.id = json.loads(answer)["id"]

    def send(self, content: bytes) -> tuple[int, bytes]:
        """The status and body of the answer to these bytes; (0, …) where there is none."""
        with socket.create_connection(("127.0.0.1", self.port), 60) as connection:
            with suppress(ConnectionError):  # it may have answered before the end
                connection.sendall(content)
            answer = http.client.HTTPResponse(connection)
            try:
                answer.begin()
                return answer.status, answer.read()
            except (http.client.HTTPException, ConnectionError):
                return 0, b""

    def check(self, status: int, answer: bytes) -> None:
        """Raises what a refusal, or the server's failure, is."""
        if self.failures.texts:
            texts, self.failures.texts = self.failures.texts, []
            raise RuntimeError("\n".join(texts))
        if status == 0:
            raise RequestError(HTTPStatus.BAD_REQUEST, "the connection was closed")
        if status >= 500:
            raise RuntimeError(f"status {status}: {answer[:500]!r}")
        if status >= 400:
            detail = (
                answer.decode() if not answer.startswith(b"{") else json.loads(answer)["detail"]
            )
            raise RequestError(HTTPStatus(status), detail)

    def expected(self, path: str, body: dict[str, Any]) -> list[dict[str, Any]]:
        """What a request has to be answered: masks' areas and scores."""
        if path == "/everything":
            options = {key: value for key, value in body.items() if key != "id"}
            generator = SamAutomaticMaskGenerator(self.sam, **options, output_mode="coco_rle")
            return [{key: r[key] for key in _COMPARED} for r in generator.generate(self.image)]
        predictor = SamPredictor(self.sam)
        predictor.set_image(self.image)
        points = body.get("point_coords") or []
        masks, scores, _ = predictor.predict(
            np.array(points, float) if points else None,
            np.array(body["point_labels"]) if points else None,
            np.array(body["box"], float) if body.get("box") else None,
            multimask_output=body.get("multimask_output", True),
        )
        order = np.argsort(-scores)
        return [dict(zip(_COMPARED, (masks[i].sum(), scores[i]), strict=True)) for i in order]


def _request(
    path: str, body: bytes, media_type: str, method: str = "POST", extra: str = ""
) -> bytes:
    head = (
        f"{method} {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: {media_type}\r\n"
        f"Content-Length: {len(body)}\r\n{extra}Connection: close\r\n\r\n"
    )
    return head.encode() + body


def open_http_bodies(folder: Path) -> Case:
    """JSON bodies: what is accepted is answered as the predictor answers it."""
    service = Service(folder)
    every = {"points_per_side": 2, "pred_iou_thresh": 0.1, "stability_score_thresh": 0.0}
    valid: list[tuple[str, dict[str, Any]]] = [
        ("/masks", {"point_coords": [[30, 20], [50.5, 40]], "point_labels": [1, 0]}),
        ("/masks", {"box": [10, 10, 60, 50], "multimask_output": False}),
        ("/masks", {"point_coords": [[3, 2]], "point_labels": [1], "box": [0, 0, 80, 60]}),
        ("/everything", {**every, "box_nms_thresh": 0.9, "min_mask_region_area": 9}),
    ]

    def case(generator: Generator) -> str:
        path, body = valid[int(generator.integers(len(valid)))]
        body = {"id": service.id, **body}
        text = (
            mutated_json(json.dumps(body), generator).encode()
            if generator.random() < 0.7
            else mutated(json.dumps(body).encode(), generator)
        )
        status, answer = service.send(_request(path, text, "application/json"))
        service.check(status, answer)
        expected, found = service.expected(path, json.loads(text)), _answered(path, answer)
        areas, scores = ([[mask[key] for mask in one] for one in (found, expected)]
                         for key in _COMPARED)  # fmt: skip
        if areas[0] != areas[1] or not np.allclose(*scores, rtol=0, atol=1e-4):
            raise WrongError(f"{text!r} is answered by {found}, expected {expected}")
        return SAME if json.loads(text) == body else OTHER

    return case


def _answered(path: str, answer: bytes) -> list[dict[str, Any]]:
    masks = json.loads(answer)["masks" if path == "/masks" else "annotations"]
    return [{key: mask[key] for key in _COMPARED} for mask in masks]


def open_http_requests(folder: Path) -> Case:
    """Whole requests: line, headers and body."""
    service = Service(folder)
    masks = json.dumps({"id": service.id, "point_coords": [[9, 9]], "point_labels": [1]}).encode()
    everything = json.dumps({"id": service.id, "points_per_side": 1}).encode()
    valid = [
        _request("/embed", service.file, "image/png", extra="Origin: http://127.0.0.1\r\n"),
        _request("/embed", service.file[:100], "image/png"),
        _request("/masks", masks, "application/json", extra="X-Forwarded-For: 192.0.2.1\r\n"),
        _request("/everything", everything, "application/json; charset=utf-8"),
        _request(f"/embed/{service.id}", b"", "text/plain", "GET", "Accept: */*\r\n"),
        _request("/health?a=b", b"", "text/plain", "GET", "Authorization: Bearer abc\r\n"),
        _request("/metrics", b"", "text/plain", "GET"),
        b"POST /masks HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
        b"Transfer-Encoding: chunked\r\nConnection: close\r\n\r\n"
        + f"{len(masks):x}\r\n".encode() + masks + b"\r\n0\r\n\r\n",
    ]  # fmt: skip
    answers = {service.send(request)[1] for request in valid}

    def case(generator: Generator) -> str:
        request = valid[int(generator.integers(len(valid)))]
        by_line = generator.random() < 0.6
        content = (
            mutated_head(request, generator) if by_line else mutated(request, generator, valid)
        )
        status, answer = service.send(content)
        service.check(status, answer)
        return SAME if answer in answers else OTHER

    return case


PICTURE_SHARES = {"PNG": 18, "JPEG": 18, "MPO": 4, "WEBP": 12, "BMP": 8, "GIF": 8, "TIFF": 16,
                  "PPM": 6, "JPEG2000": 10, "AVIF": 6}  # fmt: skip

# Checkpoints, whose sizes are fixed, take fifty times as long as pictures.
TARGETS = {
    target.name: target
    for target in (
        *(
            Target(f"pictures: {kind}", share, partial(open_pictures, kind), 0.02)
            for kind, share in PICTURE_SHARES.items()
        ),
        Target("pictures: the server's processes", 16, open_server_pictures),
        Target("checkpoint: zip", 3, partial(open_checkpoint, False), 0.5),
        Target("checkpoint: zip, right checksums", 2, open_forged_checkpoint, 0.5),
        Target("checkpoint: legacy", 3, partial(open_checkpoint, True), 0.3),
        Target("Hugging Face: shard", 3, partial(open_hugging_face, "*.safetensors"), 0.3),
        Target("Hugging Face: index", 3, partial(open_hugging_face, "*.index.json"), 0.3),
        Target("Hugging Face: config.json", 3, partial(open_hugging_face, "config.json"), 0.2),
        Target("parameters: tensors", 3, partial(open_parameters, "parameters.safetensors"), 0.5),
        Target("parameters: config.json", 8, partial(open_parameters, "config.json"), 0.5),
        Target("engine: encoder.engine", 6, partial(open_engine, "encoder.engine"), 0.5),
        Target("engine: encoder.engine, right digest", 4, open_forged_engine, 0.2),
        Target("engine: encoder.json", 16, partial(open_engine, "encoder.json"), 0.2),
        Target("embedding", 24, open_embedding, 0.3),
        Target("outputs of an earlier run", 4, open_job_outputs, 0.0),
        Target("cached machine code", 6, open_cached_code, 0.5),
        Target("mask decoder: ONNX", 1, partial(open_onnx_decoder, True), 0.5, is_slow=True),
        Target(
            "mask decoder: ONNX, no digest", 1, partial(open_onnx_decoder, False), 0.1, is_slow=True
        ),
        Target("HTTP: JSON bodies", 9, open_http_bodies, 0.2),
        Target("HTTP: whole requests", 9, open_http_requests, 0.2),
    )
}
