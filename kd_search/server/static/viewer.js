// One scene, large: everybody in it, its neighbours in time at the same camera, and the results.

import { person } from "./api.js";
import { load } from "./cards.js";
import { $, boxAt, during, make, place, say, whereAndWhen } from "./dom.js";

export class Viewer {
  /** act: results(), marks(), mark(id, right), search(found), label(result). */
  constructor(act) {
    this.act = act;
    this.dialog = $("viewer");
    this.rank = 0;
    this.scene = null;
    this.chosen = null;
    $("close").addEventListener("click", () => this.dialog.close());
    $("earlier").addEventListener("click", () => this.step("previous"));
    $("later").addEventListener("click", () => this.step("next"));
    $("before").addEventListener("click", () => this.openResult(this.rank - 1));
    $("after").addEventListener("click", () => this.openResult(this.rank + 1));
    $("viewer-right").addEventListener("click", () => this.mark(true));
    $("viewer-wrong").addEventListener("click", () => this.mark(false));
    $("viewer-search").addEventListener("click", () => this.search());
    this.dialog.addEventListener("keydown", (event) => this.onKey(event));
    this.dialog.addEventListener("close", () => {
      this.loading?.abort();
      document.body.append($("status"));
    });
    this.dialog.addEventListener("click", (event) => {
      if (event.target === this.dialog) this.dialog.close();
    });
  }

  openResult(rank) {
    const result = this.act.results()[rank];
    if (!result) return;
    this.rank = rank;
    this.show(result.id, result.id);
  }

  step(side) {
    const id = this.scene?.[side];
    // Whoever is in the neighbouring scene need not be the wanted one: nobody is chosen there.
    if (id) this.show(id, null);
    else say(side === "next" ? "There is no later scene at this camera." : "There is no earlier scene at this camera.");
  }

  async show(id, chosen) {
    this.loading?.abort();
    this.loading = new AbortController();
    const { signal } = this.loading;
    if (!this.dialog.open) {
      this.dialog.showModal();
      // Everything outside of an open dialog is hidden from screen readers.
      this.dialog.append($("status"));
    }
    try {
      const scene = await during(person(id));
      if (signal.aborted) return;
      this.scene = scene;
      this.draw(signal);
      this.choose(chosen);
    } catch (error) {
      say(error.message, true);
    }
  }

  draw(signal) {
    const { scene } = this;
    const rank = this.act.results().findIndex((result) => scene.people.some(({ id }) => id === result.id));
    if (rank >= 0) this.rank = rank;
    $("viewer-title").textContent = whereAndWhen(scene);
    const second = scene.second === null ? "" : `, ${scene.second.toFixed(1)} s`;
    $("viewer-path").textContent = scene.path + second;
    $("earlier").disabled = !scene.previous;
    $("later").disabled = !scene.next;
    const alt = `${whereAndWhen(scene)}: ${scene.people.length} people, each is a button`;
    const image = make("img", { alt, width: scene.width, height: scene.height });
    const area = make("div", { class: "picture" }, image);
    area.style.aspectRatio = `${scene.width} / ${scene.height}`;
    area.style.setProperty("--ratio", scene.width / scene.height);
    const ranks = new Map(this.act.results().map((result, index) => [result.id, index + 1]));
    for (const [index, { id, box }] of scene.people.entries()) {
      const found = ranks.has(id) ? `, result ${ranks.get(id)}` : "";
      const button = make("button", {
        type: "button",
        class: "box",
        "data-id": id,
        "aria-label": `Person ${index + 1} of ${scene.people.length}${found}`,
        onclick: (event) => this.choose(boxAt(event, area.querySelectorAll(".box")).dataset.id),
      });
      area.append(place(button, box, scene.width, scene.height));
    }
    $("viewer-stage").replaceChildren(area);
    load(image, scene.id, "large", signal);
  }

  /** Choose somebody of the scene, whom the buttons are about. */
  choose(id) {
    this.chosen = id;
    for (const button of $("viewer-stage").querySelectorAll(".box")) {
      button.setAttribute("aria-pressed", button.dataset.id === id);
    }
    this.update();
  }

  /** Show what holds of the chosen person. */
  update() {
    const results = this.act.results();
    const mark = this.act.marks().get(this.chosen);
    $("viewer-right").setAttribute("aria-pressed", mark === true);
    $("viewer-wrong").setAttribute("aria-pressed", mark === false);
    for (const name of ["viewer-right", "viewer-wrong", "viewer-search"]) $(name).disabled = !this.chosen;
    $("before").disabled = this.rank <= 0;
    $("after").disabled = this.rank >= results.length - 1;
  }

  mark(right) {
    if (!this.chosen) return;
    this.act.mark(this.chosen, right);
    this.update();
  }

  search() {
    const found = this.scene?.people.find(({ id }) => id === this.chosen);
    if (!found) return;
    this.dialog.close();
    this.act.search({ ...this.scene, ...found });
  }

  onKey(event) {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const keys = {
      ArrowLeft: () => this.step("previous"),
      ArrowRight: () => this.step("next"),
      ArrowUp: () => this.openResult(this.rank - 1),
      ArrowDown: () => this.openResult(this.rank + 1),
      r: () => this.mark(true),
      w: () => this.mark(false),
      s: () => this.search(),
    };
    const act = keys[event.key.length === 1 ? event.key.toLowerCase() : event.key];
    if (!act) return;
    event.preventDefault();
    act();
  }
}
