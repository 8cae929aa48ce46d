// The picture that was sent, with the people in it, of whom one is chosen.

import { FreeBox } from "./box.js";
import { $, boxAt, make, place as put } from "./dom.js";

/** Pixels on the screen from which a drag is a box and not a click. */
const SMALLEST = 12;

/** The chosen part of a picture as a small picture, for the list of the wanted. */
export function cutOut(image, box) {
  const [x0, y0, x1, y1] = box;
  const canvas = make("canvas", { width: 96, height: 128 });
  const scale = Math.max(96 / (x1 - x0), 128 / (y1 - y0));
  const [w, h] = [96 / scale, 128 / scale];
  // The top of a person says more than the middle.
  const draw = canvas.getContext("2d");
  draw.drawImage(image, (x0 + x1 - w) / 2, y0, w, h, 0, 0, 96, 128);
  return canvas;
}

/**
 * Show a picture.
 * sent: answer of the API; image: an img that has loaded; choose(index or null, box) is called.
 */
export function showStage(image, sent, choose) {
  const area = make("div", { class: "picture" }, image);
  area.style.aspectRatio = `${sent.width} / ${sent.height}`;
  area.style.setProperty("--ratio", sent.width / sent.height);
  const buttons = sent.people.map(({ box, score }, index) => {
    const button = make("button", {
      type: "button",
      class: "box",
      "aria-pressed": "false",
      "aria-label": `Person ${index + 1} of ${sent.people.length}, found with a score of ${Math.round(100 * score)} %`,
      onclick: (event) => {
        const meant = boxAt(event, buttons);
        const place = buttons.indexOf(meant);
        pick(meant, place, sent.people[place].box);
      },
    });
    return put(button, box, sent.width, sent.height);
  });
  // Small boxes lie over large ones, so that each can be pressed.
  const size = ({ box }) => (box[2] - box[0]) * (box[3] - box[1]);
  const order = [...sent.people.keys()].sort((a, b) => size(sent.people[b]) - size(sent.people[a]));
  order.forEach((index, depth) => (buttons[index].style.zIndex = depth + 1));
  area.append(...buttons);

  function pick(element, index, box) {
    for (const other of [...buttons, free.element]) other.setAttribute("aria-pressed", other === element);
    if (index !== null) free.remove();
    choose(index, box);
  }
  const free = new FreeBox(area, sent, (element, box) => pick(element, null, box));

  // The click at the end of a drag belongs to the drawing.
  let dragged = false;
  const swallow = (event) => {
    if (dragged) event.stopPropagation();
    dragged = false;
  };
  area.addEventListener("click", swallow, { capture: true });
  area.addEventListener("pointerdown", (event) => {
    if (event.button !== 0 || event.pointerType === "touch") return;
    const bounds = area.getBoundingClientRect();
    const at = (e) => [
      ((e.clientX - bounds.left) / bounds.width) * sent.width,
      ((e.clientY - bounds.top) / bounds.height) * sent.height,
    ];
    const first = at(event);
    dragged = false;
    const move = (next) => {
      const away = Math.hypot(next.clientX - event.clientX, next.clientY - event.clientY);
      if (!dragged && away < SMALLEST) return;
      dragged = true;
      free.show([...first, ...at(next)]);
    };
    const end = () => {
      document.removeEventListener("pointermove", move);
      if (dragged) free.rest();
    };
    document.addEventListener("pointermove", move);
    document.addEventListener("pointerup", end, { once: true });
    event.preventDefault();
  });
  $("stage").replaceChildren(area, free.controls);
  return {
    choose: (index) => buttons[index].click(),
    focus: () => (buttons[0] ?? free.opener).focus(),
    clear: () => {
      for (const button of buttons) button.setAttribute("aria-pressed", "false");
      free.remove();
    },
  };
}
