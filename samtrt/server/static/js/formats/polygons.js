// Polygons as masks: a pixel is inside where its middle is, by the even-odd rule within a polygon;
// the polygons of one mask are joined.

import { emptyRuns, union } from "../regions.js";
import { countsFromChanges } from "../runs.js";

/** @param polygons [[x0, y0, x1, y1, …], …], pixels of a picture of `size` [height, width]. */
export function runsOfPolygons(polygons, size) {
  return polygons.map((numbers) => runsOfPolygon(numbers, size)).reduce(union, emptyRuns(size));
}

function runsOfPolygon(numbers, size) {
  const corners = [];
  for (let i = 0; i + 1 < numbers.length; i += 2) corners.push([numbers[i], numbers[i + 1]]);
  const [height, width] = size;
  const changes = [];
  for (let column = 0; column < width; column++) {
    const crossings = crossingsAt(corners, column + 0.5);
    for (let k = 0; k + 1 < crossings.length; k += 2) {
      const from = Math.min(Math.max(Math.ceil(crossings[k] - 0.5), 0), height);
      const to = Math.min(Math.max(Math.ceil(crossings[k + 1] - 0.5), 0), height);
      if (from >= to) continue;
      const start = column * height + from;
      if (changes.at(-1) === start) changes.pop();
      else changes.push(start);
      changes.push(column * height + to);
    }
  }
  if (changes.at(-1) === height * width) changes.pop();
  return { size, counts: countsFromChanges(changes, height * width) };
}

function crossingsAt(corners, x) {
  const found = [];
  corners.forEach(([ax, ay], i) => {
    const [bx, by] = corners[(i + 1) % corners.length];
    if (ax < x !== bx < x) found.push(ay + ((x - ax) / (bx - ax)) * (by - ay));
  });
  return found.sort((a, b) => a - b);
}
