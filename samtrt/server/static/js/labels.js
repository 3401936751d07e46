// The classes that masks may have, remembered by the browser: named, coloured, in an order.

import { hexOf } from "./colors.js";

const REMEMBERED = "samtrt-labels";

/** Changes are events: "change" for the list, "active" for the one that new masks get. */
export class Labels extends EventTarget {
  #all = remembered(); // [{id, name, color}], color as #rrggbb
  #active = null; // id

  get all() {
    return this.#all;
  }

  /** The label that new masks get, or null. */
  get active() {
    return this.find(this.#active);
  }

  find(id) {
    return this.#all.find((label) => label.id === id) ?? null;
  }

  /** The label of that name, made where there is none. */
  named(name, color = null) {
    const found = this.#all.find((label) => label.name === name);
    if (found) return found;
    const id = Math.max(0, ...this.#all.map((label) => label.id)) + 1;
    const label = { id, name, color: color ?? hexOf(id - 1) };
    this.#set([...this.#all, label]);
    return label;
  }

  /** @returns whether the name is free. */
  change(id, fields) {
    if (this.#all.some((label) => label.id !== id && label.name === fields.name)) return false;
    this.#set(this.#all.map((label) => (label.id === id ? { ...label, ...fields } : label)));
    return true;
  }

  remove(id) {
    this.#set(this.#all.filter((label) => label.id !== id));
    if (this.#active === id) this.activate(null);
  }

  move(id, by) {
    const all = [...this.#all];
    const from = all.findIndex((label) => label.id === id);
    const [label] = all.splice(from, 1);
    all.splice(Math.max(0, from + by), 0, label);
    this.#set(all);
  }

  sort() {
    this.#set([...this.#all].sort((a, b) => a.name.localeCompare(b.name, undefined, { numeric: true })));
  }

  activate(id) {
    this.#active = id;
    this.dispatchEvent(new Event("active"));
  }

  #set(all) {
    this.#all = all;
    localStorage.setItem(REMEMBERED, JSON.stringify(all));
    this.dispatchEvent(new Event("change"));
  }
}

function remembered() {
  try {
    return JSON.parse(localStorage.getItem(REMEMBERED)) ?? [];
  } catch {
    return [];
  }
}
