// Points, boxes, the crosshair and the brush, drawn over the picture. Lines are white over black,
// so that they show on any picture, and as thick at any zoom.

/** On the canvas: the place of a pixel of the picture. */
function onCanvas(view, point) {
  return view.toScreen(point).map((value) => value * view.density);
}

/** The points and the box that a mask was made from. */
export function paintPrompt(context, view, { points, box }) {
  const unit = view.density;
  if (box) paintBox(context, view, box);
  for (const [px, py, label] of points) {
    const [x, y] = onCanvas(view, [px, py]);
    context.beginPath();
    context.arc(x, y, 8 * unit, 0, 7);
    context.fillStyle = "#000";
    context.fill();
    context.beginPath();
    context.arc(x, y, 6.5 * unit, 0, 7);
    context.fillStyle = label ? "#25776f" : "#b93a26";
    context.fill();
    context.lineWidth = 2 * unit;
    context.strokeStyle = "#fff";
    context.stroke();
    context.beginPath();
    context.moveTo(x - 3 * unit, y);
    context.lineTo(x + 3 * unit, y);
    if (label) {
      context.moveTo(x, y - 3 * unit);
      context.lineTo(x, y + 3 * unit);
    }
    context.lineWidth = 1.5 * unit;
    context.stroke();
  }
}

export function paintBox(context, view, [left, top, right, bottom]) {
  const [x0, y0] = onCanvas(view, [left, top]);
  const [x1, y1] = onCanvas(view, [right, bottom]);
  context.beginPath();
  context.rect(x0, y0, x1 - x0, y1 - y0);
  strokeTwice(context, view.density, [6 * view.density, 4 * view.density]);
}

export function paintCrosshair(context, view, point) {
  const unit = view.density;
  const [x, y] = onCanvas(view, point);
  const arm = 13 * unit, gap = 4 * unit;
  context.beginPath();
  for (const [dx, dy] of [[1, 0], [-1, 0], [0, 1], [0, -1]]) {
    context.moveTo(x + dx * gap, y + dy * gap);
    context.lineTo(x + dx * arm, y + dy * arm);
  }
  strokeTwice(context, unit, []);
}

/** A line being drawn, as wide as the brush. */
export function paintStroke(context, view, { points, radius, erases }) {
  context.beginPath();
  for (const point of points) context.lineTo(...onCanvas(view, point));
  if (points.length === 1) context.lineTo(...onCanvas(view, points[0]));
  context.lineWidth = 2 * radius * view.scale * view.density;
  context.lineCap = context.lineJoin = "round";
  context.strokeStyle = erases ? "rgb(0 0 0 / 55%)" : "rgb(255 255 255 / 60%)";
  context.stroke();
}

/** The brush's size. */
export function paintRing(context, view, { at, radius }) {
  context.beginPath();
  context.arc(...onCanvas(view, at), radius * view.scale * view.density, 0, 7);
  strokeTwice(context, view.density, []);
}

function strokeTwice(context, unit, dash) {
  context.setLineDash([]);
  context.lineWidth = 3.5 * unit;
  context.strokeStyle = "rgb(0 0 0 / 60%)";
  context.stroke();
  context.setLineDash(dash);
  context.lineWidth = 1.75 * unit;
  context.strokeStyle = "#fff";
  context.stroke();
  context.setLineDash([]);
}
