// The server's HTTP API. Every failure becomes an ApiError whose message can be shown as it is.
// Paths are relative to the page, which may stand below a prefix of a proxy.

const RETRIES = 5;
// One for each page: another prefix of the same host may be another server.
const TOKEN = `samtrt-token ${location.pathname}`;

/** Keeps the token of the address (#token=…) for this tab, and takes it out of the address. */
export function takeToken() {
  const found = /^#token=(.+)$/.exec(location.hash); // URLSearchParams would read + as a space
  if (!found) return;
  sessionStorage.setItem(TOKEN, found[1]);
  history.replaceState(null, "", location.pathname + location.search);
}

/** What a request must carry where the server has a token. */
export function authorization() {
  const token = sessionStorage.getItem(TOKEN);
  return token ? { Authorization: `Bearer ${token}` } : {};
}

export class ApiError extends Error {
  constructor(message, status = 0) {
    super(message);
    this.status = status;
  }
}

export async function health() {
  return (await request("health")).json();
}

export async function sample() {
  return (await request("sample")).blob();
}

/** Embeds a picture's file. onUpload is called with the share that is sent. */
export function embed(blob, { signal, onUpload }) {
  return retrying(signal, () => upload(blob, signal, onUpload));
}

export async function embedding(id, signal) {
  return (await request(`embed/${id}?dtype=float16`, { signal })).arrayBuffer();
}

/** Masks of one prompt, the best first; not tried again: who hovers has moved on. */
export async function masks(prompt) {
  const post = { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(prompt) };
  return (await request("masks", post)).json();
}

/**
 * Masks of everything. onEvent is called with each line but the last.
 * @returns the data set at the end.
 */
export async function everything(options, signal, onEvent) {
  const post = () =>
    request("everything", {
      method: "POST",
      headers: { "Content-Type": "application/json", Accept: "application/x-ndjson" },
      body: JSON.stringify(options),
      signal,
    });
  const response = await retrying(signal, post);
  for await (const line of linesOf(response)) {
    const event = JSON.parse(line);
    if (event.problem) throw new ApiError(sentence(event.problem.detail), event.problem.status);
    if (event.dataset) return event.dataset;
    onEvent(event);
  }
  throw new ApiError("The server ended before everything was searched.");
}

async function* linesOf(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    let part;
    try {
      part = await reader.read();
    } catch (error) {
      if (error.name === "AbortError") throw error;
      throw unreachable();
    }
    if (part.done) return;
    const lines = (rest + part.value).split("\n");
    rest = lines.pop();
    yield* lines;
  }
}

async function request(path, options = {}) {
  let response;
  try {
    response = await fetch(path, { ...options, headers: { ...options.headers, ...authorization() } });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw unreachable();
  }
  if (!response.ok) throw await failure(response.status, response.headers, () => response.json());
  return response;
}

// fetch reports no progress of an upload; XMLHttpRequest does.
function upload(blob, signal, onUpload) {
  return new Promise((resolve, reject) => {
    const call = new XMLHttpRequest();
    call.open("POST", "embed");
    const headers = { "Content-Type": blob.type, ...authorization() };
    for (const [name, value] of Object.entries(headers)) call.setRequestHeader(name, value);
    call.upload.onprogress = (event) => onUpload(event.loaded / event.total);
    call.upload.onload = () => onUpload(1);
    call.onload = async () => {
      const body = () => JSON.parse(call.responseText);
      if (call.status === 200) resolve(body());
      else reject(await failure(call.status, { get: (name) => call.getResponseHeader(name) }, body));
    };
    call.onerror = () => reject(unreachable());
    call.onabort = () => reject(new DOMException("cancelled", "AbortError"));
    signal.addEventListener("abort", () => call.abort(), { once: true });
    call.send(blob);
  });
}

function unreachable() {
  return new ApiError("The server does not answer. Check that it is running, then try again.");
}

async function failure(status, headers, body) {
  let detail = `the server answered ${status}`;
  try {
    detail = (await body()).detail ?? detail;
  } catch {
    // not this server's error format; the status has to do
  }
  const error = new ApiError(sentence(detail), status);
  error.retryAfter = Number(headers.get("Retry-After")) || 0;
  return error;
}

/** Tries again while the server says that it is busy. */
async function retrying(signal, call) {
  for (let tries = 1; ; tries++) {
    try {
      return await call();
    } catch (error) {
      const busy = error.status === 429 || error.status === 503;
      if (!busy || tries === RETRIES || signal.aborted) throw error;
      await new Promise((done) => setTimeout(done, 1000 * error.retryAfter * tries));
      signal.throwIfAborted();
    }
  }
}

function sentence(text) {
  return text[0].toUpperCase() + text.slice(1) + (text.endsWith(".") ? "" : ".");
}
