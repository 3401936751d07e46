// One picture at a time: from a file to an embedding, from prompts to masks.

import * as api from "./api.js";
import { digestOf } from "./digest.js";
import { Previews } from "./previews.js";
import { textToCounts } from "./runs.js";

const SIGNATURES = [
  ["image/jpeg", [0xff, 0xd8, 0xff]],
  ["image/png", [0x89, 0x50, 0x4e, 0x47]],
  ["image/webp", [0x52, 0x49, 0x46, 0x46]],
];

export class Session {
  #decoder;
  #limits = null;
  #picture = null;
  #embedding = null; // what /embed answered
  #whole = null; // {answer, buffer} of the picture
  #prompted = null; // what /embed answered of what prompts are about
  #previews;

  constructor(decoder) {
    this.#decoder = decoder;
    this.#previews = new Previews(decoder);
  }

  get isReady() {
    return this.#embedding !== null;
  }

  /** The server's limits and usual times, asked for anew each time. */
  async health() {
    this.#limits = await api.health();
    return this.#limits;
  }

  /**
   * A picture that can be shown, sent and known again: {name, file, bitmap, blob, hash}.
   * @throws Error with a message for the user.
   */
  async read(file, name) {
    let bitmap;
    try {
      bitmap = await createImageBitmap(file);
    } catch {
      throw new Error(`${name} is not a picture that the browser can read. Try a JPEG, PNG or WebP.`);
    }
    const [blob, hash] = await Promise.all([uploadable(file, bitmap), digestOf(file)]);
    const limits = this.#limits ?? (await this.health());
    if (blob.size > limits.max_upload_bytes) {
      throw new Error(
        `${name} is ${megabytes(blob.size)}; the server takes ${megabytes(limits.max_upload_bytes)}. Scale it down or save it as a JPEG.`,
      );
    }
    return { name, file, bitmap, blob, hash };
  }

  /** What the server makes of a picture, for `use`; the picture at work stays. */
  async embed(picture, { signal, show, run }) {
    const { embed_seconds: usual } = await this.health();
    const onUpload = (share) =>
      share < 1 ? show(`Sending ${picture.name}`, share) : run(`Reading ${picture.name}`, usual);
    const answer = await api.embed(picture.blob, { signal, onUpload });
    if (answer.original_size.join() !== [picture.bitmap.height, picture.bitmap.width].join()) {
      throw new Error("Browser and server read this picture differently. Save it as a PNG and try again.");
    }
    return { answer, buffer: await api.embedding(answer.id, signal) };
  }

  /** Prompts are about this picture from now on. */
  async use(picture, { answer, buffer }, { signal, show, run }) {
    const onLoaded = (loaded, total) =>
      loaded < total
        ? show(`Loading the mask decoder, ${tenths(loaded)} of ${tenths(total)} MB`, loaded / total)
        : run("Starting the mask decoder");
    this.#decoder.onLoaded = onLoaded;
    onLoaded(this.#decoder.loaded, this.#decoder.total);
    try {
      await unlessAborted(signal, this.#decoder.ready);
    } catch (error) {
      if (error.name === "AbortError") throw error;
      throw new Error(`The mask decoder could not start in this browser: ${error.message}`, { cause: error });
    } finally {
      this.#decoder.onLoaded = () => {};
    }
    this.#whole = { answer, buffer };
    await this.promptAbout(null);
    this.#picture = picture;
    this.#embedding = answer;
    this.#previews.rehearse().catch(console.error); // hovers and clicks say what is wrong
  }

  /** What the server makes of a part of the picture, for `promptAbout`. */
  async embedPart(blob, signal) {
    const answer = await api.embed(blob, { signal, onUpload: () => {} });
    return { answer, buffer: await api.embedding(answer.id, signal) };
  }

  /** Prompts and masks are about a part of the picture from now on, or about all of it (null). */
  async promptAbout(part) {
    const { answer, buffer } = part ?? this.#whole;
    if (this.#prompted === answer) return;
    this.#prompted = answer;
    this.#previews.setPicture(answer);
    await this.#decoder.setPicture({
      embedding: buffer.slice(0), // the decoder takes it over
      shape: answer.embedding_shape,
      originalSize: answer.original_size,
      inputSize: answer.input_size,
      frame: answer.frame_size,
    });
  }

  /** A mask for points [[x, y, label], …] and a box; the picture's own size. */
  async mask(points, box = null, earlier = null, rank = 0) {
    const { runs, score, logits } = await this.#decoder.decode({
      points,
      box,
      maskInput: earlier?.logits ?? null,
      // One point is ambiguous: a button, a shirt or the person. Anything more is not.
      multimask: points.length === 1 && !box,
      rank,
      targets: [{ size: this.#prompted.original_size }],
    });
    return { points, box, runs: runs[0], score, logits, rank };
  }

  /** As Previews'. */
  async hover(point, target, onRuns) {
    if (this.isReady) await this.#previews.hover(point, target, onRuns);
  }

  stopHover() {
    this.#previews.stop();
  }

  /**
   * Masks of everything, as they are found. An embedding that the server has forgotten is made again.
   * @param options the server's, without id.
   * @param onEvent called with {pointsDone, pointsTotal, found, dropped}: masks with the `number` that
   *   `dropped` means.
   * @returns the masks at the end, in their final order.
   */
  async everything(options, { signal, show, run }, onEvent) {
    const ask = () => api.everything({ id: this.#embedding.id, ...options }, signal, (event) => {
      if (!event.points_total) return;
      onEvent({
        pointsDone: event.points_done,
        pointsTotal: event.points_total,
        found: event.found.map((mask) => ({ ...maskOf(mask), number: mask.id })),
        dropped: event.dropped,
      });
    });
    let dataset;
    try {
      dataset = await ask();
    } catch (error) {
      if (error.status !== 404) throw error;
      await this.use(this.#picture, await this.embed(this.#picture, { signal, show, run }), { signal, show, run });
      dataset = await ask();
    }
    return dataset.annotations.map(maskOf);
  }
}

function maskOf({ point_coords: points, segmentation, predicted_iou: score }) {
  return {
    points: points.map(([x, y]) => [x, y, 1]),
    box: null,
    runs: { size: segmentation.size, counts: textToCounts(segmentation.counts) },
    score,
    logits: null,
  };
}

/** The file as it is where the server takes its type, else as a PNG. */
async function uploadable(file, bitmap) {
  const head = new Uint8Array(await file.slice(0, 16).arrayBuffer());
  const found = SIGNATURES.find(([, bytes]) => bytes.every((byte, i) => head[i] === byte));
  if (found) return file.slice(0, file.size, found[0]);
  const canvas = new OffscreenCanvas(bitmap.width, bitmap.height);
  canvas.getContext("2d").drawImage(bitmap, 0, 0);
  return canvas.convertToBlob({ type: "image/png" });
}

function unlessAborted(signal, promise) {
  signal.throwIfAborted();
  const aborted = new Promise((_, reject) => {
    signal.addEventListener("abort", () => reject(signal.reason), { once: true });
  });
  return Promise.race([promise, aborted]);
}

function tenths(bytes) {
  return (bytes / 2 ** 20).toFixed(1);
}

function megabytes(bytes) {
  return `${(bytes / 2 ** 20).toFixed(0)} MB`;
}
