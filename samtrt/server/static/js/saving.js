// The scene's masks are kept in the browser as they change, under the picture's hash.

import { notify } from "./notices.js";
import { ConflictError, store } from "./store.js";

const REST = 250; // milliseconds without a change
const line = document.getElementById("saved");

export class Saving {
  #scene;
  #picture = null; // {hash, name, bitmap, done}
  #masks = null; // as they were last seen
  #timer = 0;
  #version = 0;
  #savedVersion = 0;
  #since = null; // savedAt of what is kept of the picture
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

  /**
   * From now on the scene is about this picture, null for none, and shows what was kept of it.
   * @param since savedAt of that, or null.
   */
  setPicture(picture, since = null) {
    this.#picture = picture;
    this.#since = since;
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
    this.#say(""); // what it said was true of the version before
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
      await store.saveWork(record, this.#since);
    } catch (error) {
      if (!this.#hasFailed) this.#complain(error, picture);
      this.#hasFailed = true;
      this.#say("Not kept in this browser");
      return;
    }
    this.#hasFailed = false;
    if (picture !== this.#picture) return;
    this.#since = record.masks.length || record.done ? record.savedAt : null;
    this.#savedVersion = version;
    if (!this.isUnsaved) this.#say("Kept in this browser");
  }

  #complain(error, picture) {
    if (error instanceof ConflictError) {
      const act = async () => {
        this.#since = (await store.work(picture.hash))?.savedAt ?? null;
        await this.flush();
      };
      notify(`${picture.name} was changed in another tab; what is here is not kept. Reload to see the other.`, {
        error: true,
        action: { label: "Keep this one", act },
      });
      return;
    }
    console.error(error);
    notify(`The masks could not be kept in this browser (${error?.name ?? "no storage"}). Download them before you leave.`, { error: true });
  }

  #say(text) {
    line.textContent = text;
  }
}
