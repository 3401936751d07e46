// The mask under the pointer: decoded in this browser, or by the server where that is measured to be
// faster. Masks that are kept are always decoded here: they go on from their logits.

import * as api from "./api.js";
import { resampleRuns, textToCounts } from "./runs.js";

const SOON = 100; // milliseconds: nobody waits for a preview that is there by then
const ENOUGH = 12; // previews until the browser has compiled what they take as well as it can
const PATIENCE = 3000; // milliseconds of rehearsing at most
const REST = 50; // milliseconds between two rehearsals, for what is really asked
const ASKED = 3; // of the server, to measure it: the first may open a connection
const RECENT = 4; // times that count, the best of them
const MARGIN = 0.8; // of the browser's time: what the server must do better than
const SMALL = [32, 32];

export class Previews {
  #decoder;
  #about = null; // what /embed answered of what prompts are about
  #hovering = false;
  #next = null;
  #count = 0; // decoded in this browser so far
  #isRehearsing = false;
  #recent = { browser: [], server: [] }; // milliseconds
  #line = document.getElementById("previews");

  constructor(decoder) {
    this.#decoder = decoder;
  }

  /** Previews are about this from now on: what /embed answered of it. */
  setPicture(about) {
    this.#about = about;
    this.stop();
  }

  /**
   * Calls onRuns with the mask under the pointer; hovers that came too fast are skipped.
   * @param target {size, window}: what of the mask is wanted, see runsFromLogits.
   */
  async hover(point, target, onRuns) {
    this.#next = { point, target, onRuns };
    if (this.#hovering) return;
    this.#hovering = true;
    try {
      while (this.#next) {
        const { point, target, onRuns } = this.#next;
        this.#next = null;
        const runs = await this.#decode(point, target);
        if (this.#next !== undefined) onRuns(runs);
      }
    } finally {
      this.#hovering = false;
      this.#next = null;
    }
  }

  /** The pointer left: what is being decoded for it is not shown. */
  stop() {
    this.#next = this.#hovering ? undefined : null;
  }

  /**
   * Decodes unseen previews until the browser is at its best, so that the first that is seen is
   * not the slowest. Where its best is slow, the server is measured too; with each picture anew,
   * since the browser's machine, the server or the way there may have been busy.
   */
  async rehearse() {
    const isDone = this.#count >= ENOUGH && this.#isQuick;
    if (isDone || this.#isRehearsing) return;
    this.#isRehearsing = true;
    try {
      await this.#rehearseHere();
      await this.#compare();
    } finally {
      this.#isRehearsing = false;
    }
    this.#say();
  }

  async #rehearseHere() {
    const started = performance.now();
    const enough = Math.max(ENOUGH, this.#count + RECENT);
    while (this.#count < enough && performance.now() - started < PATIENCE) {
      await new Promise((done) => setTimeout(done, REST));
      if (!this.#hovering) await this.#inBrowser(this.#middle, { size: SMALL });
    }
  }

  async #compare() {
    if (this.#isQuick) return;
    try {
      for (let i = 0; i < ASKED; i++) await this.#onServer(this.#middle, { size: SMALL });
    } catch {
      this.#recent.server = []; // it does not answer now; here they are decoded all the same
    }
  }

  get #middle() {
    const [height, width] = this.#about.original_size;
    return [width / 2, height / 2];
  }

  #best(place) {
    return Math.min(...this.#recent[place]);
  }

  /** Whether nobody would notice a quicker preview; fingers see none. */
  get #isQuick() {
    return this.#best("browser") <= SOON || matchMedia("(pointer: coarse)").matches;
  }

  get #isServerFaster() {
    return this.#best("server") < MARGIN * this.#best("browser"); // no times: infinity
  }

  async #decode(point, target) {
    if (this.#isServerFaster) {
      try {
        const runs = await this.#onServer(point, target);
        if (!this.#isServerFaster) this.#say();
        return runs;
      } catch {
        this.#recent.server = [];
        this.#say();
      }
    }
    return this.#inBrowser(point, target);
  }

  async #inBrowser(point, target) {
    this.#count++;
    const prompt = { points: [[...point, 1]], box: null, maskInput: null, multimask: true };
    return this.#timed("browser", async () => {
      const { runs } = await this.#decoder.decode({ ...prompt, preview: true, targets: [target] });
      return runs[0];
    });
  }

  async #onServer(point, { size, window }) {
    return this.#timed("server", async () => {
      const { masks } = await api.masks({ id: this.#about.id, point_coords: [point], point_labels: [1] });
      const { size: whole, counts } = masks[0].segmentation;
      return resampleRuns({ size: whole, counts: textToCounts(counts) }, size, window);
    });
  }

  async #timed(place, act) {
    const started = performance.now();
    const result = await act();
    const recent = this.#recent[place];
    recent.push(performance.now() - started);
    if (recent.length > RECENT) recent.shift();
    return result;
  }

  /** In words, for those who ask why it is slow. */
  #say() {
    const milliseconds = (place) => `${Math.round(this.#best(place))} ms`;
    const { threads } = this.#decoder;
    const here = `this browser's WebAssembly, ${threads} ${threads === 1 ? "thread" : "threads"}`;
    const isAsked = this.#recent.server.length > 0;
    for (const place of ["browser", "server"]) this.#line.dataset[place] = this.#best(place).toFixed(1);
    this.#line.dataset.place = this.#isServerFaster ? "server" : "browser";
    this.#line.textContent = this.#isServerFaster
      ? `Previews are made by the server, in ${milliseconds("server")}, since ${here}, takes ${milliseconds("browser")}. The place under the pointer is sent to it.`
      : `Previews are made by ${here}, in ${milliseconds("browser")}${isAsked ? `; the server takes ${milliseconds("server")}` : ""}.`;
  }
}
