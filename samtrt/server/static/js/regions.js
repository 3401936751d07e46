// Sets of pixels, as runs (runs.js): joined, taken away, cut into pieces, drawn.

import { countsFromChanges, eachStretch } from "./runs.js";

export function emptyRuns([height, width]) {
  return { size: [height, width], counts: Uint32Array.of(height * width) };
}

export function isEmpty(runs) {
  return runs.counts.every((count, i) => i % 2 === 0 || count === 0);
}

/** Pixels that are in one or the other. */
export function union(a, b) {
  return combine(a, b, (inA, inB) => inA || inB);
}

/** Pixels of the first that are not in the second. */
export function difference(a, b) {
  return combine(a, b, (inA, inB) => inA && !inB);
}

function combine(a, b, isInside) {
  const [height, width] = a.size;
  const total = height * width;
  const changes = [];
  let i = 0, j = 0, at = 0, inside = false;
  let endA = a.counts[0], endB = b.counts[0];
  while (at < total) {
    while (endA <= at) endA += a.counts[++i];
    while (endB <= at) endB += b.counts[++j];
    if (isInside(i % 2 === 1, j % 2 === 1) !== inside) {
      inside = !inside;
      changes.push(at);
    }
    at = Math.min(endA, endB);
  }
  return { size: [height, width], counts: countsFromChanges(changes, total) };
}

/** Whether a pixel [x, y] is in the set; fractions are of the pixel they fall into. */
export function contains(runs, [x, y]) {
  const position = Math.floor(x) * runs.size[0] + Math.floor(y);
  let end = 0;
  for (let i = 0; i < runs.counts.length; i++) {
    end += runs.counts[i];
    if (position < end) return i % 2 === 1;
  }
  return false;
}

/** The same pixels in a picture of `size`, in which the given one's corner stands at [x, y]. */
export function place(runs, [left, top], size) {
  const stretches = [];
  eachStretch(runs, (x, from, to) => stretches.push([x + left, from + top, to + top]));
  return fromStretches(stretches, size);
}

/** The pieces that hang together, corners included; the largest first. */
export function piecesOf(runs) {
  const stretches = [];
  eachStretch(runs, (x, from, to) => stretches.push([x, from, to]));
  const parent = stretches.map((_, i) => i);
  const root = (i) => {
    while (parent[i] !== i) i = parent[i] = parent[parent[i]];
    return i;
  };
  // Stretches come by column and then by row: two marks walk along two columns.
  for (let i = 0, before = 0; i < stretches.length; i++) {
    const [x, from, to] = stretches[i];
    while (before < i && (stretches[before][0] < x - 1 || (stretches[before][0] === x - 1 && stretches[before][2] < from))) {
      before++;
    }
    for (let j = before; j < i && stretches[j][0] === x - 1 && stretches[j][1] <= to; j++) {
      parent[root(j)] = root(i);
    }
  }
  const pieces = new Map();
  stretches.forEach((stretch, i) => {
    const key = root(i);
    if (!pieces.has(key)) pieces.set(key, { pixels: 0, stretches: [] });
    const piece = pieces.get(key);
    piece.pixels += stretch[2] - stretch[1];
    piece.stretches.push(stretch);
  });
  return [...pieces.values()]
    .sort((a, b) => b.pixels - a.pixels)
    .map((piece) => fromStretches(piece.stretches, runs.size));
}

/** Stretches [x, y0, y1] in order of position, y1 not included. */
function fromStretches(stretches, [height, width]) {
  const changes = [];
  for (const [x, from, to] of stretches) {
    const start = x * height + from;
    // A stretch that goes on at the next column's top is one run.
    if (changes.at(-1) === start) changes.pop();
    else changes.push(start);
    changes.push(x * height + to);
  }
  if (changes.at(-1) === height * width) changes.pop();
  return { size: [height, width], counts: countsFromChanges(changes, height * width) };
}

/** The pixels whose middles are no farther than `radius` from a line through points [x, y]. */
export function strokeOf(points, radius, [height, width]) {
  const xs = points.map(([x]) => x), ys = points.map(([, y]) => y);
  const left = Math.max(0, Math.floor(Math.min(...xs) - radius));
  const right = Math.min(width, Math.ceil(Math.max(...xs) + radius) + 1);
  const top = Math.max(0, Math.floor(Math.min(...ys) - radius));
  const bottom = Math.min(height, Math.ceil(Math.max(...ys) + radius) + 1);
  if (left >= right || top >= bottom) return emptyRuns([height, width]);
  const rows = bottom - top;
  const bytes = new Uint8Array((right - left) * rows);
  points.forEach((b, k) => {
    const a = points[Math.max(k - 1, 0)];
    const x0 = Math.max(left, Math.floor(Math.min(a[0], b[0]) - radius));
    const x1 = Math.min(right, Math.ceil(Math.max(a[0], b[0]) + radius) + 1);
    for (let x = x0; x < x1; x++) {
      const [low, high] = nearLine(a, b, radius, x + 0.5);
      const from = Math.max(Math.ceil(low - 0.5), top);
      const to = Math.min(Math.floor(high - 0.5) + 1, bottom);
      if (from < to) bytes.fill(1, (x - left) * rows + from - top, (x - left) * rows + to - top);
    }
  });
  const stretches = [];
  for (let x = left; x < right; x++) {
    let from = -1;
    for (let y = 0; y <= rows; y++) {
      const inside = y < rows && bytes[(x - left) * rows + y] === 1;
      if (inside && from < 0) from = y;
      if (!inside && from >= 0) {
        stretches.push([x, from + top, y + top]);
        from = -1;
      }
    }
  }
  return fromStretches(stretches, [height, width]);
}

/** Between which heights a vertical line at x is no farther than `radius` from the line a to b. */
function nearLine([ax, ay], [bx, by], radius, x) {
  let low = Infinity, high = -Infinity;
  for (const [cx, cy] of [[ax, ay], [bx, by]]) {
    const half = Math.sqrt(radius * radius - (x - cx) * (x - cx)); // not a number beside the disc
    if (half >= 0) [low, high] = [Math.min(low, cy - half), Math.max(high, cy + half)];
  }
  // Between the two discs: beside the line, and neither before its start nor past its end.
  const dx = bx - ax, dy = by - ay, length = Math.hypot(dx, dy), across = x - ax;
  if (!length) return [low, high];
  let from = -Infinity, to = Infinity;
  const limit = (slope, least, most) => {
    // least <= slope * (y - ay) <= most
    if (slope) {
      const ends = [ay + least / slope, ay + most / slope];
      [from, to] = [Math.max(from, Math.min(...ends)), Math.min(to, Math.max(...ends))];
    } else if (least > 0 || most < 0) {
      to = -Infinity;
    }
  };
  limit(dx, across * dy - radius * length, across * dy + radius * length);
  limit(dy, -across * dx, length * length - across * dx);
  if (from > to) return [low, high];
  return [Math.min(low, from), Math.max(high, to)];
}
