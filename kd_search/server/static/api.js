// Requests to the server. The token is sent in a header only, never in an address.

import { $ } from "./dom.js";

const KEY = "kd_search token";
/** Pictures that are asked for at once. */
const AT_ONCE = 6;
const TRIES = 4;

export class Problem extends Error {
  constructor(status, code, message) {
    super(message);
    this.status = status;
    this.code = code;
  }
}

/** Take the token of "#token=..." out of the address, so that it stays in no history. */
export function takeToken() {
  const given = new URLSearchParams(location.hash.slice(1)).get("token");
  if (!given) return;
  sessionStorage.setItem(KEY, given);
  history.replaceState(null, "", location.pathname);
}

let asking = null;

function askForToken() {
  asking ??= new Promise((resolve) => {
    const dialog = $("login");
    $("login-problem").textContent = sessionStorage.getItem(KEY) ? "That is not the token." : "";
    $("token").value = "";
    const done = () => {
      if (!$("token").value) return dialog.showModal();
      sessionStorage.setItem(KEY, $("token").value.trim());
      dialog.removeEventListener("close", done);
      asking = null;
      resolve();
    };
    dialog.addEventListener("close", done);
    dialog.showModal();
  });
  return asking;
}

async function request(path, options = {}) {
  for (let attempt = 1; ; attempt += 1) {
    const token = sessionStorage.getItem(KEY);
    const headers = { ...options.headers, ...(token ? { Authorization: `Bearer ${token}` } : {}) };
    let answer;
    try {
      answer = await fetch(path, { ...options, headers });
    } catch (error) {
      if (error.name === "AbortError") throw error;
      throw new Problem(0, "network", "The server does not answer.");
    }
    if (answer.ok) return answer;
    if (answer.status === 401) {
      await askForToken();
      continue;
    }
    if (answer.status === 503 && attempt < TRIES) {
      await new Promise((resolve) => setTimeout(resolve, 1000 * attempt));
      continue;
    }
    const { error = {} } = await answer.json().catch(() => ({}));
    throw new Problem(answer.status, error.code, error.message ?? `The server answered ${answer.status}.`);
  }
}

const json = async (path, options) => (await request(path, options)).json();

export const status = () => json("/api/status");
export const timeline = (bins) => json(`/api/timeline?bins=${bins}`);
export const person = (id) => json(`/api/people/${id}`);

const post = (body, signal) => ({
  method: "POST",
  headers: { "Content-Type": "application/json" },
  body: JSON.stringify(body),
  signal,
});

export const search = (body, signal) => json("/api/search", post(body, signal));
export const save = async (body, format) => (await request(`/api/export?format=${format}`, post(body))).blob();

export function send(blob) {
  return json("/api/pictures", { method: "POST", headers: { "Content-Type": blob.type }, body: blob });
}

let running = 0;
const waiting = [];

/** A picture of the gallery as an object URL, few at a time and the last asked for first. */
export async function picture(id, size, signal) {
  if (running >= AT_ONCE) await new Promise((resolve) => waiting.push(resolve));
  running += 1;
  try {
    signal?.throwIfAborted();
    const answer = await request(`/api/people/${id}/picture?size=${size}`, { signal });
    return URL.createObjectURL(await answer.blob());
  } finally {
    running -= 1;
    waiting.pop()?.();
  }
}
