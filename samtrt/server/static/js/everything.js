// Masks of everything in the picture.

import { announce, complain, dismissNotices, notify } from "./notices.js";
import { isWorking, withProgress } from "./progress.js";

export async function everything(scene, session) {
  if (isWorking() || !session.isReady) return;
  dismissNotices();
  try {
    const masks = await withProgress((progress) => session.everything(progress));
    if (masks.length) scene.add(masks, -1);
    else notify("Nothing was found with enough confidence. Click the objects instead.");
    announce(`${masks.length} masks found.`);
  } catch (error) {
    complain(error, () => everything(scene, session));
  }
}
