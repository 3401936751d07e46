// What outlives the page: the masks of each picture, and the picture that was open last.

const NAME = "samtrt";
const VERSION = 1;

/**
 * Work of a picture: {hash, name, width, height, done, savedAt, masks}, masks as the scene has them
 * but without logits. The methods reject where the browser keeps nothing.
 */
export class ConflictError extends Error {}

class Store {
  #opened = null;

  work(hash) {
    return this.#ask("work", "readonly", (work) => work.get(hash));
  }

  /**
   * Keeps a record, or forgets the picture where the record holds nothing.
   * @param since savedAt of the record that the caller knows of, null for none; what another tab
   *   has written since is not overwritten: ConflictError.
   */
  async saveWork(record, since) {
    let isForeign = false;
    const write = (work) => {
      const found = work.get(record.hash);
      found.onsuccess = () => {
        isForeign = (found.result?.savedAt ?? null) !== since;
        if (isForeign) return;
        if (record.masks.length || record.done) work.put(record);
        else work.delete(record.hash);
      };
      return found;
    };
    await this.#ask("work", "readwrite", write);
    if (isForeign) throw new ConflictError();
  }

  /** {hash, name, file} of the picture that was open last. */
  lastPicture() {
    return this.#ask("last", "readonly", (last) => last.get("picture"));
  }

  saveLastPicture(picture) {
    return this.#ask("last", "readwrite", (last) => last.put(picture, "picture"));
  }

  /** The handle of the folder that was open last, or null. */
  async lastFolder() {
    return (await this.#ask("last", "readonly", (last) => last.get("folder"))) ?? null;
  }

  saveLastFolder(folder) {
    return this.#ask("last", "readwrite", (last) => (folder ? last.put(folder, "folder") : last.delete("folder")));
  }

  async #ask(name, mode, ask) {
    this.#opened ??= open();
    const transaction = (await this.#opened).transaction(name, mode);
    const request = ask(transaction.objectStore(name));
    await new Promise((resolve, reject) => {
      transaction.oncomplete = resolve; // a put that succeeded may still be undone
      transaction.onabort = transaction.onerror = () => reject(transaction.error ?? request.error);
    });
    return request.result;
  }
}

function open() {
  return new Promise((resolve, reject) => {
    const request = indexedDB.open(NAME, VERSION);
    request.onupgradeneeded = () => {
      request.result.createObjectStore("work", { keyPath: "hash" });
      request.result.createObjectStore("last");
    };
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
  });
}

export const store = new Store();
