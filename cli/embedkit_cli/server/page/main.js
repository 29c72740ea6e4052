// What a person does becomes the state, the state an address and a search, the answer what is seen.

import { indexesOf, search, tasksOf } from "./api.js";
import { drawChips } from "./chips.js";
import { clearColumns, drawColumns, leaveColumns, markPassages, showResults } from "./columns.js";
import { byId, plural } from "./dom.js";
import { listenForKeys } from "./keyboard.js";
import { mixOf } from "./languages.js";
import { drawLists, leaveLists } from "./map_lists.js";
import { closeMap, listenToMap, openMap, repaint } from "./map_view.js";
import { askForKey, clearProblems, countDown, fieldProblem, notice } from "./notices.js";
import { ranksOf, sharedBy } from "./ranking.js";
import { DEFAULTS, addressOf, readState } from "./state.js";
import { focusTask, taskProblem } from "./tasks.js";
import { startTheme } from "./themes.js";

const FIRST = ["qa", "duplicate", "bitext"];
const MORE = [...FIRST, "topic", "code", "paraphrase", "search", "fact-check"];
const RETRIES = 5;
let state = readState();
let indexes = [];
let tasks = [];
let answer = null;
let asked = null;
let tries = 0;
// The query that stands in the box, unless another is being typed.
let drawn = "";

async function start() {
  try {
    indexes = await indexesOf();
    if (!indexes.length) return notice("This server serves no index.");
    await openIndex();
    clearProblems();
    draw();
    if (!state.q && matchMedia("(hover: hover)").matches) byId("query").focus();
    await run();
  } catch (error) {
    fail(error, start);
  }
}

async function openIndex() {
  const known = indexes.find((one) => one.name === state.index);
  const index = known ?? indexes[0];
  const told = await tasksOf(index.name);
  tasks = told.tasks;
  if (state.index === null) state.index = index.name;
  if (!state.columns.length) {
    const own = tasks.filter((task) => task.source !== "built-in").map((task) => task.name);
    state.columns = [...new Set([...own, ...FIRST])].slice(0, 3).map((task) => ({ task }));
  }
  const pickers = byId("index");
  pickers.replaceChildren(...indexes.map((one) => new Option(one.name, one.name)));
  pickers.value = index.name;
  byId("index-picker").hidden = indexes.length < 2;
}

const served = () => indexes.find((one) => one.name === state.index) ?? indexes[0];

function draw() {
  const index = served();
  // What is typed and not sent yet stays.
  if (state.q !== drawn) byId("query").value = state.q;
  drawn = state.q;
  byId("mode").value = state.mode;
  byId("k").value = state.k;
  byId("where").value = state.where;
  if (state.mode !== DEFAULTS.mode || state.k !== DEFAULTS.k || state.where) byId("options").open = true;
  const languages = Object.keys(index.languages).length;
  byId("about").textContent = `${plural(index.documents, "document")} in ${plural(languages, "language")}, embedded once by ${index.embedder.name}. Between columns only the query’s instruction changes.`;
  const map = state.view === "map";
  (map ? leaveColumns : leaveLists)();
  (map ? drawLists : drawColumns)(state, tasks, { change: changeTask, add: addTask, remove: removeTask });
  drawLanguages(null);
  byId("results").hidden = map;
  byId("map-view").hidden = !map;
  for (const name of ["search", "map"]) {
    const link = byId(`view-${name}`);
    link.href = addressOf({ ...state, view: name });
    if (state.view === name) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  document.title = state.q ? `${state.q} · embedkit` : "embedkit";
}

function drawLanguages(found) {
  drawChips(served().languages, found, state.lang, (code) => change({ lang: code }));
}

// Every change goes this way: into the address, then into a search.
function change(some) {
  state = { ...state, ...some };
  const address = addressOf(state);
  if (address !== location.search) history.pushState(null, "", address);
  tries = 0;
  // Before the server has told its indexes: the start goes on from the state.
  if (!indexes.length) return undefined;
  draw();
  return run();
}

async function run() {
  asked?.abort();
  clearProblems();
  const own = state.columns.findIndex((c) => c.instruction !== undefined && !c.instruction.trim());
  if (!state.q.trim() || own >= 0) {
    answer = null;
    busy(false);
    clearColumns();
    const map = state.view === "map";
    byId("status").textContent = own >= 0 && state.q.trim() ? `Task ${own + 1} waits for its instruction.`
      : `Type a query and press Enter: ${map ? "each task’s hits light up in its colour" : "every column searches the same vectors, each under its own task"}.`;
    if (map) await openMap(state, null);
    else closeMap();
    return;
  }
  const mine = new AbortController();
  asked = mine;
  busy(true);
  try {
    // By words first: the passages' meaning takes longer, and the hits are the same.
    answer = await search(state, { explain: true, snippets: "words" }, mine.signal);
    tries = 0;
    show();
    busy(false);
    await markMeaning(answer, mine.signal);
  } catch (error) {
    if (error.name === "AbortError") return;
    answer = null;
    clearColumns();
    if (state.view === "map") openMap(state, null);
    byId("status").textContent = "";
    fail(error, run);
  }
  if (asked === mine) busy(false);
}

async function markMeaning(found, signal) {
  if (state.mode === "lexical" || !found.results.some((result) => result.hits.length)) return;
  const told = await search(state, { snippets: "meaning" }, signal).catch(() => null);
  // Where it fails, the words stay marked.
  if (told?.generation !== found.generation || signal.aborted) return;
  found.results.forEach((result, column) => {
    const snippets = new Map(told.results[column].hits.map((hit) => [hit.chunk_id, hit.snippet]));
    for (const hit of result.hits) hit.snippet = snippets.get(hit.chunk_id) ?? hit.snippet;
  });
  if (state.view !== "map" && answer === found) markPassages(found);
}

function show() {
  const ranks = ranksOf(answer.results);
  const counts = answer.results.map((result) => result.hits.length);
  const found = new Map(mixOf(answer.results.flatMap((result) => result.hits)));
  drawLanguages(found);
  const columns = counts.length;
  const { all, some } = sharedBy(ranks, columns);
  const each = new Set(counts).size === 1 ? `${plural(counts[0], "hit")}${columns > 1 ? ` under each of ${columns} tasks` : ""}` : `${counts.join(", ")} hits`;
  const shared = columns < 2 || !ranks.size ? "" : columns === 2 ? ` · ${all} of ${plural(ranks.size, "chunk")} found by both` : ` · of ${plural(ranks.size, "chunk")}, ${all} found by all and ${some - all} by some`;
  byId("status").textContent = Math.max(...counts) ? each + shared : nothing();
  if (state.view === "map") openMap(state, answer);
  else {
    closeMap();
    showResults(answer, state, ranks);
  }
}

function nothing() {
  if (state.where.trim() || state.lang) return "No chunk satisfies the filter.";
  return state.mode === "lexical" ? "No chunk holds a word of the query. Search by meaning finds other words too." : "No hits.";
}

function busy(on) {
  document.body.classList.toggle("busy", on);
  byId("results").setAttribute("aria-busy", String(on));
}

function fail(error, again) {
  busy(false);
  if (!("status" in error)) {
    notice("The page itself failed: reload it. The browser’s console has more.", () => location.reload());
    console.error(error);
    return;
  }
  const param = error.param ?? "";
  const column = /^tasks\.(\d+)/.exec(param);
  if (error.status === 401) askForKey(error.key ? "The API key is wrong." : "", again);
  else if (error.status === 429 || error.status === 503) {
    tries += 1;
    if (tries <= RETRIES) countDown(error.message, error.retryAfter || 2, again);
    else notice(error.message, again);
  } else if (error.status === 404 && param === "index") notice(error.message, () => change({ index: indexes[0].name, lang: null }));
  else if (column && state.columns.length) taskProblem(Number(column[1]), error.message);
  else if (["query", "lang", "mode", "k", "where"].includes(param)) fieldProblem(param, error.message);
  else notice(error.message, again);
}

function changeTask(place, column) {
  const columns = state.columns.with(place, column);
  change({ columns });
  focusTask(place);
}

function addTask() {
  const used = new Set(state.columns.map((c) => c.task));
  const next = [...MORE, ...tasks.map((task) => task.name)].find((name) => !used.has(name));
  change({ columns: [...state.columns, { task: next }] });
  focusTask(state.columns.length - 1);
}

function removeTask(place) {
  change({ columns: state.columns.toSpliced(place, 1) });
  focusTask(place);
}

function listen() {
  byId("search").addEventListener("submit", (event) => {
    event.preventDefault();
    const k = Math.min(100, Math.max(1, byId("k").valueAsNumber || DEFAULTS.k));
    drawn = byId("query").value;
    change({ q: drawn, mode: byId("mode").value, k, where: byId("where").value });
  });
  for (const id of ["mode", "k", "where"]) byId(id).addEventListener("change", () => byId("search").requestSubmit());
  byId("index").addEventListener("change", async () => {
    const index = byId("index").value;
    state = { ...state, index, lang: null, where: "", columns: state.columns.filter((c) => c.task === undefined || tasks.some((t) => t.name === c.task && t.source === "built-in")) };
    try {
      await openIndex();
      await change({});
    } catch (error) {
      fail(error, start);
    }
  });
  for (const view of ["search", "map"]) {
    byId(`view-${view}`).addEventListener("click", (event) => {
      if (event.ctrlKey || event.metaKey || event.shiftKey) return;
      event.preventDefault();
      const before = answer;
      state = { ...state, view };
      history.pushState(null, "", addressOf(state));
      // As in `change`; the link itself does not know yet what was typed.
      if (!indexes.length) return;
      draw();
      answer = before;
      if (answer) show();
      else run();
    });
  }
  addEventListener("popstate", () => {
    state = readState();
    start();
  });
  listenForKeys();
  listenToMap({ failed: (error) => fail(error, run), searchFor: (q) => {
    drawn = null;
    change({ q });
  } });
  startTheme(repaint);
}

listen();
byId("query").value = drawn = state.q;
start();
