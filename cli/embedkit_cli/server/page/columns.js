// The columns side by side: a task each, over the same index.

import { byId, h, plural } from "./dom.js";
import { coloursOf } from "./colours.js";
import { hitItem } from "./hits.js";
import { languageName, mixOf } from "./languages.js";
import { drawLinks } from "./links.js";
import { ranksOf } from "./ranking.js";
import { MOST_COLUMNS, nameOf } from "./state.js";

const OWN = "\u0000own words";
const root = byId("columns");
let heads = [];

// `on`: change() after a column's task changed, add(), remove(place).
export function drawColumns(state, tasks, on) {
  const colours = coloursOf(state.columns);
  heads = state.columns.map((column, place) => {
    const problem = h("p", { class: "problem", id: `column-${place}-problem`, hidden: true });
    const list = h("ol", { class: "hits" });
    const told = h("div", { class: "told" });
    const remove = state.columns.length > 1 && h(
      "button", { type: "button", class: "quiet remove", "aria-label": `Remove column ${nameOf(column)}`, title: "Remove this column", onclick: () => on.remove(place) }, "×",
    );
    const head = h(
      "header", { class: "column-head" },
      h("h2", { class: "visually-hidden" }, `Task ${nameOf(column)}`),
      h("div", { class: "row" }, taskSelect(column, tasks, place, on), remove),
      instruction(column, tasks, place, on), problem, told,
    );
    const element = h("section", { class: `column c${colours[place]}`, "aria-label": `Task ${nameOf(column)}`, data: { place: String(place) } }, head, list);
    return { element, list, told, problem };
  });
  const add = h(
    "button", { type: "button", id: "add-column", class: "add", disabled: state.columns.length >= MOST_COLUMNS, "aria-label": "Add a column", onclick: on.add },
    h("span", { "aria-hidden": "true" }, "+"), h("span", { class: "add-text" }, "Add a task"),
  );
  root.replaceChildren(...heads.map((head) => head.element), add);
  root.dataset.count = String(heads.length);
}

function taskSelect(column, tasks, place, on) {
  const select = h("select", { class: "task", "aria-label": `Task of column ${place + 1}`, "aria-describedby": `column-${place}-problem` });
  const own = tasks.filter((task) => task.source !== "built-in");
  const built = tasks.filter((task) => task.source === "built-in");
  const options = (some) => some.map((task) => h("option", { value: task.name, title: task.description }, task.name));
  select.append(h("option", { value: OWN }, "own words…"));
  if (own.length) select.append(h("optgroup", { label: "Tasks of this index" }, options(own)));
  select.append(own.length ? h("optgroup", { label: "Built-in tasks" }, options(built)) : "", ...(own.length ? [] : options(built)));
  // A task from the address that nobody knows: shown as it is, and the server says what is wrong.
  if (column.task !== undefined && !tasks.some((task) => task.name === column.task)) select.append(h("option", { value: column.task }, column.task));
  select.value = column.task ?? OWN;
  select.addEventListener("change", () => {
    const before = tasks.find((task) => task.name === column.task)?.instruction ?? "";
    on.change(place, select.value === OWN ? { instruction: before } : { task: select.value });
  });
  return select;
}

function instruction(column, tasks, place, on) {
  if (column.task !== undefined) {
    const task = tasks.find((one) => one.name === column.task);
    return h("p", { class: "instruction" }, task ? task.instruction : "");
  }
  const field = h("textarea", {
    class: "instruction own", rows: 2, dir: "auto", spellcheck: "false", "aria-label": `Instruction of column ${place + 1}`,
    placeholder: "Say what to find, then Enter", "aria-describedby": `column-${place}-problem`,
  });
  field.value = column.instruction;
  let sent = false;
  const send = () => {
    // Drawing anew takes this field away, which browsers may tell as one more change.
    if (sent || field.value === column.instruction) return;
    sent = true;
    on.change(place, { instruction: field.value });
  };
  field.addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    send();
  });
  field.addEventListener("change", send);
  return field;
}

export function focusColumn(place) {
  const head = heads[Math.min(place, heads.length - 1)];
  (head?.element.querySelector("textarea") ?? head?.element.querySelector("select"))?.focus();
}

export function columnProblem(place, message) {
  const { problem, element } = heads[place];
  problem.textContent = message;
  problem.hidden = false;
  element.querySelector(".task, textarea")?.setAttribute("aria-invalid", "true");
}

export function clearColumns() {
  for (const { list, told } of heads) {
    list.replaceChildren();
    told.replaceChildren();
  }
  drawLinks([], new Map());
}

export function showResults(answer, state, selected) {
  const { results } = answer;
  const ranks = ranksOf(results);
  const names = state.columns.map(nameOf);
  const colours = coloursOf(state.columns);
  results.forEach((result, column) => {
    const view = { column, names, colours, ranks, mode: state.mode, best: result.hits[0]?.score ?? 1 };
    const { list, told } = heads[column];
    told.replaceChildren(...saidAbove(result, state));
    list.replaceChildren(...result.hits.map((hit) => hitItem(hit, view)));
    list.hidden = !result.hits.length;
  });
  drawLinks(heads.map((head) => head.element), ranks);
  if (selected !== undefined) highlight(selected);
  return ranks;
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
