// A warning where a mask is nearly one that is there already.

import { notify } from "./notices.js";
import { isWorking, listenToWork } from "./progress.js";
import { areaOf } from "./runs.js";

const LIMIT = 0.9;

/** Intersection over union of two masks of one picture. */
export function iouOf(a, b) {
  const total = a.size[0] * a.size[1];
  let i = 0, j = 0, at = 0, both = 0, either = 0;
  let endA = a.counts[0], endB = b.counts[0];
  while (at < total) {
    while (endA <= at) endA += a.counts[++i];
    while (endB <= at) endB += b.counts[++j];
    const next = Math.min(endA, endB);
    if (i % 2 || j % 2) either += next - at;
    if (i % 2 && j % 2) both += next - at;
    at = next;
  }
  return either ? both / either : 0;
}

/** [mask, earlier one, IoU] of each of `made` that is nearly one of `others`. */
function duplicatesOf(made, others) {
  const areas = new Map();
  const area = (mask) => areas.get(mask) ?? areas.set(mask, areaOf(mask.runs)).get(mask);
  const found = [];
  for (const mask of made) {
    for (const other of others) {
      const ratio = area(mask) / area(other);
      if (ratio < LIMIT || ratio > 1 / LIMIT) continue; // cannot be above the limit
      const iou = iouOf(mask.runs, other.runs);
      if (iou <= LIMIT) continue;
      found.push([mask, other, iou]);
      break;
    }
  }
  return found;
}

/** Looks at each mask that is new or has changed, once the work that makes them is done. */
export class Duplicates {
  #scene;
  #seen = [];
  #picture = null;

  constructor(scene, opening) {
    this.#scene = scene;
    scene.addEventListener("change", () => isWorking() || this.#look(opening.picture));
    listenToWork(() => this.#look(opening.picture));
  }

  #look(picture) {
    const { masks } = this.#scene;
    if (picture !== this.#picture) this.#seen = masks; // what was kept of it is known
    this.#picture = picture;
    if (masks === this.#seen) return;
    const before = new Map(this.#seen.map((mask) => [mask.id, mask.runs]));
    const made = masks.filter((mask) => before.get(mask.id) !== mask.runs);
    const others = masks.filter((mask) => !made.includes(mask));
    this.#seen = masks;
    const found = duplicatesOf(made, others);
    if (!found.length) return;
    const ids = found.map(([mask]) => mask.id);
    const [[mask, other, iou]] = found;
    const text =
      found.length === 1
        ? `${mask.name} is nearly ${other.name} (IoU ${iou.toFixed(2)}).`
        : `${found.length} of the new masks are nearly earlier ones (IoU above ${LIMIT}).`;
    const label = found.length === 1 ? `Delete ${mask.name}` : "Delete these";
    notify(text, { action: { label, act: () => this.#scene.remove(...ids) } });
  }
}
