// Masks as runs. COCO's order is column-major: position = x * height + y. `counts` alternate
// background, foreground, background, … and begin with background.

/**
 * How an output row or column reads its two neighbours (torch's bilinear, align_corners=False);
 * those from `start` to before `stop` of the `to` there are.
 */
function taps(from, to, start = 0, stop = to) {
  const first = new Int32Array(stop - start);
  const second = new Int32Array(stop - start);
  const weight = new Float32Array(stop - start);
  const scale = from / to;
  for (let i = 0; i < stop - start; i++) {
    const source = Math.max((i + start + 0.5) * scale - 0.5, 0);
    first[i] = Math.min(Math.floor(source), from - 1);
    second[i] = Math.min(first[i] + 1, from - 1);
    weight[i] = source - first[i];
  }
  return { first, second, weight };
}

/** Logits [side, side] row-major -> [width, height] column-major: upscaled to the frame, cropped. */
function toFrame(logits, side, frame, height, width) {
  const x = taps(side, frame);
  const y = taps(side, frame);
  const out = new Float32Array(width * height);
  const column = new Float32Array(side);
  for (let i = 0; i < width; i++) {
    const a = x.first[i], b = x.second[i], w = x.weight[i];
    for (let j = 0; j < side; j++) {
      const left = logits[j * side + a];
      column[j] = left + (logits[j * side + b] - left) * w;
    }
    for (let j = 0, at = i * height; j < height; j++, at++) {
      const top = column[y.first[j]];
      out[at] = top + (column[y.second[j]] - top) * y.weight[j];
    }
  }
  return out;
}

/**
 * The runs of mask logits at any size: upscale to the model's frame, crop to the picture, upscale
 * to `size`, then threshold at 0, in this order (the server's transforms.postprocess_masks).
 * With a window [x0, y0, x1, y1], whole pixels of `size`, only what lies in it is computed.
 */
export function runsFromLogits(logits, side, frame, inputSize, size, window = [0, 0, size[1], size[0]]) {
  const [inHeight, inWidth] = inputSize;
  const [width, height] = [window[2] - window[0], window[3] - window[1]];
  const source = toFrame(logits, side, frame, inHeight, inWidth);
  const x = taps(inWidth, size[1], window[0], window[2]);
  const y = taps(inHeight, size[0], window[1], window[3]);
  const changes = [];
  const column = new Float32Array(inHeight);
  let inside = false;
  for (let i = 0; i < width; i++) {
    const a = x.first[i] * inHeight, b = x.second[i] * inHeight, w = x.weight[i];
    for (let j = 0; j < inHeight; j++) {
      const left = source[a + j];
      column[j] = left + (source[b + j] - left) * w;
    }
    for (let j = 0; j < height; j++) {
      const top = column[y.first[j]];
      if ((top + (column[y.second[j]] - top) * y.weight[j] > 0) !== inside) {
        inside = !inside;
        changes.push(i * height + j);
      }
    }
  }
  return { size: [height, width], counts: countsFromChanges(changes, height * width) };
}

/** Counts of runs that begin with background and change at these positions. */
export function countsFromChanges(changes, total) {
  const counts = new Uint32Array(changes.length + 1);
  let before = 0;
  changes.forEach((change, i) => {
    counts[i] = change - before;
    before = change;
  });
  counts[changes.length] = total - before;
  return counts;
}

/**
 * The same mask at another size, read at pixel centres.
 * With a window [x0, y0, x1, y1], whole pixels of `size`, only what lies in it.
 */
export function resampleRuns(runs, size, window = [0, 0, size[1], size[0]]) {
  const [height, width] = runs.size;
  const [allHeight, allWidth] = size;
  const [left, top, right, bottom] = window;
  const [toHeight, toWidth] = [bottom - top, right - left];
  const ends = new Uint32Array(runs.counts.length);
  let end = 0;
  runs.counts.forEach((count, i) => (ends[i] = end += count));
  const changes = [];
  let inside = false;
  for (let i = 0; i < toWidth; i++) {
    const start = Math.floor(((i + left + 0.5) * width) / allWidth) * height;
    let run = upperBound(ends, start);
    for (let j = 0; j < toHeight; j++) {
      const position = start + Math.floor(((j + top + 0.5) * height) / allHeight);
      while (ends[run] <= position) run++;
      if ((run % 2 === 1) !== inside) {
        inside = !inside;
        changes.push(i * toHeight + j);
      }
    }
  }
  return { size: [toHeight, toWidth], counts: countsFromChanges(changes, toHeight * toWidth) };
}

/** The first index whose end is past the position. */
function upperBound(ends, position) {
  let low = 0, high = ends.length;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (ends[middle] <= position) low = middle + 1;
    else high = middle;
  }
  return low;
}

/** Calls visit(x, y0, y1) for every vertical stretch of foreground, y1 not included. */
export function eachStretch(runs, visit) {
  const [height] = runs.size;
  let position = 0;
  runs.counts.forEach((count, i) => {
    const end = position + count;
    if (i % 2 === 1) {
      for (let at = position; at < end; ) {
        const x = Math.floor(at / height);
        const stop = Math.min(end, (x + 1) * height);
        visit(x, at - x * height, stop - x * height);
        at = stop;
      }
    }
    position = end;
  });
}

/** Pixels of foreground. */
export function areaOf(runs) {
  return runs.counts.reduce((sum, count, i) => (i % 2 ? sum + count : sum), 0);
}

/** COCO's box [x, y, width, height]; zeros for an empty mask. */
export function boxOf(runs) {
  let x0 = Infinity, y0 = Infinity, x1 = 0, y1 = 0;
  eachStretch(runs, (x, top, bottom) => {
    x0 = Math.min(x0, x);
    x1 = Math.max(x1, x + 1);
    y0 = Math.min(y0, top);
    y1 = Math.max(y1, bottom);
  });
  return x1 ? [x0, y0, x1 - x0, y1 - y0] : [0, 0, 0, 0];
}

/** COCO's compressed text of counts (cocoapi, maskApi.c, rleToString). */
export function countsToText(counts) {
  let text = "";
  for (let i = 0; i < counts.length; i++) {
    let x = counts[i] - (i > 2 ? counts[i - 2] : 0);
    for (let more = true; more; ) {
      let code = x & 31;
      x >>= 5;
      more = code & 16 ? x !== -1 : x !== 0;
      if (more) code |= 32;
      text += String.fromCharCode(code + 48);
    }
  }
  return text;
}

/** The inverse of countsToText. */
export function textToCounts(text) {
  const counts = [];
  for (let at = 0; at < text.length; ) {
    let x = 0, shift = 0, code;
    do {
      code = text.charCodeAt(at++) - 48;
      x |= (code & 31) << shift;
      shift += 5;
    } while (code & 32);
    if (code & 16 && shift < 32) x |= -1 << shift;
    counts.push(x + (counts.length > 2 ? counts[counts.length - 2] : 0));
  }
  return Uint32Array.from(counts);
}
