// Ranked results as cards.

import { picture } from "./api.js";
import { make, place, whereAndWhen } from "./dom.js";

/** Load the pictures of cards shortly before they come into view. */
const watcher = new IntersectionObserver(
  (entries) => {
    for (const { isIntersecting, target } of entries) {
      if (!isIntersecting) continue;
      watcher.unobserve(target);
      load(target, target.dataset.id, target.dataset.size);
    }
  },
  { rootMargin: "500px" },
);

/** Show a picture of the gallery in an img, or that it cannot be shown. */
export async function load(image, id, size, signal) {
  try {
    const url = await picture(id, size, signal);
    image.addEventListener("load", () => URL.revokeObjectURL(url), { once: true });
    image.src = url;
  } catch (error) {
    if (error.name === "AbortError") return;
    image.replaceWith(make("span", { class: "missing" }, error.message));
  }
}

function lazily(id, size, properties) {
  const image = make("img", { ...properties, "data-id": id, "data-size": size });
  watcher.observe(image);
  return image;
}

/** The buttons of one person: right, wrong. */
function markButton(id, right, act) {
  const word = right ? "Right" : "Wrong";
  return make(
    "button",
    { type: "button", class: right ? "right" : "wrong", "aria-pressed": "false", onclick: () => act.mark(id, right) },
    `${right ? "✓" : "✗"} ${word}`,
  );
}

/** Similarity for people: two digits, and what it means. */
export function verdictOf(result) {
  const name = result.verdict.replace(" ", "-");
  return make("span", { class: `verdict ${name}` }, result.verdict);
}

/**
 * One result.
 * act: open(index), mark(id, right), search(result) and what a key does.
 */
export function card(result, rank, act) {
  const { id, width, height } = result;
  const where = whereAndWhen(result);
  const box = place(make("span", { class: "box" }), result.box, width, height);
  const alt = `Scene ${rank}: ${where}; the person is framed`;
  const image = lazily(id, "small", { alt, width, height });
  const scene = make(
    "button",
    { type: "button", class: "scene", "aria-label": `Open scene ${rank}: ${where}`, onclick: () => act.open(rank - 1) },
    make("span", { class: "picture" }, image, box),
  );
  scene.firstChild.style.aspectRatio = `${width} / ${height}`;
  const person = lazily(id, "person", { class: "person", alt: `Scene ${rank}: the person alone` });
  const seen = result.second === null ? "" : ` · seen ${(result.last - result.first).toFixed(0)} s of a video`;
  const item = make(
    "li",
    { class: "card", "data-id": id, onkeydown: (event) => onKey(event, result, act) },
    make("div", { class: "pictures" }, scene, make("span", { class: "frame" }, person)),
    make(
      "div",
      { class: "text" },
      make("div", { class: "line" }, verdictOf(result), make("span", { class: "similarity" }, `similarity ${result.similarity.toFixed(2)}`)),
      make("div", { class: "where" }, where + seen),
    ),
    make(
      "div",
      { class: "actions" },
      markButton(id, true, act),
      markButton(id, false, act),
      make("span", { class: "space" }),
      make("button", { type: "button", class: "plain", onclick: () => act.search(result) }, "Search for this one"),
    ),
  );
  return item;
}

function onKey(event, result, act) {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const key = event.key.toLowerCase();
  if (key === "r" || key === "w") act.mark(result.id, key === "r");
  else if (key === "s") act.search(result);
  else return;
  event.preventDefault();
}

/** Show the marks on cards. */
export function showMarks(list, marks) {
  for (const item of list.children) {
    const mark = marks.get(item.dataset.id);
    item.classList.toggle("is-right", mark === true);
    item.classList.toggle("is-wrong", mark === false);
    item.querySelector(".right").setAttribute("aria-pressed", mark === true);
    item.querySelector(".wrong").setAttribute("aria-pressed", mark === false);
  }
}
