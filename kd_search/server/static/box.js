// A box around somebody who was not found: drawn with the mouse, or placed and changed by keys,
// fields or fingers.

import { make, place as put } from "./dom.js";

const SIDES = ["left", "top", "right", "bottom"];
const KEYS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
/** Share of the picture by which a key moves. */
const STEP = 0.02;
/** Milliseconds without a change after which the box counts. */
const REST = 600;
/** Pixels of the picture, at least. */
const SMALLEST = 2;

export class FreeBox {
  /**
   * area: the element over which it lies; sent: width and height of the picture.
   * choose(element, box) is called when the box has come to rest.
   */
  constructor(area, { width, height }, choose) {
    this.area = area;
    this.size = [width, height];
    this.choose = choose;
    this.box = null;
    this.timer = 0;
    this.element = make(
      "button",
      {
        type: "button",
        class: "box drawn",
        "aria-pressed": "false",
        "aria-label": "Your box. Arrow keys move it, Shift and arrow keys change its size, Enter searches, Escape removes it.",
        onclick: () => this.rest(),
        onkeydown: (event) => this.onKey(event),
        onpointerdown: (event) => this.onPointer(event),
      },
      make("span", { class: "grip" }),
    );
    this.fields = SIDES.map((_, i) =>
      make("input", { type: "number", min: 0, max: this.size[i % 2], step: 1, onchange: () => this.onField(i) }),
    );
    this.edges = make(
      "fieldset",
      { class: "edges", hidden: true },
      make("legend", {}, "Your box, in pixels"),
      ...SIDES.map((name, i) => make("label", {}, `${name} `, this.fields[i])),
      make("button", { type: "button", onclick: () => this.rest() }, "Search with this box"),
      make("button", { type: "button", class: "plain", onclick: () => this.removeByUser() }, "Remove it"),
    );
    this.opener = make("button", { type: "button", class: "plain place-box", onclick: () => this.place() }, "Not outlined? Place a box");
    this.controls = make("div", { class: "free-box" }, this.opener, this.edges);
  }

  /** Show the box: XYXY in pixels of the picture, the corners in any order. */
  show(box) {
    const [width, height] = this.size;
    const sorted = (a, b, most) => {
      const first = Math.min(Math.max(Math.min(a, b), 0), most - SMALLEST);
      return [first, Math.min(Math.max(a, b, first + SMALLEST), most)];
    };
    const [x0, x1] = sorted(box[0], box[2], width);
    const [y0, y1] = sorted(box[1], box[3], height);
    this.box = [x0, y0, x1, y1];
    put(this.element, this.box, width, height);
    if (!this.element.isConnected) this.area.append(this.element);
    this.fields.forEach((field, i) => (field.value = Math.round(this.box[i])));
    this.edges.hidden = false;
    this.opener.hidden = true;
  }

  /** A box in the middle, to be moved. */
  place() {
    const [width, height] = this.size;
    this.show([0.375 * width, 0.25 * height, 0.625 * width, 0.75 * height]);
    this.element.focus();
  }

  remove() {
    clearTimeout(this.timer);
    this.box = null;
    this.element.remove();
    this.edges.hidden = true;
    this.opener.hidden = false;
  }

  removeByUser() {
    this.remove();
    this.opener.focus();
  }

  /** The box counts now. */
  rest() {
    clearTimeout(this.timer);
    if (this.box) this.choose(this.element, this.box);
  }

  soon() {
    clearTimeout(this.timer);
    this.timer = setTimeout(() => this.rest(), REST);
  }

  move(x, y) {
    const [x0, y0, x1, y1] = this.box;
    const [dx, dy] = [Math.min(Math.max(x, -x0), this.size[0] - x1), Math.min(Math.max(y, -y0), this.size[1] - y1)];
    this.show([x0 + dx, y0 + dy, x1 + dx, y1 + dy]);
  }

  /** Move the right and the lower side. */
  grow(x, y) {
    const [x0, y0, x1, y1] = this.box;
    this.show([x0, y0, Math.max(x1 + x, x0 + SMALLEST), Math.max(y1 + y, y0 + SMALLEST)]);
  }

  onKey(event) {
    if (event.key === "Escape") this.removeByUser();
    const direction = KEYS[event.key];
    if (!direction || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    const [dx, dy] = direction.map((sign, i) => sign * Math.max(1, STEP * this.size[i]));
    if (event.shiftKey) this.grow(dx, dy);
    else this.move(dx, dy);
    this.soon();
  }

  onField(side) {
    const value = this.fields[side].valueAsNumber;
    const box = [...this.box];
    if (Number.isFinite(value)) box[side] = value;
    this.show(box);
    this.soon();
  }

  /** Drag the box, or its lower right corner. */
  onPointer(event) {
    if (event.button !== 0) return;
    event.stopPropagation(); // it would begin another box
    event.preventDefault(); // the browser would drag what is selected
    this.element.focus({ preventScroll: true });
    const grip = event.target !== this.element;
    const bounds = this.area.getBoundingClientRect();
    const scale = [this.size[0] / bounds.width, this.size[1] / bounds.height];
    let last = [event.clientX, event.clientY];
    const move = (next) => {
      const away = [(next.clientX - last[0]) * scale[0], (next.clientY - last[1]) * scale[1]];
      last = [next.clientX, next.clientY];
      if (grip) this.grow(...away);
      else this.move(...away);
    };
    // The click that follows makes it count.
    this.element.setPointerCapture(event.pointerId);
    this.element.addEventListener("pointermove", move);
    this.element.addEventListener("lostpointercapture", () => this.element.removeEventListener("pointermove", move), { once: true });
  }
}
