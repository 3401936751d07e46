// Masks as pixels of a canvas. What a canvas pixel shows is looked up in the picture's own pixels,
// so that edges are sharp at any zoom.

import { rgbOf } from "./colors.js";
import { areaOf, boxOf } from "./runs.js";

const WHITE = [255, 255, 255];
const DARK = [0, 0, 0];

/** For each canvas column and row the picture's column and row under its middle, or -1 outside. */
export function lookup(view, [width, height], canvas) {
  const along = (count, side, axis) =>
    Int32Array.from({ length: count }, (_, i) => {
      const at = [0, 0];
      at[axis] = (i + 0.5) / view.density;
      const pixel = Math.floor(view.toPicture(at)[axis]);
      return pixel >= 0 && pixel < side ? pixel : -1;
    });
  return { xs: along(canvas.width, width, 0), ys: along(canvas.height, height, 1), height };
}

/**
 * Which mask each pixel of the picture shows: 0 for none, else 1 + its place in the list. Small
 * masks lie on large ones, or a background would hide what stands before it. Column-major, as runs.
 */
export function labelsOf(masks, pixels) {
  const labels = masks.length < 255 ? new Uint8Array(pixels) : new Uint16Array(pixels);
  const order = masks.map((mask, i) => ({ mask, label: i + 1, area: areaOf(mask.runs) }));
  for (const { mask, label } of order.sort((a, b) => b.area - a.area)) fill(labels, mask.runs, label);
  return labels;
}

function fill(bytes, { counts }, value) {
  let at = 0;
  for (let i = 0; i + 1 < counts.length; i += 2) {
    at += counts[i];
    bytes.fill(value, at, at + counts[i + 1]);
    at += counts[i + 1];
  }
}

/** Labels of canvas pixels in the box [x0, y0, x1, y1] of the canvas, row-major. */
function sample(labels, { xs, ys, height }, [x0, y0, x1, y1]) {
  const width = x1 - x0;
  const out = new labels.constructor(width * (y1 - y0));
  for (let y = y0, at = 0; y < y1; y++) {
    const row = ys[y];
    if (row < 0) {
      at += width;
      continue;
    }
    for (let x = x0; x < x1; x++, at++) if (xs[x] >= 0) out[at] = labels[xs[x] * height + row];
  }
  return out;
}

/** Paints all masks: opaque areas on one canvas, their edges on the other. */
export function paintMasks(areas, edges, labels, masks, table, thick) {
  const { width, height } = areas.canvas;
  const areaImage = areas.createImageData(width, height);
  const edgeImage = edges.createImageData(width, height);
  if (masks.length) {
    const found = sample(labels, table, [0, 0, width, height]);
    const colors = new Uint32Array([0, ...masks.map((mask) => packed(rgbOf(mask.color), 255))]);
    const areaPixels = new Uint32Array(areaImage.data.buffer);
    const edgePixels = new Uint32Array(edgeImage.data.buffer);
    for (let y = 0, at = 0; y < height; y++) {
      for (let x = 0; x < width; x++, at++) {
        const label = found[at];
        if (!label) continue;
        areaPixels[at] = colors[label];
        if (isEdge(found, at, x, y, width, height, thick, label)) edgePixels[at] = colors[label];
      }
    }
  }
  areas.putImageData(areaImage, 0, 0);
  edges.putImageData(edgeImage, 0, 0);
}

/** Whether something else lies within `thick` pixels to one of four sides. */
function isEdge(found, at, x, y, width, height, thick, label) {
  for (let step = 1; step <= thick; step++) {
    if (
      (x >= step && found[at - step] !== label) ||
      (x + step < width && found[at + step] !== label) ||
      (y >= step && found[at - step * width] !== label) ||
      (y + step < height && found[at + step * width] !== label)
    ) {
      return true;
    }
  }
  return false;
}

/** One mask, ready to be painted again and again: the columns of the picture that it is in, as bytes. */
export function stencilOf(runs) {
  const box = boxOf(runs);
  const height = runs.size[0];
  const bytes = new Uint8Array(box[2] * height);
  const counts = Uint32Array.from(runs.counts);
  counts[0] -= box[0] * height;
  if (box[2]) fill(bytes, { counts }, 1);
  return { box, bytes };
}

/** Paints one mask with a white line inside its edge and a dark one outside. */
export function paintStencil(context, { box: [left, top, columns, rows], bytes }, table, rgb, alpha, thick) {
  const [x0, x1] = reach(table.xs, left, left + columns, thick);
  const [y0, y1] = reach(table.ys, top, top + rows, thick);
  if (x0 >= x1 || y0 >= y1) return;
  const xs = table.xs.map((x) => (x >= left && x < left + columns ? x - left : -1));
  const found = sample(bytes, { ...table, xs }, [x0, y0, x1, y1]);
  context.putImageData(outlined(found, x1 - x0, y1 - y0, rgb, alpha, thick), x0, y0);
}

/** From which canvas pixel to before which the picture's from `first` to before `end` are shown. */
function reach(table, first, end, margin) {
  const isIn = (pixel) => pixel >= first && pixel < end;
  const from = table.findIndex(isIn);
  if (from < 0) return [0, 0];
  return [Math.max(from - margin, 0), Math.min(table.findLastIndex(isIn) + 1 + margin, table.length)];
}

/** Bytes, 1 where a mask is, as an image: a white line inside its edge and a dark one outside. */
export function outlined(found, width, height, rgb, alpha, thick) {
  const image = new ImageData(width, height);
  const pixels = new Uint32Array(image.data.buffer);
  const [inside, inner, outer] = [packed(rgb, 255 * alpha), packed(WHITE, 255), packed(DARK, 165)];
  for (let y = 0, at = 0; y < height; y++) {
    for (let x = 0; x < width; x++, at++) {
      const label = found[at];
      const edge = isEdge(found, at, x, y, width, height, thick, label);
      if (label) pixels[at] = edge ? inner : inside;
      else if (edge) pixels[at] = outer;
    }
  }
  return image;
}

/** Red, green, blue and alpha as a canvas keeps them in memory. */
function packed([red, green, blue], alpha) {
  return new Uint32Array(Uint8ClampedArray.of(red, green, blue, alpha).buffer)[0];
}
