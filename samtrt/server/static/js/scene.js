// What the user has made: masks in order, one of them selected, and how it came about.
// A mask never changes; a changed one takes its place, so that history is a list of states.

const EMPTY = { masks: [], selected: null };

export class Scene extends EventTarget {
  #past = [];
  #future = [];
  #state = EMPTY;
  #lastId = 0;

  get masks() {
    return this.#state.masks;
  }

  get selected() {
    return this.masks.find((mask) => mask.id === this.#state.selected) ?? null;
  }

  get canUndo() {
    return this.#past.length > 0;
  }

  get canRedo() {
    return this.#future.length > 0;
  }

  /** Adds masks, {runs, score, points, box, logits} each, and selects `select` of them. */
  add(made, select = made.length - 1) {
    const masks = made.map((mask) => {
      const id = ++this.#lastId;
      return { ...mask, id, name: `Mask ${id}`, color: id - 1, visible: true };
    });
    this.#change({
      masks: [...this.masks, ...masks],
      selected: masks[select]?.id ?? this.#state.selected,
    });
  }

  replace(id, fields) {
    const masks = this.masks.map((mask) => (mask.id === id ? { ...mask, ...fields } : mask));
    this.#change({ masks, selected: id });
  }

  remove(id) {
    const masks = this.masks.filter((mask) => mask.id !== id);
    this.#change({ masks, selected: this.#state.selected === id ? null : this.#state.selected });
  }

  clear() {
    this.#change(EMPTY);
  }

  /** Selecting is not worth a step of history. */
  select(id) {
    this.#state = { ...this.#state, selected: id };
    this.#announce();
  }

  undo() {
    if (!this.canUndo) return;
    this.#future.push(this.#state);
    this.#state = this.#past.pop();
    this.#announce();
  }

  redo() {
    if (!this.canRedo) return;
    this.#past.push(this.#state);
    this.#state = this.#future.pop();
    this.#announce();
  }

  /** Another picture: no masks, no history, names from 1 again. */
  reset() {
    this.#past = [];
    this.#future = [];
    this.#state = EMPTY;
    this.#lastId = 0;
    this.#announce();
  }

  #change(state) {
    this.#past.push(this.#state);
    this.#future = [];
    this.#state = state;
    this.#announce();
  }

  #announce() {
    this.dispatchEvent(new Event("change"));
  }
}
