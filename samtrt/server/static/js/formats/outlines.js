// Masks as outlines: along the pixels' borders, and with fewer corners where a tolerance allows.

import { boxOf, eachStretch } from "../runs.js";

// Directions: right, down, left, up.
const STEPS = [[1, 0], [0, 1], [-1, 0], [0, -1]];

/**
 * Closed outlines [[x, y], …] of a mask; the mask is on the right hand of each, so that outer ones
 * have a positive area and holes a negative one. Pixels that touch at a corner are apart.
 */
export function outlinesOf(runs) {
  const [left, top, width, height] = boxOf(runs);
  const columns = width + 2; // with a border of background
  const inside = new Uint8Array(columns * (height + 2));
  eachStretch(runs, (x, from, to) => {
    for (let y = from; y < to; y++) inside[(y - top + 1) * columns + x - left + 1] = 1;
  });
  const at = (x, y) => inside[(y + 1) * columns + x + 1];
  // Whether the border that leaves corner (x, y) in a direction has the mask on its right only.
  const isBorder = (x, y, direction) => {
    const [rx, ry] = [[0, 0], [-1, 0], [-1, -1], [0, -1]][direction];
    const [lx, ly] = [[0, -1], [0, 0], [-1, 0], [-1, -1]][direction];
    return at(x + rx, y + ry) === 1 && at(x + lx, y + ly) === 0;
  };
  const seen = new Uint8Array((width + 1) * (height + 1)); // borders to the right, by their corner
  const found = [];
  for (let y = 0; y <= height; y++) {
    for (let x = 0; x < width; x++) {
      if (!isBorder(x, y, 0) || seen[y * (width + 1) + x]) continue;
      found.push(follow(x, y, isBorder, seen, width + 1).map(([cx, cy]) => [cx + left, cy + top]));
    }
  }
  return found;
}

/** The corners of the outline whose border leaves (x, y) to the right. */
function follow(x, y, isBorder, seen, columns) {
  const corners = [];
  let [cx, cy, direction] = [x, y, 0];
  do {
    if (direction === 0) seen[cy * columns + cx] = 1;
    cx += STEPS[direction][0];
    cy += STEPS[direction][1];
    // Turning right first keeps pixels apart that touch at a corner.
    const turn = [1, 0, 3].find((by) => isBorder(cx, cy, (direction + by) % 4));
    if (turn !== 0) corners.push([cx, cy]);
    direction = (direction + turn) % 4;
  } while (cx !== x || cy !== y || direction !== 0);
  return corners;
}

/** Twice the area that an outline encloses; negative for a hole. */
export function doubleArea(outline) {
  return outline.reduce((sum, [x, y], i) => {
    const [nx, ny] = outline[(i + 1) % outline.length];
    return sum + x * ny - nx * y;
  }, 0);
}

/** The outline with no more corners than a tolerance in pixels needs (Douglas and Peucker). */
export function simplified(outline, tolerance) {
  if (!tolerance || outline.length < 5) return outline;
  // Cut at the corner farthest from the first: both ends of a part must stay.
  const far = farthest(outline, 0, outline.length - 1, ([x, y]) => Math.hypot(x - outline[0][0], y - outline[0][1]));
  const closed = [...outline, outline[0]];
  const kept = new Set([0, far.index]);
  const parts = [[0, far.index], [far.index, outline.length]];
  while (parts.length) {
    const [from, to] = parts.pop();
    const { index, distance } = farthest(closed, from + 1, to - 1, (point) => distanceTo(point, closed[from], closed[to]));
    if (distance <= tolerance) continue;
    kept.add(index);
    parts.push([from, index], [index, to]);
  }
  const left = outline.filter((_, i) => kept.has(i));
  return left.length < 3 ? outline : left;
}

function farthest(points, from, to, measure) {
  let found = { index: from, distance: -1 };
  for (let i = from; i <= to; i++) {
    const distance = measure(points[i]);
    if (distance > found.distance) found = { index: i, distance };
  }
  return found;
}

function distanceTo([x, y], [ax, ay], [bx, by]) {
  const dx = bx - ax, dy = by - ay, squared = dx * dx + dy * dy;
  const along = squared ? Math.min(Math.max(((x - ax) * dx + (y - ay) * dy) / squared, 0), 1) : 0;
  return Math.hypot(x - ax - along * dx, y - ay - along * dy);
}
