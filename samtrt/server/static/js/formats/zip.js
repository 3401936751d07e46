// An archive of files that are stored as they are: PNGs are compressed already.

const encoder = new TextEncoder();
const TABLE = Uint32Array.from({ length: 256 }, (_, n) => {
  for (let k = 0; k < 8; k++) n = n & 1 ? 0xedb88320 ^ (n >>> 1) : n >>> 1;
  return n;
});

/** CRC-32 of bytes, as ZIP and PNG have it. */
export function crc32(bytes) {
  let crc = 0xffffffff;
  for (const byte of bytes) crc = TABLE[(crc ^ byte) & 255] ^ (crc >>> 8);
  return (crc ^ 0xffffffff) >>> 0;
}

/** @param files [{name, content}], content text, bytes or a Blob. */
export async function zipOf(files) {
  const parts = [], directory = [];
  let offset = 0;
  for (const { name, content } of files) {
    const path = encoder.encode(name);
    const bytes = await bytesOf(content);
    // Version 2.0, names in UTF-8, stored, 1980-01-01, CRC, both sizes, the name's length, no more.
    const common = [
      [2, 20], [2, 0x0800], [2, 0], [2, 0], [2, 0x21],
      [4, crc32(bytes)], [4, bytes.length], [4, bytes.length], [2, path.length], [2, 0],
    ];
    const head = record([[4, 0x04034b50], ...common]);
    parts.push(head, path, bytes);
    directory.push(record([[4, 0x02014b50], [2, 20], ...common, [2, 0], [2, 0], [2, 0], [4, 0], [4, offset]]), path);
    offset += head.length + path.length + bytes.length;
  }
  const size = directory.reduce((sum, part) => sum + part.length, 0);
  const end = record([
    [4, 0x06054b50], [2, 0], [2, 0], [2, files.length], [2, files.length], [4, size], [4, offset], [2, 0],
  ]);
  return new Blob([...parts, ...directory, end], { type: "application/zip" });
}

async function bytesOf(content) {
  if (typeof content === "string") return encoder.encode(content);
  return content instanceof Blob ? new Uint8Array(await content.arrayBuffer()) : content;
}

/** Little-endian numbers [bytes, value]. */
function record(fields) {
  const bytes = new Uint8Array(fields.reduce((sum, [size]) => sum + size, 0));
  const view = new DataView(bytes.buffer);
  let at = 0;
  for (const [size, value] of fields) {
    if (size === 2) view.setUint16(at, value, true);
    else view.setUint32(at, value, true);
    at += size;
  }
  return bytes;
}
