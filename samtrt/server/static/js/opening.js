// How a picture gets into the page: chosen, dropped, pasted, or the sample.

import * as api from "./api.js";
import { announce, complain, dismissNotices, notify } from "./notices.js";
import { isWorking, withProgress } from "./progress.js";

const byId = (id) => document.getElementById(id);

export class Opening {
  #page;
  fileName = "picture";

  /** @param page {session, scene, stage, panel, prompting}. */
  constructor(page) {
    this.#page = page;
    this.#listen();
  }

  async open(file, name) {
    if (isWorking()) return;
    const { session, stage, prompting } = this.#page;
    dismissNotices();
    try {
      await withProgress(async (progress) => {
        await prompting.settled(); // its mask is of the picture that leaves
        await session.open(file, progress, (bitmap) => this.#show(bitmap, name));
      });
      stage.surface.focus({ preventScroll: true });
      announce("The picture is ready.");
    } catch (error) {
      complain(error, () => this.open(file, name));
    }
  }

  async openSample() {
    try {
      await this.open(await api.sample(), "sample.jpg");
    } catch (error) {
      complain(error, () => this.openSample());
    }
  }

  #show(bitmap, name) {
    const { scene, stage, panel } = this.#page;
    scene.reset();
    this.fileName = name;
    byId("picture-name").textContent = name;
    byId("empty").hidden = true;
    byId("panel").hidden = byId("toolbar").hidden = false;
    panel.setPixels(bitmap.width * bitmap.height);
    stage.setPicture(bitmap);
    stage.surface.setAttribute("aria-label", `${name}, ${bitmap.width} by ${bitmap.height} pixels`);
  }

  #listen() {
    for (const id of ["sample", "try-sample"]) byId(id).addEventListener("click", () => this.openSample());
    for (const id of ["open", "choose"]) byId(id).addEventListener("click", () => byId("file").click());
    byId("file").addEventListener("change", ({ target }) => {
      const [file] = target.files;
      target.value = ""; // so that the same file can be chosen again
      if (file) this.open(file, file.name);
    });

    let depth = 0; // dragenter and dragleave come for every element passed
    const hint = byId("drop-hint");
    addEventListener("dragenter", () => (hint.hidden = ++depth === 0));
    addEventListener("dragleave", () => (hint.hidden = --depth === 0));
    addEventListener("dragover", (event) => event.preventDefault());
    addEventListener("drop", (event) => {
      event.preventDefault();
      depth = 0;
      hint.hidden = true;
      const [file] = event.dataTransfer.files;
      if (file) this.open(file, file.name);
      else notify("That was not a file. Drop a picture from your computer.");
    });
    addEventListener("paste", (event) => {
      const [file] = event.clipboardData.files;
      if (file) this.open(file, file.name || "pasted.png");
    });
  }
}
