// The mask decoder, off the page's thread. One embedding at a time; requests are answered in order.

import * as ort from "../vendor/ort.wasm.min.mjs";
import { runsFromLogits } from "./runs.js";

const MAX_THREADS = 4;
let session = null;
let picture = null;

const handlers = {
  async start({ url, headers }) {
    const response = await fetch(url, { headers });
    if (!response.ok) throw new Error(`the mask decoder did not load (HTTP ${response.status})`);
    ort.env.wasm.wasmPaths = new URL("../vendor/", import.meta.url).href;
    ort.env.wasm.numThreads = self.crossOriginIsolated
      ? Math.min(MAX_THREADS, navigator.hardwareConcurrency || 1)
      : 1;
    session = await ort.InferenceSession.create(new Uint8Array(await response.arrayBuffer()), {
      executionProviders: ["wasm"],
      graphOptimizationLevel: "all",
    });
  },

  picture(description) {
    picture = description;
    picture.tensor = new ort.Tensor("float32", new Float32Array(description.embedding), description.shape);
  },

  /**
   * @param points [[x, y, label], …] and box [x0, y0, x1, y1] or null, in pixels of the picture.
   * @param maskInput logits of an earlier answer, or null.
   * @param multimask one of three masks, or the one mask for unambiguous prompts.
   * @param rank which of the three, by score; 0 for the best.
   * @param targets [{size, window}, …] for which runs are wanted, see runsFromLogits.
   */
  async decode({ points, box, maskInput, multimask, rank = 0, targets }) {
    const { originalSize, inputSize, frame, shape } = picture;
    const scaleX = inputSize[1] / originalSize[1];
    const scaleY = inputSize[0] / originalSize[0];
    // A box is two more points; without one, the model expects a padding point.
    const prompt = box
      ? [...points, [box[0], box[1], 2], [box[2], box[3], 3]]
      : [...points, [0, 0, -1]];
    const coords = Float32Array.from(prompt.flatMap(([x, y]) => [x * scaleX, y * scaleY]));
    const labels = Float32Array.from(prompt.map(([, , label]) => label));
    const side = 4 * shape[2];
    const output = await session.run({
      image_embeddings: picture.tensor,
      point_coords: new ort.Tensor("float32", coords, [1, prompt.length, 2]),
      point_labels: new ort.Tensor("float32", labels, [1, prompt.length]),
      mask_input: new ort.Tensor("float32", maskInput ?? new Float32Array(side * side), [1, 1, side, side]),
      has_mask_input: new ort.Tensor("float32", [maskInput ? 1 : 0], [1]),
    });
    const scores = output.iou_predictions.data;
    const ranked = [...scores.keys()].slice(1).sort((a, b) => scores[b] - scores[a]);
    const chosen = multimask ? ranked[rank] : 0;
    const logits = output.low_res_masks.data.slice(chosen * side * side, (chosen + 1) * side * side);
    return {
      score: scores[chosen],
      logits,
      runs: targets.map(({ size, window }) => runsFromLogits(logits, side, frame, inputSize, size, window)),
    };
  },
};

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
