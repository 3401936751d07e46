// Masks are selected, painted, rubbed out, joined and cut without the decoder.

import { drawnMask, drawOn } from "./edits.js";
import { setEnabled } from "./focus.js";
import { announce, notify } from "./notices.js";
import { contains, difference, isEmpty, piecesOf, strokeOf, union } from "./regions.js";
import { areaOf } from "./runs.js";

const NEAR = 12; // CSS pixels from a point's middle that still mean the point
const byId = (id) => document.getElementById(id);

export class Editing {
  #scene;
  #stage;
  #prompting;

  constructor({ scene, stage, prompting }) {
    this.#scene = scene;
    this.#stage = stage;
    this.#prompting = prompting;
    byId("merge").addEventListener("click", () => this.merge());
    byId("subtract").addEventListener("click", () => this.subtract());
    byId("split").addEventListener("click", () => this.split());
    scene.addEventListener("change", () => {
      const { length } = scene.chosen;
      setEnabled(byId("merge"), length > 1);
      setEnabled(byId("subtract"), length > 1);
      setEnabled(byId("split"), length === 1);
    });
  }

  /** Removes the selected mask's point there, or selects the mask there; again, the one below it. */
  pick(point) {
    const index = this.#pointAt(point);
    if (index >= 0) {
      this.#prompting.removePoint(this.#scene.selected, index);
      return;
    }
    const there = this.#masksAt(point);
    const now = this.#scene.chosen.length === 1 ? there.indexOf(this.#scene.selected) : -1;
    const next = there[(now + 1) % there.length] ?? null;
    this.#scene.select(next?.id ?? null);
    announce(next ? `${next.name} selected.` : "No mask selected.");
  }

  /** Selects the mask there beside the others, or no longer. */
  toggle(point) {
    const [mask] = this.#masksAt(point);
    if (!mask) return;
    this.#scene.toggle(mask.id);
    announce(`${this.#scene.chosen.length} masks selected.`);
  }

  /** @param stroke {points, radius, erases} in pixels of the picture. */
  stroke({ points, radius, erases }) {
    const { width, height } = this.#stage.bitmap;
    const pixels = strokeOf(points, radius, [height, width]);
    const { selected } = this.#scene;
    if (isEmpty(pixels)) return;
    if (selected) this.#change(selected, drawOn(selected, pixels, erases), erases ? "rubbed out" : "painted");
    else if (erases) notify("Select a mask first: click it with Select, or in the list.");
    else this.#scene.add([drawnMask(pixels)]);
  }

  merge() {
    const [first, ...others] = this.#scene.chosen;
    if (!others.length) return;
    const gone = others.map((mask) => mask.id);
    this.#scene.rearrange(first.id, [drawOn(first, joined(others), false)], gone);
    announce(`${others.length + 1} masks merged into ${first.name}.`);
  }

  subtract() {
    const [first, ...others] = this.#scene.chosen;
    if (!others.length) return;
    const cut = drawOn(first, joined(others), true);
    if (isEmpty(cut.runs)) notify(`Nothing would be left of ${first.name}: the other masks cover it.`);
    else this.#change(first, cut, "cut out");
  }

  split() {
    const mask = this.#scene.selected;
    if (!mask) return;
    const pieces = piecesOf(mask.runs);
    if (pieces.length < 2) {
      notify(`${mask.name} is one piece.`);
      return;
    }
    this.#scene.rearrange(mask.id, pieces.map(drawnMask));
    announce(`${mask.name} split into ${pieces.length} masks.`);
  }

  #change(mask, fields, what) {
    if (isEmpty(difference(mask.runs, fields.runs)) && isEmpty(difference(fields.runs, mask.runs))) return;
    if (isEmpty(fields.runs)) this.#scene.remove(mask.id);
    else this.#scene.replace(mask.id, fields);
    announce(`${mask.name}: ${what}.`);
  }

  /** Visible masks at a pixel, the smallest first: it lies on top. */
  #masksAt(point) {
    return this.#scene.masks
      .filter((mask) => mask.visible && contains(mask.runs, point))
      .sort((a, b) => areaOf(a.runs) - areaOf(b.runs));
  }

  /** Which of the selected mask's points is meant, or -1. */
  #pointAt(point) {
    const near = NEAR / this.#stage.view.scale;
    const points = this.#scene.selected?.points ?? [];
    return points.findIndex(([x, y]) => Math.hypot(x - point[0], y - point[1]) <= near);
  }
}

function joined(masks) {
  return masks.map((mask) => mask.runs).reduce(union);
}
