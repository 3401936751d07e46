// Masks as an SVG of the picture's size: a path each, holes included.

import { hexOf } from "../colors.js";
import { outlinesOf, simplified } from "./outlines.js";

/** @param masks [{runs, name, color, label}], label a name or null. */
export function svgOf(masks, { width, height }, tolerance) {
  const paths = masks.map((mask) => {
    const data = outlinesOf(mask.runs)
      .map((outline) => simplified(outline, tolerance))
      .map((outline) => `M${outline.map((corner) => corner.join(" ")).join("L")}Z`)
      .join("");
    const label = mask.label === null ? "" : ` class="${escaped(mask.label)}"`;
    return `<path${label} fill="${hexOf(mask.color)}" d="${data}"><title>${escaped(mask.name)}</title></path>`;
  });
  return [
    `<svg xmlns="http://www.w3.org/2000/svg" width="${width}" height="${height}" viewBox="0 0 ${width} ${height}">`,
    `<g fill-opacity="0.5" fill-rule="evenodd">`,
    ...paths,
    "</g>",
    "</svg>\n",
  ].join("\n");
}

function escaped(text) {
  return text.replace(/[&<>"]/g, (sign) => `&#${sign.charCodeAt(0)};`);
}
