// Where the picture stands on the screen: the one transform between its pixels and the surface's
// CSS pixels. Announces "change".

const MOST = 32; // device pixels that a pixel of the picture may take
const STEP = 1.25;
const BEYOND = 80; // CSS pixels that a zoomed picture may be pulled away from the surface's edge

export class View extends EventTarget {
  #picture = [1, 1];
  #room = [1, 1];
  #density = 1;
  #scale = 1;
  #corner = [0, 0];
  #isFitted = true;

  /** CSS pixels that a pixel of the picture takes. */
  get scale() {
    return this.#scale;
  }

  /** Device pixels that a CSS pixel takes on the canvases. */
  get density() {
    return this.#density;
  }

  /** Whether the whole picture is shown as large as it can be. */
  get isFitted() {
    return this.#isFitted;
  }

  /** 100 where a pixel of the picture is a pixel of the screen. */
  get percent() {
    return 100 * this.#scale * devicePixelRatio;
  }

  /** What is seen of the picture: [x0, y0, x1, y1] in its pixels. */
  get window() {
    const [x0, y0] = this.toPicture([0, 0]);
    const [x1, y1] = this.toPicture(this.#room);
    const [width, height] = this.#picture;
    return [Math.max(x0, 0), Math.max(y0, 0), Math.min(x1, width), Math.min(y1, height)];
  }

  /** Another picture of [width, height] pixels: all of it is shown. */
  setPicture(size) {
    this.#picture = size;
    this.#isFitted = true;
    this.#settle();
  }

  /** The surface has [width, height] CSS pixels; the middle of what was seen stays in the middle. */
  setRoom(room, density) {
    const middle = this.toPicture(this.#room.map((side) => side / 2));
    this.#room = room;
    this.#density = density;
    this.#corner = room.map((side, i) => side / 2 - middle[i] * this.#scale);
    this.#settle();
  }

  toPicture([x, y]) {
    return [(x - this.#corner[0]) / this.#scale, (y - this.#corner[1]) / this.#scale];
  }

  toScreen([x, y]) {
    return [x * this.#scale + this.#corner[0], y * this.#scale + this.#corner[1]];
  }

  fit() {
    this.#isFitted = true;
    this.#settle();
  }

  /** One pixel of the picture on one of the screen, about a point of the surface. */
  actualSize(at) {
    this.#zoomTo(1 / devicePixelRatio, at);
  }

  /** Zooms by whole steps: 1 in, -1 out. */
  step(steps, at) {
    this.zoomBy(STEP ** steps, at);
  }

  /** Zooms about a point of the surface, by default its middle. */
  zoomBy(factor, at) {
    this.#zoomTo(this.#scale * factor, at);
  }

  panBy([dx, dy]) {
    if (this.#isFitted) return;
    this.#corner = [this.#corner[0] + dx, this.#corner[1] + dy];
    this.#settle();
  }

  /** Moves as little as it takes for a pixel of the picture to be seen, with room around it. */
  reveal(point) {
    const margin = this.#room.map((side) => Math.min(48, side / 4));
    const at = this.toScreen(point);
    const missing = at.map((value, i) =>
      Math.max(margin[i] - value, 0) + Math.min(this.#room[i] - margin[i] - value, 0),
    );
    if (missing.some(Boolean)) this.panBy(missing);
  }

  #zoomTo(wanted, at = this.#room.map((side) => side / 2)) {
    const whole = this.#wholeScale();
    const actual = 1 / devicePixelRatio;
    const scale = Math.min(Math.max(wanted, Math.min(whole, actual)), Math.max(whole, MOST * actual));
    const pixel = this.toPicture(at);
    this.#isFitted = Math.abs(scale / whole - 1) < 1e-3;
    this.#scale = scale;
    this.#corner = at.map((value, i) => value - pixel[i] * scale);
    this.#settle();
  }

  #wholeScale() {
    return Math.min(...this.#room.map((side, i) => side / this.#picture[i]));
  }

  #settle() {
    if (this.#isFitted) this.#scale = this.#wholeScale();
    const beyond = this.#isFitted ? 0 : BEYOND;
    this.#corner = this.#corner.map((value, i) => {
      const spare = this.#room[i] - this.#picture[i] * this.#scale;
      const corner = spare > -1 ? spare / 2 : Math.min(Math.max(value, spare - beyond), beyond);
      return Math.round(corner * this.#density) / this.#density; // at 100 % no pixel is blurred
    });
    this.dispatchEvent(new Event("change"));
  }
}
