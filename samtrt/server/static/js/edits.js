// What a person draws on a mask lies over what the decoder says, and stays when points change:
// drawn = {added, erased}, two sets of pixels that share none. A mask without prompts is all drawn.

import { difference, emptyRuns, union } from "./regions.js";

/** Fields of a mask that is these pixels and came from no prompt. */
export function drawnMask(runs) {
  const drawn = { added: runs, erased: emptyRuns(runs.size) };
  return { runs, score: null, points: [], box: null, logits: null, drawn };
}

/** Fields of the mask with these pixels drawn on it, or rubbed out. */
export function drawOn(mask, pixels, erases) {
  const { added, erased } = mask.drawn ?? { added: emptyRuns(pixels.size), erased: emptyRuns(pixels.size) };
  if (erases) {
    const drawn = { added: difference(added, pixels), erased: union(erased, pixels) };
    return { runs: difference(mask.runs, pixels), score: null, drawn };
  }
  const drawn = { added: union(added, pixels), erased: difference(erased, pixels) };
  return { runs: union(mask.runs, pixels), score: null, drawn };
}

/** A mask that was decoded anew, with what was drawn on the earlier one. */
export function keepDrawn(decoded, { drawn }) {
  if (!drawn) return decoded;
  return { ...decoded, score: null, runs: difference(union(decoded.runs, drawn.added), drawn.erased), drawn };
}
