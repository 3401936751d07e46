"""A hundred masks: what the page itself does for a selection and for the opacity slider."""

from typing import Any

import numpy as np
from conftest import Page

MOST_MILLISECONDS = 16
NO_THRESHOLDS = {"pred_iou_thresh": 0.0, "stability_score_thresh": 0.0, "box_nms_thresh": 1.0}

# A frame's work: what the event's handlers take, what is painted before the next frame, style
# and layout; measured between two callbacks that stand before and after the page's own.
MEASURE = """
const done = arguments[0], spent = {select: [], opacity: []};
const frame = () => new Promise(requestAnimationFrame);
async function measure(act) {
  await frame();
  let before;
  requestAnimationFrame(() => (before = performance.now()));
  const start = performance.now();
  act();
  const acted = performance.now() - start;
  const after = await new Promise((found) => requestAnimationFrame(() => {
    document.body.offsetHeight;
    found(performance.now());
  }));
  return acted + after - before;
}
(async () => {
  const slider = document.getElementById('opacity');
  for (let i = 0; i < 20; i++) {
    const row = document.querySelectorAll('#list .pick')[5 * i];
    spent.select.push(await measure(() => row.click()));
    spent.opacity.push(await measure(() => {
      slider.value = 3 * i;
      slider.dispatchEvent(new Event('input'));
    }));
  }
  done(spent);
})();
"""


def test_selection_and_opacity_take_less_than_a_frame(
    page: Page, generator_options: dict[str, Any]
) -> None:
    generator_options |= {**NO_THRESHOLDS, "points_per_side": 6}
    page["everything"].click()
    page.wait(lambda: page.count >= 100, "the masks")
    took = page.driver.execute_async_script(MEASURE)
    for name, times in took.items():
        print(f"{name}: median {np.median(times):.1f} ms, best {min(times):.1f} ms")
        # The quickest of twenty: other work on the machine is not the page's.
        assert min(times) <= MOST_MILLISECONDS, took
