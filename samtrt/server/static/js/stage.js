// The picture and what is drawn over it: canvases of the surface's size, one above the other.

import { paintBox, paintCrosshair, paintPrompt, paintRing, paintStroke } from "./marks.js";
import { labelsOf, lookup, outlined, paintMasks, paintStencil, stencilOf } from "./paint.js";
import { rgbOf } from "./colors.js";
import { eachStretch } from "./runs.js";
import { View } from "./view.js";

const MOST_PIXELS = 6e6; // of a canvas; beyond that it has fewer than the screen
const NARROW = matchMedia("(max-width: 820px)");
const TALLEST = 0.62; // share of a narrow window's height
const REST = 150; // milliseconds after which a moved picture is drawn at its best
const SHARP = 3; // device pixels of a pixel from which on pixels are shown as squares
const SELECTED_ALPHA = 0.22;
const PREVIEW_ALPHA = 0.32;

export class Stage {
  view = new View();
  #area = document.getElementById("stage");
  #frame = document.getElementById("frame");
  #layers = Object.fromEntries(
    ["picture", "masks", "edges", "selection", "pointer"].map((id) => [
      id,
      document.getElementById(id).getContext("2d"),
    ]),
  );
  #scene;
  #bitmap = null;
  #stale = new Set(); // layers to be painted with the next frame
  #labels = null; // which mask each pixel of the picture shows
  #shown = []; // the masks that labels are of
  #stencils = new WeakMap(); // runs -> stencil
  #table = null; // canvas pixels -> pixels of the picture
  #target = null;
  #preview = null; // {image, x, y} on the canvas
  #marks = { box: null, crosshair: null, stroke: null, ring: null };
  #resting = 0;

  constructor(scene) {
    this.#scene = scene;
    scene.addEventListener("change", () => this.#onScene());
    this.view.addEventListener("change", () => this.#onView());
    new ResizeObserver(() => this.#measure()).observe(this.#area);
    this.setOpacity(0.5);
  }

  get surface() {
    return this.#layers.pointer.canvas;
  }

  get bitmap() {
    return this.#bitmap;
  }

  /**
   * What a preview must be made for: the picture's `size` [height, width] on the canvas, and the
   * `window` [x0, y0, x1, y1] of it that is seen. Another object after each change of the view.
   */
  get target() {
    if (!this.#target) {
      const scale = this.view.scale * this.view.density;
      const size = [this.#bitmap.height, this.#bitmap.width].map((side) => Math.max(1, Math.round(side * scale)));
      const [x0, y0, x1, y1] = this.view.window.map((value) => value * scale);
      const window = [Math.floor(x0), Math.floor(y0), Math.min(Math.ceil(x1), size[1]), Math.min(Math.ceil(y1), size[0])];
      this.#target = { size, window };
    }
    return this.#target;
  }

  setPicture(bitmap) {
    this.#bitmap = bitmap;
    this.#preview = this.#labels = null;
    this.#marks = { box: null, crosshair: null, stroke: null, ring: null };
    this.surface.dataset.size = `${bitmap.width}×${bitmap.height}`;
    this.#frame.hidden = false;
    this.#measure();
    this.view.setPicture([bitmap.width, bitmap.height]);
  }

  /** Where a pointer event is on the surface, in CSS pixels. */
  screenAt(event) {
    const bounds = this.surface.getBoundingClientRect();
    return [event.clientX - bounds.left, event.clientY - bounds.top];
  }

  /** Whether a pointer event is on the picture, not beside it. */
  isOnPicture(event) {
    const [x, y] = this.view.toPicture(this.screenAt(event));
    return x >= 0 && y >= 0 && x < this.#bitmap.width && y < this.#bitmap.height;
  }

  /** Pixel of the picture under a pointer event, or the nearest one. */
  pixelAt(event) {
    const { width, height } = this.#bitmap;
    const [x, y] = this.view.toPicture(this.screenAt(event));
    return [Math.min(Math.max(x, 0), width - 1), Math.min(Math.max(y, 0), height - 1)];
  }

  /** Runs of the target's window, or null; those of another target come too late. */
  setPreview(runs, target = null) {
    if (runs ? target !== this.#target : !this.#preview) return;
    this.#preview = runs && this.#imageOf(runs, target);
    this.#repaint("pointer");
  }

  /** A box being dragged, [x0, y0, x1, y1] in pixels of the picture, or null. */
  setBox(box) {
    this.#mark({ box });
  }

  /** The keyboard's point [x, y] in pixels of the picture, or null. */
  setCrosshair(crosshair) {
    this.#mark({ crosshair });
  }

  /** What is being drawn, {points, radius} in pixels of the picture, or null. */
  setStroke(stroke) {
    this.#mark({ stroke });
  }

  /** The brush before it is pressed, {at, radius} in pixels of the picture, or null. */
  setRing(ring) {
    this.#mark({ ring });
  }

  /** From 0 to 1. The browser blends; nothing is painted anew. */
  setOpacity(opacity) {
    this.#layers.masks.canvas.style.opacity = opacity;
    this.#layers.edges.canvas.style.opacity = Math.min(1, 2 * opacity);
  }

  get #thick() {
    return this.view.density > 1.5 ? 2 : 1;
  }

  #measure() {
    if (!this.#bitmap) return;
    const room = this.#area.getBoundingClientRect();
    const { width, height } = this.#bitmap;
    const shown = NARROW.matches
      ? [room.width, Math.min((room.width * height) / width, innerHeight * TALLEST)]
      : [room.width, room.height];
    const sides = shown.map((side) => Math.max(1, Math.round(side)));
    this.#frame.style.width = `${sides[0]}px`;
    this.#frame.style.height = `${sides[1]}px`;
    const density = Math.min(devicePixelRatio, Math.sqrt(MOST_PIXELS / (sides[0] * sides[1])));
    const pixels = sides.map((side) => Math.round(side * density));
    for (const { canvas } of Object.values(this.#layers)) {
      if (canvas.width !== pixels[0] || canvas.height !== pixels[1]) [canvas.width, canvas.height] = pixels;
    }
    this.view.setRoom(sides, density);
  }

  #onScene() {
    const shown = this.#scene.masks.filter((mask) => mask.visible);
    const isSame = shown.length === this.#shown.length && shown.every((mask, i) => mask === this.#shown[i]);
    if (!isSame) {
      this.#shown = shown;
      this.#labels = null;
      this.#repaint("masks");
    }
    this.#repaint("selection", "pointer");
  }

  #onView() {
    this.#table = this.#target = this.#preview = null;
    const [x, y] = this.view.toScreen([0, 0]);
    this.surface.dataset.view = [this.view.scale, x, y].join(" ");
    clearTimeout(this.#resting);
    this.#resting = setTimeout(() => {
      this.#resting = 0;
      this.#repaint("picture");
    }, REST);
    this.#repaint("picture", "masks", "selection", "pointer");
  }

  #mark(marks) {
    const isSame = Object.entries(marks).every(([name, value]) => value === null && this.#marks[name] === null);
    if (isSame) return;
    this.#marks = { ...this.#marks, ...marks };
    this.#repaint("pointer");
  }

  #repaint(...layers) {
    if (!this.#stale.size) requestAnimationFrame(() => this.#paint());
    for (const layer of layers) this.#stale.add(layer);
  }

  #paint() {
    const stale = this.#stale;
    this.#stale = new Set();
    if (!this.#bitmap) return;
    const { width, height } = this.#bitmap;
    this.#table ??= lookup(this.view, [width, height], this.surface);
    if (stale.has("picture")) this.#paintPicture();
    if (stale.has("masks")) {
      this.#labels ??= labelsOf(this.#shown, width * height);
      paintMasks(this.#layers.masks, this.#layers.edges, this.#labels, this.#shown, this.#table, this.#thick);
    }
    if (stale.has("selection")) this.#paintSelection();
    if (stale.has("pointer")) this.#paintPointer();
  }

  #paintPicture() {
    const context = this.#layers.picture;
    const { width, height } = context.canvas;
    const scale = this.view.scale * this.view.density;
    const [x, y] = this.view.toScreen([0, 0]).map((value) => value * this.view.density);
    context.clearRect(0, 0, width, height);
    context.imageSmoothingEnabled = scale < SHARP;
    context.imageSmoothingQuality = this.#resting ? "low" : "high";
    context.drawImage(this.#bitmap, x, y, this.#bitmap.width * scale, this.#bitmap.height * scale);
  }

  #paintSelection() {
    const context = this.#layers.selection;
    context.clearRect(0, 0, context.canvas.width, context.canvas.height);
    for (const mask of this.#scene.chosen) {
      if (!mask.visible) continue;
      const stencil = this.#stencils.get(mask.runs) ?? stencilOf(mask.runs);
      this.#stencils.set(mask.runs, stencil);
      paintStencil(context, stencil, this.#table, rgbOf(mask.color), SELECTED_ALPHA, this.#thick);
    }
  }

  #paintPointer() {
    const context = this.#layers.pointer;
    const { box, crosshair, stroke, ring } = this.#marks;
    context.clearRect(0, 0, context.canvas.width, context.canvas.height);
    if (this.#preview) context.putImageData(this.#preview.image, this.#preview.x, this.#preview.y);
    const selected = this.#scene.selected;
    if (selected?.visible) paintPrompt(context, this.view, selected);
    if (box) paintBox(context, this.view, box);
    if (stroke) paintStroke(context, this.view, stroke);
    if (ring) paintRing(context, this.view, ring);
    if (crosshair) paintCrosshair(context, this.view, crosshair);
  }

  /** Runs of the target's window as an image of the canvas, and where it stands there. */
  #imageOf(runs, { window: [left, top] }) {
    const [height, width] = runs.size;
    const bytes = new Uint8Array(width * height);
    eachStretch(runs, (x, from, to) => {
      for (let y = from; y < to; y++) bytes[y * width + x] = 1;
    });
    const [x, y] = this.view.toScreen([0, 0]).map((value) => value * this.view.density);
    const image = outlined(bytes, width, height, [255, 255, 255], PREVIEW_ALPHA, this.#thick);
    return { image, x: Math.round(x + left), y: Math.round(y + top) };
  }
}
