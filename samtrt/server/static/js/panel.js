// The list of masks, and the buttons whose state follows from it.

import { cssOf } from "./colors.js";
import { keepFocus, setEnabled } from "./focus.js";
import { areaOf } from "./runs.js";

const byId = (id) => document.getElementById(id);

export class Panel {
  #scene;
  #labels;
  #pixels = 1;
  #rows = new Map(); // mask id -> {mask, element, isChosen}
  #lastSelected = null;

  constructor(scene, labels) {
    this.#scene = scene;
    this.#labels = labels;
    scene.addEventListener("change", () => this.#render());
    byId("clear").addEventListener("click", () => scene.clear());
    byId("undo").addEventListener("click", () => scene.undo());
    byId("redo").addEventListener("click", () => scene.redo());
  }

  /** Pixels of the picture, of which areas are a share. */
  setPixels(pixels) {
    this.#rows.clear();
    this.#pixels = pixels;
  }

  #render() {
    const { masks, chosen, selected } = this.#scene;
    byId("count").textContent = masks.length;
    byId("no-masks").hidden = masks.length > 0;
    setEnabled(byId("clear"), masks.length);
    setEnabled(byId("undo"), this.#scene.canUndo);
    setEnabled(byId("redo"), this.#scene.canRedo);
    for (const button of document.querySelectorAll("[data-download]")) {
      setEnabled(button, masks.some((mask) => mask.visible));
    }
    const rows = masks.map((mask) => this.#rowOf(mask, chosen.includes(mask))).reverse();
    keepFocus(byId("list"), () => arrange(byId("list"), rows));
    if (selected && selected.id !== this.#lastSelected) {
      scrollTo(byId("list"), this.#rows.get(selected.id).element);
    }
    this.#lastSelected = selected?.id;
  }

  /** A mask's row; only what differs is made anew, or a hundred masks would lag. */
  #rowOf(mask, isChosen) {
    let known = this.#rows.get(mask.id);
    if (known?.mask !== mask) known = { mask, element: this.#item(mask), isChosen: null };
    if (known.isChosen !== isChosen) {
      known.element.classList.toggle("selected", isChosen);
      known.element.querySelector(".pick").setAttribute("aria-pressed", isChosen);
      known.isChosen = isChosen;
    }
    this.#rows.set(mask.id, known);
    return known.element;
  }

  #pick(mask, isOneMore) {
    const { chosen } = this.#scene;
    if (isOneMore) this.#scene.toggle(mask.id);
    else this.#scene.select(chosen.length === 1 && chosen[0].id === mask.id ? null : mask.id);
  }

  #item(mask) {
    const item = document.createElement("li");
    item.className = `item${mask.visible ? "" : " off"}`;
    item.dataset.mask = mask.id;
    const pick = button("pick", `pick-${mask.id}`, (event) =>
      this.#pick(mask, event.ctrlKey || event.metaKey || event.shiftKey),
    );
    const swatch = span("swatch", "");
    swatch.style.background = cssOf(mask.color);
    const label = this.#labels.find(mask.label);
    const share = ((100 * areaOf(mask.runs)) / this.#pixels).toFixed(1);
    const made = mask.score === null ? "drawn" : `score ${mask.score.toFixed(2)}`;
    pick.append(swatch, span("name", mask.name), span("facts", [label?.name, `${share} %`, made].filter(Boolean).join(" · ")));
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

/** Makes the list's rows these, touching only what differs. */
function arrange(list, rows) {
  const wanted = new Set(rows);
  for (const row of [...list.children]) if (!wanted.has(row)) row.remove();
  rows.forEach((row, i) => {
    if (list.children[i] !== row) list.insertBefore(row, list.children[i] ?? null);
  });
}

/** Scrolls a list, not the page: on a narrow screen the picture would leave from under the finger. */
function scrollTo(list, row) {
  const [outer, inner] = [list, row].map((element) => element.getBoundingClientRect());
  if (inner.top < outer.top) list.scrollTop -= outer.top - inner.top;
  else if (inner.bottom > outer.bottom) list.scrollTop += inner.bottom - outer.bottom;
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
