// The keyboard's hand on the picture: arrows move a crosshair, other keys act where it stands.

import { singleKeys } from "./keys.js";

const STEPS = 100; // across what is seen
const MOVES = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
const POINTS = { "+": "add", "=": "add", "-": "remove" };

/** Calls `on` as `listen` of input.js says. */
export function listenToKeys(stage, on) {
  const { surface, view } = stage;
  let at = null;
  let corner = null;

  const here = () => {
    const { width, height } = stage.bitmap;
    const [x0, y0, x1, y1] = view.window;
    at ??= [(x0 + x1) / 2, (y0 + y1) / 2];
    at = [Math.min(at[0], width - 1), Math.min(at[1], height - 1)];
    return at;
  };

  const move = ([dx, dy], isFar) => {
    const { width, height } = stage.bitmap;
    const [x0, y0, x1, y1] = view.window;
    const step = (Math.max(x1 - x0, y1 - y0) / STEPS) * (isFar ? 6 : 1);
    const [x, y] = here();
    at = [
      Math.min(Math.max(x + dx * step, 0), width - 1),
      Math.min(Math.max(y + dy * step, 0), height - 1),
    ];
    view.reveal(at);
    if (on.tool().drags === "box") on.hover(at);
  };

  const act = () => {
    const { drags, radius, erases } = on.tool();
    if (drags === "stroke") on.stroke({ points: [here()], radius: radius / view.scale, erases });
    else on.point(here(), "tool");
  };

  surface.addEventListener("keydown", (event) => {
    if (!stage.bitmap || event.ctrlKey || event.metaKey || event.altKey) return;
    const key = event.key.toLowerCase();
    if (event.key in MOVES) move(MOVES[event.key], event.shiftKey);
    else if (event.key === "Enter") act();
    else if (event.key === "PageUp" || event.key === "PageDown") {
      view.step(event.key === "PageUp" ? 1 : -1, view.toScreen(here()));
      view.reveal(here());
    } else if (singleKeys.areOn && event.key in POINTS) on.point(here(), POINTS[event.key]);
    else if (singleKeys.areOn && key === "b") {
      if (corner) on.box(boxBetween(corner, here()));
      corner = corner ? null : here();
    } else if (event.key === "Escape" && corner) corner = null;
    else return;
    event.preventDefault();
    event.stopPropagation();
    stage.setBox(corner && boxBetween(corner, here()));
    stage.setCrosshair(here());
  });

  surface.addEventListener("focus", () => {
    if (stage.bitmap && surface.matches(":focus-visible")) stage.setCrosshair(here());
  });
  surface.addEventListener("blur", () => {
    corner = null;
    stage.setBox(null);
    stage.setCrosshair(null);
    on.leave();
  });
}

export function boxBetween([ax, ay], [bx, by]) {
  return [Math.min(ax, bx), Math.min(ay, by), Math.max(ax, bx), Math.max(ay, by)];
}
