// The scene's masks are kept in the browser as they change, under the picture's hash.

import { notify } from "./notices.js";
import { store } from "./store.js";

const REST = 250; // milliseconds without a change
const line = document.getElementById("saved");

export class Saving {
  #scene;
  #picture = null; // {hash, name, bitmap, done}
  #masks = null; // as they were last seen
  #timer = 0;
  #version = 0;
  #savedVersion = 0;
  #hasFailed = false;
  #writing = Promise.resolve();

  constructor(scene) {
    this.#scene = scene;
    scene.addEventListener("change", () => {
      if (scene.masks === this.#masks) return; // another one is selected
      this.#masks = scene.masks;
      this.#changed();
    });
    addEventListener("beforeunload", (event) => {
      if (!this.isUnsaved) return;
      this.flush();
      event.preventDefault();
    });
    document.addEventListener("visibilitychange", () => document.hidden && this.flush());
  }

  get isUnsaved() {
    return this.#version !== this.#savedVersion;
  }

  /** From now on the scene is about this picture, and shows what was kept of it; null for none. */
  setPicture(picture) {
    this.#picture = picture;
    this.#masks = this.#scene.masks;
    this.#savedVersion = this.#version;
    clearTimeout(this.#timer);
    this.#say("");
  }

  setDone(done) {
    this.#picture.done = done;
    this.#changed();
    return this.flush();
  }

  /** Writes what is not written yet. */
  flush() {
    clearTimeout(this.#timer);
    if (this.#picture && this.isUnsaved) {
      const [picture, version] = [this.#picture, this.#version];
      const record = this.#record(picture);
      this.#writing = this.#writing.then(() => this.#write(picture, record, version));
    }
    return this.#writing;
  }

  #changed() {
    if (!this.#picture) return;
    this.#version++;
    clearTimeout(this.#timer);
    this.#timer = setTimeout(() => this.flush(), REST);
  }

  #record({ hash, name, bitmap, done }) {
    return {
      hash,
      name,
      width: bitmap.width,
      height: bitmap.height,
      done,
      savedAt: Date.now(),
      masks: this.#scene.masks.map(({ logits, ...mask }) => mask),
    };
  }

  async #write(picture, record, version) {
    try {
      if (record.masks.length || record.done) await store.saveWork(record);
      else await store.removeWork(record.hash);
    } catch (error) {
      console.error(error);
      if (!this.#hasFailed) {
        notify(`The masks could not be kept in this browser (${error?.name ?? "no storage"}). Download them before you leave.`, { error: true });
      }
      this.#hasFailed = true;
      this.#say("Not kept in this browser");
      return;
    }
    this.#hasFailed = false;
    if (picture !== this.#picture) return;
    this.#savedVersion = version;
    this.#say("Kept in this browser");
  }

  #say(text) {
    line.textContent = text;
  }
}
