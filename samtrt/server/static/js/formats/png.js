// PNGs that a canvas cannot write: a byte a pixel, grey or an index into a palette.

import { eachStretch } from "../runs.js";
import { crc32 } from "./zip.js";

const SIGNATURE = Uint8Array.of(137, 80, 78, 71, 13, 10, 26, 10);
const GREY = 0, INDEXED = 3;

/** One mask, 255 on 0. */
export function maskPng(runs) {
  const [height, width] = runs.size;
  return pngOf(width, height, painted([{ runs, value: 255 }], width, height), null);
}

/**
 * Each pixel has the index of the mask, or the class, that is there; 0 for none. Small ones lie on
 * large ones, as on the page.
 * @param masks [{runs, value}], the large ones first; values are at most 255.
 * @param palette [[red, green, blue], …] from index 0.
 */
export function indexedPng(masks, { width, height }, palette) {
  return pngOf(width, height, painted(masks, width, height), palette);
}

function painted(masks, width, height) {
  const row = width + 1; // each begins with its filter, which is none
  const bytes = new Uint8Array(row * height);
  for (const { runs, value } of masks) {
    eachStretch(runs, (x, top, bottom) => {
      for (let y = top; y < bottom; y++) bytes[y * row + x + 1] = value;
    });
  }
  return bytes;
}

async function pngOf(width, height, rows, palette) {
  const head = new Uint8Array(13);
  const view = new DataView(head.buffer);
  view.setUint32(0, width);
  view.setUint32(4, height);
  head.set([8, palette ? INDEXED : GREY, 0, 0, 0], 8);
  const deflated = new Response(new Blob([rows]).stream().pipeThrough(new CompressionStream("deflate")));
  const chunks = [chunk("IHDR", head)];
  if (palette) chunks.push(chunk("PLTE", Uint8Array.from(palette.flat())));
  chunks.push(chunk("IDAT", new Uint8Array(await deflated.arrayBuffer())), chunk("IEND", new Uint8Array(0)));
  return new Blob([SIGNATURE, ...chunks], { type: "image/png" });
}

function chunk(type, data) {
  const bytes = new Uint8Array(12 + data.length);
  const view = new DataView(bytes.buffer);
  view.setUint32(0, data.length);
  bytes.set(new TextEncoder().encode(type), 4);
  bytes.set(data, 8);
  view.setUint32(8 + data.length, crc32(bytes.subarray(4, 8 + data.length)));
  return bytes;
}
