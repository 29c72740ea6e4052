// What the page shows, as its address: shareable, and the back button works.

export const DEFAULTS = { q: "", index: null, lang: null, mode: "dense", k: 10, where: "", view: "search" };
export const MOST_COLUMNS = 8;

// A column is {task: name} or {instruction: text}.
export function readState(search = location.search) {
  const state = { ...DEFAULTS, columns: [] };
  for (const [name, value] of new URLSearchParams(search)) {
    if (name === "task") state.columns.push({ task: value });
    else if (name === "ask") state.columns.push({ instruction: value });
    else if (name === "k") state.k = Math.min(100, Math.max(1, Number.parseInt(value, 10) || DEFAULTS.k));
    else if (name === "view") state.view = value === "map" ? "map" : "search";
    else if (name === "mode") state.mode = ["dense", "hybrid", "lexical"].includes(value) ? value : "dense";
    else if (Object.hasOwn(DEFAULTS, name)) state[name] = value;
  }
  state.columns.length = Math.min(state.columns.length, MOST_COLUMNS);
  return state;
}

export function addressOf(state) {
  const params = new URLSearchParams();
  for (const name of Object.keys(DEFAULTS)) {
    if (state[name] !== DEFAULTS[name] && state[name] !== null) params.append(name, state[name]);
  }
  for (const column of state.columns) {
    if (column.task !== undefined) params.append("task", column.task);
    else params.append("ask", column.instruction);
  }
  return `?${params}`;
}

export const nameOf = (column) => column.task ?? (column.instruction.trim() || "own words");
