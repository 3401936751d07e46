"""Boxes and points from files: COCO's and CSV, what fits which picture, what is refused."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from server_support import encoded, picture, tiny_model

from samtrt.cli import commands
from samtrt.console import run_script
from samtrt.errors import InputError
from samtrt.jobs.prompts import PromptFile, read_prompts
from samtrt.masks.predictor import SamPredictor
from samtrt.masks.runs import coco_decode_rle
from samtrt.sam import load_sam

NAMES = [Path("000000000139.jpg"), Path("deep/000000000285.jpg"), Path("deep/dog.png")]
CATS = [{"id": 17, "name": "cat"}, {"id": 18, "name": "dog"}]


def read(tmp_path: Path, content: Any, suffix: str = ".json") -> PromptFile:
    path = tmp_path / f"prompts{suffix}"
    path.write_text(content if isinstance(content, str) else json.dumps(content), "utf-8")
    return read_prompts(path)


def test_cocos_detections(tmp_path: Path) -> None:
    """As pycocotools' loadRes takes them: numbers of pictures, which val2017's names have."""
    found = read(
        tmp_path,
        [
            {"image_id": 139, "category_id": 18, "bbox": [1, 2, 30, 40], "score": 0.5},
            {"image_id": 285, "category_id": 17, "bbox": [0, 0, 5.5, 6], "score": 0.25},
            {"image_id": 139, "category_id": 17, "bbox": [7, 8, 9, 10], "score": 0.125},
            {"image_id": 5, "category_id": 17, "bbox": [7, 8, 9, 10], "score": 0.1},
        ],
    )
    asked, missing = found.for_pictures(NAMES)
    assert list(asked) == NAMES[:2] and missing == [5]
    first, second = asked[NAMES[0]]
    assert first.prompt.box == (1, 2, 31, 42) and not first.prompt.point_coords
    assert first.kept == {"category_id": 18, "prompt_score": 0.5}
    assert second.prompt.box == (7, 8, 16, 18)
    assert found.categories == [{"id": 17, "name": "17"}, {"id": 18, "name": "18"}]


def test_cocos_data_set(tmp_path: Path) -> None:
    dataset = {
        "images": [{"id": 3, "file_name": "dog.png"}, {"id": 139, "file_name": "deep/dog.png"}],
        "annotations": [
            {"id": 1, "image_id": 3, "category_id": 18, "bbox": [1, 2, 3, 4], "segmentation": []},
            {"id": 2, "image_id": 139, "category_id": 17, "bbox": [5, 6, 7, 8]},
        ],
        "categories": CATS,
    }
    found = read(tmp_path, dataset)
    asked, missing = found.for_pictures(NAMES)
    assert not missing and found.categories == CATS
    assert [one.prompt.box for one in asked[NAMES[2]]] == [(1, 2, 4, 6), (5, 6, 12, 14)]


def test_csv(tmp_path: Path) -> None:
    boxes = read(tmp_path, "file_name,xmin,ymin,xmax,ymax,category\ndog.png,1,2,3,4,dog\n", ".csv")
    ((one,),) = boxes.for_pictures(NAMES)[0].values()
    assert one.prompt.box == (1, 2, 3, 4) and one.kept == {"category_id": 1}
    assert boxes.categories == [{"id": 1, "name": "dog"}]
    points = read(
        tmp_path,
        "\ufeffimage, x, y, label, object\n"
        "dog.png,1,2,1,a\nsomewhere/deep/dog.png,9,9,1,\ndog.png,3.5,4,0,a\ndog.png,5,6,,b\n",
        ".csv",
    )
    asked, missing = points.for_pictures(NAMES)
    found = [(one.prompt.point_coords, one.prompt.point_labels) for one in asked[NAMES[2]]]
    assert not missing
    assert found == [
        (((1, 2), (3.5, 4)), (1, 0)),
        (((5, 6),), (1,)),
        (((9, 9),), (1,)),
    ]
    both = read(
        tmp_path,
        "file_name,x,y,label,x0,y0,x1,y1,object\ndog.png,,,,1,2,30,40,7\ndog.png,5,6,0,,,,,7\n",
        ".csv",
    )
    ((one,),) = both.for_pictures(NAMES)[0].values()
    assert one.prompt.box == (1, 2, 30, 40) and one.prompt.point_labels == (0,)


@pytest.mark.parametrize(
    "content, words",
    [
        ("{", "neither JSON nor CSV"),
        ([], "asks for nothing"),
        ({"images": []}, "holds no detections"),
        ([7], "detection 0 is no object"),
        ([{"bbox": [1, 2, 3, 4]}], "detection 0 has neither image_id nor file_name"),
        ([{"image_id": True, "bbox": [1, 2, 3, 4]}], "detection 0 has neither"),
        ([{"image_id": 1, "bbox": [1, 2, 3]}], r"detection 0 has bbox \[1, 2, 3\]; expected 4"),
        ([{"image_id": 1}], "detection 0 has bbox null; expected 4 finite numbers"),
        ('[{"image_id": 1, "bbox": [1, 2, 3, NaN]}]', "expected 4 finite numbers"),
        ([{"image_id": 1, "bbox": [1, 2, 0, 4]}], "detection 0: the box 1 2 1 6 has no area"),
        ([{"image_id": 1, "bbox": [1, 2, 3, 4], "category_id": "x"}], "is no whole number"),
        (
            {
                "annotations": [{"image_id": 1, "bbox": [1, 2, 3, 4], "category_id": 5}],
                "categories": CATS,
            },
            "category_id 5 is not among its categories",
        ),
        ({"annotations": [], "images": [{"id": 1}]}, "its images are not COCO's"),
        ({"annotations": [], "images": [{"id": "1", "file_name": "a"}]}, "a whole number as id"),
    ],
)
def test_bad_json_is_told(tmp_path: Path, content: Any, words: str) -> None:
    with pytest.raises(InputError, match=words):
        read(tmp_path, content)


@pytest.mark.parametrize(
    "content, words",
    [
        ("", "has the columns none; expected"),
        ("file_name,a\nx.png,1\n", "has the columns file_name, a; expected"),
        ("x,y\n1,2\n", "has the columns x, y; expected"),
        ("file_name,x,y\nx.png,1\n", "line 2 has not as many cells"),
        ("file_name,x,y\nx.png,1,2,3\n", "line 2 has not as many cells"),
        ("file_name,x,y\n,1,2\n", "line 2 names no picture"),
        ("file_name,x,y\na.png,1,z\n", r"line 2 has x, y \[\"1\", \"z\"\]; expected 2 finite"),
        ("file_name,x,y\na.png,,\n", "line 2: nothing is asked for"),
        ("file_name,x,y,label\na.png,1,2,7\n", "line 2: a point has the label 7"),
        ("file_name,x,y,label\na.png,1,2,0.5\n", "line 2: the label 0.5 is no whole number"),
        ("file_name,x0,y0,x1,y1\na.png,5,5,5,9\n", "line 2: the box 5 5 5 9 has no area"),
        ("file_name,x0,y0,x1,y1,object\na,1,1,2,2,k\na,1,1,2,2,k\n", "line 3: a second box"),
    ],
)
def test_bad_csv_is_told(tmp_path: Path, content: str, words: str) -> None:
    with pytest.raises(InputError, match=words):
        read(tmp_path, content, ".csv")


def test_names_that_fit_none_or_two(tmp_path: Path) -> None:
    found = read(tmp_path, [{"file_name": "dog.png", "bbox": [1, 2, 3, 4]}])
    with pytest.raises(InputError, match=r"may be deep/dog.png or other/dog.png"):
        found.for_pictures([*NAMES, Path("other/dog.png")])
    with pytest.raises(InputError, match="asks about no picture that is here; it names dog"):
        found.for_pictures(NAMES[:2])
    with pytest.raises(InputError, match="cannot read"):
        read_prompts(tmp_path / "nothing.json")


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in (1, 2, 3):
        (folder / f"{number}.png").write_bytes(encoded(picture(number)))
    return folder


def command(*arguments: Any) -> int:
    return run_script(lambda: commands.run(["everything", *map(str, arguments)]))


BOXES = [
    {"image_id": 1, "category_id": 17, "bbox": [20, 30, 140, 90], "score": 0.5},
    {"image_id": 2, "category_id": 18, "bbox": [0, 0, 60, 60], "score": 0.75},
    {"image_id": 1, "category_id": 18, "bbox": [100, 80, 120, 90], "score": 0.25},
    {"image_id": 77, "category_id": 18, "bbox": [100, 80, 99, 69], "score": 0.25},
]


def test_a_detectors_boxes_become_masks(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    boxes, out = tmp_path / "boxes.json", tmp_path / "out"
    dataset = {
        "images": [{"id": number, "file_name": f"{number}.png"} for number in (1, 2, 77)],
        "annotations": BOXES,
        "categories": CATS,
    }
    boxes.write_text(json.dumps(dataset))
    options = [photos, "--params", tiny_model(), "--output-dir", out, "--prompts", boxes]
    options += ["--format", "json,coco,geojson,yolo,cvat,label-studio"]
    assert command(*options) == 0
    printed = capsys.readouterr().out
    assert "segmented   3 pictures, 3 masks" in printed
    assert "not here    1 pictures that prompts are for: 77.png" in printed

    one = json.loads((out / "1.png.json").read_text())
    assert [mask["category_id"] for mask in one["annotations"]] == [17, 18]
    assert [mask["prompt_score"] for mask in one["annotations"]] == [0.5, 0.25]
    assert one["annotations"][1]["prompt_box"] == [100, 80, 100, 70]  # cut to 200 × 150
    assert one["categories"] == CATS
    predictor = SamPredictor(load_sam(tiny_model() / "engine", tiny_model(), "cpu"))
    predictor.set_image(picture(1))
    masks, scores, _ = predictor.predict(box=np.array([20, 30, 160, 120]), multimask_output=False)
    np.testing.assert_array_equal(coco_decode_rle(one["annotations"][0]["segmentation"]), masks[0])
    assert one["annotations"][0]["score"] == pytest.approx(float(scores[0]), abs=1e-6)
    assert json.loads((out / "3.png.json").read_text())["annotations"] == []

    coco = json.loads((out / "coco.json").read_text())
    assert len(coco["images"]) == 3 and coco["categories"] == CATS
    assert [mask["category_id"] for mask in coco["annotations"]] == [17, 18, 18]
    features = json.loads((out / "2.png.geojson").read_text())["features"]
    assert features[0]["properties"]["category"] == "dog"
    assert (out / "yolo/labels/2.txt").read_text().startswith("1 ")
    assert "  0: cat\n  1: dog\n" in (out / "yolo/data.yaml").read_text()
    cvat = (out / "cvat.xml").read_text()
    assert '<mask label="cat"' in cvat and "<name>dog</name>" in cvat
    tasks = json.loads((out / "label-studio.json").read_text())
    assert tasks[1]["predictions"][0]["result"][0]["value"]["brushlabels"] == ["dog"]

    # What is asked decides what is done again.
    assert command(*options) == 0 and "resumed     3 pictures" in capsys.readouterr().out
    dataset["annotations"] = [{**BOXES[0], "bbox": [20, 30, 140, 80]}, *BOXES[1:]]
    boxes.write_text(json.dumps(dataset))
    assert command(*options) == 0
    printed = capsys.readouterr()
    assert "segmented   1 pictures, 2 masks" in printed.out and "2 pictures were" in printed.out


def test_a_box_outside_its_picture_is_a_row(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    boxes = tmp_path / "boxes.csv"
    boxes.write_text("file_name,x0,y0,x1,y1\n1.png,0,0,50,50\n2.png,0,0,9,9\n2.png,300,0,310,9\n")
    out = tmp_path / "out"
    options = [photos, "--params", tiny_model(), "--output-dir", out, "--prompts", boxes]
    assert command(*options, "--format", "png", "--multimask") == 1
    printed = capsys.readouterr().out
    assert "2.png: prompt 2 of 2: the box 300 0 310 9 reaches outside the picture" in printed
    assert {path.name for path in out.glob("*.json")} == {"1.png.json", "3.png.json"}
    assert Image.open(out / "1.png.png").size == (200, 150)


def test_options_that_do_not_go_together(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = [photos, "--params", tiny_model(), "--output-dir", tmp_path / "out"]
    assert command(*options, "--prompts", "b.json", "--points-per-side", "32") == 1
    assert "--points-per-side is of everything, and not of --prompts" in capsys.readouterr().err
    assert command(*options, "--multimask") == 1
    assert "--multimask is of --prompts" in capsys.readouterr().err
    assert command(*options, "--prompts", tmp_path / "b.json") == 1
    assert f"cannot read {tmp_path / 'b.json'}" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
