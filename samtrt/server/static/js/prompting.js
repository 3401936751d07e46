// Hovers, clicks and boxes on the picture become masks, one after the other.

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
    this.#session
      .hover(point, this.#stage.size, (runs) => isBusy() || this.#stage.setPreview(runs))
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
      else if (selected) await this.#change(selected, [...point, wanted === "add" ? 1 : 0]);
      else notify("Select a mask first: click an object, or a mask in the list.");
    });
  }

  box(box) {
    if (box[2] - box[0] < 1 || box[3] - box[1] < 1) return;
    this.#decode(() => this.#keep(this.#session.mask([], box)));
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

  async #change(mask, point) {
    const changed = await this.#session.mask([...mask.points, point], mask.box, mask);
    this.#scene.replace(mask.id, changed);
    announce(`${mask.name} changed.`);
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
