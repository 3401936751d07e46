// Masks of everything in the picture, shown as they are found.

import { announce, complain, dismissNotices, notify } from "./notices.js";
import { isWorking, withProgress } from "./progress.js";
import { countsToText } from "./runs.js";

const KEY = "samtrt-everything";
const DEFAULTS = { pred_iou_thresh: 0.88, stability_score_thresh: 0.95, box_nms_thresh: 0.7, min_mask_region_area: 0 };
const byId = (id) => document.getElementById(id);
const fields = {
  points_per_side: byId("grid"),
  pred_iou_thresh: byId("least-iou"),
  stability_score_thresh: byId("least-stability"),
  box_nms_thresh: byId("most-overlap"),
  min_mask_region_area: byId("least-area"),
};

export class Everything {
  #scene;
  #session;
  #defaults = null;

  constructor(scene, session) {
    this.#scene = scene;
    this.#session = session;
    for (const field of Object.values(fields)) field.addEventListener("input", () => this.#onInput());
    byId("everything-options").addEventListener("click", () => byId("everything-dialog").showModal());
    byId("everything-defaults").addEventListener("click", () => {
      this.#fill(this.#defaults);
      localStorage.removeItem(KEY);
    });
  }

  /** @param device the server's; a CPU gets a quarter of the points, which somebody waits for. */
  setDevice(device) {
    this.#defaults = { ...DEFAULTS, points_per_side: device === "cpu" ? 16 : 32 };
    this.#fill({ ...this.#defaults, ...remembered() });
  }

  async run() {
    if (isWorking() || !this.#session.isReady) return;
    dismissNotices();
    const show = this.#scene.growing();
    let found = []; // not yet without all duplicates
    const options = this.#options();
    const controls = [byId("panel"), byId("toolbar"), byId("strip")];
    for (const element of controls) element.inert = true; // what is found would come back
    try {
      const work = (progress) => {
        progress.run(`Segmenting everything from ${options.points_per_side ** 2} points`);
        return this.#session.everything(options, progress, (event) => {
          found = found.filter((mask) => !event.dropped.includes(mask.number)).concat(event.found);
          if (event.found.length || event.dropped.length) show(found);
          const { pointsDone, pointsTotal } = event;
          progress.show(`${pointsDone} of ${pointsTotal} points, ${masks(found.length)}`, pointsDone / pointsTotal);
        });
      };
      const final = await withProgress(work, { aside: true });
      if (final.length || found.length) show(asShown(final, found), true);
      if (!final.length) notify("Nothing was found with enough confidence. Lower the thresholds, or click the objects.");
      announce(`${masks(final.length)} found.`);
    } catch (error) {
      if (error.name === "AbortError") notify(`Cancelled. ${masks(found.length)} found so far ${found.length === 1 ? "stays" : "stay"}.`);
      else complain(error, () => this.run());
    } finally {
      for (const element of controls) element.inert = false;
    }
  }

  #options() {
    return Object.fromEntries(Object.entries(fields).map(([name, field]) => [name, Number(field.value)]));
  }

  #onInput() {
    this.#say();
    localStorage.setItem(KEY, JSON.stringify(this.#options()));
  }

  #fill(options) {
    for (const [name, field] of Object.entries(fields)) field.value = options[name];
    this.#say();
  }

  #say() {
    const { points_per_side: side, pred_iou_thresh: iou, stability_score_thresh: stability } = this.#options();
    byId("everything-summary").textContent = `${side} × ${side} points, IoU ${iou.toFixed(2)}, stability ${stability.toFixed(2)}`;
    for (const id of ["least-iou", "least-stability", "most-overlap"]) {
      byId(`${id}-value`).textContent = Number(byId(id).value).toFixed(2);
    }
  }
}

function remembered() {
  try {
    return JSON.parse(localStorage.getItem(KEY)) ?? {};
  } catch {
    return {};
  }
}

/** The final masks; those that were shown before are the same objects. */
function asShown(final, found) {
  const keyOf = (mask) => countsToText(mask.runs.counts);
  const shown = new Map(found.map((mask) => [keyOf(mask), mask]));
  return final.map((mask) => shown.get(keyOf(mask)) ?? mask);
}

function masks(count) {
  return `${count} ${count === 1 ? "mask" : "masks"}`;
}
