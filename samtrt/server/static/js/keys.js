// Single-key shortcuts: letters, digits and signs that act without Ctrl. They can be switched off,
// for those who dictate or whose hands shake, and never act while something is typed.

const REMEMBERED = "samtrt-single-keys";
const box = document.getElementById("single-keys");

export const singleKeys = {
  get areOn() {
    return box.checked;
  },
};

box.checked = localStorage.getItem(REMEMBERED) !== "off";
box.addEventListener("change", () => localStorage.setItem(REMEMBERED, box.checked ? "on" : "off"));

/** Whether a key goes to a field, a menu or a dialog. */
export function isTyping({ target }) {
  return Boolean(target.closest?.("input, select, textarea, [contenteditable], dialog, [role=menu]"));
}
