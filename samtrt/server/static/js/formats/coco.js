// COCO data sets: written with the prompts that made the masks, and read back.

import { areaOf, boxOf, countsToText, textToCounts } from "../runs.js";
import { doubleArea, outlinesOf, simplified } from "./outlines.js";
import { runsOfPolygons } from "./polygons.js";

const UNLABELLED = "object";

/** Names of the classes in their order; at the end that of masks without one, where there are such. */
export function classNames(labels, masks) {
  const names = labels.map((label) => label.name);
  const ids = new Set(labels.map((label) => label.id));
  const hasUnlabelled = masks.some((mask) => !ids.has(mask.label));
  if ((hasUnlabelled || !names.length) && !names.includes(UNLABELLED)) names.push(UNLABELLED);
  return names;
}

/** The index of a mask's class among the names. */
export function classOf(mask, labels, names) {
  const label = labels.find(({ id }) => id === mask.label);
  return names.indexOf(label?.name ?? UNLABELLED);
}

/**
 * @param pictures [{name, width, height, masks}].
 * @param options {polygons, tolerance}: outlines in place of run lengths, and how far they may lie
 *   from the mask's border, in pixels. Polygons cannot say holes.
 */
export function cocoOf(pictures, labels, { polygons = false, tolerance = 0 } = {}) {
  const names = classNames(labels, pictures.flatMap(({ masks }) => masks));
  const annotations = pictures.flatMap(({ masks }, i) =>
    masks.map((mask) => ({
      image_id: i + 1,
      category_id: classOf(mask, labels, names) + 1,
      iscrowd: 0,
      segmentation: polygons ? polygonsOf(mask.runs, tolerance) : rleOf(mask.runs),
      area: areaOf(mask.runs),
      bbox: boxOf(mask.runs),
      predicted_iou: mask.score,
      name: mask.name,
      point_coords: mask.points.map(([x, y]) => [x, y]),
      point_labels: mask.points.map(([, , label]) => label),
      ...(mask.box && { prompt_box: mask.box }), // [x0, y0, x1, y1]
      ...(mask.drawn && { drawn: { added: rleOf(mask.drawn.added), erased: rleOf(mask.drawn.erased) } }),
    })),
  );
  return {
    images: pictures.map(({ name, width, height }, i) => ({ id: i + 1, width, height, file_name: name })),
    annotations: annotations.map((annotation, i) => ({ id: i + 1, ...annotation })),
    categories: names.map((name, i) => ({ id: i + 1, name })),
  };
}

function rleOf(runs) {
  return { size: runs.size, counts: countsToText(runs.counts) };
}

function polygonsOf(runs, tolerance) {
  return outlinesOf(runs)
    .filter((outline) => doubleArea(outline) > 0)
    .map((outline) => simplified(outline, tolerance).flat());
}

export function hasHoles(runs) {
  return outlinesOf(runs).some((outline) => doubleArea(outline) < 0);
}

/**
 * The pictures of a data set: [{name, width, height, masks}], each mask {category, …} with what the
 * scene wants of it.
 * @throws Error with a message for the user.
 */
export function readCoco(dataset) {
  const { images, annotations, categories = [] } = dataset ?? {};
  if (!Array.isArray(images) || !Array.isArray(annotations)) {
    throw new Error("it has no “images” and “annotations”, as a COCO data set has");
  }
  const names = new Map(categories.map(({ id, name }) => [id, String(name)]));
  const pictures = new Map(images.map(({ id, file_name: name, width, height }) => [id, { name, width, height, masks: [] }]));
  for (const annotation of annotations) {
    const picture = pictures.get(annotation.image_id);
    if (!picture) throw new Error(`annotation ${annotation.id} is of picture ${annotation.image_id}, which is not among its images`);
    picture.masks.push({ ...maskOf(annotation, picture), category: names.get(annotation.category_id) ?? null });
  }
  return [...pictures.values()];
}

function maskOf(annotation, picture) {
  const size = [picture.height, picture.width];
  const runs = runsOf(annotation.segmentation, size, annotation.id);
  const signs = annotation.point_labels ?? [];
  const points = (annotation.point_coords ?? []).map(([x, y], i) => [x, y, signs[i] ?? 1]);
  const box = annotation.prompt_box ?? null;
  const mask = { runs, score: annotation.predicted_iou ?? null, points, box, logits: null };
  if (annotation.drawn) {
    const { added, erased } = annotation.drawn;
    mask.drawn = { added: runsOf(added, size, annotation.id), erased: runsOf(erased, size, annotation.id) };
  } else if (!box && !points.some(([, , label]) => label === 1)) {
    const nothing = { size, counts: Uint32Array.of(size[0] * size[1]) };
    Object.assign(mask, { points: [], drawn: { added: runs, erased: nothing } });
  }
  if (annotation.name) mask.name = String(annotation.name);
  return mask;
}

function runsOf(segmentation, size, id) {
  if (Array.isArray(segmentation)) return runsOfPolygons(segmentation, size);
  const isText = typeof segmentation?.counts === "string";
  if (!isText && !Array.isArray(segmentation?.counts)) throw new Error(`annotation ${id} has no segmentation`);
  const counts = isText ? textToCounts(segmentation.counts) : Uint32Array.from(segmentation.counts);
  const total = counts.reduce((sum, count) => sum + count, 0);
  if (segmentation.size?.join() !== size.join() || total !== size[0] * size[1]) {
    throw new Error(`annotation ${id} is of another size than its picture`);
  }
  return { size, counts };
}
