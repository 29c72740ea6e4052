// The tasks' controls, in both views: which task or own words, its instruction, what is wrong with it, remove and add.

import { h } from "./dom.js";
import { MOST_COLUMNS, nameOf } from "./state.js";

const OWN = "\u0000own words";
let heads = [];

// `on`: change(place, column), add(), remove(place).
export function taskHeads(state, tasks, on) {
  heads = state.columns.map((column, place) => h(
    "header", { class: "task-head" },
    h("h2", { class: "visually-hidden" }, "Task ", h("bdi", {}, nameOf(column))),
    h("div", { class: "row" }, taskSelect(column, tasks, place, on), state.columns.length > 1 && removal(column, place, on)),
    instruction(column, tasks, place, on),
    h("p", { class: "problem", id: `task-${place}-problem`, hidden: true }),
  ));
  return heads;
}

export const addButton = (state, on) => h(
  "button", { type: "button", id: "add-task", class: "add", disabled: state.columns.length >= MOST_COLUMNS, onclick: on.add },
  h("span", { "aria-hidden": "true" }, "+"), h("span", { class: "add-text" }, "Add a task"),
);

export function focusTask(place) {
  const head = heads[Math.min(place, heads.length - 1)];
  (head?.querySelector("textarea") ?? head?.querySelector("select"))?.focus();
}

export function taskProblem(place, message) {
  const problem = heads[place].querySelector(".problem");
  problem.textContent = message;
  problem.hidden = false;
  for (const field of heads[place].querySelectorAll(".task, textarea")) field.setAttribute("aria-invalid", "true");
}

const removal = (column, place, on) => h(
  "button", { type: "button", class: "quiet remove", "aria-label": `Remove task ${nameOf(column)}`, title: "Remove this task", onclick: () => on.remove(place) }, "×",
);

function taskSelect(column, tasks, place, on) {
  const select = h("select", { class: "task", "aria-label": `Task ${place + 1}`, "aria-describedby": `task-${place}-problem` });
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
    return h("p", { class: "instruction", dir: "auto" }, task ? task.instruction : "");
  }
  const field = h("textarea", {
    class: "instruction own", rows: 2, dir: "auto", spellcheck: "false", "aria-label": `Instruction of task ${place + 1}`,
    placeholder: "Say what to find, then Enter", "aria-describedby": `task-${place}-problem`,
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
