// What leaves the page as a file. Everything is at the picture's own size.

import { areaOf, boxOf, countsToText, eachStretch } from "./runs.js";

/** A COCO data set of one picture; segmentations are compressed run lengths. */
export function cocoOf(masks, bitmap, fileName) {
  return {
    images: [{ id: 1, width: bitmap.width, height: bitmap.height, file_name: fileName }],
    annotations: masks.map((mask, i) => ({
      id: i + 1,
      image_id: 1,
      category_id: 1,
      iscrowd: 0,
      segmentation: { size: mask.runs.size, counts: countsToText(mask.runs.counts) },
      area: areaOf(mask.runs),
      bbox: boxOf(mask.runs),
      predicted_iou: mask.score,
      point_coords: mask.points.filter(([, , label]) => label === 1).map(([x, y]) => [x, y]),
    })),
    categories: [{ id: 1, name: "object" }],
  };
}

export async function download(kind, masks, bitmap, fileName) {
  const stem = fileName.replace(/\.[^.]*$/, "") || "picture";
  if (kind === "coco") {
    const text = JSON.stringify(cocoOf(masks, bitmap, fileName));
    save(new Blob([text], { type: "application/json" }), `${stem}-masks.json`);
  } else {
    save(await png(masks, bitmap, kind === "cutout"), `${stem}-${kind}.png`);
  }
}

/** White masks on black, or the picture with everything else transparent. */
async function png(masks, bitmap, cutout) {
  const canvas = new OffscreenCanvas(bitmap.width, bitmap.height);
  const context = canvas.getContext("2d");
  context.fillStyle = cutout ? "#0000" : "#000";
  context.fillRect(0, 0, bitmap.width, bitmap.height);
  context.fillStyle = "#fff";
  for (const mask of masks) {
    eachStretch(mask.runs, (x, top, bottom) => context.fillRect(x, top, 1, bottom - top));
  }
  if (cutout) {
    context.globalCompositeOperation = "source-in";
    context.drawImage(bitmap, 0, 0);
  }
  return canvas.convertToBlob({ type: "image/png" });
}

function save(blob, name) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
}
