// The card over the picture while the server works.

const card = document.getElementById("progress");
const text = document.getElementById("progress-text");
const track = document.getElementById("progress-track");
const fill = document.getElementById("progress-fill");
const frame = document.getElementById("frame");

const TICK = 150; // milliseconds
let working = false;

const ends = new EventTarget();

/** Calls act when a long task has ended. */
export function listenToWork(act) {
  ends.addEventListener("end", act);
}

/** Whether a long task runs: a picture is opened, or everything is segmented. */
export function isWorking() {
  return working;
}

/**
 * Shows progress until the work is done, and gives the work a signal that Cancel aborts.
 * Where nobody can say how far it is (`run`), the bar nears its end along the usual time.
 * @param options {aside}: whether the picture stays in sight.
 */
export async function withProgress(work, { aside = false } = {}) {
  const abort = new AbortController();
  const cancel = document.getElementById("cancel");
  const onCancel = () => abort.abort();
  cancel.addEventListener("click", onCancel);
  let timer = 0;

  const show = (label, share) => {
    clearInterval(timer); // of run
    put(label, share);
  };
  const put = (label, share) => {
    if (text.textContent !== label) text.textContent = label; // else it would be read out again
    fill.style.width = `${100 * share}%`;
    track.setAttribute("aria-valuenow", Math.round(100 * share));
  };
  const run = (label, usual) => {
    clearInterval(timer);
    const started = performance.now();
    const tick = () => {
      const seconds = (performance.now() - started) / 1000;
      const note = seconds < 1 ? "" : `, ${seconds.toFixed(0)} s`;
      const about = usual && usual > 2 ? ` of about ${usual.toFixed(0)}` : "";
      put(`${label}${note}${note && about}`, 1 - Math.exp((-2 * seconds) / (usual || 20)));
    };
    tick();
    timer = setInterval(tick, TICK);
  };

  working = true;
  show("", 0);
  card.classList.toggle("aside", aside);
  card.hidden = false;
  frame.classList.add("busy");
  try {
    return await work({ signal: abort.signal, show, run });
  } finally {
    working = false;
    clearInterval(timer);
    cancel.removeEventListener("click", onCancel);
    card.hidden = true;
    frame.classList.remove("busy");
    ends.dispatchEvent(new Event("end"));
  }
}
