// Mouse, touch, wheel and keyboard on the picture: what is pointed at, and what moves the view.

import { boxBetween, listenToKeys } from "./crosshair.js";

const DRAG_PIXELS = 6;
const WHEEL_PIXELS = 500; // that a wheel must turn for a zoom by e
const PINCH_PIXELS = 100; // the same for a touch pad's pinch, which comes as small turns
const LINE_PIXELS = 16;
const HOLD = 450; // milliseconds of a finger that is held

/**
 * @param stage the Stage.
 * @param on {hover(point), leave(), point(point, kind), box(box), stroke(stroke), toggle(point),
 *   beside(), tool()}. Points are [x, y] in pixels of the picture; kind is "tool" where the chosen
 *   tool decides, else "add" or "remove"; beside() is a click next to the picture; tool() answers
 *   {drags: "box" | "stroke" | "view", radius, erases}, the radius in CSS pixels.
 */
export function listen(stage, on) {
  const viewing = listenToView(stage, on);
  listenToPointer(stage, on, viewing);
  listenToKeys(stage, on);
}

/** Wheel, two fingers, middle button and Space move the view. */
function listenToView(stage, on) {
  const { surface, view } = stage;
  const fingers = new Map(); // pointer id -> place on the surface
  let isSpace = false;
  let wasPinched = false; // until the last finger is lifted

  surface.addEventListener(
    "wheel",
    (event) => {
      if (!stage.bitmap) return;
      event.preventDefault();
      const unit = event.deltaMode ? LINE_PIXELS : 1;
      if (event.shiftKey) {
        view.panBy([-(event.deltaX || event.deltaY) * unit, 0]);
        return;
      }
      const turn = (-event.deltaY * unit) / (event.ctrlKey ? PINCH_PIXELS : WHEEL_PIXELS);
      view.zoomBy(Math.exp(Math.min(Math.max(turn, -1), 1)), stage.screenAt(event));
    },
    { passive: false },
  );

  const middle = () => {
    const places = [...fingers.values()];
    const [x, y] = [0, 1].map((axis) => places.reduce((sum, place) => sum + place[axis], 0) / places.length);
    const apart = places.length < 2 ? 0 : Math.hypot(places[0][0] - places[1][0], places[0][1] - places[1][1]);
    return { at: [x, y], apart };
  };

  const follow = (event) => {
    if (!fingers.has(event.pointerId)) return;
    const before = middle();
    fingers.set(event.pointerId, stage.screenAt(event));
    if (fingers.size < 2) return;
    const { at, apart } = middle();
    if (before.apart && apart) view.zoomBy(apart / before.apart, before.at);
    view.panBy([at[0] - before.at[0], at[1] - before.at[1]]);
  };
  const lift = (event) => {
    fingers.delete(event.pointerId);
    if (!fingers.size) wasPinched = false;
  };
  surface.addEventListener("pointerdown", (event) => {
    if (event.pointerType !== "touch") return;
    fingers.set(event.pointerId, stage.screenAt(event));
    if (fingers.size > 1) wasPinched = true;
  });
  surface.addEventListener("pointermove", follow);
  surface.addEventListener("pointerup", lift);
  surface.addEventListener("pointercancel", lift);

  // Space is the surface's: a button or a field keeps its own.
  const isOurs = () => [surface, document.body].includes(document.activeElement);
  addEventListener("keydown", (event) => {
    if (event.key !== " " || !stage.bitmap || !isOurs()) return;
    isSpace = true;
    surface.classList.add("grab");
    event.preventDefault(); // the page would scroll
  });
  addEventListener("keyup", (event) => {
    if (event.key !== " ") return;
    isSpace = false;
    surface.classList.remove("grab");
  });

  return {
    isPinching: () => wasPinched,
    moves: (event) => isSpace || event.button === 1 || (event.button === 0 && on.tool().drags === "view"),
    isHeld: (event) => isSpace || event.button === 1,
  };
}

function listenToPointer(stage, on, viewing) {
  const { surface, view } = stage;
  let press = null; // {event, pixel, moves, place, points}
  let dragged = false;

  const forget = () => {
    press = null;
    dragged = false;
    surface.classList.remove("grabbing");
    stage.setBox(null);
    stage.setStroke(null);
  };
  const drawnAt = (event) => view.toPicture(stage.screenAt(event)); // beside the picture too
  const ring = (at) => {
    const { drags, radius } = on.tool();
    stage.setRing(at && drags === "stroke" ? { at, radius: radius / view.scale } : null);
  };

  surface.addEventListener("pointerdown", (event) => {
    if (!stage.bitmap || event.button > 2) return;
    if (viewing.isPinching()) {
      forget(); // what the first finger began is not meant
      ring(null);
      return;
    }
    if (!event.isPrimary) return;
    if (event.button === 1) event.preventDefault(); // no scrolling by the middle button
    on.leave();
    stage.setCrosshair(null);
    surface.setPointerCapture(event.pointerId);
    const pixel = stage.pixelAt(event);
    const { drags, radius, erases } = on.tool();
    press = {
      event,
      pixel,
      moves: viewing.moves(event),
      isHeld: viewing.isHeld(event),
      place: stage.screenAt(event),
      stroke:
        drags === "stroke" && event.button === 0
          ? { points: [drawnAt(event)], radius: radius / view.scale, erases }
          : null,
    };
    if (press.moves) surface.classList.add("grabbing");
    else if (press.stroke) stage.setStroke(press.stroke);
  });

  surface.addEventListener("pointermove", (event) => {
    if (!stage.bitmap || viewing.isPinching()) return;
    const pixel = stage.pixelAt(event);
    if (!press) {
      if (event.pointerType === "touch") return;
      stage.setCrosshair(null);
      ring(drawnAt(event));
      if (on.tool().drags !== "box") return;
      if (stage.isOnPicture(event)) on.hover(pixel);
      else on.leave();
      return;
    }
    const distance = Math.hypot(event.clientX - press.event.clientX, event.clientY - press.event.clientY);
    dragged ||= press.event.button !== 2 && distance > DRAG_PIXELS;
    if (press.moves) {
      const place = stage.screenAt(event);
      view.panBy([place[0] - press.place[0], place[1] - press.place[1]]);
      press.place = place;
    } else if (press.stroke) {
      const parts = event.getCoalescedEvents?.() ?? [];
      press.stroke.points.push(...[...parts, event].map(drawnAt));
      ring(drawnAt(event));
      stage.setStroke({ ...press.stroke });
    } else if (dragged) {
      stage.setBox(boxBetween(press.pixel, pixel));
    }
  });

  surface.addEventListener("pointerup", (event) => {
    if (!press || viewing.isPinching()) return;
    const { event: down, pixel, moves, isHeld, stroke } = press;
    const wasDragged = dragged;
    forget();
    if (isHeld || (moves && wasDragged)) return;
    if (stroke) on.stroke(stroke);
    else if (wasDragged) on.box(boxBetween(pixel, stage.pixelAt(event)));
    else if (!stage.isOnPicture(event)) on.beside();
    else if (down.ctrlKey || down.metaKey || (moves && isExtending(down, event))) on.toggle(pixel);
    else if (down.button === 2 || down.altKey) on.point(pixel, "remove");
    else on.point(pixel, down.shiftKey ? "add" : "tool");
  });

  // Capture is lost, and what was begun is not meant, when the browser takes the pointer away.
  surface.addEventListener("pointercancel", forget);
  surface.addEventListener("pointerleave", () => {
    if (press) return;
    ring(null);
    on.leave();
  });
  surface.addEventListener("contextmenu", (event) => event.preventDefault());
  addEventListener("keydown", (event) => {
    if (event.key !== "Escape" || !press) return;
    forget();
    event.stopImmediatePropagation();
  }, { capture: true });
}

/** What selects one more: Shift, or a finger that is held. */
function isExtending(down, up) {
  return down.shiftKey || (down.pointerType === "touch" && up.timeStamp - down.timeStamp > HOLD);
}
