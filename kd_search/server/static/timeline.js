// The histogram of times, with a range that is dragged or moved by keys.

import { $, fromInput, make, moment, toInput } from "./dom.js";

const BINS = 120;
const KEYS = { ArrowLeft: -1, ArrowDown: -1, ArrowRight: 1, ArrowUp: 1, PageDown: -10, PageUp: 10 };

/** The range [0, 1] x [0, 1] of a timeline, and its marks. */
export class Timeline {
  /** changed() is called after every change of the range by the user. */
  constructor(changed) {
    this.changed = changed;
    this.from = 0;
    this.to = 1;
    this.start = null;
    this.handles = { from: $("from-handle"), to: $("to-handle") };
    for (const [side, handle] of Object.entries(this.handles)) {
      handle.addEventListener("keydown", (event) => this.onKey(event, side));
      handle.addEventListener("pointerdown", (event) => this.drag(event, side));
      $(side).addEventListener("change", () => this.onInput(side));
    }
    $("timeline").addEventListener("pointerdown", (event) => this.pick(event));
    $("all-times").addEventListener("click", () => {
      this.set(0, 1);
      this.handles.from.focus();
    });
  }

  static get bins() {
    return BINS;
  }

  /** What the search restricts, or nulls. */
  get range() {
    const known = this.start !== null;
    return {
      start: known && this.from > 0 ? this.time(this.from) : null,
      end: known && this.to < 1 ? this.time(this.to) : null,
    };
  }

  time(share) {
    return this.start + share * (this.end - this.start);
  }

  /** Draw a histogram of the API; only the cameras of a set count, or all if it is empty. */
  draw({ start, end, counts }, cameras) {
    $("timeline").hidden = $("times").hidden = start === null;
    if (start === null) return;
    [this.start, this.end] = [start, end];
    const shown = Object.entries(counts).filter(([name]) => !cameras.size || cameras.has(name));
    const total = Array.from({ length: BINS }, (_, i) => shown.reduce((sum, [, bins]) => sum + (bins[i] ?? 0), 0));
    const most = Math.max(...total, 1);
    const svg = $("timeline").querySelector("svg");
    svg.setAttribute("viewBox", `0 0 ${BINS} 100`);
    const bars = total.map((number, i) => {
      const height = number && 6 + (94 * number) / most;
      return `M${i + 0.12} 100V${100 - height}h.76V100z`;
    });
    const path = document.createElementNS("http://www.w3.org/2000/svg", "path");
    path.setAttribute("d", bars.join(""));
    svg.replaceChildren(path);
    this.show();
  }

  /** Mark the times of results. */
  mark(results) {
    const ticks = results.filter((result) => result.time !== null && this.start !== null);
    $("ticks").replaceChildren(
      ...ticks.map((result) => {
        const tick = make("i", { class: result.verdict.replace(" ", "-") });
        tick.style.left = `${(100 * (result.time - this.start)) / (this.end - this.start)}%`;
        return tick;
      }),
    );
  }

  set(from, to) {
    [this.from, this.to] = [Math.max(0, Math.min(from, to)), Math.min(1, Math.max(from, to))];
    this.show();
    this.changed();
  }

  show() {
    $("outside-before").style.width = `${100 * this.from}%`;
    $("outside-after").style.width = `${100 * (1 - this.to)}%`;
    $("all-times").hidden = this.from === 0 && this.to === 1;
    for (const [side, handle] of Object.entries(this.handles)) {
      const share = this[side];
      handle.style.left = `${100 * share}%`;
      handle.setAttribute("aria-valuemin", 0);
      handle.setAttribute("aria-valuemax", BINS);
      handle.setAttribute("aria-valuenow", Math.round(share * BINS));
      handle.setAttribute("aria-valuetext", moment(this.time(share)));
      $(side).value = toInput(this.time(share) + (side === "to" && share === 1 ? 0.999 : 0));
    }
  }

  move(side, share) {
    const limited = Math.min(1, Math.max(0, share));
    if (side === "from") this.set(Math.min(limited, this.to), this.to);
    else this.set(this.from, Math.max(limited, this.from));
  }

  onKey(event, side) {
    let share = this[side] + (KEYS[event.key] ?? 0) / BINS;
    if (event.key === "Home") share = side === "from" ? 0 : this.from;
    if (event.key === "End") share = side === "to" ? 1 : this.to;
    if (share === this[side]) return;
    event.preventDefault();
    this.move(side, share);
  }

  onInput(side) {
    const seconds = fromInput($(side).value);
    const whole = side === "from" ? 0 : 1;
    this.move(side, seconds === null ? whole : (seconds - this.start) / (this.end - this.start));
  }

  share(event) {
    const area = $("timeline").getBoundingClientRect();
    return Math.min(1, Math.max(0, (event.clientX - area.left) / area.width));
  }

  drag(event, side) {
    event.preventDefault();
    event.stopPropagation();
    const handle = this.handles[side];
    handle.focus();
    this.follow(event, handle, (share) => {
      if (side === "from") this.from = Math.min(share, this.to);
      else this.to = Math.max(share, this.from);
    });
  }

  /** A range from where the pointer goes down to where it goes up. */
  pick(event) {
    if (event.button !== 0) return;
    event.preventDefault();
    const first = this.share(event);
    this.follow(event, $("timeline"), (share) => {
      if (Math.abs(share - first) < 0.01) return;
      [this.from, this.to] = [Math.min(first, share), Math.max(first, share)];
    });
  }

  follow(event, element, change) {
    element.setPointerCapture(event.pointerId);
    const before = [this.from, this.to];
    const move = (next) => {
      change(this.share(next));
      this.show();
    };
    const end = () => {
      element.removeEventListener("pointermove", move);
      if (before[0] !== this.from || before[1] !== this.to) this.changed();
    };
    element.addEventListener("pointermove", move);
    element.addEventListener("lostpointercapture", end, { once: true });
  }
}
