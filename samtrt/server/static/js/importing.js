// COCO data sets come in: their masks go to the pictures of their names.

import { digestOf } from "./digest.js";
import { readCoco } from "./formats/coco.js";
import { notify } from "./notices.js";
import { isWorking } from "./progress.js";
import { store } from "./store.js";

export class Importing {
  #page;

  /** @param page {scene, opening, labels}. */
  constructor(page) {
    this.#page = page;
  }

  /** @param files [{file, name}] of data sets. */
  async read(files) {
    for (const { file, name } of files) {
      if (isWorking()) return;
      let pictures;
      try {
        pictures = readCoco(JSON.parse(await file.text()));
      } catch (error) {
        const reason = error instanceof SyntaxError ? "it is not JSON" : error.message;
        notify(`${name} cannot be read: ${reason}.`, { error: true });
        continue;
      }
      await this.#take(pictures.filter(({ masks }) => masks.length), name);
    }
  }

  async #take(pictures, name) {
    const { opening } = this.#page;
    if (!opening.picture) {
      notify(`Open the pictures first, then ${name}: its masks go to the pictures of their names.`, { error: true });
      return;
    }
    let taken = 0;
    const reasons = [];
    for (const picture of pictures) {
      try {
        taken += await this.#takePicture(picture);
      } catch (error) {
        reasons.push(error.message);
      }
    }
    const text = `${taken} ${taken === 1 ? "mask" : "masks"} of ${name} taken over.`;
    notify([text, ...reasons].join(" "), { error: reasons.length > 0 });
  }

  /** @returns how many masks were taken over. */
  async #takePicture({ name, width, height, masks }) {
    const { scene, opening } = this.#page;
    const { picture, gallery } = opening;
    const made = masks.map(({ category, ...mask }) => ({ ...mask, visible: true, label: this.#labelOf(category) }));
    const isNamed = (other) => baseOf(other) === baseOf(name);
    if (isNamed(picture.name)) {
      checkSize(name, [width, height], [picture.bitmap.width, picture.bitmap.height]);
      const isKnown = ({ runs }) => scene.masks.some((mask) => mask.runs.counts.join() === runs.counts.join());
      const fresh = made.filter((mask) => !isKnown(mask));
      if (fresh.length) scene.add(fresh, -1);
      return fresh.length;
    }
    const entry = gallery.entries.find((each) => isNamed(each.name));
    if (!entry) throw new Error(`${name} is not open.`);
    entry.hash ??= await digestOf(entry.file);
    const kept = await store.work(entry.hash);
    if (kept) checkSize(name, [width, height], [kept.width, kept.height]);
    const before = kept?.masks ?? [];
    const isKnown = ({ runs }) => before.some((mask) => mask.runs.counts.join() === runs.counts.join());
    const firstId = Math.max(0, ...before.map((mask) => mask.id)) + 1;
    const fresh = made.filter((mask) => !isKnown(mask)).map(({ logits, ...mask }, i) => {
      const id = firstId + i;
      return { ...mask, id, name: mask.name ?? `Mask ${id}`, color: id - 1 };
    });
    const record = { hash: entry.hash, name: entry.name, width, height, done: false, ...kept };
    await store.saveWork({ ...record, savedAt: Date.now(), masks: [...before, ...fresh] }, kept?.savedAt ?? null);
    gallery.update({ count: before.length + fresh.length }, entry);
    return fresh.length;
  }

  #labelOf(category) {
    const { labels } = this.#page;
    // What the page writes for masks without a class comes back without one.
    if (category === null || (category === "object" && !labels.all.some(({ name }) => name === category))) return null;
    return labels.named(category).id;
  }
}

function baseOf(name) {
  return String(name).split(/[\\/]/).pop();
}

function checkSize(name, [width, height], [openWidth, openHeight]) {
  if (width !== openWidth || height !== openHeight) {
    throw new Error(`${name} is ${width} × ${height} there and ${openWidth} × ${openHeight} here; its masks are left out.`);
  }
}
