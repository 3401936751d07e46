// What the user has made: masks in order, some of them selected, and how it came about.
// A mask never changes; a changed one takes its place, so that history is a list of states.

const EMPTY = { masks: [], chosen: [] }; // chosen: ids in the order they were selected

export class Scene extends EventTarget {
  #past = [];
  #future = [];
  #state = EMPTY;
  #lastId = 0;
  #labels;

  /** @param labels the Labels, whose active one new masks get. */
  constructor(labels) {
    super();
    this.#labels = labels;
    labels.addEventListener("change", () => this.#amend((mask) => this.#coloured(mask)));
  }

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

  /**
   * Adds masks, {runs, score, points, box, logits} each, perhaps with the id of a label or a name, and
   * selects `select` of them.
   */
  add(made, select = made.length - 1) {
    const masks = made.map((mask) => this.#named({ ...mask, visible: true }, mask.name));
    this.#change({
      masks: [...this.masks, ...masks],
      chosen: masks[select] ? [masks[select].id] : this.#state.chosen,
    });
  }

  /**
   * Masks that come while work goes on, all of them one step of history.
   * @returns show(made, isLast), to be called with all that there are by now; at last their names are
   *   counted anew.
   */
  growing() {
    const before = this.#state;
    const firstId = this.#lastId + 1;
    const named = new Map(); // of `made`, so that a mask keeps its colour
    let isFirst = true;
    return (made, isLast = false) => {
      const masks = made.map((mask) => {
        if (!named.has(mask)) named.set(mask, this.#named({ ...mask, visible: true }));
        return named.get(mask);
      });
      if (isLast) {
        masks.forEach((mask, i) => (masks[i] = { ...mask, id: firstId + i, name: `Mask ${firstId + i}` }));
        this.#lastId = firstId + masks.length - 1;
      }
      const state = { ...before, masks: [...before.masks, ...masks] };
      if (isFirst) {
        this.#change(state);
      } else {
        this.#state = state;
        this.#announce();
      }
      isFirst = false;
    };
  }

  replace(id, fields) {
    const masks = this.masks.map((mask) => (mask.id === id ? { ...mask, ...fields } : mask));
    this.#change({ masks, chosen: this.#state.chosen.includes(id) ? this.#state.chosen : [id] });
  }

  /** Gives masks a label, or none (null). */
  label(ids, label) {
    const given = (mask) => this.#coloured({ ...mask, label: label?.id ?? null });
    const masks = this.masks.map((mask) => (ids.includes(mask.id) ? given(mask) : mask));
    this.#change({ ...this.#state, masks });
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

  /** Another picture: its masks as they were kept, or none; no history. */
  reset(masks = []) {
    this.#past = [];
    this.#future = [];
    this.#state = { ...EMPTY, masks: masks.map((mask) => this.#coloured(mask)) };
    this.#lastId = Math.max(0, ...masks.map((mask) => mask.id));
    this.#announce();
  }

  #named(mask, name = null) {
    const id = ++this.#lastId;
    const label = mask.label === undefined ? (this.#labels.active?.id ?? null) : mask.label;
    return this.#coloured({ ...mask, id, name: name ?? `Mask ${id}`, label });
  }

  /** The mask in its label's colour; one without a label, or whose label is gone, in its own. */
  #coloured(mask) {
    const label = this.#labels.find(mask.label);
    const fields = { label: label?.id ?? null, color: label?.color ?? mask.id - 1 };
    return fields.label === mask.label && fields.color === mask.color ? mask : { ...mask, ...fields };
  }

  /** Changes masks wherever they stand in history; it is no step of it. */
  #amend(change) {
    const changed = new Map();
    const changedOf = (mask) => {
      if (!changed.has(mask)) changed.set(mask, change(mask));
      return changed.get(mask);
    };
    const amended = (state) => ({ ...state, masks: state.masks.map(changedOf) });
    this.#past = this.#past.map(amended);
    this.#future = this.#future.map(amended);
    this.#state = amended(this.#state);
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

function without({ masks, chosen }, ids) {
  const isLeft = (id) => !ids.includes(id);
  return { masks: masks.filter((mask) => isLeft(mask.id)), chosen: chosen.filter(isLeft) };
}
