// Hovers, clicks and boxes on the picture become masks, one after the other.

import { drawOn, keepDrawn } from "./edits.js";
import { announce, complain, notify } from "./notices.js";
import { isWorking } from "./progress.js";

/** What `listen` of input.js calls. */
export class Prompting {
  #scene;
  #stage;
  #session;
  #tools;
  #decoding = 0; // clicks and boxes whose masks are not there yet
  #last = Promise.resolve(); // they are answered in order

  constructor({ scene, stage, session, tools }) {
    this.#scene = scene;
    this.#stage = stage;
    this.#session = session;
    this.#tools = tools;
  }

  /** Resolves when the masks of all clicks so far are there. */
  settled() {
    return this.#last;
  }

  hover(point) {
    const isBusy = () => isWorking() || this.#decoding > 0;
    if (isBusy()) return;
    const { target } = this.#stage;
    this.#session
      .hover(point, target, (runs) => isBusy() || this.#stage.setPreview(runs, target))
      .catch(complain);
  }

  leave() {
    this.#session.stopHover();
    this.#stage.setPreview(null);
  }

  /** @param kind "tool" where the chosen tool decides, else "add" or "remove". */
  point(point, kind) {
    const wanted = kind === "tool" ? this.#tools.chosen : kind;
    this.#decode(async () => {
      const { selected } = this.#scene;
      if (wanted === "new") await this.#keep(this.#session.mask([[...point, 1]]));
      else if (selected) await this.#change(selected, [...selected.points, [...point, wanted === "add" ? 1 : 0]], selected);
      else notify("Select a mask first: click an object, or a mask in the list.");
    });
  }

  box(box) {
    if (box[2] - box[0] < 1 || box[3] - box[1] < 1) return;
    this.#decode(() => this.#keep(this.#session.mask([], box)));
  }

  /** Another of the three masks of the mask's one point. */
  chooseCandidate(mask, rank) {
    this.#decode(async () => {
      this.#scene.replace(mask.id, await this.#session.mask(mask.points, null, null, rank));
      announce(`${mask.name}: candidate ${rank + 1}.`);
    });
  }

  /** The mask without one of its points, decoded from what is left. */
  removePoint(mask, index) {
    const points = mask.points.filter((_, i) => i !== index);
    if (!points.some(([, , label]) => label === 1) && !mask.box && !mask.drawn) {
      notify(`${mask.name} needs a point to be made from. Delete removes the mask.`);
      return;
    }
    this.#decode(() => this.#change(mask, points));
  }

  #decode(make) {
    if (isWorking() || !this.#session.isReady) return;
    this.#decoding++;
    this.#session.stopHover();
    this.#stage.setPreview(null);
    this.#last = this.#last.then(async () => {
      try {
        await make();
      } catch (error) {
        complain(error);
      } finally {
        this.#decoding--;
      }
    });
  }

  /** @param earlier the mask whose logits the decoder starts from, or null. */
  async #change(mask, points, earlier = null) {
    this.#scene.replace(mask.id, await this.#redecoded(mask, points, earlier));
    announce(`${mask.name} changed.`);
  }

  async #redecoded(mask, points, earlier) {
    const isPositive = ([, , label]) => label === 1;
    if (!mask.box && !points.some(isPositive)) {
      // Nothing to take away from but what was drawn: the object at each point is rubbed out.
      const objects = await Promise.all(points.map(([x, y]) => this.#session.mask([[x, y, 1]])));
      const left = objects.reduce((found, { runs }) => ({ ...found, ...drawOn(found, runs, true) }), mask);
      return { ...left, points: [] };
    }
    return keepDrawn(await this.#session.mask(points, mask.box, earlier), mask);
  }

  async #keep(making) {
    const mask = await making;
    if (mask.runs.counts.length < 2) {
      notify("There is no mask here. Try another point, or a box.");
      return;
    }
    this.#scene.add([mask]);
    announce(`${this.#scene.selected.name} kept.`);
  }
}
