// Beside the map: each task with its controls, and its hits as a list.

import { coloursOf } from "./colours.js";
import { byId, h } from "./dom.js";
import { langAttribute } from "./languages.js";
import { nameOf } from "./state.js";
import { addButton, taskHeads } from "./tasks.js";

const root = byId("map-lists");
let bodies = [];

export function drawLists(state, tasks, on) {
  const colours = coloursOf(state.columns);
  const heads = taskHeads(state, tasks, on);
  const before = bodies;
  // What was found stays until the next answer is there, as in the columns.
  bodies = heads.map((_, place) => (before.length === heads.length ? before[place] : h("div", {})));
  root.replaceChildren(
    ...heads.map((head, place) => h("section", { class: `map-list c${colours[place]}`, "aria-label": `Task ${nameOf(state.columns[place])}` }, head, bodies[place])),
    addButton(state, on),
  );
}

export function leaveLists() {
  bodies = [];
  root.replaceChildren();
}

// `on`: hover(chunk or null), choose(chunk).
export function fillLists(answer, on) {
  bodies.forEach((body, place) => {
    const hits = answer?.results[place]?.hits;
    body.replaceChildren(
      !hits ? "" : hits.length ? h("ol", {}, hits.map((hit) => h("li", {}, listed(hit, on)))) : h("p", { class: "hint" }, "No hits."),
    );
  });
}

function listed(hit, on) {
  const text = hit.title || hit.snippet?.text || hit.text;
  const button = h(
    "button", { type: "button", class: "map-hit", data: { chunk: String(hit.chunk_id) } },
    h("span", { class: "rank-number" }, String(hit.rank)), h("span", { class: "map-text", dir: "auto", lang: langAttribute(hit.lang) }, [...text].slice(0, 90).join("")),
  );
  for (const name of ["pointerenter", "focus"]) button.addEventListener(name, () => on.hover(hit.chunk_id));
  for (const name of ["pointerleave", "blur"]) button.addEventListener(name, () => on.hover(null));
  button.addEventListener("click", () => on.choose(hit.chunk_id));
  return button;
}
