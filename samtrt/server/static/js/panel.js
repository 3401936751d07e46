// The list of masks, and the buttons whose state follows from it.

import { cssOf } from "./colors.js";
import { areaOf } from "./runs.js";

const byId = (id) => document.getElementById(id);

export class Panel {
  #scene;
  #pixels = 1;

  constructor(scene) {
    this.#scene = scene;
    scene.addEventListener("change", () => this.#render());
    byId("clear").addEventListener("click", () => scene.clear());
    byId("undo").addEventListener("click", () => scene.undo());
    byId("redo").addEventListener("click", () => scene.redo());
  }

  /** Pixels of the picture, of which areas are a share. */
  setPixels(pixels) {
    this.#pixels = pixels;
  }

  #render() {
    const { masks, selected, chosen } = this.#scene;
    byId("count").textContent = masks.length;
    byId("no-masks").hidden = masks.length > 0;
    byId("clear").disabled = !masks.length;
    byId("undo").disabled = !this.#scene.canUndo;
    byId("redo").disabled = !this.#scene.canRedo;
    for (const button of document.querySelectorAll("[data-download]")) {
      button.disabled = !masks.some((mask) => mask.visible);
    }
    // Focus is put back where it was: the list is made anew.
    const focused = document.activeElement?.dataset?.focus;
    byId("list").replaceChildren(...masks.map((mask) => this.#item(mask, chosen.includes(mask))).reverse());
    if (focused) document.querySelector(`[data-focus="${focused}"]`)?.focus();
    if (selected) byId("list").querySelector(".selected").scrollIntoView({ block: "nearest" });
  }

  #item(mask, selected) {
    const item = document.createElement("li");
    item.className = `item${selected ? " selected" : ""}${mask.visible ? "" : " off"}`;
    item.dataset.mask = mask.id;
    const pick = button("pick", `pick-${mask.id}`, (event) => {
      if (event.ctrlKey || event.metaKey || event.shiftKey) this.#scene.toggle(mask.id);
      else this.#scene.select(selected && this.#scene.chosen.length === 1 ? null : mask.id);
    });
    pick.setAttribute("aria-pressed", selected);
    const swatch = span("swatch", "");
    swatch.style.background = cssOf(mask.color);
    const share = ((100 * areaOf(mask.runs)) / this.#pixels).toFixed(1);
    pick.append(swatch, span("name", mask.name), span("facts", `${share} % · ${mask.score === null ? "drawn" : `score ${mask.score.toFixed(2)}`}`));
    const toggle = iconButton(
      mask.visible ? "eye" : "eye-off",
      `${mask.visible ? "Hide" : "Show"} ${mask.name}`,
      `eye-${mask.id}`,
      () => this.#scene.replace(mask.id, { visible: !mask.visible }),
    );
    const remove = iconButton("trash", `Delete ${mask.name}`, `trash-${mask.id}`, () =>
      this.#scene.remove(mask.id),
    );
    item.append(pick, toggle, remove);
    return item;
  }
}

function button(className, focus, act) {
  const element = document.createElement("button");
  element.type = "button";
  element.className = className;
  element.dataset.focus = focus;
  element.addEventListener("click", act);
  return element;
}

function iconButton(icon, label, focus, act) {
  const element = button("button quiet icon", focus, act);
  element.setAttribute("aria-label", label);
  element.title = label;
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  const use = document.createElementNS("http://www.w3.org/2000/svg", "use");
  use.setAttribute("href", `#icon-${icon}`);
  svg.append(use);
  element.append(svg);
  return element;
}

function span(className, text) {
  const element = document.createElement("span");
  element.className = className;
  element.textContent = text;
  return element;
}
