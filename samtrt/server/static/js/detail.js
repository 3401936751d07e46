// Small objects. Where the picture is zoomed, the part that is seen is embedded by itself: prompts
// are mapped to it, and their masks are put back in their place. It stands before the Session, and
// answers as that does.

import { place } from "./regions.js";

const GAIN = 2; // the picture's longer side over the part's, from which on a part is worth reading
const MARGIN = 0.15; // of what is seen, around it: objects at its edge, and small moves
const REST = 400; // milliseconds without a move
const EXACT = 2e6; // pixels that are sent as they are; more are scaled down by the model anyway
const REMEMBERED = "samtrt-detail";
const byId = (id) => document.getElementById(id);

export class Detail {
  #stage;
  #session;
  #part = null; // {box, promise, abort, embedded}: what is seen now, once it is zoomed
  #resting = 0;

  constructor({ stage, session }) {
    this.#stage = stage;
    this.#session = session;
    const toggle = byId("detail-on");
    toggle.checked = localStorage.getItem(REMEMBERED) !== "off";
    toggle.addEventListener("change", () => {
      localStorage.setItem(REMEMBERED, toggle.checked ? "on" : "off");
      this.#follow();
    });
    stage.view.addEventListener("change", () => this.#follow());
  }

  get isReady() {
    return this.#session.isReady;
  }

  /** As the Session's. A part that is still being read is waited for. */
  async mask(points, box = null, earlier = null, ...rest) {
    const seen = this.#isWanted ? this.#begin() : null;
    if (seen) seen.isAwaited = true; // it is read to its end, even if the view moves on
    await seen?.promise;
    const corners = box ? [box.slice(0, 2), box.slice(2)] : [];
    const part = having(seen, [...points, ...corners]);
    await this.#promptAbout(part);
    const [left, top] = part?.box ?? [0, 0];
    const mask = await this.#session.mask(
      points.map(([x, y, label]) => [x - left, y - top, label]),
      box && [box[0] - left, box[1] - top, box[2] - left, box[3] - top],
      // Logits are of the picture that they were made in.
      (earlier?.part ?? null) === (part?.embedded.answer.id ?? null) ? earlier : null,
      ...rest,
    );
    if (!part) return { ...mask, part: null };
    const { width, height } = this.#stage.bitmap;
    const runs = place(mask.runs, [left, top], [height, width]);
    return { ...mask, points, box, runs, part: part.embedded.answer.id };
  }

  /** As the Session's; until a part is read, previews are of the whole picture. */
  async hover(point, target, onRuns) {
    const part = having(this.#part, [point]);
    this.#promptAbout(part);
    if (!part) return this.#session.hover(point, target, onRuns);
    const [left, top, right, bottom] = part.box;
    const scale = target.size[1] / this.#stage.bitmap.width;
    const [x, y] = [Math.round(left * scale), Math.round(top * scale)];
    const size = [Math.round((bottom - top) * scale), Math.round((right - left) * scale)];
    const window = [
      Math.max(target.window[0] - x, 0),
      Math.max(target.window[1] - y, 0),
      Math.min(target.window[2] - x, size[1]),
      Math.min(target.window[3] - y, size[0]),
    ];
    const seen = [target.window[3] - target.window[1], target.window[2] - target.window[0]];
    const corner = [window[0] + x - target.window[0], window[1] + y - target.window[1]];
    return this.#session.hover([point[0] - left, point[1] - top], { size, window }, (runs) =>
      onRuns(place(runs, corner, seen)),
    );
  }

  stopHover() {
    this.#session.stopHover();
  }

  /** Whether what is seen is much smaller than the picture. */
  get #isZoomed() {
    const { width, height } = this.#stage.bitmap;
    return longer(this.#stage.view.window) * GAIN <= Math.max(width, height);
  }

  get #isWanted() {
    return this.isReady && byId("detail-on").checked && this.#isZoomed;
  }

  async #promptAbout(part) {
    await this.#session.promptAbout(part?.embedded ?? null);
  }

  /** The view moved, or the switch was pressed. */
  #follow() {
    clearTimeout(this.#resting);
    byId("detail").hidden = !this.#isZoomed;
    if (!this.#isWanted || !this.#covers()) this.#leave();
    if (this.#isWanted && !this.#part) this.#resting = setTimeout(() => this.#isWanted && this.#begin(), REST);
    this.#say();
  }

  /** Whether the part is of what is seen, and not of much more. */
  #covers() {
    if (!this.#part) return false;
    const [x0, y0, x1, y1] = this.#part.box;
    const seen = this.#stage.view.window;
    const isIn = seen[0] >= x0 && seen[1] >= y0 && seen[2] <= x1 && seen[3] <= y1;
    return isIn && longer(seen) * GAIN > longer(this.#part.box);
  }

  #leave() {
    if (!this.#part?.isAwaited) this.#part?.abort.abort();
    this.#part = null;
  }

  /** The part that is seen now; begins to read it, unless that is done or under way. */
  #begin() {
    clearTimeout(this.#resting);
    if (this.#part) return this.#part;
    const { width, height } = this.#stage.bitmap;
    const [x0, y0, x1, y1] = this.#stage.view.window;
    const [dx, dy] = [(x1 - x0) * MARGIN, (y1 - y0) * MARGIN];
    const box = [
      Math.max(0, Math.floor(x0 - dx)),
      Math.max(0, Math.floor(y0 - dy)),
      Math.min(width, Math.ceil(x1 + dx)),
      Math.min(height, Math.ceil(y1 + dy)),
    ];
    const part = { box, abort: new AbortController(), isAwaited: false, embedded: null, failure: null };
    this.#part = part;
    this.#say();
    part.promise = this.#read(part)
      .then((embedded) => (part.embedded = embedded))
      .catch((error) => (part.failure = error.message))
      .then(() => this.#say());
    return part;
  }

  async #read({ box: [x0, y0, x1, y1], abort }) {
    const canvas = new OffscreenCanvas(x1 - x0, y1 - y0);
    canvas.getContext("2d").drawImage(this.#stage.bitmap, -x0, -y0);
    const isSmall = canvas.width * canvas.height <= EXACT;
    const blob = await canvas.convertToBlob(
      isSmall ? { type: "image/png" } : { type: "image/jpeg", quality: 0.95 },
    );
    return this.#session.embedPart(blob, abort.signal);
  }

  #say() {
    const part = this.#part;
    let text = "Masks are made from the whole picture.";
    if (part?.embedded) text = "Masks are made from this part of the picture.";
    else if (part?.failure) text = `${text} This part could not be read: ${part.failure}`;
    else if (part) text = "Reading this part of the picture…";
    if (byId("detail-text").textContent !== text) byId("detail-text").textContent = text;
    byId("detail").dataset.part = part?.embedded ? part.box.join(" ") : "";
  }
}

/** The part, where it is read and has all these points. */
function having(part, points) {
  if (!part?.embedded) return null;
  const [x0, y0, x1, y1] = part.box;
  return points.every(([x, y]) => x >= x0 && y >= y0 && x <= x1 && y <= y1) ? part : null;
}

function longer([x0, y0, x1, y1]) {
  return Math.max(x1 - x0, y1 - y0);
}
