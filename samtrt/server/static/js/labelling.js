// Classes on the page: chips that give one to masks, and a dialog that edits them.

import { announce, notify } from "./notices.js";

const byId = (id) => document.getElementById(id);

export class Labelling {
  #scene;
  #labels;

  constructor(scene, labels) {
    this.#scene = scene;
    this.#labels = labels;
    for (const target of [labels, scene]) target.addEventListener("change", () => this.#renderChips());
    labels.addEventListener("active", () => this.#renderChips());
    labels.addEventListener("change", () => this.#renderRows());
    byId("edit-labels").addEventListener("click", () => byId("labels-dialog").showModal());
    byId("sort-labels").addEventListener("click", () => labels.sort());
    byId("label-form").addEventListener("submit", (event) => {
      event.preventDefault();
      const field = byId("new-label");
      if (field.value.trim()) labels.named(field.value.trim());
      field.value = "";
    });
    this.#renderChips();
    this.#renderRows();
  }

  /** What the key of the n-th label (from 1) does. */
  press(n) {
    const label = this.#labels.all[n - 1];
    if (label) this.#give(label);
    else notify(`There is no class ${n} yet. Add classes with the button “Classes”.`);
  }

  /** The selected masks get the label, or lose it where all have it; new masks get it too. */
  #give(label) {
    const { chosen } = this.#scene;
    const has = chosen.length ? chosen.every((mask) => mask.label === label.id) : this.#labels.active === label;
    if (chosen.length) this.#scene.label(chosen.map((mask) => mask.id), has ? null : label);
    this.#labels.activate(has ? null : label.id);
    const masks = chosen.length ? `${chosen.map((mask) => mask.name).join(", ")}: ` : "New masks: ";
    announce(`${masks}${has ? "no class" : label.name}.`);
  }

  #renderChips() {
    const { active, all } = this.#labels;
    const used = new Set(this.#scene.chosen.map((mask) => mask.label));
    const focused = document.activeElement?.dataset?.label;
    byId("labels").replaceChildren(
      ...all.map((label, i) => {
        const chip = element("button", "chip", label.name);
        chip.type = "button";
        chip.dataset.label = label.id;
        chip.setAttribute("aria-pressed", label === active);
        chip.classList.toggle("used", used.has(label.id));
        if (i < 9) chip.prepend(element("kbd", "", String(i + 1)));
        const swatch = element("span", "swatch", "");
        swatch.style.background = label.color;
        chip.prepend(swatch);
        chip.addEventListener("click", () => this.#give(label));
        return chip;
      }),
    );
    byId("edit-labels").textContent = all.length ? "Edit" : "Classes…";
    if (focused) byId("labels").querySelector(`[data-label="${focused}"]`)?.focus();
  }

  #renderRows() {
    const labels = this.#labels;
    const focused = document.activeElement?.dataset?.row;
    byId("no-labels").hidden = labels.all.length > 0;
    byId("sort-labels").disabled = labels.all.length < 2;
    byId("labels-list").replaceChildren(
      ...labels.all.map((label, i) => {
        const row = element("li", "label-row", "");
        const color = field("color", label.color, `Colour of ${label.name}`, `color-${label.id}`);
        color.addEventListener("change", () => labels.change(label.id, { color: color.value }));
        const name = field("text", label.name, `Name of class ${i + 1}`, `name-${label.id}`);
        name.addEventListener("change", () => {
          const text = name.value.trim();
          if (text && labels.change(label.id, { name: text })) return;
          if (text) notify(`There is a class “${text}” already.`, { error: true });
          name.value = label.name;
        });
        row.append(
          color,
          name,
          sign("↑", `Move ${label.name} up`, `up-${label.id}`, i === 0, () => labels.move(label.id, -1)),
          sign("↓", `Move ${label.name} down`, `down-${label.id}`, i === labels.all.length - 1, () => labels.move(label.id, 1)),
          sign("✕", `Delete ${label.name}`, `delete-${label.id}`, false, () => labels.remove(label.id)),
        );
        return row;
      }),
    );
    if (focused) byId("labels-list").querySelector(`[data-row="${focused}"]`)?.focus();
  }
}

function element(tag, className, text) {
  const made = document.createElement(tag);
  made.className = className;
  made.textContent = text;
  return made;
}

function field(type, value, label, row) {
  const input = element("input", type === "text" ? "field" : "color", "");
  Object.assign(input, { type, value });
  input.setAttribute("aria-label", label);
  input.dataset.row = row;
  return input;
}

function sign(text, label, row, disabled, act) {
  const button = element("button", "button quiet icon small", text);
  Object.assign(button, { type: "button", disabled, title: label });
  button.setAttribute("aria-label", label);
  button.dataset.row = row;
  button.addEventListener("click", act);
  return button;
}
