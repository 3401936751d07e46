// One point can mean a button, a shirt or the person: the three masks of it, to choose among.

const group = document.getElementById("candidates");
const buttons = [...group.querySelectorAll("button")];

/** Whether a mask is one of three. */
function hasOthers(mask) {
  return mask?.points.length === 1 && !mask.box && !mask.drawn;
}

export class Candidates {
  #scene;
  #prompting;

  constructor(scene, prompting) {
    this.#scene = scene;
    this.#prompting = prompting;
    buttons.forEach((button, rank) => button.addEventListener("click", () => this.#choose(rank)));
    scene.addEventListener("change", () => this.#render());
  }

  /** The one after the chosen one; after the last the first. */
  next() {
    const { selected } = this.#scene;
    if (hasOthers(selected)) this.#choose(((selected.rank ?? 0) + 1) % buttons.length);
  }

  #choose(rank) {
    this.#prompting.chooseCandidate(this.#scene.selected, rank);
  }

  #render() {
    const { selected, chosen } = this.#scene;
    group.hidden = chosen.length !== 1 || !hasOthers(selected);
    buttons.forEach((button, rank) => button.setAttribute("aria-pressed", rank === (selected?.rank ?? 0)));
  }
}
