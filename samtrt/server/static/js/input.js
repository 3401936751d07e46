// Mouse, touch and keyboard on the picture become four events: hover, leave, point and box.

const DRAG_PIXELS = 6;

/**
 * @param stage the Stage.
 * @param on {hover(point), leave(), point(point, kind), box(box)}; kind is "tool" where the
 *   chosen tool decides, else "add" or "remove". Points are [x, y] in pixels of the picture.
 */
export function listen(stage, on) {
  const surface = stage.surface;
  listenToPointer(stage, surface, on);
  listenToKeys(stage, surface, on);
}

function listenToPointer(stage, surface, on) {
  let start = null; // where a press began
  let dragged = false;

  const forget = () => {
    start = null;
    dragged = false;
    stage.setBox(null);
  };

  surface.addEventListener("pointerdown", (event) => {
    if (event.button > 2 || event.button === 1 || !event.isPrimary) return;
    stage.setCrosshair(null);
    surface.setPointerCapture(event.pointerId);
    start = { event, pixel: stage.pixelAt(event) };
  });

  surface.addEventListener("pointermove", (event) => {
    const pixel = stage.pixelAt(event);
    if (!start) {
      if (event.pointerType === "touch") return;
      stage.setCrosshair(null);
      on.hover(pixel);
      return;
    }
    const distance = Math.hypot(event.clientX - start.event.clientX, event.clientY - start.event.clientY);
    dragged ||= start.event.button === 0 && distance > DRAG_PIXELS;
    if (dragged) {
      on.leave();
      stage.setBox(boxBetween(start.pixel, pixel));
    }
  });

  surface.addEventListener("pointerup", (event) => {
    if (!start) return;
    const { event: down, pixel } = start;
    const wasDragged = dragged;
    forget();
    if (wasDragged) on.box(boxBetween(pixel, stage.pixelAt(event)));
    else if (down.button === 2 || down.altKey) on.point(pixel, "remove");
    else on.point(pixel, down.shiftKey ? "add" : "tool");
  });

  surface.addEventListener("pointercancel", forget);
  surface.addEventListener("pointerleave", () => start || on.leave());
  surface.addEventListener("contextmenu", (event) => event.preventDefault());
}

function listenToKeys(stage, surface, on) {
  let at = null;
  let corner = null;

  const moves = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
  const points = { Enter: "tool", " ": "tool", "+": "add", "=": "add", "-": "remove" };

  const here = () => {
    const { width, height } = stage.bitmap;
    at ??= [width / 2, height / 2];
    at = [Math.min(at[0], width - 1), Math.min(at[1], height - 1)];
    return at;
  };

  surface.addEventListener("keydown", (event) => {
    if (!stage.bitmap || event.ctrlKey || event.metaKey || event.altKey) return;
    const { width, height } = stage.bitmap;
    const step = (Math.max(width, height) / 100) * (event.shiftKey ? 6 : 1);
    if (event.key in moves) {
      const [dx, dy] = moves[event.key];
      const [x, y] = here();
      at = [
        Math.min(Math.max(x + dx * step, 0), width - 1),
        Math.min(Math.max(y + dy * step, 0), height - 1),
      ];
      on.hover(at);
    } else if (event.key in points) {
      on.point(here(), points[event.key]);
    } else if (event.key.toLowerCase() === "b") {
      if (corner) on.box(boxBetween(corner, here()));
      corner = corner ? null : here();
    } else if (event.key === "Escape") {
      corner = null;
      on.leave();
    } else {
      return;
    }
    event.preventDefault();
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

function boxBetween([ax, ay], [bx, by]) {
  return [Math.min(ax, bx), Math.min(ay, by), Math.max(ax, bx), Math.max(ay, by)];
}
