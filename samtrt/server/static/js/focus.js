// The keyboard's place is not lost when what had the focus goes away.

const surface = document.getElementById("pointer");

/** Enables a button or not; a focus that it had goes to the picture. */
export function setEnabled(button, isEnabled) {
  const hadFocus = button === document.activeElement;
  button.disabled = !isEnabled;
  if (hadFocus && !isEnabled) surface.focus({ preventScroll: true });
}

/**
 * Changes the rows of a list. Where the focused control's row goes, the same control of the row
 * that took its place gets the focus, or the picture. Controls carry data-focus="KIND-ID".
 */
export function keepFocus(list, change) {
  const { focus } = list.contains(document.activeElement) ? document.activeElement.dataset : {};
  const place = [...list.children].findIndex((row) => row.contains(document.activeElement));
  change();
  if (!focus || list.contains(document.activeElement)) return;
  const row = list.children[Math.min(place, list.children.length - 1)];
  const [kind] = focus.split("-");
  const next = list.querySelector(`[data-focus="${focus}"]`) ?? row?.querySelector(`[data-focus^="${kind}-"]`);
  (next ?? surface).focus({ preventScroll: next === undefined });
}
