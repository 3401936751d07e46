// Things the user must see, and things a screen reader says.

const SECONDS = 12;
const area = document.getElementById("notices");

/** An error stays until it is dismissed; a hint leaves by itself. */
export function notify(text, { error = false, action = null } = {}) {
  const notice = document.createElement("div");
  notice.className = error ? "notice error" : "notice";
  notice.setAttribute("role", error ? "alert" : "status");
  const message = document.createElement("p");
  message.textContent = text;
  notice.append(message);
  if (action) notice.append(smallButton(action.label, () => (notice.remove(), action.act())));
  notice.append(smallButton("Dismiss", () => notice.remove()));
  area.replaceChildren(notice);
  if (!error) setTimeout(() => notice.remove(), 1000 * SECONDS);
}

/** Says what went wrong; offers to try again where that may help. */
export function complain(error, again = null) {
  const action = again && { label: "Try again", act: again };
  if (error.name === "AbortError") {
    notify("Cancelled.", { action });
    return;
  }
  console.error(error);
  const temporary = !error.status || [408, 429, 500, 503, 504].includes(error.status);
  notify(error.message, { error: true, action: temporary ? action : null });
}

export function dismissNotices() {
  area.replaceChildren();
}

export function announce(text) {
  document.getElementById("status").textContent = text;
}

function smallButton(label, act) {
  const button = document.createElement("button");
  button.type = "button";
  button.className = "button quiet small";
  button.textContent = label;
  button.addEventListener("click", act);
  return button;
}
