// What leaves the page as a file. Everything is at the picture's own size; hidden masks stay.

import { rgbOf } from "./colors.js";
import { digestOf } from "./digest.js";
import { classNames, classOf, cocoOf, hasHoles } from "./formats/coco.js";
import { indexedPng, maskPng } from "./formats/png.js";
import { svgOf } from "./formats/svg.js";
import { yoloDescription, yoloOf } from "./formats/yolo.js";
import { zipOf } from "./formats/zip.js";
import { complain, notify } from "./notices.js";
import { areaOf, eachStretch } from "./runs.js";
import { store } from "./store.js";

const MOST_INDICES = 255; // of a PNG with a palette, beside the background
const byId = (id) => document.getElementById(id);

export class Exporting {
  #page;

  /** @param page {scene, stage, opening, labels, saving}. */
  constructor(page) {
    this.#page = page;
    for (const button of document.querySelectorAll("[data-download]")) {
      button.addEventListener("click", () => this.#save(button.dataset.download).catch(complain));
    }
    byId("more-formats").addEventListener("click", () => this.#showDialog());
    byId("export-format").addEventListener("change", () => this.#onFormat());
    byId("export-form").addEventListener("submit", () => {
      this.#save(byId("export-format").value, Number(byId("tolerance").value)).catch(complain);
    });
  }

  #showDialog() {
    const { entries } = this.#page.opening.gallery;
    byId("export-scope").textContent = entries.length ? `All pictures of the folder that have masks or are done, of ${entries.length}.` : "";
    this.#onFormat();
    byId("export-dialog").showModal();
  }

  #onFormat() {
    const [option] = byId("export-format").selectedOptions;
    byId("tolerance-row").hidden = !("outlines" in option.dataset);
    byId("export-about").textContent = option.dataset.about;
  }

  async #save(format, tolerance = 0) {
    const { opening, labels } = this.#page;
    const pictures = await this.#pictures();
    const isFolder = opening.gallery.entries.length > 0;
    const stem = isFolder ? "pictures" : stemOf(opening.picture.name);
    if (format === "coco" || format === "coco-polygons") {
      const polygons = format === "coco-polygons";
      const text = JSON.stringify(cocoOf(pictures, labels.all, { polygons, tolerance }));
      save(new Blob([text], { type: "application/json" }), `${stem}-masks.json`);
      if (polygons) tellOfHoles(pictures);
      return;
    }
    if (format === "cutout" || format === "mask") {
      const shown = this.#page.scene.masks.filter((mask) => mask.visible);
      const blob = await drawn(shown, this.#page.stage.bitmap, format === "cutout");
      save(blob, `${stemOf(opening.picture.name)}-${format}.png`);
      return;
    }
    const files = await filesOf(format, pictures, labels.all, tolerance);
    if (files.length === 1) save(blobOf(files[0]), files[0].name.split("/").pop());
    else save(await zipOf(files), `${stem}-${format}.zip`);
    if (format === "yolo") tellOfHoles(pictures);
  }

  /** [{name, width, height, masks}] of the folder, or of the one picture; visible masks only. */
  async #pictures() {
    const { opening, scene, stage, saving } = this.#page;
    await saving.flush();
    const { picture, gallery } = opening;
    const { width, height } = stage.bitmap;
    const open = { name: picture.name, width, height, masks: scene.masks };
    const all = gallery.entries.length ? [] : [open];
    for (const entry of gallery.entries) {
      if (entry.file === picture.file) {
        all.push({ ...open, name: entry.name });
        continue;
      }
      entry.hash ??= await digestOf(entry.file);
      const work = await store.work(entry.hash);
      if (work) all.push({ ...work, name: entry.name });
    }
    return all.map((each) => ({ ...each, masks: each.masks.filter((mask) => mask.visible) }));
  }
}

/** [{name, content}] of a format with files for each picture. */
async function filesOf(format, pictures, labels, tolerance) {
  const all = pictures.flatMap(({ masks }) => masks);
  const names = classNames(labels, all);
  const nameOf = (mask) => labels.find(({ id }) => id === mask.label)?.name ?? null;
  const files = [];
  if (format === "yolo") files.push({ name: "data.yaml", content: yoloDescription(names) });
  for (const picture of pictures) {
    const stem = stemOf(picture.name);
    const masks = [...picture.masks].sort((a, b) => areaOf(b.runs) - areaOf(a.runs));
    if (format === "yolo") {
      const lines = picture.masks.map((mask) => ({ runs: mask.runs, classIndex: classOf(mask, labels, names) }));
      files.push({ name: `labels/${stem}.txt`, content: yoloOf(lines, picture, tolerance) });
    } else if (format === "svg") {
      const shown = masks.map((mask) => ({ ...mask, label: nameOf(mask) }));
      files.push({ name: `${stem}.svg`, content: svgOf(shown, picture, tolerance) });
    } else if (format === "png-masks") {
      for (const [i, mask] of picture.masks.entries()) {
        const number = String(i + 1).padStart(3, "0");
        const name = safe(nameOf(mask) ?? mask.name);
        files.push({ name: `${stem}/${number}-${name}.png`, content: await maskPng(mask.runs) });
      }
    } else if (format === "png-instances") {
      const values = masks.map((mask) => ({ runs: mask.runs, value: picture.masks.indexOf(mask) + 1 }));
      checkIndices(picture.masks.length, "masks", picture.name);
      const palette = [[0, 0, 0], ...picture.masks.map((mask) => rgbOf(mask.color))];
      files.push({ name: `${stem}-instances.png`, content: await indexedPng(values, picture, palette) });
    } else {
      const values = masks.map((mask) => ({ runs: mask.runs, value: classOf(mask, labels, names) + 1 }));
      checkIndices(names.length, "classes", picture.name);
      const palette = [[0, 0, 0], ...names.map((name, i) => rgbOf(labels.find((label) => label.name === name)?.color ?? i))];
      files.push({ name: `${stem}-classes.png`, content: await indexedPng(values, picture, palette) });
    }
  }
  if (format === "png-classes") {
    files.push({ name: "classes.txt", content: names.map((name, i) => `${i + 1} ${name}\n`).join("") });
  }
  if (!files.length) throw new Error("There is no mask to write.");
  return files;
}

function checkIndices(count, what, name) {
  if (count > MOST_INDICES) throw new Error(`${name} has ${count} ${what}; a PNG with a palette has ${MOST_INDICES} at most. Take a PNG for each mask.`);
}

function tellOfHoles(pictures) {
  const count = pictures.flatMap(({ masks }) => masks).filter((mask) => hasHoles(mask.runs)).length;
  if (count) notify(`${count} ${count === 1 ? "mask has" : "masks have"} holes, which polygons cannot say: they are filled. Run lengths keep them.`);
}

/** White masks on black, or the picture with everything else transparent. */
async function drawn(masks, bitmap, cutout) {
  const canvas = new OffscreenCanvas(bitmap.width, bitmap.height);
  const context = canvas.getContext("2d");
  context.fillStyle = cutout ? "#0000" : "#000";
  context.fillRect(0, 0, bitmap.width, bitmap.height);
  context.fillStyle = "#fff";
  for (const mask of masks) {
    eachStretch(mask.runs, (x, top, bottom) => context.fillRect(x, top, 1, bottom - top));
  }
  if (cutout) {
    context.globalCompositeOperation = "source-in";
    context.drawImage(bitmap, 0, 0);
  }
  return canvas.convertToBlob({ type: "image/png" });
}

function stemOf(name) {
  return name.replace(/\.[^./]*$/, "") || "picture";
}

function safe(name) {
  return name.replace(/[^\p{L}\p{N}_-]+/gu, "-");
}

function blobOf({ content }) {
  return content instanceof Blob ? content : new Blob([content], { type: "text/plain" });
}

function save(blob, name) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
}
