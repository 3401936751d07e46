"""Requests and answers of the HTTP API."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from samtrt.server.api.answers import MaskFormat
from samtrt.server.settings import MIB

EmbeddingId = Annotated[
    str,
    Field(
        pattern="^[0-9a-f]{64}$",
        description="What `/embed` answered: the hash of the picture's file and of the encoder.",
        examples=["5f1d7a84db00d2fce00b31a7fc73224f0f2ab0ce9bf4c4a1cfbd0c4d9b0b8a3e"],
    ),
]
EmbeddingType = Literal["float32", "float16"]
Coordinate = Annotated[float, Field(ge=-65536, le=65536, allow_inf_nan=False)]
Fraction = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
# Lists of a fixed length: JSON has no tuples, and their schema would need prefixItems.
Point = Annotated[list[Coordinate], Field(min_length=2, max_length=2)]
Box = Annotated[list[Coordinate], Field(min_length=4, max_length=4)]
Size = Annotated[
    list[int], Field(min_length=2, max_length=2, description="(height, width) in pixels.")
]


class Strict(BaseModel):
    """A request body: unknown fields are errors, so that a misspelt option is never ignored."""

    model_config = ConfigDict(extra="forbid")


class ProblemDetails(BaseModel):
    """An error (RFC 9457)."""

    type: Literal["about:blank"] = "about:blank"
    title: str = Field(description="The name of the HTTP status.")
    status: int
    detail: str = Field(description="What happened, what was expected, what to do.")


class Embedding(BaseModel):
    """A picture that is ready for prompts."""

    id: EmbeddingId
    original_size: Size
    input_size: Size = Field(
        description="(height, width) of the picture within the model's square frame."
    )
    frame_size: int = Field(description="Side of the model's square frame, in pixels.")
    embedding_shape: list[int] = Field(
        min_length=4,
        max_length=4,
        description="[1, C, h, w] of `GET /embed/{id}`: little-endian float32, or float16.",
    )
    cached: bool = Field(description="Whether the encoder was spared.")
    seconds: float = Field(description="The encoder's time for this picture, resizing included.")


class MaskPrompt(Strict):
    """What is asked for one object: points, a box, an earlier mask, or several of them."""

    point_coords: list[Point] = Field(
        default=[], max_length=256, description="(x, y) in pixels of the picture."
    )
    point_labels: list[Literal[0, 1]] = Field(
        default=[], max_length=256, description="1 for the object, 0 for the background."
    )
    box: Box | None = Field(default=None, description="(x0, y0, x1, y1) in pixels of the picture.")
    mask_input: str | None = Field(
        default=None,
        max_length=4 * MIB,
        description="`low_res_logits` of an earlier answer, which this prompt refines.",
    )


class MaskRequest(MaskPrompt):
    """A prompt for one object, or a list of prompts in `prompts` for several."""

    id: EmbeddingId
    prompts: list[MaskPrompt] | None = Field(
        default=None,
        min_length=1,
        description="In the place of this request's own points, box and mask; decoded together. "
        "How many: `max_prompts` of `/health`.",
    )
    multimask_output: bool = Field(
        default=True, description="Three masks of different extent for each prompt, or one."
    )
    format: MaskFormat = Field(
        default="rle",
        description="`rle`: COCO's compressed run lengths in `segmentation`. `polygon`: COCO's "
        "polygons there, a mask with holes cut into pieces that have none. `png`: a PNG of one "
        "bit a pixel in `png`.",
    )
    polygon_tolerance: float = Field(
        default=0.0,
        ge=0,
        le=100,
        allow_inf_nan=False,
        description="How far polygons may lie from the mask's outline, in pixels; 0 is exact.",
    )
    low_res_logits: bool = Field(
        default=False, description="Whether answers have what `mask_input` takes."
    )


class CocoRle(BaseModel):
    """A mask in COCO's compressed run-length encoding (column-major)."""

    size: Size
    counts: str


class Mask(BaseModel):
    """One mask of a prompt."""

    prompt: int = Field(description="Which of the request's prompts it is of, from 0.")
    segmentation: CocoRle | list[list[float]] | None = Field(
        default=None,
        description="Run lengths, or polygons [x, y, x, y, …]; null in the format `png`.",
    )
    png: str | None = Field(
        default=None,
        description="A PNG of the picture's size in base64, white on the object; null in the "
        "other formats.",
    )
    area: int = Field(description="Pixels.")
    bbox: Box = Field(description="(x, y, width, height) in pixels.")
    predicted_iou: float = Field(description="The model's own estimate of the mask's quality.")
    low_res_logits: str | None = Field(
        default=None,
        description="Logits at a quarter of the model's frame, little-endian float32 in base64; "
        "null unless they are asked for.",
    )


class Masks(BaseModel):
    """The masks of all prompts, in the prompts' order, the best first of each."""

    masks: list[Mask]


class EverythingRequest(Strict):
    """Automatic masks; the options are those of `SamAutomaticMaskGenerator`."""

    id: EmbeddingId
    points_per_side: int = Field(default=32, ge=1, le=64)
    pred_iou_thresh: Fraction = 0.88
    stability_score_thresh: Fraction = 0.95
    box_nms_thresh: Fraction = 0.7
    min_mask_region_area: int = Field(
        default=0, ge=0, le=1_000_000, description="Smaller holes and islands are removed; pixels."
    )


class CocoImage(BaseModel):
    """COCO's description of a picture."""

    id: int
    width: int
    height: int
    file_name: str


class CocoAnnotation(BaseModel):
    """COCO's annotation, with the fields that SA-1B adds."""

    id: int
    image_id: int
    category_id: int
    segmentation: CocoRle
    area: int
    bbox: Box
    iscrowd: Literal[0, 1]
    score: float | None = Field(description="``predicted_iou``, as readers of COCO call it.")
    predicted_iou: float | None
    stability_score: float | None
    point_coords: list[Point]


class CocoCategory(BaseModel):
    """COCO's category; SAM knows only one."""

    id: int
    name: str


class CocoDataset(BaseModel):
    """A COCO data set of one picture."""

    images: list[CocoImage]
    annotations: list[CocoAnnotation]
    categories: list[CocoCategory]


class FoundMask(BaseModel):
    """A mask of "everything" that is found before the end."""

    id: int = Field(description="Its number in this answer.")
    segmentation: CocoRle
    area: int
    predicted_iou: float | None
    stability_score: float | None
    point_coords: list[Point]


class EverythingEvent(BaseModel):
    """A line of "everything" as it goes on: how far it is, or its end."""

    points_done: int | None = None
    points_total: int | None = None
    found: list[FoundMask] = Field(default=[], description="Masks that are new.")
    dropped: list[int] = Field(
        default=[], description="Ids of earlier ones: a better mask of the same is found."
    )
    dataset: CocoDataset | None = Field(
        default=None, description="The last line's: what a request without lines gets."
    )
    problem: ProblemDetails | None = Field(
        default=None, description="The last line's, where the work ended with an error."
    )


class Lane(BaseModel):
    """A queue of the server."""

    pending: int
    capacity: int


class Ready(BaseModel):
    """The server answers requests."""

    status: Literal["ready"]


class Health(BaseModel):
    """Whether the server works, and what it works with."""

    status: Literal["ok"]
    note: str = Field(description="What a user must know of the model; empty for nothing.")
    device: str
    frame_size: int
    sample: bool = Field(description="Whether `GET /sample` has a picture.")
    page: bool = Field(description="Whether the click page is served.")
    embed_seconds: float | None = Field(
        description="What a picture takes the encoder, a moving average; null before the first."
    )
    cached_embeddings: int
    replicas: int = Field(default=1, description="Models that answer behind this address.")
    lanes: dict[str, Lane]
    max_upload_bytes: int
    max_pixels: int
    max_side: int
    max_prompts: int
