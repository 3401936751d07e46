// Folders that can be opened again on another day: some browsers let a page keep a folder's handle,
// and ask their user once more. In others a folder is chosen anew.

import { complain, notify } from "./notices.js";
import { store } from "./store.js";

const button = document.getElementById("reopen");

/** Whether a chosen folder can be kept. */
export const canKeepFolders = "showDirectoryPicker" in window;

/** Lets the user choose a folder; null where none was chosen. */
export async function chooseFolder() {
  try {
    return await showDirectoryPicker({ id: "samtrt" });
  } catch (error) {
    if (error.name === "AbortError") return null;
    throw error;
  }
}

/** [{file, name}] of all that lies below a folder; names are paths below it. */
export async function filesBelow(folder, path = "") {
  const found = [];
  for await (const entry of folder.values()) {
    if (entry.kind === "file") found.push({ file: await entry.getFile(), name: path + entry.name });
    else found.push(...(await filesBelow(entry, `${path}${entry.name}/`)));
  }
  return found;
}

/**
 * A promise of the folder that a drop brings, null where it brings anything else.
 * To be called before anything is awaited: the transfer is empty after that.
 */
export async function folderOf(transfer) {
  const items = [...transfer.items].filter(({ kind }) => kind === "file");
  if (items.length !== 1 || !items[0].getAsFileSystemHandle) return null;
  const handle = await items[0].getAsFileSystemHandle();
  return handle?.kind === "directory" ? handle : null;
}

/** Keeps the folder whose pictures are open, null for none. */
export async function keepFolder(folder) {
  button.hidden = true; // it is about another one
  await store.saveLastFolder(folder).catch(console.error);
}

/**
 * Opens the folder that was open last where the browser still lets the page read it, and offers to
 * ask for that where it does not.
 * @param open called with [{file, name}] and the folder.
 */
export async function offerFolder(open) {
  const folder = await store.lastFolder().catch(() => null);
  if (!folder) return;
  const read = async () => {
    try {
      await open(await filesBelow(folder), folder);
    } catch (error) {
      if (error.name !== "NotFoundError") throw error;
      throw new Error(`The folder “${folder.name}” is not where it was. Open it from its new place.`, { cause: error });
    }
  };
  if ((await folder.queryPermission()) === "granted") {
    await read();
    return;
  }
  const ask = async () => {
    try {
      if ((await folder.requestPermission()) === "granted") await read();
      else notify(`The folder “${folder.name}” stays closed: the browser was not allowed to read it.`);
    } catch (error) {
      complain(error);
    }
  };
  const label = `Open the folder “${folder.name}” again`;
  button.hidden = false;
  button.textContent = label;
  button.onclick = ask;
  notify(`The other pictures of the folder “${folder.name}” are not open yet.`, { action: { label, act: ask } });
}
