// The page's side of the mask decoder: promises over a worker's messages.

import { authorization } from "./api.js";

export class Decoder {
  #worker = new Worker(new URL("decoder-worker.js", import.meta.url), { type: "module" });
  #waiting = new Map();
  #lastId = 0;

  /** Resolves when the model is loaded. */
  ready;
  /** Threads that decode, once it is. */
  threads = 1;
  /** Bytes of the model that are there, and of all of it; told to onLoaded(loaded, total). */
  loaded = 0;
  total = 1;
  onLoaded = () => {};

  constructor() {
    this.#worker.onmessage = ({ data: { id, result, error, loaded, total } }) => {
      if (loaded !== undefined) {
        Object.assign(this, { loaded, total });
        this.onLoaded(loaded, total);
        return;
      }
      const { resolve, reject } = this.#waiting.get(id);
      this.#waiting.delete(id);
      if (error === undefined) resolve(result);
      else reject(new Error(error));
    };
    this.#worker.onerror = (event) => {
      event.preventDefault();
      const error = new Error(event.message || "the worker did not start");
      this.#waiting.forEach(({ reject }) => reject(error));
      this.#waiting.clear();
    };
    const { content } = document.querySelector("meta[name=mask-decoder]");
    const found = content.split(" "); // address, bytes, address, bytes
    const graphs = [0, 2].map((at) => ({
      url: new URL(found[at], document.baseURI).href,
      bytes: Number(found[at + 1]),
    }));
    this.ready = this.#call("start", { graphs, headers: authorization() }).then((threads) => (this.threads = threads));
    this.ready.catch(() => {}); // whoever awaits it says so
  }

  /** Sets the picture that prompts are about; takes the embedding's buffer over. */
  setPicture(description) {
    return this.#call("picture", description, [description.embedding]);
  }

  /** See decoder-worker.js. */
  decode(prompt) {
    return this.#call("decode", prompt);
  }

  #call(method, argument = null, transfer = []) {
    const id = ++this.#lastId;
    return new Promise((resolve, reject) => {
      this.#waiting.set(id, { resolve, reject });
      this.#worker.postMessage({ id, method, argument }, transfer);
    });
  }
}
