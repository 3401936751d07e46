// The ways into the page: buttons, dropping, pasting, an address.

import { addressIn, fetchPicture } from "./addresses.js";
import { addressOf, filesFrom, filesOf, sorted } from "./dropping.js";
import { canKeepFolders, chooseFolder, filesBelow, folderOf, keepFolder, offerFolder } from "./folders.js";
import { complain, notify } from "./notices.js";
import { withProgress, isWorking } from "./progress.js";

const byId = (id) => document.getElementById(id);

/**
 * @param opening the Opening.
 * @param onDatasets called with the files of data sets [{file, name}].
 * @returns {offerFolder}: to be called when the last picture is back.
 */
export function listenToDoors(opening, onDatasets) {
  /** @param folder the handle of the folder that they lie in, where there is one. */
  const take = async (files, folder = null, isAgain = false) => {
    const { pictures, datasets, others } = sorted(files);
    if (pictures.length) {
      await keepFolder(folder);
      await opening.openFiles(pictures, { isAgain });
    }
    else if (files.length === 1 && !datasets.length) await opening.openFiles(files); // which says what is wrong
    else if (others && !datasets.length) notify("There is no picture among these files.");
    if (pictures.length && others && !isAgain) notify(`${others} ${others === 1 ? "file that is no picture was" : "files that are no pictures were"} left out.`);
    if (datasets.length) await onDatasets(datasets);
  };

  const openAddress = async (url) => {
    if (isWorking()) {
      notify("Something is at work still. Wait for its end, or cancel it.");
      return;
    }
    try {
      const { file, name } = await withProgress(({ signal, run }) => {
        run(`Fetching from ${url.host || "the address"}`);
        return fetchPicture(url, signal);
      });
      await keepFolder(null);
      await opening.openFiles([{ file, name }]);
    } catch (error) {
      complain(error);
    }
  };

  for (const id of ["sample", "try-sample"]) {
    byId(id).addEventListener("click", async () => {
      await keepFolder(null);
      await opening.openSample();
    });
  }
  for (const id of ["open", "choose"]) byId(id).addEventListener("click", () => byId("file").click());
  byId("choose-folder").hidden = !("webkitdirectory" in byId("folder"));
  byId("choose-folder").addEventListener("click", async () => {
    if (!canKeepFolders) {
      byId("folder").click();
      return;
    }
    try {
      const folder = await chooseFolder();
      if (folder) await take(await filesBelow(folder), folder);
    } catch (error) {
      complain(error);
    }
  });
  for (const id of ["file", "folder"]) {
    byId(id).addEventListener("change", ({ target }) => {
      const files = filesFrom(target);
      target.value = ""; // so that the same file can be chosen again
      take(files).catch(complain);
    });
  }
  byId("address-form").addEventListener("submit", (event) => {
    event.preventDefault();
    const url = addressIn(byId("address").value);
    if (url) openAddress(url);
    else notify("That is not an address. It begins with https://.", { error: true });
  });
  document.querySelector(".brand").addEventListener("click", (event) => {
    if (event.ctrlKey || event.metaKey || event.shiftKey) return; // another tab
    event.preventDefault();
    opening.showStart();
  });

  let depth = 0; // dragenter and dragleave come for every element passed
  const hint = byId("drop-hint");
  addEventListener("dragenter", () => (hint.hidden = ++depth === 0));
  addEventListener("dragleave", () => (hint.hidden = --depth === 0));
  addEventListener("dragover", (event) => event.preventDefault());
  addEventListener("drop", async (event) => {
    event.preventDefault();
    depth = 0;
    hint.hidden = true;
    const url = addressOf(event.dataTransfer);
    const folder = folderOf(event.dataTransfer).catch(() => null); // its files are there all the same
    const files = await filesOf(event.dataTransfer);
    if (files.length) take(files, await folder).catch(complain);
    else if (url) openAddress(url);
    else notify("That was not a file. Drop pictures, a folder, or a picture's address.");
  });
  addEventListener("paste", (event) => {
    if (event.target.matches("input, textarea")) return;
    const [file] = event.clipboardData.files;
    const url = addressOf(event.clipboardData);
    if (file) take([{ file, name: file.name || "pasted.png" }]).catch(complain);
    else if (url) openAddress(url);
    else notify("There is no picture on the clipboard, and no address of one.");
  });
  return { offerFolder: () => offerFolder((files, folder) => take(files, folder, true)) };
}
