// Small helpers: elements, boxes over pictures, what the page says, times.

export const $ = (id) => document.getElementById(id);

/** An element: make("button", {type: "button", "aria-label": "Close", onclick: f}, "text", child). */
export function make(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value === true) element.setAttribute(name, "");
    else if (value !== false && value !== null && value !== undefined) element.setAttribute(name, value);
  }
  element.append(...children);
  return element;
}

/** Put an element over a picture of width x height, at an XYXY box. */
export function place(element, box, width, height) {
  const [x0, y0, x1, y1] = box;
  element.style.left = `${(100 * x0) / width}%`;
  element.style.top = `${(100 * y0) / height}%`;
  element.style.width = `${(100 * (x1 - x0)) / width}%`;
  element.style.height = `${(100 * (y1 - y0)) / height}%`;
  return element;
}

/**
 * The box that a click means. Boxes of people overlap, and a small one may lie on the middle of
 * another: of those under the pointer it is the one to whose middle the pointer is nearest.
 */
export function boxAt(event, boxes) {
  const { clientX: x, clientY: y } = event;
  if (!event.detail) return event.currentTarget; // from the keyboard
  const away = (box) => {
    const { left, top, width, height } = box.getBoundingClientRect();
    const [dx, dy] = [(x - left) / width - 0.5, (y - top) / height - 0.5];
    return Math.max(Math.abs(dx), Math.abs(dy)) > 0.5 ? Infinity : Math.hypot(dx, dy);
  };
  const [nearest] = [...boxes].sort((a, b) => away(a) - away(b));
  return away(nearest) === Infinity ? event.currentTarget : nearest;
}

let hiding = 0;

/** Say what happens, on the screen and to screen readers; a problem stays until something else. */
export function say(text, problem = false) {
  const line = $("status");
  line.textContent = text;
  line.classList.toggle("bad", problem);
  line.classList.toggle("shown", Boolean(text));
  clearTimeout(hiding);
  if (text && !problem) hiding = setTimeout(() => line.classList.remove("shown"), 4000);
}

let working = 0;

/** Show that something is going on while a promise is pending. */
export async function during(promise) {
  working += 1;
  $("progress").hidden = false;
  try {
    return await promise;
  } finally {
    working -= 1;
    if (!working) $("progress").hidden = true;
  }
}

// Times are those on the clock of the cameras, as if it stood at UTC.
const DAY = new Intl.DateTimeFormat(undefined, { timeZone: "UTC", day: "numeric", month: "short", year: "numeric" });
const CLOCK = new Intl.DateTimeFormat(undefined, { timeZone: "UTC", hour: "2-digit", minute: "2-digit", second: "2-digit", hourCycle: "h23" });

export const day = (seconds) => DAY.format(1000 * seconds);
export const clock = (seconds) => CLOCK.format(1000 * seconds);
export const moment = (seconds) => `${day(seconds)}, ${clock(seconds)}`;
export const toInput = (seconds) => new Date(1000 * Math.floor(seconds)).toISOString().slice(0, 19);
export const fromInput = (text) => (text ? Date.parse(`${text}Z`) / 1000 : null);

/** "1,234 people", "1 person". */
export const count = (number, one, many) => `${number.toLocaleString()} ${number === 1 ? one : many}`;

/** "north gate, 3 Nov 2026, 08:00:00", as far as it is known. */
export function whereAndWhen(found) {
  const parts = [found.camera, found.time === null ? null : moment(found.time)];
  return parts.filter(Boolean).join(" · ") || "camera and time unknown";
}
