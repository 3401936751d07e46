// The chosen tool: what a click on the picture does.

const buttons = [...document.querySelectorAll("[data-tool]")];

export class Tools {
  #chosen = "new";

  constructor() {
    for (const button of buttons) {
      button.addEventListener("click", () => this.choose(button.dataset.tool));
      button.addEventListener("keydown", (event) => {
        const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
        if (!step) return;
        const next = buttons.at((buttons.indexOf(button) + step) % buttons.length);
        this.choose(next.dataset.tool);
        next.focus();
        event.preventDefault();
      });
    }
    this.choose(this.#chosen);
  }

  get chosen() {
    return this.#chosen;
  }

  choose(name) {
    this.#chosen = name;
    for (const button of buttons) {
      const chosen = button.dataset.tool === name;
      button.setAttribute("aria-checked", chosen);
      button.tabIndex = chosen ? 0 : -1;
    }
  }
}
