// Files and addresses that are dropped on the page, pasted, or chosen as a folder.

import { addressIn } from "./addresses.js";

/** [{file, name}] of a drop, folders with what is in them; names are paths below what was dropped. */
export async function filesOf(transfer) {
  // Entries must be asked for before anything is awaited: the transfer is empty after that.
  const entries = [...transfer.items].map((item) => item.webkitGetAsEntry?.()).filter(Boolean);
  if (!entries.length) return [...transfer.files].map((file) => ({ file, name: file.name }));
  const found = [];
  for (const entry of entries) {
    if (entry.isFile) found.push({ file: await fileOf(entry), name: entry.name });
    else await walk(entry, "", found);
  }
  return found;
}

async function walk(folder, path, found) {
  const reader = folder.createReader();
  for (;;) {
    // A folder is read a hundred entries at a time.
    const some = await new Promise((resolve, reject) => reader.readEntries(resolve, reject));
    if (!some.length) return;
    for (const entry of some) {
      if (entry.isFile) found.push({ file: await fileOf(entry), name: path + entry.name });
      else await walk(entry, `${path}${entry.name}/`, found);
    }
  }
}

function fileOf(entry) {
  return new Promise((resolve, reject) => entry.file(resolve, reject));
}

/** The same of a chosen folder or of chosen files. */
export function filesFrom(input) {
  return [...input.files].map((file) => ({
    file,
    name: file.webkitRelativePath.split("/").slice(1).join("/") || file.name,
  }));
}

/** The address that was dropped or pasted, or null. */
export function addressOf(transfer) {
  return addressIn(transfer.getData("text/uri-list") || transfer.getData("text/plain"));
}

const PICTURE = /\.(jpe?g|png|webp|gif|bmp|avif|heic|tiff?)$/i;

/** Sorted into pictures, in the order of their names, data sets, and how many are neither. */
export function sorted(files) {
  const seen = files.filter(({ name }) => !/(^|\/)\./.test(name)); // .DS_Store and the like
  const isDataset = ({ name }) => /\.json$/i.test(name);
  const isPicture = ({ file, name }) => file.type.startsWith("image/") || PICTURE.test(name);
  const pictures = seen.filter(isPicture).sort((a, b) => a.name.localeCompare(b.name, undefined, { numeric: true }));
  const datasets = seen.filter(isDataset);
  return { pictures, datasets, others: seen.length - pictures.length - datasets.length };
}
