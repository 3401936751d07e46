// The picture and what is drawn over it: three canvases, one above the other.

import { rgbOf } from "./colors.js";
import { eachStretch, resampleRuns } from "./runs.js";

const MAX_DENSITY = 2;
const PREVIEW_RGB = [255, 255, 255];
const EDGE_ALPHA = 0.95;

export class Stage {
  #area = document.getElementById("stage");
  #frame = document.getElementById("frame");
  #picture = document.getElementById("picture");
  #masks = document.getElementById("masks");
  #pointer = document.getElementById("pointer");
  #bitmap = null;
  #shapes = new WeakMap(); // runs -> their shape at the canvas's size
  #scene;
  #preview = null;
  #box = null;
  #crosshair = null;
  opacity = 0.5;

  constructor(scene) {
    this.#scene = scene;
    scene.addEventListener("change", () => this.#paintMasks());
    new ResizeObserver(() => this.#fit()).observe(this.#area);
  }

  get surface() {
    return this.#pointer;
  }

  /** [height, width] of the canvases, in device pixels. */
  get size() {
    return [this.#pointer.height, this.#pointer.width];
  }

  get bitmap() {
    return this.#bitmap;
  }

  setPicture(bitmap) {
    this.#bitmap = bitmap;
    this.#preview = this.#box = this.#crosshair = null;
    this.#pointer.dataset.size = `${bitmap.width}×${bitmap.height}`;
    this.#frame.hidden = false;
    this.#fit();
  }

  /** Pixel of the picture under a pointer event. */
  pixelAt(event) {
    const bounds = this.#pointer.getBoundingClientRect();
    const { width, height } = this.#bitmap;
    const x = ((event.clientX - bounds.left) / bounds.width) * width;
    const y = ((event.clientY - bounds.top) / bounds.height) * height;
    return [Math.min(Math.max(x, 0), width - 1), Math.min(Math.max(y, 0), height - 1)];
  }

  /** Runs at the canvas's size, or null. */
  setPreview(runs) {
    this.#preview = runs && this.#shapeOf(runs);
    this.paintPointer();
  }

  /** A box being dragged, [x0, y0, x1, y1] in pixels of the picture, or null. */
  setBox(box) {
    this.#box = box;
    this.paintPointer();
  }

  /** The keyboard's point [x, y] in pixels of the picture, or null. */
  setCrosshair(point) {
    this.#crosshair = point;
    this.paintPointer();
  }

  setOpacity(opacity) {
    this.opacity = opacity;
    this.#paintMasks();
  }

  #fit() {
    if (!this.#bitmap) return;
    const { width, height } = this.#bitmap;
    const narrow = matchMedia("(max-width: 820px)").matches;
    const room = this.#area.getBoundingClientRect();
    const tallest = narrow ? innerHeight * 0.62 : room.height;
    const scale = Math.min(room.width / width, tallest / height);
    const shown = [Math.max(1, Math.round(width * scale)), Math.max(1, Math.round(height * scale))];
    this.#frame.style.width = `${shown[0]}px`;
    this.#frame.style.height = `${shown[1]}px`;
    const density = Math.min(devicePixelRatio, MAX_DENSITY);
    const pixels = shown.map((side) => Math.round(side * density));
    if (this.#picture.width !== pixels[0] || this.#picture.height !== pixels[1]) {
      for (const canvas of [this.#picture, this.#masks, this.#pointer]) {
        [canvas.width, canvas.height] = pixels;
      }
      this.#shapes = new WeakMap();
      this.#preview = null;
    }
    const context = this.#picture.getContext("2d");
    context.imageSmoothingQuality = "high";
    context.clearRect(0, 0, ...pixels);
    context.drawImage(this.#bitmap, 0, 0, ...pixels);
    this.#paintMasks();
  }

  /** A mask's bounding box on the canvas and one byte a pixel in it: 0, 1 inside, 2 edge. */
  #shapeOf(runs) {
    const known = this.#shapes.get(runs);
    if (known) return known;
    const [height, width] = this.size;
    const fits = runs.size[0] === height && runs.size[1] === width;
    const shape = shapeFrom(fits ? runs : resampleRuns(runs, this.size), devicePixelRatio > 1.5 ? 2 : 1);
    this.#shapes.set(runs, shape);
    return shape;
  }

  #paintMasks() {
    const context = this.#masks.getContext("2d");
    const { width, height } = this.#masks;
    if (!width || !this.#bitmap) return;
    const image = context.createImageData(width, height);
    const selected = this.#scene.selected;
    const edge = Math.min(1, this.opacity * 2);
    const shown = this.#scene.masks.filter((mask) => mask.visible);
    const painted = shown.map((mask) => ({ mask, shape: this.#shapeOf(mask.runs) }));
    // Small masks lie on large ones, or a background would hide what stands before it.
    for (const { mask, shape } of painted.sort((a, b) => b.shape.area - a.shape.area)) {
      const fill = mask === selected ? Math.min(1, this.opacity + 0.12) : this.opacity;
      blend(image, shape, rgbOf(mask.color), fill, edge);
    }
    context.putImageData(image, 0, 0);
    this.paintPointer();
  }

  paintPointer() {
    const context = this.#pointer.getContext("2d");
    const { width, height } = this.#pointer;
    context.clearRect(0, 0, width, height);
    if (!this.#bitmap) return;
    const scale = width / this.#bitmap.width;
    const unit = Math.min(devicePixelRatio, MAX_DENSITY);
    if (this.#preview) {
      const image = context.createImageData(width, height);
      blend(image, this.#preview, PREVIEW_RGB, 0.32, EDGE_ALPHA);
      context.putImageData(image, 0, 0);
    }
    const selected = this.#scene.selected;
    if (selected?.visible) this.#paintPrompt(context, selected, scale, unit);
    if (this.#box) strokeBox(context, this.#box, scale, unit);
    if (this.#crosshair) strokeCrosshair(context, this.#crosshair, scale, unit);
  }

  #paintPrompt(context, { points, box }, scale, unit) {
    if (box) strokeBox(context, box, scale, unit);
    for (const [x, y, label] of points) {
      context.beginPath();
      context.arc(x * scale, y * scale, 6.5 * unit, 0, 7);
      context.fillStyle = label ? "#25776f" : "#b93a26";
      context.fill();
      context.lineWidth = 2 * unit;
      context.strokeStyle = "#fff";
      context.stroke();
      context.beginPath();
      context.moveTo((x * scale) - 3 * unit, y * scale);
      context.lineTo((x * scale) + 3 * unit, y * scale);
      if (label) {
        context.moveTo(x * scale, y * scale - 3 * unit);
        context.lineTo(x * scale, y * scale + 3 * unit);
      }
      context.lineWidth = 1.5 * unit;
      context.stroke();
    }
  }
}

function shapeFrom(runs, edge) {
  let x0 = Infinity, y0 = Infinity, x1 = -1, y1 = -1;
  eachStretch(runs, (x, top, bottom) => {
    x0 = Math.min(x0, x);
    x1 = Math.max(x1, x + 1);
    y0 = Math.min(y0, top);
    y1 = Math.max(y1, bottom);
  });
  if (x1 < 0) return { x: 0, y: 0, width: 0, height: 0, area: 0, data: new Uint8Array(0) };
  const width = x1 - x0, height = y1 - y0;
  const data = new Uint8Array(width * height);
  let area = 0;
  eachStretch(runs, (x, top, bottom) => {
    area += bottom - top;
    for (let y = top; y < bottom; y++) data[(y - y0) * width + x - x0] = 1;
  });
  const inside = (x, y) => x >= 0 && y >= 0 && x < width && y < height && data[y * width + x] > 0;
  for (let y = 0; y < height; y++) {
    for (let x = 0; x < width; x++) {
      if (
        inside(x, y) &&
        !(inside(x - edge, y) && inside(x + edge, y) && inside(x, y - edge) && inside(x, y + edge))
      ) {
        data[y * width + x] = 2;
      }
    }
  }
  return { x: x0, y: y0, width, height, area, data };
}

/** Paints a shape over what the image holds already (both not premultiplied). */
function blend(image, shape, [red, green, blue], fill, edge) {
  const pixels = image.data;
  for (let y = 0; y < shape.height; y++) {
    let at = ((shape.y + y) * image.width + shape.x) * 4;
    for (let x = 0; x < shape.width; x++, at += 4) {
      const kind = shape.data[y * shape.width + x];
      if (!kind) continue;
      const over = kind === 2 ? edge : fill;
      const under = (pixels[at + 3] / 255) * (1 - over);
      const alpha = over + under;
      if (!alpha) continue;
      pixels[at] = (red * over + pixels[at] * under) / alpha;
      pixels[at + 1] = (green * over + pixels[at + 1] * under) / alpha;
      pixels[at + 2] = (blue * over + pixels[at + 2] * under) / alpha;
      pixels[at + 3] = alpha * 255;
    }
  }
}

// White over black, so that a line shows on any picture.
function strokeTwice(context, unit, dash) {
  context.setLineDash([]);
  context.lineWidth = 3.5 * unit;
  context.strokeStyle = "rgb(0 0 0 / 45%)";
  context.stroke();
  context.setLineDash(dash);
  context.lineWidth = 1.75 * unit;
  context.strokeStyle = "#fff";
  context.stroke();
  context.setLineDash([]);
}

function strokeBox(context, [x0, y0, x1, y1], scale, unit) {
  context.beginPath();
  context.rect(x0 * scale, y0 * scale, (x1 - x0) * scale, (y1 - y0) * scale);
  strokeTwice(context, unit, [6 * unit, 4 * unit]);
}

function strokeCrosshair(context, [x, y], scale, unit) {
  const arm = 13 * unit, gap = 4 * unit;
  context.beginPath();
  for (const [dx, dy] of [[1, 0], [-1, 0], [0, 1], [0, -1]]) {
    context.moveTo(x * scale + dx * gap, y * scale + dy * gap);
    context.lineTo(x * scale + dx * arm, y * scale + dy * arm);
  }
  strokeTwice(context, unit, []);
}
