// Pictures by their address on the web, fetched by the browser.

/** The address in a text, or null. */
export function addressIn(text) {
  try {
    const url = new URL(text.trim());
    return ["http:", "https:", "data:", "blob:"].includes(url.protocol) ? url : null;
  } catch {
    return null;
  }
}

/** @throws Error with a message for the user. */
export async function fetchPicture(url, signal) {
  const host = url.host || "That address";
  let response;
  try {
    response = await fetch(url, { signal, mode: "cors", credentials: "omit", referrerPolicy: "no-referrer" });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Error(
      `${host} cannot be reached, or does not let other pages read its pictures (CORS). Save the picture and open the file.`,
    );
  }
  if (!response.ok) throw new Error(`${host} answered ${response.status}. Check the picture's address.`);
  const blob = await response.blob();
  const name = decodeURIComponent(url.pathname.split("/").pop()) || "picture";
  return { file: blob, name: url.protocol === "data:" ? "picture" : name };
}
