"""What goes out of the page and comes in, against pycocotools, Pillow and zipfile."""

import json
import xml.etree.ElementTree as ElementTree
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import HEIGHT, WIDTH, Page, mask_of
from PIL import Image
from pycocotools import mask as mask_utils
from scipy import ndimage
from selenium.webdriver.common.by import By
from selenium.webdriver.support.select import Select
from server_support import encoded, picture

ROWS, COLUMNS = np.mgrid[:HEIGHT, :WIDTH]


def disc(x: int, y: int, radius: int) -> np.ndarray:
    return np.hypot(COLUMNS - x, ROWS - y) < radius


def hostile_masks() -> dict[str, np.ndarray]:
    """Masks that outlines get wrong: holes, parts, edges, pixels that touch at a corner."""
    noise = np.random.default_rng(0).random((30, 40)) < 0.5
    corners = np.zeros((HEIGHT, WIDTH), bool)
    corners[0, 0] = corners[-1, -1] = True
    return {
        "all": np.ones((HEIGHT, WIDTH), bool),
        "ring": disc(200, 150, 100) & ~disc(200, 150, 40),
        "parts": disc(60, 60, 30) | disc(350, 200, 50),
        "noise": np.pad(noise, ((100, HEIGHT - 130), (50, WIDTH - 90))),
        "corners": corners,
    }


def rle(mask: np.ndarray) -> dict[str, Any]:
    found = mask_utils.encode(np.asfortranarray(mask, np.uint8))
    return {"size": found["size"], "counts": found["counts"].decode()}


def dataset_of(masks: dict[str, np.ndarray], name: str = "colours.png") -> dict[str, Any]:
    """One class for each mask, of its name."""
    return {
        "images": [{"id": 7, "width": WIDTH, "height": HEIGHT, "file_name": f"folder/{name}"}],
        "categories": [{"id": i, "name": name} for i, name in enumerate(masks, start=11)],
        "annotations": [
            {
                "id": i,
                "image_id": 7,
                "category_id": i + 10,
                "iscrowd": 0,
                "segmentation": rle(mask),
                "area": int(mask.sum()),
                "bbox": mask_utils.toBbox(rle(mask)).tolist(),
            }
            for i, mask in enumerate(masks.values(), start=1)
        ],
    }


def read(page: Page, path: Path, dataset: Any) -> None:
    """Opens a data set in the page and waits for what it says of it."""
    path.write_text(json.dumps(dataset))
    page["file"].send_keys(str(path))
    page.wait_for_notice(path.name)


@pytest.fixture
def loaded(page: Page, tmp_path: Path) -> Page:
    """The page with the hostile masks."""
    read(page, tmp_path / "masks.json", dataset_of(hostile_masks()))
    page.wait_for_notice(f"{len(hostile_masks())} masks of masks.json taken over.")
    return page


def export(page: Page, kind: str, tolerance: float = 0) -> Path:
    page["more-formats"].click()
    Select(page["export-format"]).select_by_value(kind)
    if page["tolerance"].is_displayed():
        page["tolerance"].clear()
        page["tolerance"].send_keys(str(tolerance))
    submit = page["export-dialog"].find_element(By.CSS_SELECTOR, "[type=submit]:last-child")
    return page.downloaded_by(submit.click)


def filled(mask: np.ndarray) -> np.ndarray:
    """Without holes; a hole that touches the outside at a corner is none."""
    return ndimage.binary_fill_holes(mask, np.ones((3, 3)))


def of_polygons(polygons: list[list[float]]) -> np.ndarray:
    merged = mask_utils.merge(mask_utils.frPyObjects(polygons, HEIGHT, WIDTH))
    return mask_utils.decode(merged).astype(bool)


def test_coco_comes_back_as_it_went(loaded: Page, tmp_path: Path) -> None:
    page, masks = loaded, hostile_masks()
    dataset = json.loads(export(page, "coco").read_text())
    names = {category["id"]: category["name"] for category in dataset["categories"]}
    assert list(names.values()) == list(masks)
    for annotation, (name, mask) in zip(dataset["annotations"], masks.items(), strict=True):
        np.testing.assert_array_equal(mask_of(annotation), mask)
        assert names[annotation["category_id"]] == name
        assert annotation["area"] == mask.sum()
        assert annotation["bbox"] == mask_utils.toBbox(rle(mask)).tolist()

    page["clear"].click()
    read(page, tmp_path / "again.json", dataset)
    assert json.loads(export(page, "coco").read_text()) == dataset
    page["notices"].find_element(By.XPATH, ".//button[text()='Dismiss']").click()
    read(page, tmp_path / "again.json", dataset)  # what is there is not taken twice
    page.wait_for_notice("0 masks of again.json")
    assert page.count == len(masks)


def test_prompts_are_kept_and_edited_on(page: Page, tmp_path: Path) -> None:
    page.click(100, 80)
    page.tool("remove")
    before = page["list"].text
    page.at(300, 200).click().perform()
    page.wait(lambda: page["list"].text != before, "the changed mask")
    page.tool("new")
    page.at(60, 50).click_and_hold().perform()
    page.at(200, 120).perform()
    page.at(300, 220).release().perform()
    page.wait(lambda: page.count == 2, "the mask of a box")
    dataset = page.coco()
    clicked, boxed = dataset["annotations"]
    np.testing.assert_allclose(clicked["point_coords"], [[100, 80], [300, 200]], atol=1)
    assert clicked["point_labels"] == [1, 0] and "prompt_box" not in clicked
    np.testing.assert_allclose(boxed["prompt_box"], [60, 50, 300, 220], atol=1)
    assert 0 <= boxed["predicted_iou"] <= 1.5 and boxed["point_coords"] == []

    page["clear"].click()
    read(page, tmp_path / "prompts.json", dataset)
    assert page.coco() == dataset
    page["list"].find_elements(By.CLASS_NAME, "pick")[1].click()  # the first mask
    page.tool("add")
    before = page["list"].text
    page.at(210, 150).click().perform()
    page.wait(lambda: page["list"].text != before, "the changed mask")
    assert page.coco()["annotations"][0]["point_labels"] == [1, 0, 1]


@pytest.mark.parametrize("tolerance", [0, 1])
def test_coco_polygons(loaded: Page, tmp_path: Path, tolerance: int) -> None:
    masks = hostile_masks()
    dataset = json.loads(export(loaded, "coco-polygons", tolerance).read_text())
    loaded.wait_for_notice("2 masks have holes")
    corners = 0
    for annotation, mask in zip(dataset["annotations"], masks.values(), strict=True):
        found = of_polygons(annotation["segmentation"])
        corners += sum(len(polygon) // 2 for polygon in annotation["segmentation"])
        if tolerance == 0:
            np.testing.assert_array_equal(found, filled(mask))
        else:  # whatever differs lies within the tolerance of the border, as far as pixels can say
            border = ndimage.binary_dilation(filled(mask), np.ones((5, 5)))
            border &= ~ndimage.binary_erosion(filled(mask), np.ones((5, 5)))
            assert not (found ^ filled(mask))[~border].any()
    if tolerance:
        assert corners < 1000
        return
    loaded["clear"].click()  # polygons are read back too
    read(loaded, tmp_path / "polygons.json", dataset)
    for annotation, mask in zip(loaded.coco()["annotations"], masks.values(), strict=True):
        np.testing.assert_array_equal(mask_of(annotation), filled(mask))


def test_yolo(loaded: Page) -> None:
    with zipfile.ZipFile(export(loaded, "yolo")) as archive:
        assert archive.testzip() is None
        assert archive.namelist() == ["data.yaml", "labels/colours.txt"]
        description = archive.read("data.yaml").decode()
        lines = archive.read("labels/colours.txt").decode().splitlines()
    masks = hostile_masks()
    assert [f'  {i}: "{name}"' in description for i, name in enumerate(masks)] == [True] * 5
    for i, (line, mask) in enumerate(zip(lines, masks.values(), strict=True)):
        index, *shares = line.split()
        assert int(index) == i
        polygon = np.array(shares, float).reshape(-1, 2)
        assert polygon.min() >= 0 and polygon.max() <= 1
        found = of_polygons([(polygon * [WIDTH, HEIGHT]).flatten().tolist()])
        np.testing.assert_array_equal(found, filled(mask))


def test_pngs(loaded: Page) -> None:
    masks = hostile_masks()
    with zipfile.ZipFile(export(loaded, "png-masks")) as archive:
        assert archive.testzip() is None
        assert archive.namelist() == [f"colours/{i:03d}-{n}.png" for i, n in enumerate(masks, 1)]
        for name, mask in zip(archive.namelist(), masks.values(), strict=True):
            with archive.open(name) as file, Image.open(file) as found:
                assert found.mode == "L"
                np.testing.assert_array_equal(np.array(found), np.where(mask, 255, 0))
    expected = np.zeros((HEIGHT, WIDTH), int)  # small ones on large ones
    for index, mask in sorted(enumerate(masks.values(), 1), key=lambda each: -each[1].sum()):
        expected[mask] = index
    with Image.open(export(loaded, "png-instances")) as found:
        assert found.mode == "P" and found.getpalette()[:3] == [0, 0, 0]
        np.testing.assert_array_equal(np.array(found), expected)
    with zipfile.ZipFile(export(loaded, "png-classes")) as archive:
        classes = "".join(f"{i} {name}\n" for i, name in enumerate(masks, 1))
        assert archive.read("classes.txt").decode() == classes
        with archive.open("colours-classes.png") as file, Image.open(file) as found:
            np.testing.assert_array_equal(np.array(found), expected)  # a class for each mask


def test_svg(loaded: Page) -> None:
    """Each path, filled by the browser itself, is the mask, holes included."""
    path = export(loaded, "svg")
    root = ElementTree.fromstring(path.read_text())
    space = "{http://www.w3.org/2000/svg}"
    paths = list(root.iter(f"{space}path"))
    masks = hostile_masks()
    assert [each.get("class") for each in paths] == sorted(masks, key=lambda n: -masks[n].sum())
    for each in paths:
        inside = loaded.script(
            "const path = new Path2D(arguments[0]);"
            "const canvas = new OffscreenCanvas(arguments[1], arguments[2]);"
            "const context = canvas.getContext('2d'); context.fill(path, 'evenodd');"
            "const data = context.getImageData(0, 0, arguments[1], arguments[2]).data, found = [];"
            "for (let i = 3; i < data.length; i += 4) if (data[i] > 127) found.push((i - 3) / 4);"
            "return found;",
            each.get("d"),
            WIDTH,
            HEIGHT,
        )
        found = np.zeros(HEIGHT * WIDTH, bool)
        found[inside] = True
        np.testing.assert_array_equal(found.reshape(HEIGHT, WIDTH), masks[each.get("class")])


def test_one_data_set_for_a_folder(page: Page, tmp_path: Path) -> None:
    paths = [tmp_path / f"{name}.png" for name in "abc"]
    for seed, path in enumerate(paths, start=40):
        path.write_bytes(encoded(picture(seed, 60 + seed, 80)))
    page["file"].send_keys("\n".join(map(str, paths)))
    for name, point in (("a.png", (40, 30)), ("b.png", (20, 50))):
        page.wait(lambda name=name: page["picture-name"].text == name, name)
        page.wait_for_picture()
        page.click(*point)
        page.keys(".")
    page.wait(lambda: page["picture-name"].text == "c.png", "the last picture")
    page.wait_for_picture()
    page["done"].click()  # has nothing, and says so
    page.wait_until_kept()
    page["more-formats"].click()
    assert "All pictures of the folder" in page["export-scope"].text
    page["export-dialog"].find_element(By.CSS_SELECTOR, "[aria-label=Close]").click()
    dataset = json.loads(export(page, "coco").read_text())
    sizes = [(image["file_name"], image["height"]) for image in dataset["images"]]
    assert sizes == [("a.png", 100), ("b.png", 101), ("c.png", 102)]
    assert [annotation["image_id"] for annotation in dataset["annotations"]] == [1, 2]
    for annotation in dataset["annotations"]:
        assert mask_of(annotation).shape == (99 + annotation["image_id"], 80)

    # Read back where nothing is kept: each mask at its picture, open or not.
    page.start_afresh(page.driver.current_url.rstrip("/"))
    page["file"].send_keys("\n".join(map(str, paths)))
    page.wait(lambda: page["picture-name"].text == "a.png", "a.png")
    page.wait_for_picture()
    read(page, tmp_path / "all.json", dataset)
    page.wait_for_notice("2 masks of all.json taken over.")
    assert page.count == 1
    page.keys(".")
    page.wait(lambda: page["picture-name"].text == "b.png" and page.count == 1, "b.png's mask")
    page.wait_for_picture()
    again = json.loads(export(page, "coco").read_text())
    assert again["annotations"] == dataset["annotations"]


@pytest.mark.parametrize(
    ("dataset", "reason"),
    [
        ([], "no “images” and “annotations”"),
        ({"images": [], "annotations": [{"id": 3, "image_id": 5}]}, "annotation 3 is of picture 5"),
        (dataset_of({"x": disc(9, 9, 5)}, "other.png"), "folder/other.png is not open."),
        (
            {**dataset_of({"x": disc(9, 9, 5)}), "images": [{"id": 7, "width": 5, "height": 5}]},
            "another size than its picture",
        ),
    ],
)
def test_data_sets_that_do_not_fit_say_why(
    page: Page, tmp_path: Path, dataset: Any, reason: str
) -> None:
    read(page, tmp_path / "wrong.json", dataset)
    page.wait_for_notice(reason)
    assert page.count == 0
