// YOLO's segmentation labels: a line a mask, its class and one polygon as shares of the sides.

import { doubleArea, outlinesOf, simplified } from "./outlines.js";

/**
 * @param masks [{runs, classIndex}].
 * @returns the text of a label file. A polygon cannot say holes, which are filled; parts are joined
 *   by a line there and back, as the format's own converters do.
 */
export function yoloOf(masks, { width, height }, tolerance) {
  return masks
    .map(({ runs, classIndex }) => {
      const parts = outlinesOf(runs)
        .filter((outline) => doubleArea(outline) > 0)
        .map((outline) => simplified(outline, tolerance));
      const numbers = joined(parts).flatMap(([x, y]) => [share(x, width), share(y, height)]);
      return `${[classIndex, ...numbers].join(" ")}\n`;
    })
    .join("");
}

/** The data set's description. */
export function yoloDescription(names) {
  const list = names.map((name, i) => `  ${i}: ${JSON.stringify(name)}\n`).join("");
  return `path: .\ntrain: images\nval: images\nnames:\n${list}`;
}

function share(value, side) {
  return String(Number((value / side).toFixed(7)));
}

function joined(parts) {
  let [whole, ...others] = [...parts].sort((a, b) => doubleArea(b) - doubleArea(a));
  for (const part of others) {
    const [i, j] = nearest(whole, part);
    const there = [...part.slice(j), ...part.slice(0, j + 1)];
    whole = [...whole.slice(0, i + 1), ...there, ...whole.slice(i)];
  }
  return whole ?? [];
}

function nearest(a, b) {
  let best = [0, 0], least = Infinity;
  a.forEach(([ax, ay], i) => {
    b.forEach(([bx, by], j) => {
      const squared = (ax - bx) ** 2 + (ay - by) ** 2;
      if (squared < least) [best, least] = [[i, j], squared];
    });
  });
  return best;
}
