// Keys that work everywhere on the page.

const byId = (id) => document.getElementById(id);

/** @param acts {key: act} of single keys, in lower case. */
export function listenToShortcuts(scene, acts) {
  addEventListener("keydown", (event) => {
    if (byId("panel").hidden || byId("help-dialog").open) return;
    const key = event.key.toLowerCase();
    if ((event.ctrlKey || event.metaKey) && (key === "z" || key === "y")) {
      if (event.shiftKey || key === "y") scene.redo();
      else scene.undo();
      event.preventDefault();
    } else if (event.ctrlKey || event.metaKey || event.altKey) {
      return;
    } else if (key in acts) {
      acts[key]();
    } else if ((key === "delete" || key === "backspace") && scene.selected) {
      scene.remove(scene.selected.id);
      event.preventDefault();
    }
  });
}
