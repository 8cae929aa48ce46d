// The state of the page, and what happens when something is chosen.

import * as api from "./api.js";
import { card, load, showMarks } from "./cards.js";
import { $, count, day, during, make, say } from "./dom.js";
import { cutOut, showStage } from "./stage.js";
import { Timeline } from "./timeline.js";
import { Viewer } from "./viewer.js";

const FIRST = 24;
const MOST = 480;
/** Types that the server takes; the browser converts others. */
const KINDS = ["image/jpeg", "image/png"];

/** The wanted: {query, thumbnail, file}, where query is one of the API's. */
let wanted = [];
/** The chosen one of the picture that is shown; part of wanted. */
let current = null;
/** The picture that is shown. */
let stage = null;
let facts = null;
let histogram = null;
let results = [];
/** In the order in which they were given, and how many of them the results consider. */
let marks = [];
let applied = 0;
let topK = FIRST;
let searching = null;

const timeline = new Timeline(() => soon());
const act = {
  results: () => results,
  marks: () => new Map(marks.map(({ id, right }) => [id, right])),
  open: (rank) => viewer.openResult(rank),
  mark,
  search: searchFor,
};
const viewer = new Viewer(act);

// -- the gallery ---------------------------------------------------------------------------------

async function start() {
  api.takeToken();
  try {
    [facts, histogram] = await during(Promise.all([api.status(), api.timeline(Timeline.bins)]));
  } catch (error) {
    say(error.message, true);
    return;
  }
  const cameras = Object.entries(facts.cameras);
  const span = facts.start === null ? null : [...new Set([day(facts.start), day(facts.end)])].join(" to ");
  const model = facts.calibrated ? "calibrated model" : "model not calibrated";
  const parts = [count(facts.people, "person", "people"), cameras.length && count(cameras.length, "camera", "cameras"), span, model];
  $("facts").textContent = parts.filter(Boolean).join(" · ");
  $("cameras").hidden = cameras.length < 2;
  $("cameras").querySelector("div").replaceChildren(
    ...cameras.map(([name, people]) =>
      make("label", {}, make("input", { type: "checkbox", value: name, onchange: onCameras }), make("span", {}, name, make("small", {}, people.toLocaleString()))),
    ),
  );
  showMoreFilters();
}

/** The folders and scores that can be chosen. */
function showMoreFilters() {
  const folders = Object.entries(facts.folders);
  const parts = folders.map(([name]) => name.split("/"));
  // What all of them begin with says nothing.
  const common = parts.length ? parts[0].findIndex((part, i) => parts.some((other) => other[i] !== part || i === other.length - 1)) : 0;
  $("folder").append(
    ...folders.map(([name, people], i) => make("option", { value: name }, `${parts[i].slice(common).join("/")} (${people.toLocaleString()})`)),
  );
  $("folder").parentElement.hidden = !folders.length;
  $("score").min = $("score").value = Math.floor(100 * facts.min_score);
  $("score").parentElement.hidden = Number($("score").min) >= Number($("score").max);
  showScore();
}

/** The least score, null for any. */
function minScore() {
  return $("score").value === $("score").min ? null : $("score").value / 100;
}

function showScore() {
  $("score-shown").textContent = minScore() === null ? "any" : `${$("score").value} %`;
  $("score").setAttribute("aria-valuetext", $("score-shown").textContent);
}

function chosenCameras() {
  return new Set([...$("cameras").querySelectorAll("input:checked")].map((input) => input.value));
}

function onCameras() {
  timeline.draw(histogram, chosenCameras());
  soon();
}

// -- the wanted ----------------------------------------------------------------------------------

async function take(file) {
  if (!file) return;
  if (!file.type.startsWith("image/")) {
    say(`${file.name} is no picture.`, true);
    return;
  }
  say("Looking for people …");
  await started;
  if (!facts) return; // which start() has said
  try {
    const blob = await converted(file);
    if (blob.size > facts.max_bytes) throw new Error(`The picture has more than ${Math.round(facts.max_bytes / 1e6)} MB.`);
    const sent = await during(api.send(blob));
    const image = make("img", { alt: sent.people.length ? "Your picture; the people in it are outlined" : "Your picture", width: sent.width, height: sent.height });
    const url = URL.createObjectURL(blob);
    image.src = url;
    await image.decode();
    current = null;
    stage = showStage(image, sent, (person, box) => choose(sent, blob, image, person, box));
    document.body.classList.add("with-picture");
    $("drop-title").textContent = "Another picture";
    $("drop-hint").textContent = "of the same person: together they find more";
    if (sent.people.length === 1) stage.choose(0);
    else if (sent.people.length) {
      say(`${sent.people.length} people were found: choose one.`);
      stage.focus();
    } else {
      say("Nobody was found. Draw a box around the person with the mouse, or place one.");
      stage.focus();
    }
  } catch (error) {
    say(error.message, true);
  }
}

/** The picture in a type that the server takes. */
async function converted(file) {
  if (KINDS.includes(file.type)) return file;
  const bitmap = await createImageBitmap(file).catch(() => {
    throw new Error("The browser cannot read this picture.");
  });
  const canvas = make("canvas", { width: bitmap.width, height: bitmap.height });
  canvas.getContext("2d").drawImage(bitmap, 0, 0);
  return new Promise((resolve) => canvas.toBlob(resolve, "image/png"));
}

function choose(sent, blob, image, person, box) {
  const query = person === null ? { picture: sent.id, box } : { picture: sent.id, person };
  const entry = { query, blob, thumbnail: cutOut(image, box), label: "the person of your picture" };
  const place = wanted.indexOf(current);
  if (place >= 0) wanted[place] = entry;
  else wanted.push(entry);
  current = entry;
  changed();
}

/** Search for somebody in the gallery. */
function searchFor(found) {
  const image = make("img", { alt: "" });
  load(image, found.id, "person");
  wanted = [{ query: { id: found.id }, thumbnail: image, label: "the person of a scene" }];
  current = null;
  marks = [];
  changed();
  scrollTo({ top: 0 });
  $("found").focus({ preventScroll: true });
}

/** Start anew with the wanted as they are now. */
function changed() {
  applied = marks.length;
  topK = FIRST;
  $("chosen").replaceChildren(
    ...wanted.map((entry) =>
      make(
        "li",
        {},
        entry.thumbnail,
        make("button", { type: "button", "aria-label": `Remove ${entry.label}`, onclick: () => remove(entry) }, "✕"),
      ),
    ),
  );
  run();
}

function remove(entry) {
  wanted = wanted.filter((other) => other !== entry);
  if (entry === current) {
    current = null;
    stage.clear();
  }
  if (!wanted.length) [marks, results] = [[], []];
  changed();
}

// -- the search ----------------------------------------------------------------------------------

let timer = 0;

/** Search when nothing has changed for a moment. */
function soon() {
  clearTimeout(timer);
  timer = setTimeout(run, 200);
}

function searchBody() {
  return {
    query: wanted.map(({ query }) => query),
    cameras: [...chosenCameras()],
    ...timeline.range,
    folders: $("folder").value ? [$("folder").value] : [],
    min_score: minScore(),
    per: $("per").value,
    top_k: topK,
    marks: marks.slice(0, applied),
  };
}

/** Do something with the search; pictures that the server keeps no more are sent again first. */
async function withPictures(action) {
  try {
    return await action(searchBody());
  } catch (error) {
    if (error.code !== "picture-gone") throw error;
    for (const { query, blob } of wanted) {
      if (blob) query.picture = (await api.send(blob)).id;
    }
    return action(searchBody());
  }
}

async function run() {
  clearTimeout(timer);
  searching?.abort();
  const none = !wanted.length;
  $("found").hidden = none;
  document.body.classList.toggle("searching", !none);
  if (none) {
    $("filters").hidden = true;
    return;
  }
  if ($("filters").hidden) {
    $("filters").hidden = false;
    timeline.draw(histogram, chosenCameras());
  }
  searching = new AbortController();
  const { signal } = searching;
  say("Searching …");
  try {
    const answer = await during(withPictures((body) => api.search(body, signal)));
    const gone = new Set(answer.gone);
    if (gone.size) {
      applied -= marks.slice(0, applied).filter(({ id }) => gone.has(id)).length;
      marks = marks.filter(({ id }) => !gone.has(id));
    }
    show(answer);
  } catch (error) {
    if (error.name !== "AbortError") say(error.message, true);
  }
}

function show(answer) {
  const first = !results.length;
  const old = results.map(({ id }) => id);
  results = answer.results;
  const list = $("results");
  // More of the same keeps the cards that are there.
  const same = old.length <= results.length && old.every((id, i) => id === results[i].id) && list.children.length === old.length;
  const fresh = results.slice(same ? old.length : 0).map((result, i) => card(result, (same ? old.length : 0) + i + 1, act));
  if (same) list.append(...fresh);
  else keepFocus(list, () => list.replaceChildren(...fresh));
  timeline.mark(results);
  const number = count(results.length, "scene", "scenes");
  $("found-title").textContent = results.length ? number : "Nobody like this";
  $("more").hidden = results.length < topK || topK >= MOST;
  $("note").textContent = note();
  const refined = applied ? `, refined by ${count(applied, "mark", "marks")}` : "";
  say(results.length ? `${number} found${refined}.` : "Nobody was found with these filters.");
  update();
  // On a narrow screen they would be out of sight.
  if (first && matchMedia("(max-width: 900px)").matches) $("filters").scrollIntoView();
}

/** Change a list of cards; the button of a card that had the focus has it afterwards, too. */
function keepFocus(list, change) {
  const button = list.contains(document.activeElement) && document.activeElement;
  const card = button && button.closest("li");
  const place = card && [...card.querySelectorAll("button")].indexOf(button);
  change();
  if (!card) return;
  const again = [...list.children].find(({ dataset }) => dataset.id === card.dataset.id);
  (again?.querySelectorAll("button")[place] ?? $("found")).focus({ preventScroll: true });
}

function note() {
  if (!results.length) return "No picture fits. Choose more cameras, a longer time, all folders or a lower score.";
  if (!facts.calibrated) return "The most similar come first. The model is not calibrated: which similarity means the same person is not known.";
  const likely = results.filter(({ verdict }) => verdict === "likely").length;
  const word = likely ? `${count(likely, "is", "are")} likely the same person` : "None is likely the same person";
  return `The most similar come first. ${word}; look for yourself.`;
}

// -- marks ---------------------------------------------------------------------------------------

function mark(id, right) {
  const before = act.marks().get(id);
  if (before === right) {
    // The same button again takes the mark back.
    const counted = marks.slice(0, applied).filter((given) => given.id === id).length;
    marks = marks.filter((given) => given.id !== id);
    applied -= counted;
    say("The mark was taken back.");
    if (counted) run();
  } else {
    marks.push({ id, right });
    say(`Marked as ${right ? "right" : "wrong"}. Refine searches again with your marks.`);
  }
  update();
}

function undo() {
  const last = marks.pop();
  if (!last) return;
  const pressed = document.activeElement === $("undo");
  say(`Undone: the mark as ${last.right ? "right" : "wrong"}.`);
  if (applied > marks.length) {
    applied = marks.length;
    run();
  }
  update();
  if (pressed && $("undo").hidden) $("found").focus({ preventScroll: true });
}

function refine() {
  applied = marks.length;
  topK = FIRST;
  run();
  $("found").focus({ preventScroll: true }); // the button goes away
}

function update() {
  showMarks($("results"), act.marks());
  viewer.update();
  $("undo").hidden = !marks.length;
  $("refine").hidden = !marks.length || applied === marks.length;
  $("refine").textContent = `Refine with ${count(marks.length, "mark", "marks")}`;
}

// -- files and events ----------------------------------------------------------------------------

async function save(format) {
  say("Writing the file …");
  try {
    const blob = await during(withPictures((body) => api.save(body, format)));
    const url = URL.createObjectURL(blob);
    make("a", { href: url, download: `found.${format === "html" ? "html" : "json"}` }).click();
    setTimeout(() => URL.revokeObjectURL(url), 10_000);
    say("Saved. The file holds personal data.");
  } catch (error) {
    say(error.message, true);
  }
}

$("file").addEventListener("change", () => {
  take($("file").files[0]);
  $("file").value = "";
});
document.addEventListener("paste", (event) => take([...event.clipboardData.files].find((file) => file.type.startsWith("image/"))));
let over = 0;
document.addEventListener("dragenter", (event) => {
  event.preventDefault();
  over += 1;
  document.body.classList.add("dragging");
});
document.addEventListener("dragleave", () => {
  over -= 1;
  document.body.classList.toggle("dragging", over > 0);
});
document.addEventListener("dragover", (event) => event.preventDefault());
document.addEventListener("drop", (event) => {
  event.preventDefault();
  over = 0;
  document.body.classList.remove("dragging");
  take(event.dataTransfer.files[0]);
});
document.addEventListener("keydown", (event) => {
  if ((event.ctrlKey || event.metaKey) && event.key === "z" && event.target.tagName !== "INPUT") {
    event.preventDefault();
    undo();
  }
});
$("folder").addEventListener("change", soon);
$("score").addEventListener("input", () => {
  showScore();
  soon();
});
$("per").addEventListener("change", () => {
  topK = FIRST;
  run();
});
$("more").addEventListener("click", () => {
  topK = Math.min(2 * topK, MOST);
  run();
});
$("refine").addEventListener("click", refine);
$("undo").addEventListener("click", undo);
$("save-page").addEventListener("click", () => save("html"));
$("save-json").addEventListener("click", () => save("json"));
const started = start();
