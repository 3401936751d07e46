// The chosen tool: what a click or a drag on the picture does.

const buttons = [...document.querySelectorAll("[data-tool]")];
const size = document.getElementById("brush-size");
const diameter = document.getElementById("brush-diameter");
const DRAGS = { select: "view", brush: "stroke", eraser: "stroke" };
const GROWTH = 1.25; // of the brush with each key

export class Tools {
  #chosen = "new";
  #stage;

  /** @param stage gets the focus after a click on a tool, so that keys act there. */
  constructor(stage) {
    this.#stage = stage;
    for (const button of buttons) {
      button.addEventListener("click", (event) => {
        this.choose(button.dataset.tool);
        if (event.detail) stage.surface.focus({ preventScroll: true, focusVisible: false });
      });
      button.addEventListener("keydown", (event) => {
        const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
        if (!step) return;
        const next = buttons.at((buttons.indexOf(button) + step) % buttons.length);
        this.choose(next.dataset.tool);
        next.focus();
        event.preventDefault();
      });
    }
    diameter.addEventListener("input", () => this.#showSize());
    this.choose(this.#chosen);
  }

  get chosen() {
    return this.#chosen;
  }

  /** What input.js asks: what a drag does, and the brush's radius in CSS pixels. */
  get behaviour() {
    return {
      drags: DRAGS[this.#chosen] ?? "box",
      radius: diameter.valueAsNumber / 2,
      erases: this.#chosen === "eraser",
    };
  }

  choose(name) {
    this.#chosen = name;
    this.#stage.surface.dataset.chosen = name;
    this.#stage.setRing(null); // another tool's, until the pointer moves
    for (const button of buttons) {
      const chosen = button.dataset.tool === name;
      button.setAttribute("aria-checked", chosen);
      button.tabIndex = chosen ? 0 : -1;
    }
    size.hidden = DRAGS[name] !== "stroke";
    size.firstElementChild.textContent = name === "eraser" ? "Eraser" : "Brush";
    this.#showSize();
  }

  /** A larger brush (1) or a smaller one (-1). */
  resize(direction) {
    if (size.hidden) return;
    diameter.value = Math.round(diameter.valueAsNumber * GROWTH ** direction) + (direction > 0 ? 1 : 0);
    this.#showSize();
  }

  #showSize() {
    document.getElementById("brush-value").textContent = `${diameter.value} px`;
  }
}
