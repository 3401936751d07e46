// The mask decoder, off the page's thread. One picture at a time; requests are answered in order.
//
// Two graphs (samtrt/decoders/browser/graphs.py): what a picture gives to all prompts is computed once,
// and again only where a prompt starts from an earlier mask.

import * as ort from "../vendor/ort.wasm.min.mjs";
import { runsFromLogits } from "./runs.js";

const TICK = 150; // milliseconds between two tellings of how much is loaded
const OPTIONS = { executionProviders: ["wasm"], graphOptimizationLevel: "all" };
let preparation = null;
let decoder = null;
let picture = null;

const handlers = {
  /**
   * @param graphs [{url, bytes}, {url, bytes}]: what prepares, what decodes.
   * @param maxThreads at most so many threads compute.
   * @returns how many do.
   */
  async start({ graphs, headers, maxThreads }) {
    ort.env.wasm.wasmPaths = new URL("../vendor/", import.meta.url).href;
    ort.env.wasm.numThreads = self.crossOriginIsolated
      ? Math.min(maxThreads, navigator.hardwareConcurrency || 1)
      : 1;
    const total = graphs.reduce((sum, { bytes }) => sum + bytes, 0);
    let loaded = 0;
    let told = 0;
    const onBytes = (count) => {
      loaded += count;
      if (loaded < total && performance.now() - told < TICK) return; // each telling is a repaint
      told = performance.now();
      self.postMessage({ loaded, total });
    };
    const [first, second] = graphs.map(({ url }) => download(url, headers, onBytes));
    let isWaiting = true;
    second.catch(() => {}).then(() => (isWaiting = false)); // the first one's failure is told first
    // The small graph starts the runtime, which is downloaded beside the large one.
    preparation = await ort.InferenceSession.create(await first, OPTIONS);
    if (isWaiting) await rehearse();
    decoder = await ort.InferenceSession.create(await second, OPTIONS);
    return ort.env.wasm.numThreads;
  },

  /** @param description embedding (float16), shape, originalSize, inputSize and frame. */
  async picture(description) {
    picture = { ...description, embedding: new Uint16Array(description.embedding) };
    picture.prepared = await prepare(null);
  },

  /**
   * @param points [[x, y, label], …] and box [x0, y0, x1, y1] or null, in pixels of the picture.
   * @param maskInput logits of an earlier answer, or null.
   * @param multimask one of three masks, or the one mask for unambiguous prompts.
   * @param rank which of the three, by score; 0 for the best.
   * @param preview whether the logits are not used again: only what shows is computed.
   * @param targets [{size, window}, …] for which runs are wanted, see runsFromLogits.
   */
  async decode({ points, box, maskInput, multimask, rank = 0, preview = false, targets }) {
    const { originalSize, inputSize, frame, shape } = picture;
    const scaleX = inputSize[1] / originalSize[1];
    const scaleY = inputSize[0] / originalSize[0];
    // A box is two more points; without one, the model expects a padding point.
    const prompt = box
      ? [...points, [box[0], box[1], 2], [box[2], box[3], 3]]
      : [...points, [0, 0, -1]];
    const coords = Float32Array.from(prompt.flatMap(([x, y]) => [x * scaleX, y * scaleY]));
    const labels = Float32Array.from(prompt.map(([, , label]) => label));
    const grid = shape[2];
    // One token more than the picture covers: its edge is interpolated with what lies beyond.
    const covered = (pixels) =>
      preview ? Math.min(grid, Math.floor((pixels * grid) / frame) + 1) : grid;
    const [rows, columns] = inputSize.map(covered);
    const output = await decoder.run({
      ...(maskInput ? await prepare(maskInput) : picture.prepared),
      point_coords: new ort.Tensor("float32", coords, [1, prompt.length, 2]),
      point_labels: new ort.Tensor("float32", labels, [1, prompt.length]),
      rows: indices(rows),
      columns: indices(columns),
    });
    const scores = output.iou_predictions.data;
    const ranked = [...scores.keys()].slice(1).sort((a, b) => scores[b] - scores[a]);
    const chosen = multimask ? ranked[rank] : 0;
    const size = 16 * rows * columns;
    const found = output.low_res_masks.data.subarray(chosen * size, (chosen + 1) * size);
    const side = 4 * grid;
    const logits = widened(found, 4 * columns, side);
    return {
      score: scores[chosen],
      logits: preview ? null : logits,
      runs: targets.map(({ size, window }) => runsFromLogits(logits, side, frame, inputSize, size, window)),
    };
  },
};

/** Prepares no picture, so that the browser has compiled what the first one takes. */
async function rehearse() {
  const [{ shape }] = preparation.inputMetadata.filter(({ name }) => name === "image_embeddings");
  picture = { embedding: new Uint16Array(shape.reduce((a, b) => a * b)), shape };
  await prepare(null);
}

/** What a picture, and an earlier mask's logits or null, give to all prompts. */
function prepare(maskInput) {
  const { embedding, shape } = picture;
  const side = 4 * shape[2];
  return preparation.run({
    image_embeddings: new ort.Tensor("float16", embedding, shape),
    mask_input: new ort.Tensor("float32", maskInput ?? new Float32Array(side * side), [1, 1, side, side]),
    has_mask_input: new ort.Tensor("float32", [maskInput ? 1 : 0], [1]),
  });
}

function indices(count) {
  return new ort.Tensor("int64", BigInt64Array.from({ length: count }, (_, i) => BigInt(i)), [count]);
}

/** Rows of `width` as the first of [side, side]. */
function widened(values, width, side) {
  const out = new Float32Array(side * side);
  for (let row = 0; row * width < values.length; row++) {
    out.set(values.subarray(row * width, (row + 1) * width), row * side);
  }
  return out;
}

async function download(url, headers, onBytes) {
  const response = await fetch(url, { headers });
  if (!response.ok) throw new Error(`the mask decoder did not load (HTTP ${response.status})`);
  const parts = [];
  for (const reader = response.body.getReader(); ; ) {
    const { done, value } = await reader.read();
    if (done) break;
    parts.push(value);
    onBytes(value.length);
  }
  return new Uint8Array(await new Blob(parts).arrayBuffer());
}

let last = Promise.resolve();
self.onmessage = ({ data: { id, method, argument } }) => {
  last = last.then(async () => {
    try {
      const result = await handlers[method](argument);
      self.postMessage({ id, result });
    } catch (error) {
      self.postMessage({ id, error: String(error?.message ?? error) });
    }
  });
};
