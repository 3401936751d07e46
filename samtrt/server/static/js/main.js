// The page: its parts, and who knows whom.

import * as api from "./api.js";
import { Decoder } from "./decoder.js";
import { Detail } from "./detail.js";
import { Editing } from "./editing.js";
import { everything } from "./everything.js";
import { download } from "./exporting.js";
import { listen } from "./input.js";
import { complain } from "./notices.js";
import { Opening } from "./opening.js";
import { Panel } from "./panel.js";
import { Prompting } from "./prompting.js";
import { Scene } from "./scene.js";
import { Session } from "./session.js";
import { listenToShortcuts } from "./shortcuts.js";
import { Stage } from "./stage.js";
import { Tools } from "./tools.js";
import { listenToZoom } from "./zooming.js";

api.takeToken(); // before anything asks the server

const byId = (id) => document.getElementById(id);

const scene = new Scene();
const stage = new Stage(scene);
const panel = new Panel(scene);
const tools = new Tools(stage.surface);
const decoder = new Decoder();
const session = new Session(decoder);
const detail = new Detail({ stage, session });
const prompting = new Prompting({ scene, stage, session: detail, tools });
const editing = new Editing({ scene, stage, prompting });
const opening = new Opening({ scene, stage, panel, session, prompting });
const segmentEverything = () => everything(scene, session);

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
  e: segmentEverything,
});

for (const button of document.querySelectorAll("[data-download]")) {
  button.addEventListener("click", () => {
    const visible = scene.masks.filter((mask) => mask.visible);
    download(button.dataset.download, visible, stage.bitmap, opening.fileName).catch(complain);
  });
}
byId("opacity").addEventListener("input", ({ target }) => {
  byId("opacity-value").textContent = `${target.value} %`;
  stage.setOpacity(target.value / 100);
});
byId("everything").addEventListener("click", segmentEverything);
byId("help").addEventListener("click", () => byId("help-dialog").showModal());

// Start

let answered = true; // else the mask decoder is not there for the same reason
try {
  const limits = await session.health();
  byId("sample").hidden = byId("try-sample").hidden = !limits.sample;
  byId("note").textContent = limits.note && `About this model: ${limits.note}`;
  byId("limits").textContent = `JPEG, PNG or WebP, up to ${Math.round(limits.max_upload_bytes / 2 ** 20)} MB and ${Math.round(limits.max_pixels / 1e6)} megapixels.`;
} catch (error) {
  answered = false;
  complain(error, () => location.reload());
}
decoder.ready.catch((error) => {
  const reason = new Error(`The mask decoder could not start in this browser: ${error.message}`);
  if (answered) complain(reason, () => location.reload());
});
