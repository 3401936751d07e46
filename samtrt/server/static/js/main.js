// The page: its parts, and who knows whom.

import * as api from "./api.js";
import { Candidates } from "./candidates.js";
import { Decoder } from "./decoder.js";
import { Detail } from "./detail.js";
import { listenToDoors } from "./doors.js";
import { Duplicates } from "./duplicates.js";
import { Editing } from "./editing.js";
import { Everything } from "./everything.js";
import { Exporting } from "./exporting.js";
import { Importing } from "./importing.js";
import { listen } from "./input.js";
import { Labelling } from "./labelling.js";
import { Labels } from "./labels.js";
import { complain } from "./notices.js";
import { Opening } from "./opening.js";
import { Panel } from "./panel.js";
import { Prompting } from "./prompting.js";
import { Saving } from "./saving.js";
import { Scene } from "./scene.js";
import { Session } from "./session.js";
import { listenToShortcuts } from "./shortcuts.js";
import { Stage } from "./stage.js";
import { Tools } from "./tools.js";
import { listenToZoom } from "./zooming.js";

api.takeToken(); // before anything asks the server

const byId = (id) => document.getElementById(id);

const labels = new Labels();
const scene = new Scene(labels);
const stage = new Stage(scene);
const panel = new Panel(scene, labels);
const labelling = new Labelling(scene, labels);
const tools = new Tools(stage);
const decoder = new Decoder();
const session = new Session(decoder);
const detail = new Detail({ stage, session });
const prompting = new Prompting({ scene, stage, session: detail, tools });
const editing = new Editing({ scene, stage, prompting });
const saving = new Saving(scene);
const opening = new Opening({ scene, stage, panel, session, prompting, saving });
const duplicates = new Duplicates(scene, opening);
const everything = new Everything(scene, session);
const candidates = new Candidates(scene, prompting);
const importing = new Importing({ scene, opening, labels });
new Exporting({ scene, stage, opening, labels, saving });

const doors = listenToDoors(opening, (files) => importing.read(files));
listen(stage, {
  tool: () => tools.behaviour,
  hover: (point) => prompting.hover(point),
  leave: () => prompting.leave(),
  point: (point, kind) => {
    if (kind === "tool" && tools.chosen === "select") editing.pick(point);
    else prompting.point(point, kind);
  },
  box: (box) => prompting.box(box),
  stroke: (stroke) => editing.stroke(stroke),
  toggle: (point) => editing.toggle(point),
  beside: () => tools.chosen === "select" && scene.select(null),
});
listenToZoom(stage);
listenToShortcuts(scene, {
  n: () => tools.choose("new"),
  a: () => tools.choose("add"),
  r: () => tools.choose("remove"),
  v: () => tools.choose("select"),
  p: () => tools.choose("brush"),
  x: () => tools.choose("eraser"),
  "[": () => tools.resize(-1),
  "]": () => tools.resize(1),
  m: () => editing.merge(),
  s: () => editing.subtract(),
  0: () => stage.view.fit(),
  z: () => stage.view.actualSize(),
  ...Object.fromEntries([1, 2, 3, 4, 5, 6, 7, 8, 9].map((n) => [n, () => labelling.press(n)])),
  c: () => candidates.next(),
  e: () => everything.run(),
  d: () => opening.setDone(true).then(() => opening.gallery.step(1)),
  ",": () => opening.gallery.step(-1),
  ".": () => opening.gallery.step(1),
});

byId("opacity").addEventListener("input", ({ target }) => {
  byId("opacity-value").textContent = `${target.value} %`;
  stage.setOpacity(target.value / 100);
});
byId("done").addEventListener("click", ({ currentTarget }) =>
  opening.setDone(currentTarget.getAttribute("aria-pressed") !== "true"),
);
byId("everything").addEventListener("click", () => everything.run());
byId("help").addEventListener("click", () => byId("help-dialog").showModal());

// Start

let answered = true; // else the mask decoder is not there for the same reason
try {
  const limits = await session.health();
  everything.setDevice(limits.device);
  byId("sample").hidden = byId("try-sample").hidden = !limits.sample;
  byId("note").textContent = limits.note && `About this model: ${limits.note}`;
  byId("limits").textContent = `JPEG, PNG or WebP, up to ${Math.round(limits.max_upload_bytes / 2 ** 20)} MB and ${Math.round(limits.max_pixels / 1e6)} megapixels.`;
  await opening.resume();
  await doors.offerFolder();
} catch (error) {
  answered = false;
  complain(error, () => location.reload());
}
decoder.ready.catch((error) => {
  const reason = new Error(`The mask decoder could not start in this browser: ${error.message}`);
  if (answered) complain(reason, () => location.reload());
});
