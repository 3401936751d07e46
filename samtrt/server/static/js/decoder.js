// The page's side of the mask decoder: promises over a worker's messages.

import { authorization } from "./api.js";

const MAX_THREADS = 4;
const PATIENCE = 20_000; // milliseconds without a word, after which a worker is taken to hang

export class Decoder {
  #worker;
  #heard = () => {};
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
    const { content } = document.querySelector("meta[name=mask-decoder]");
    const found = content.split(" "); // address, bytes, address, bytes
    const graphs = [0, 2].map((at) => ({
      url: new URL(found[at], document.baseURI).href,
      bytes: Number(found[at + 1]),
    }));
    this.ready = this.#start(graphs).then((threads) => (this.threads = threads));
    this.ready.catch(() => {}); // whoever awaits it says so
  }

  /** In Firefox a worker, or the runtime's threads in it, now and then never answer. So one that says
   * nothing for long is ended, and another one begins, of one thread; the last has all the time. */
  async #start(graphs) {
    for (const maxThreads of [MAX_THREADS, 1]) {
      let timer;
      const hangs = new Promise((resolve) => {
        this.#heard = () => {
          clearTimeout(timer);
          timer = setTimeout(resolve, PATIENCE);
        };
      });
      this.#heard();
      try {
        const threads = await Promise.race([this.#launch(graphs, maxThreads), hangs]);
        if (threads !== undefined) return threads;
      } finally {
        clearTimeout(timer);
        this.#heard = () => {};
      }
      this.#worker.terminate();
      this.#waiting.clear();
    }
    return this.#launch(graphs, 1);
  }

  #launch(graphs, maxThreads) {
    const worker = new Worker(new URL("decoder-worker.js", import.meta.url), { type: "module" });
    this.#worker = worker;
    worker.onmessage = ({ data: { id, result, error, loaded, total } }) => {
      if (worker !== this.#worker) return; // said before it was ended
      this.#heard();
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
    worker.onerror = (event) => {
      event.preventDefault();
      const error = new Error(event.message || "the worker did not start");
      this.#waiting.forEach(({ reject }) => reject(error));
      this.#waiting.clear();
    };
    return this.#call("start", { graphs, maxThreads, headers: authorization() });
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
