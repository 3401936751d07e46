"""Masks edited by hand: brush, eraser, points, merge, subtract, split; each step can be undone."""

import itertools
from typing import Any

import numpy as np
import pytest
from conftest import HEIGHT, WIDTH, Page, module_url
from pycocotools import mask as mask_utils
from scipy.ndimage import label
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

from samtrt.masks.predictor import SamPredictor

CORNERS_TOO = np.ones((3, 3))  # what hangs together


def runs_of(mask: np.ndarray) -> dict[str, Any]:
    """A mask as the page's modules take it, its counts as COCO's text."""
    rle = mask_utils.encode(np.asfortranarray(mask, np.uint8))
    return {"size": list(mask.shape), "text": rle["counts"].decode()}


def mask_from(found: dict[str, Any]) -> np.ndarray:
    size, text = found["size"], found["text"].encode()
    return mask_utils.decode({"size": size, "counts": text}).astype(bool)


def regions(page: Page, expression: str, *masks: np.ndarray) -> list[np.ndarray]:
    """What an expression of the module ``regions`` makes of the masks a and b."""
    found = page.driver.execute_async_script(
        "const [masks, done] = arguments;"
        f"Promise.all([import({module_url('runs')}), import({module_url('regions')})])"
        ".then(([runs, regions]) => {"
        "const [a, b] = masks.map(m => ({size: m.size, counts: runs.textToCounts(m.text)}));"
        f"const made = [{expression}].flat();"
        "done(made.map(r => ({size: r.size, text: runs.countsToText(r.counts)})))});",
        [runs_of(mask) for mask in masks],
    )
    return [mask_from(one) for one in found]


def near_line(points: np.ndarray, radius: float) -> np.ndarray:
    """Pixels [H, W] whose middles are no farther than the radius from the line through points."""
    middles = np.stack(np.meshgrid(np.arange(WIDTH), np.arange(HEIGHT)), -1) + 0.5
    distance = np.full((HEIGHT, WIDTH), np.inf)
    for a, b in itertools.pairwise(points):
        along = np.clip(((middles - a) @ (b - a)) / max((b - a) @ (b - a), 1e-9), 0, 1)
        nearest = a + along[..., None] * (b - a)
        distance = np.minimum(distance, np.linalg.norm(middles - nearest, axis=-1))
    return distance <= radius


def drag(page: Page, *points: tuple[int, int]) -> np.ndarray:
    """Draws through pixels of the picture; gives the points that the page was told, [n, 2]."""
    page.script(
        "window.told = [];"
        "for (const kind of ['pointerdown', 'pointermove']) document.getElementById('pointer')"
        ".addEventListener(kind, e => e.buttons && told.push([e.offsetX, e.offsetY]));"
    )
    page.at(*points[0]).click_and_hold().perform()
    for point in points[1:]:
        page.at(*point).perform()
    ActionChains(page.driver).release().perform()
    scale, left, top = page.view
    told = page.script("return told")
    assert len(told) >= len(points)
    return np.subtract(told, (left, top)) / scale


def names(page: Page) -> list[str]:
    """The names in the list, the oldest mask first."""
    found = page.driver.find_elements(By.CSS_SELECTOR, "#list .name")
    return [element.text for element in found][::-1]


def selected(page: Page) -> list[str]:
    found = page.driver.find_elements(By.CSS_SELECTOR, "#list [aria-pressed=true] .name")
    return [element.text for element in found][::-1]


# The arithmetic


def test_sets_of_pixels_are_numpys_and_pieces_scipys(shared_page: Page) -> None:
    rng = np.random.default_rng(6)
    shapes = [(1, 1), (1, 40), (40, 1), (33, 47)]
    pairs = [
        (rng.random(s) < p, rng.random(s) < q)
        for s in shapes
        for p in (0, 0.3, 1)
        for q in (0.5, 1)
    ]
    for a, b in pairs:
        joined, cut = regions(shared_page, "regions.union(a, b), regions.difference(a, b)", a, b)
        np.testing.assert_array_equal(joined, a | b)
        np.testing.assert_array_equal(cut, a & ~b)
    (put,) = regions(shared_page, "regions.place(a, [5, 3], [50, 60])", pairs[-1][0])
    expected = np.zeros((50, 60), bool)
    expected[3:36, 5:52] = pairs[-1][0]
    np.testing.assert_array_equal(put, expected)

    for share in (0.1, 0.35, 0.6):
        mask = rng.random((60, 45)) < share
        pieces = regions(shared_page, "regions.piecesOf(a)", mask)
        found, count = label(mask, CORNERS_TOO)
        expected = {(found == i + 1).tobytes() for i in range(count)}
        assert {piece.tobytes() for piece in pieces} == expected and len(pieces) == count
        sizes = [piece.sum() for piece in pieces]
        assert sizes == sorted(sizes, reverse=True)


def test_strokes_are_numpys(shared_page: Page) -> None:
    rng = np.random.default_rng(8)
    empty = np.zeros((HEIGHT, WIDTH), bool)
    cases: list[tuple[list[list[float]], float]] = [
        ([[50.5, 60.5]], 0.4),
        ([[50, 60]], 9.5),
        ([[10, 20], [10, 90], [80, 90]], 6.25),  # up and down, and across
        ([[-20, -20], [5, 310], [430, 150]], 30),  # beside the picture too
    ]
    cases += [((rng.random((6, 2)) * (WIDTH, HEIGHT)).tolist(), radius) for radius in (0.7, 3, 41)]
    for points, radius in cases:
        (found,) = regions(shared_page, f"regions.strokeOf({points}, {radius}, a.size)", empty)
        expected = near_line(np.array(points * 2 if len(points) == 1 else points), radius)
        assert (found ^ expected).sum() <= 2, (points, radius)
        assert found.any()


# Brush and eraser


def test_brush_and_eraser_change_the_pixels_under_them(page: Page) -> None:
    page.click(100, 80)
    (before,) = page.masks()
    before_ring = page.preview_pixels()
    page.tool("brush")
    assert page["brush-size"].is_displayed()
    page.at(200, 200).perform()
    page.wait(lambda: page.preview_pixels() > before_ring, "the brush's ring")
    page.keys("n")
    page.wait(lambda: page.preview_pixels() <= before_ring, "no ring")
    page.keys("p")
    radius = 12 / page.view[0]
    line = drag(page, (300, 40), (340, 90), (380, 60))
    painted = near_line(line, radius)
    (after,) = page.masks()
    assert (after ^ (before | painted)).sum() <= 4  # pixels at the very edge
    assert painted.sum() > 500 and "drawn" in page["list"].text

    page.tool("eraser")
    line = drag(page, (320, 40), (320, 120))
    erased = near_line(line, radius)
    (rubbed,) = page.masks()
    assert (rubbed ^ (after & ~erased)).sum() <= 4
    page["undo"].click()
    np.testing.assert_array_equal(page.masks()[0], after)
    page["undo"].click()
    np.testing.assert_array_equal(page.masks()[0], before)
    page["redo"].click()
    np.testing.assert_array_equal(page.masks()[0], after)


def test_a_painted_mask_without_a_picture_of_its_own(page: Page) -> None:
    page.tool("eraser")
    page.at(200, 100).click().perform()
    page.wait_for_notice("Select a mask first")
    page.keys("p")
    page.at(200, 100).click().perform()
    page.wait(lambda: page.count == 1, "the painted mask")
    (dab,) = page.masks()
    assert dab.sum() == pytest.approx(np.pi * (12 / page.view[0]) ** 2, rel=0.1)
    page.keys("]", "]", "]")
    assert int(page["brush-value"].text.split()[0]) > 40
    page.at(200, 100).click().perform()
    (wider,) = page.masks()
    assert wider.sum() > 2 * dab.sum()
    page.script("document.getElementById('pointer').focus()")
    page.keys(Keys.ARROW_LEFT * 30, Keys.ENTER)  # by keyboard alone
    (by_keys,) = page.masks()
    assert by_keys.sum() > wider.sum()


def test_escape_takes_a_stroke_back_before_it_is_one(page: Page) -> None:
    page.tool("brush")
    page.at(200, 100).click_and_hold().perform()
    page.at(250, 120).perform()
    page.keys(Keys.ESCAPE)
    ActionChains(page.driver).release().perform()
    assert page.count == 0 and not page["undo"].is_enabled()


def test_what_was_drawn_stays_when_points_change(page: Page, predictor: SamPredictor) -> None:
    page.click(100, 80)
    page.tool("brush")
    painted = near_line(drag(page, (380, 270), (400, 280)), 12 / page.view[0])
    before = page["list"].text
    page.tool("add")
    page.at(300, 200).click().perform()
    page.wait(lambda: page["list"].text != before, "the changed mask")
    _, scores, logits = predictor.predict(np.array([[100, 80]]), np.array([1]))
    best = int(np.argmax(scores))
    expected, _, _ = predictor.predict(
        np.array([[100, 80], [300, 200]]),
        np.array([1, 1]),
        mask_input=logits[best : best + 1],
        multimask_output=False,
    )
    (found,) = page.masks()
    assert ((expected[0] | painted) ^ found).sum() < 0.02 * found.sum()
    assert (found & painted).sum() > 0.98 * painted.sum()


# Selecting, points


def test_a_click_selects_and_a_click_on_a_point_removes_it(
    page: Page, predictor: SamPredictor
) -> None:
    page.click(100, 80)
    page.tool("add")
    before = page["list"].text
    page.at(300, 200).click().perform()
    page.wait(lambda: page["list"].text != before, "the second point")
    page.tool("new")
    page.click(210, 150)
    one, two = page.masks()
    page.tool("select")
    inside = np.argwhere(one & ~two)
    y, x = inside[len(inside) // 2]
    page.at(x + 0.5, y + 0.5).click().perform()
    assert selected(page) == ["Mask 1"]
    before = page["list"].text
    page.at(100, 80).click().perform()  # its first point
    page.wait(lambda: page["list"].text != before, "the mask without a point")
    masks, scores, _ = predictor.predict(np.array([[300, 200]]), np.array([1]))
    expected = masks[int(np.argmax(scores))]
    assert (page.masks()[0] ^ expected).sum() < 0.02 * expected.sum()
    assert page.coco()["annotations"][0]["point_coords"] == [pytest.approx([300, 200], abs=0.5)]
    page.at(300, 200).click().perform()  # its last
    page.wait_for_notice("Delete removes")
    page["undo"].click()
    np.testing.assert_array_equal(page.masks()[0], one)


def paint(page: Page, *dabs: tuple[int, int]) -> None:
    """A new mask of dabs."""
    page.script("document.getElementById('pointer').focus()")
    page.keys(Keys.ESCAPE)
    before = page.count
    page.tool("brush")
    for x, y in dabs:
        page.at(x, y).click().perform()
    page.wait(lambda: page.count == before + 1, "the painted mask")


def test_merge_subtract_and_split(page: Page) -> None:
    assert not page["merge"].is_enabled() and not page["split"].is_enabled()
    paint(page, (100, 80), (300, 200))  # two pieces
    paint(page, (104, 80))
    paint(page, (200, 150))
    a, b, c = page.masks()
    page.tool("select")
    page.at(300, 200).click().perform()
    assert selected(page) == ["Mask 1"]
    ActionChains(page.driver).key_down(Keys.CONTROL).perform()
    page.at(105, 80).click().perform()
    ActionChains(page.driver).key_up(Keys.CONTROL).perform()
    assert selected(page) == ["Mask 1", "Mask 2"]

    page["subtract"].click()
    found = page.masks()
    np.testing.assert_array_equal(found, [a & ~b, b, c])
    page["undo"].click()
    page["merge"].click()
    assert names(page) == ["Mask 1", "Mask 3"] and selected(page) == ["Mask 1"]
    np.testing.assert_array_equal(page.masks(), [a | b, c])
    page["split"].click()
    found = page.masks()
    labels, count = label(a | b, CORNERS_TOO)
    assert count == 2 and len(found) == 3
    pieces = sorted((labels == i + 1 for i in range(count)), key=lambda piece: -piece.sum())
    np.testing.assert_array_equal([found[0], found[2]], pieces)
    np.testing.assert_array_equal(found[1], c)
    page["undo"].click()
    page["undo"].click()
    np.testing.assert_array_equal(page.masks(), [a, b, c])
