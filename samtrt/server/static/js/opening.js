// From files to the open picture: the old one stays until the new one can be worked on.

import * as api from "./api.js";
import { Gallery } from "./gallery.js";
import { announce, complain, dismissNotices, notify } from "./notices.js";
import { isWorking, withProgress } from "./progress.js";
import { store } from "./store.js";

const OPEN = "samtrt-open"; // the picture that this tab shows, for a reload
const byId = (id) => document.getElementById(id);

export class Opening {
  #page;
  #picture = null;
  #ahead = null; // {file, abort, promise}: the next picture, read and embedded beforehand
  gallery = new Gallery((entry) => this.open(entry.file, entry.name));

  /** @param page {session, scene, stage, panel, prompting, saving}. */
  constructor(page) {
    this.#page = page;
    page.scene.addEventListener("change", () => this.gallery.update({ count: page.scene.masks.length }));
  }

  /** The open picture {name, file, bitmap, hash, done}, or null. */
  get picture() {
    return this.#picture;
  }

  /**
   * One picture, or a folder of them: [{file, name}], and the first is opened.
   * @param isAgain whether they were open before: then the one that was open last is.
   */
  async openFiles(files, { isAgain = false } = {}) {
    if (isBusy() || !files.length) return;
    const last = isAgain ? (this.#picture ?? (await store.lastPicture().catch(() => null))) : null;
    const found = files.find((entry) => last && isSame(entry, last));
    this.gallery.setFiles(files);
    if (found && this.#picture) {
      this.#picture.file = found.file;
      if (byId("panel").hidden) this.#show(this.#picture); // from the first page
      else this.#list(this.#picture);
      this.#lookAhead();
    } else {
      const { file, name } = found ?? files[0];
      await this.open(file, name);
    }
  }

  async open(file, name) {
    if (isBusy()) return;
    dismissNotices();
    try {
      await withProgress(async (progress) => {
        const { picture, embedded } = await this.#made(file, name, progress);
        await this.#arrive(picture, embedded, progress);
      });
      this.#page.stage.surface.focus({ preventScroll: true });
    } catch (error) {
      if (this.#picture) {
        if (error.name !== "AbortError") error.message += ` ${this.#picture.name} stays open.`;
      } else {
        this.showStart();
      }
      complain(error, () => this.open(file, name));
    }
  }

  async openSample() {
    if (isBusy()) return;
    try {
      const file = await api.sample();
      await this.openFiles([{ file, name: "sample.jpg" }]);
    } catch (error) {
      complain(error, () => this.openSample());
    }
  }

  /** The picture that was open last: at once where this tab was reloaded, else it is offered. */
  async resume() {
    const last = await store.lastPicture().catch(() => null);
    if (!last) return;
    if (sessionStorage.getItem(OPEN) === last.hash) {
      await this.open(last.file, last.name);
      return;
    }
    const work = await store.work(last.hash).catch(() => null);
    this.#offer(last.name, work?.masks.length ?? 0, () => this.open(last.file, last.name));
  }

  /** The first page again; what is open stays and is offered. */
  showStart() {
    if (isBusy()) return;
    dismissNotices();
    for (const id of ["frame", "panel", "toolbar", "strip"]) byId(id).hidden = true;
    byId("empty").hidden = false;
    byId("picture-name").textContent = "";
    sessionStorage.removeItem(OPEN);
    if (this.#picture) {
      this.#offer(this.#picture.name, this.#page.scene.masks.length, () => this.#show(this.#picture));
    }
  }

  /** Marks the picture as done, or no longer. */
  async setDone(done) {
    if (!this.#picture) return;
    this.#showDone(done);
    await this.#page.saving.setDone(done);
  }

  #offer(name, count, act) {
    const button = byId("continue");
    button.hidden = false;
    button.textContent = `Continue with ${name}, ${count} ${count === 1 ? "mask" : "masks"}`;
    button.onclick = act;
  }

  /** The picture and its embedding; perhaps they were made while the last one was at work. */
  async #made(file, name, progress) {
    const ahead = this.#ahead;
    this.#ahead = null;
    if (ahead?.file === file) {
      progress.run(`Reading ${name}`);
      const abort = () => ahead.abort.abort();
      progress.signal.addEventListener("abort", abort, { once: true });
      try {
        return await ahead.promise;
      } catch (error) {
        if (progress.signal.aborted) throw error;
        // It failed out of sight; what is wrong is said when it fails again.
      }
    }
    ahead?.abort.abort();
    const { session } = this.#page;
    const picture = await session.read(file, name);
    progress.signal.throwIfAborted();
    if (!this.#picture) this.#preview(picture);
    return { picture, embedded: await session.embed(picture, progress) };
  }

  async #arrive(picture, embedded, progress) {
    const { session, scene, saving, prompting } = this.#page;
    const kept = await store.work(picture.hash).catch(() => null);
    await prompting.settled(); // its mask is of the picture that leaves
    await saving.flush();
    await session.use(picture, embedded, progress);
    saving.setPicture(null); // until the scene has the new one's masks
    this.gallery.setCurrent(null);
    this.#picture = picture;
    picture.done = kept?.done ?? false;
    scene.reset(kept?.masks.map((mask) => ({ ...mask, logits: null })));
    this.#show(picture);
    saving.setPicture(picture, kept?.savedAt ?? null);
    this.#greet(kept);
    this.#lookAhead();
    // Before it counts as open: it comes back after a reload.
    await store.saveLastPicture({ hash: picture.hash, name: picture.name, file: picture.file }).catch(console.error);
  }

  #greet(kept) {
    const count = kept?.masks.length;
    if (!count) {
      announce("The picture is ready.");
      return;
    }
    const day = new Date(kept.savedAt).toLocaleDateString(undefined, { day: "numeric", month: "long" });
    const text = `${count} ${count === 1 ? "mask" : "masks"} of ${day} ${count === 1 ? "is" : "are"} back.`;
    if (this.gallery.entries.length) announce(text);
    else notify(text);
  }

  /** The picture under the progress card, where there is no other to show. */
  #preview(picture) {
    byId("empty").hidden = true;
    this.#page.stage.setPicture(picture.bitmap);
    byId("picture-name").textContent = picture.name;
  }

  #show(picture) {
    const { name, bitmap, hash } = picture;
    const { stage, panel } = this.#page;
    byId("picture-name").textContent = name;
    byId("empty").hidden = true;
    byId("panel").hidden = byId("toolbar").hidden = false;
    panel.setPixels(bitmap.width * bitmap.height);
    stage.setPicture(bitmap);
    stage.surface.setAttribute("aria-label", `${name}, ${bitmap.width} by ${bitmap.height} pixels`);
    if (!this.gallery.find(picture.file)) this.gallery.setFiles([]);
    this.#list(picture);
    sessionStorage.setItem(OPEN, hash);
  }

  /** Shows in the strip that it is open. */
  #list({ file, hash, done }) {
    this.gallery.setCurrent(file);
    this.gallery.update({ hash, count: this.#page.scene.masks.length });
    this.#showDone(done);
  }

  #showDone(done) {
    byId("done").setAttribute("aria-pressed", done);
    this.gallery.update({ done });
  }

  #lookAhead() {
    const next = this.gallery.following;
    if (!next) return;
    const { session } = this.#page;
    const abort = new AbortController();
    const unseen = { signal: abort.signal, show() {}, run() {} };
    const make = async () => {
      const picture = await session.read(next.file, next.name);
      return { picture, embedded: await session.embed(picture, unseen) };
    };
    const promise = make();
    promise.catch(() => {}); // whoever opens it says so
    this.#ahead = { file: next.file, abort, promise };
  }
}

/** Whether two of {file, name} are the same file, read at different times. */
function isSame(a, b) {
  return a.name === b.name && a.file.size === b.file.size && a.file.lastModified === b.file.lastModified;
}

function isBusy() {
  if (isWorking()) notify("Something is at work still. Wait for its end, or cancel it.");
  return isWorking();
}
