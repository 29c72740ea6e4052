// The columns side by side: a task each, over the same index.

import { byId, h, plural } from "./dom.js";
import { coloursOf } from "./colours.js";
import { hitItem, markPassage } from "./hits.js";
import { languageName, mixOf } from "./languages.js";
import { drawLinks } from "./links.js";
import { nameOf } from "./state.js";
import { addButton, taskHeads } from "./tasks.js";

const root = byId("columns");
let drawn = [];

export function drawColumns(state, tasks, on) {
  const colours = coloursOf(state.columns);
  const heads = taskHeads(state, tasks, on);
  const before = [...drawn];
  const take = (found) => (found < 0 ? null : before.splice(found, 1, null)[0]);
  // What was found stays until the next answer is there: under its task, or where another task takes its place.
  const same = state.columns.map((column) => take(before.findIndex((one) => one?.name === nameOf(column))));
  drawn = state.columns.map((column, place) => {
    const old = same[place] ?? (before.length === heads.length ? before[place] : null);
    const { list, told } = old ?? { list: h("ol", { class: "hits" }), told: h("div", { class: "told" }) };
    const element = h(
      "section", { class: `column c${colours[place]}`, "aria-label": `Task ${nameOf(column)}`, data: { place: String(place) } }, heads[place], told, list,
    );
    return { name: nameOf(column), element, list, told };
  });
  root.replaceChildren(...drawn.map((one) => one.element), addButton(state, on));
  root.dataset.count = String(drawn.length);
  drawLinks(drawn.map((one) => one.element));
}

export function leaveColumns() {
  drawn = [];
  root.replaceChildren();
}

export function clearColumns() {
  for (const { list, told } of drawn) {
    list.replaceChildren();
    told.replaceChildren();
  }
  drawLinks([], new Map());
}

export function showResults(answer, state, ranks) {
  const names = state.columns.map(nameOf);
  const colours = coloursOf(state.columns);
  answer.results.forEach((result, column) => {
    const view = { column, names, colours, ranks, mode: state.mode, best: result.hits[0]?.score ?? 1 };
    const { list, told } = drawn[column];
    told.replaceChildren(...saidAbove(result, state));
    list.replaceChildren(...result.hits.map((hit) => hitItem(hit, view)));
    list.hidden = !result.hits.length;
  });
  drawLinks(drawn.map((one) => one.element), ranks);
}

export function markPassages(answer) {
  answer.results.forEach((result, column) => {
    result.hits.forEach((hit, row) => markPassage(drawn[column].list.children[row], hit));
  });
  root.dispatchEvent(new CustomEvent("resized"));
}

function saidAbove(result, state) {
  const out = [];
  if (!result.hits.length) out.push(h("p", { class: "none" }, "No hits."));
  else {
    const mix = mixOf(result.hits);
    out.push(h("p", { class: "mix", "aria-label": `Languages of the hits: ${mix.map(([code, n]) => `${languageName(code)} ${n}`).join(", ")}`, role: "img" },
      mix.map(([code, n]) => { const part = h("span", {}, code, h("b", {}, String(n))); part.style.flexGrow = n; return part; })));
  }
  if (!result.obeys && state.mode !== "lexical") {
    out.push(h("p", { class: "hint" }, "This embedder was not trained on instructions: the text changes the vector, but not as it says."));
  }
  if (result.truncated) out.push(h("p", { class: "hint" }, `${plural(result.truncated, "token")} of the query did not fit and were not read.`));
  if (result.encoded) {
    const tokens = result.tokens ? `${plural(result.tokens.length, "token")}` : "counted by the embedding server";
    out.push(h("details", { class: "encoded" }, h("summary", {}, "What was encoded"), h("pre", { dir: "auto", tabIndex: 0 }, result.encoded), h("p", { class: "hint" }, `${tokens}, ${result.took_ms.toFixed(1)} ms to search`)));
  } else if (state.mode === "lexical") out.push(h("p", { class: "hint" }, "Words alone: the instruction plays no part."));
  return out;
}

export function highlight(chunk) {
  root.classList.toggle("linking", chunk !== null);
  for (const element of root.querySelectorAll(".hit.lit, path.lit")) element.classList.remove("lit");
  if (chunk === null) return;
  for (const element of root.querySelectorAll(`.hit[data-chunk="${chunk}"], path[data-chunk="${chunk}"]`)) element.classList.add("lit");
}
