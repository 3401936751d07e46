// Colours that stay apart from each other and from most pictures.
const PALETTE = [
  [47, 143, 214], [240, 129, 50], [60, 168, 96], [224, 82, 99], [143, 108, 214], [226, 176, 40],
  [34, 170, 172], [219, 101, 172], [132, 160, 48], [170, 112, 76], [92, 122, 234], [205, 70, 50],
];

/**
 * Red, green and blue of a colour: #rrggbb, or the n-th of the palette; after one round of it each is
 * varied.
 */
export function rgbOf(color) {
  if (typeof color === "string") return [1, 3, 5].map((at) => parseInt(color.slice(at, at + 2), 16));
  const n = color;
  const base = PALETTE[n % PALETTE.length];
  const round = Math.floor(n / PALETTE.length) % 4;
  const mix = [0, 0.28, -0.22, 0.48][round];
  const target = mix < 0 ? 0 : 255;
  return base.map((value) => Math.round(value + (target - value) * Math.abs(mix)));
}

export function cssOf(color) {
  return `rgb(${rgbOf(color).join(" ")})`;
}

/** #rrggbb. */
export function hexOf(color) {
  return `#${rgbOf(color).map((value) => value.toString(16).padStart(2, "0")).join("")}`;
}
