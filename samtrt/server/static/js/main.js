// The page: what the user does, to what happens.

import * as api from "./api.js";
import { Decoder } from "./decoder.js";
import { download } from "./download.js";
import { listen } from "./input.js";
import { announce, dismissNotices, notify } from "./notices.js";
import { Panel } from "./panel.js";
import { withProgress } from "./progress.js";
import { Scene } from "./scene.js";
import { Session } from "./session.js";
import { Stage } from "./stage.js";

api.takeToken(); // before anything asks the server

const byId = (id) => document.getElementById(id);

const scene = new Scene();
const stage = new Stage(scene);
const panel = new Panel(scene);
const decoder = new Decoder();
const session = new Session(decoder);

let tool = "new";
let fileName = "picture";
let working = false; // a long task runs: a picture is opened, or everything is segmented
let decoding = 0; // clicks and boxes whose masks are not there yet
let lastDecode = Promise.resolve(); // they are answered in order

// Pictures

async function openPicture(file, name) {
  if (working) return;
  working = true;
  dismissNotices();
  await lastDecode; // its mask is of the picture that leaves
  try {
    await withProgress((progress) =>
      session.open(file, progress, (bitmap) => {
        scene.reset();
        fileName = name;
        byId("picture-name").textContent = name;
        byId("empty").hidden = true;
        byId("panel").hidden = byId("toolbar").hidden = false;
        panel.setPixels(bitmap.width * bitmap.height);
        stage.setPicture(bitmap);
        byId("pointer").setAttribute("aria-label", `${name}, ${bitmap.width} by ${bitmap.height} pixels`);
      }),
    );
    stage.surface.focus({ preventScroll: true });
    announce("The picture is ready.");
  } catch (error) {
    complain(error, () => openPicture(file, name));
  } finally {
    working = false;
  }
}

async function openSample() {
  try {
    await openPicture(await api.sample(), "sample.jpg");
  } catch (error) {
    complain(error, openSample);
  }
}

function complain(error, again = null) {
  if (error.name === "AbortError") {
    announce("Cancelled.");
    if (!session.isReady) notify("Cancelled.", again && { action: { label: "Try again", act: again } });
    return;
  }
  console.error(error);
  const temporary = again && (!error.status || [408, 429, 500, 503, 504].includes(error.status));
  notify(error.message, { error: true, action: temporary ? { label: "Try again", act: again } : null });
}

// Masks

function decode(make) {
  if (working || !session.isReady) return;
  decoding++;
  session.stopHover();
  stage.setPreview(null);
  lastDecode = lastDecode.then(async () => {
    try {
      if (!working) await make();
    } catch (error) {
      complain(error);
    } finally {
      decoding--;
    }
  });
}

function keepPoint(point, kind) {
  const wanted = kind === "tool" ? tool : kind;
  decode(async () => {
    if (wanted === "new") await keep(session.mask([[...point, 1]]));
    else if (scene.selected) await change(scene.selected, [...point, wanted === "add" ? 1 : 0]);
    else notify("Select a mask first: click an object, or a mask in the list.");
  });
}

async function change(mask, point) {
  scene.replace(mask.id, await session.mask([...mask.points, point], mask.box, mask));
  announce(`${mask.name} changed.`);
}

async function keep(making) {
  const mask = await making;
  if (mask.runs.counts.length < 2) {
    notify("There is no mask here. Try another point, or a box.");
    return;
  }
  scene.add([mask]);
  announce(`${scene.selected.name} kept.`);
}

async function everything() {
  if (working || !session.isReady) return;
  working = true;
  dismissNotices();
  try {
    const masks = await withProgress((progress) => session.everything(progress));
    if (masks.length) scene.add(masks, -1);
    else notify("Nothing was found with enough confidence. Click the objects instead.");
    announce(`${masks.length} masks found.`);
  } catch (error) {
    complain(error, everything);
  } finally {
    working = false;
  }
}

listen(stage, {
  hover: (point) => {
    if (working || decoding) return;
    session.hover(point, stage.size, (runs) => working || decoding || stage.setPreview(runs)).catch(complain);
  },
  leave: () => {
    session.stopHover();
    stage.setPreview(null);
  },
  point: keepPoint,
  box: (box) => {
    if (box[2] - box[0] >= 1 && box[3] - box[1] >= 1) decode(() => keep(session.mask([], box)));
  },
});

// Controls

function chooseTool(name) {
  tool = name;
  for (const button of document.querySelectorAll("[data-tool]")) {
    const chosen = button.dataset.tool === name;
    button.setAttribute("aria-checked", chosen);
    button.tabIndex = chosen ? 0 : -1;
  }
}

for (const button of document.querySelectorAll("[data-tool]")) {
  button.addEventListener("click", () => chooseTool(button.dataset.tool));
  button.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
    if (!step) return;
    const all = [...document.querySelectorAll("[data-tool]")];
    const next = all.at((all.indexOf(button) + step) % all.length);
    chooseTool(next.dataset.tool);
    next.focus();
    event.preventDefault();
  });
}
chooseTool(tool);

for (const button of document.querySelectorAll("[data-download]")) {
  button.addEventListener("click", () => {
    const visible = scene.masks.filter((mask) => mask.visible);
    download(button.dataset.download, visible, stage.bitmap, fileName).catch(complain);
  });
}

byId("opacity").addEventListener("input", ({ target }) => {
  byId("opacity-value").textContent = `${target.value} %`;
  stage.setOpacity(target.value / 100);
});
byId("everything").addEventListener("click", everything);
byId("help").addEventListener("click", () => byId("help-dialog").showModal());
byId("sample").addEventListener("click", openSample);
byId("try-sample").addEventListener("click", openSample);
for (const id of ["open", "choose"]) byId(id).addEventListener("click", () => byId("file").click());
byId("file").addEventListener("change", ({ target }) => {
  const [file] = target.files;
  target.value = ""; // so that the same file can be chosen again
  if (file) openPicture(file, file.name);
});

// Dropping and pasting

let depth = 0; // dragenter and dragleave come for every element passed
addEventListener("dragenter", () => (byId("drop-hint").hidden = ++depth === 0));
addEventListener("dragleave", () => (byId("drop-hint").hidden = --depth === 0));
addEventListener("dragover", (event) => event.preventDefault());
addEventListener("drop", (event) => {
  event.preventDefault();
  depth = 0;
  byId("drop-hint").hidden = true;
  const [file] = event.dataTransfer.files;
  if (file) openPicture(file, file.name);
  else notify("That was not a file. Drop a picture from your computer.");
});
addEventListener("paste", (event) => {
  const [file] = event.clipboardData.files;
  if (file) openPicture(file, file.name || "pasted.png");
});

// Keys that work everywhere on the page

addEventListener("keydown", (event) => {
  if (byId("panel").hidden || byId("help-dialog").open) return;
  const key = event.key.toLowerCase();
  if ((event.ctrlKey || event.metaKey) && (key === "z" || key === "y")) {
    if (event.shiftKey || key === "y") scene.redo();
    else scene.undo();
    event.preventDefault();
  } else if (event.ctrlKey || event.metaKey || event.altKey) {
    return;
  } else if (key in { n: 0, a: 0, r: 0 }) {
    chooseTool({ n: "new", a: "add", r: "remove" }[key]);
  } else if (key === "e") {
    everything();
  } else if ((key === "delete" || key === "backspace") && scene.selected) {
    scene.remove(scene.selected.id);
    event.preventDefault();
  }
});

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
