// The pictures of a folder: a strip of thumbnails, which are done, and which is open.

import { digestOf } from "./digest.js";
import { store } from "./store.js";

const THUMB_HEIGHT = 56;
const byId = (id) => document.getElementById(id);
const list = byId("strip-list");

export class Gallery {
  #entries = []; // {file, name, hash, count, done, isBroken, item}
  #current = null;
  #scan = 0; // which run of #look may go on
  #open;

  /** @param open called with the entry {file, name} that is wanted. */
  constructor(open) {
    this.#open = open;
    byId("previous").addEventListener("click", () => this.step(-1));
    byId("next").addEventListener("click", () => this.step(1));
    list.addEventListener("keydown", (event) => this.#onKey(event));
  }

  get entries() {
    return this.#entries;
  }

  /** The entry after the open one, or null. */
  get following() {
    return this.#entries[this.#entries.indexOf(this.#current) + 1] ?? null;
  }

  /** @param files [{file, name}], in order; fewer than two need no strip. */
  setFiles(files) {
    this.#entries = files.length > 1 ? files.map(({ file, name }) => newEntry(file, name)) : [];
    this.#current = null;
    list.replaceChildren(...this.#entries.map((entry) => entry.item));
    for (const entry of this.#entries) {
      entry.button.addEventListener("click", () => this.#open(entry));
    }
    this.#render();
    this.#look(++this.#scan);
  }

  find(file) {
    return this.#entries.find((entry) => entry.file === file) ?? null;
  }

  setCurrent(file) {
    this.#current = this.find(file);
    this.#render();
    this.#current?.item.scrollIntoView({ block: "nearest", inline: "center" });
  }

  /** What is known of a picture, {hash, count, done}, has changed; of the open one by default. */
  update(fields, entry = this.#current) {
    if (!entry) return;
    Object.assign(entry, fields);
    this.#render();
  }

  step(by) {
    const next = this.#entries[this.#entries.indexOf(this.#current) + by];
    if (next) this.#open(next);
  }

  /** Thumbnails, and what was kept of each picture, one after the other. */
  async #look(scan) {
    for (const entry of this.#entries) {
      if (scan !== this.#scan) return;
      try {
        entry.button.prepend(await thumbnailOf(entry.file));
        entry.hash ??= await digestOf(entry.file);
        const work = await store.work(entry.hash).catch(() => null);
        if (work && entry !== this.#current) Object.assign(entry, { count: work.masks.length, done: work.done });
      } catch {
        entry.isBroken = true;
      }
      this.#render();
    }
  }

  #render() {
    byId("strip").hidden = !this.#entries.length;
    const at = this.#entries.indexOf(this.#current);
    byId("previous").disabled = at <= 0;
    byId("next").disabled = at === this.#entries.length - 1;
    const done = this.#entries.filter((entry) => entry.done).length;
    byId("strip-count").textContent = `${at + 1} of ${this.#entries.length}, ${done} done`;
    for (const entry of this.#entries) {
      const { button, name, count, isBroken } = entry;
      const isCurrent = entry === this.#current;
      const facts = isBroken ? "not a picture" : `${count} ${count === 1 ? "mask" : "masks"}${entry.done ? ", done" : ""}`;
      button.setAttribute("aria-label", `${name}, ${facts}`);
      button.title = `${name}, ${facts}`;
      button.setAttribute("aria-current", isCurrent);
      button.classList.toggle("done", entry.done);
      button.classList.toggle("broken", isBroken);
      button.dataset.count = count || "";
      button.tabIndex = isCurrent || (at < 0 && entry === this.#entries[0]) ? 0 : -1;
    }
  }

  #onKey(event) {
    const buttons = this.#entries.map((entry) => entry.button);
    const at = buttons.indexOf(document.activeElement);
    const to = { ArrowRight: at + 1, ArrowLeft: at - 1, Home: 0, End: buttons.length - 1 }[event.key];
    if (to === undefined || !buttons[to]) return;
    buttons[to].focus();
    event.preventDefault();
  }
}

function newEntry(file, name) {
  const item = document.createElement("li");
  const button = document.createElement("button");
  button.type = "button";
  item.append(button);
  return { file, name, hash: null, count: 0, done: false, isBroken: false, item, button };
}

async function thumbnailOf(file) {
  const bitmap = await createImageBitmap(file, { resizeHeight: THUMB_HEIGHT * 2, resizeQuality: "medium" });
  const canvas = document.createElement("canvas");
  [canvas.width, canvas.height] = [bitmap.width, bitmap.height];
  canvas.getContext("2d").drawImage(bitmap, 0, 0);
  bitmap.close();
  return canvas;
}
