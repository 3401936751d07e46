// Keys that work everywhere on the page.

import { isTyping, singleKeys } from "./keys.js";
import { dismissNotices } from "./notices.js";
import { isWorking } from "./progress.js";

const byId = (id) => document.getElementById(id);

/** @param acts {key: act} of single keys, in lower case. */
export function listenToShortcuts(scene, acts) {
  addEventListener("keydown", (event) => {
    if (isTyping(event) || document.querySelector("dialog[open]")) return;
    const key = event.key.toLowerCase();
    if (key === "escape" && byId("notices").childElementCount) {
      dismissNotices();
      return;
    }
    if (byId("panel").hidden || isWorking()) return;
    if ((event.ctrlKey || event.metaKey) && (key === "z" || key === "y")) {
      if (event.shiftKey || key === "y") scene.redo();
      else scene.undo();
      event.preventDefault();
    } else if (event.ctrlKey || event.metaKey || event.altKey) {
      return;
    } else if (key in acts && singleKeys.areOn) {
      acts[key]();
    } else if ((key === "delete" || key === "backspace") && scene.selected) {
      scene.remove(...scene.chosen.map((mask) => mask.id));
      event.preventDefault();
    } else if (key === "escape") {
      scene.select(null);
    }
  });
}
