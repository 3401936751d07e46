// What the user has made: masks in order, some of them selected, and how it came about.
// A mask never changes; a changed one takes its place, so that history is a list of states.

const EMPTY = { masks: [], chosen: [] }; // chosen: ids in the order they were selected

export class Scene extends EventTarget {
  #past = [];
  #future = [];
  #state = EMPTY;
  #lastId = 0;

  get masks() {
    return this.#state.masks;
  }

  /** The one mask that points are added to: the one selected first. */
  get selected() {
    return this.chosen[0] ?? null;
  }

  /** All selected masks, in the order they were selected. */
  get chosen() {
    return this.#state.chosen.map((id) => this.masks.find((mask) => mask.id === id));
  }

  get canUndo() {
    return this.#past.length > 0;
  }

  get canRedo() {
    return this.#future.length > 0;
  }

  /** Adds masks, {runs, score, points, box, logits} each, and selects `select` of them. */
  add(made, select = made.length - 1) {
    const masks = made.map((mask) => this.#named({ ...mask, visible: true }));
    this.#change({
      masks: [...this.masks, ...masks],
      chosen: masks[select] ? [masks[select].id] : this.#state.chosen,
    });
  }

  replace(id, fields) {
    const masks = this.masks.map((mask) => (mask.id === id ? { ...mask, ...fields } : mask));
    this.#change({ masks, chosen: this.#state.chosen.includes(id) ? this.#state.chosen : [id] });
  }

  remove(...ids) {
    this.#change(without(this.#state, ids));
  }

  /**
   * One mask becomes the first of `made`; the others of `made` are new; masks of `gone` leave.
   * All of `made` are selected. One step of history.
   */
  rearrange(id, made, gone = []) {
    const mask = this.masks.find((found) => found.id === id);
    const [first, ...others] = made;
    const added = others.map((fields) => this.#named({ ...mask, ...fields }));
    const { masks } = without(this.#state, gone);
    this.#change({
      masks: [...masks.map((found) => (found === mask ? { ...mask, ...first } : found)), ...added],
      chosen: [id, ...added.map((found) => found.id)],
    });
  }

  clear() {
    this.#change(EMPTY);
  }

  /** Selects one mask, or none (null). Selecting is not worth a step of history. */
  select(id) {
    this.#state = { ...this.#state, chosen: id === null ? [] : [id] };
    this.#announce();
  }

  /** Selects a mask beside the others, or no longer. */
  toggle(id) {
    const { chosen } = this.#state;
    const others = chosen.filter((other) => other !== id);
    this.#state = { ...this.#state, chosen: others.length < chosen.length ? others : [...chosen, id] };
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

  #named(mask) {
    const id = ++this.#lastId;
    return { ...mask, id, name: `Mask ${id}`, color: id - 1 };
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

function without({ masks, chosen }, ids) {
  const isLeft = (id) => !ids.includes(id);
  return { masks: masks.filter((mask) => isLeft(mask.id)), chosen: chosen.filter(isLeft) };
}
