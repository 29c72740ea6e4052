// The map: every chunk a dot, each task's hits lit in its colour, and the same hits as a list beside it.

import { mapOf } from "./api.js";
import { coloursOf } from "./colours.js";
import { byId, h, plural } from "./dom.js";
import { langAttribute, languageName } from "./languages.js";
import * as plane from "./plane.js";
import { nameOf } from "./state.js";

const PALETTE = 8;
const AGAIN = 1000;
let held = { index: null, generation: null, answer: null };
let shown = { answer: null, state: null };
let lit = [];
let timer = 0;
let searchFor = () => {};
let failed = () => {};

export function listenToMap(on) {
  searchFor = on.searchFor;
  failed = on.failed;
  plane.listen({ hover, pick, step });
  byId("zoom-in").addEventListener("click", () => plane.zoomBy(1.6));
  byId("zoom-out").addEventListener("click", () => plane.zoomBy(1 / 1.6));
  byId("zoom-hits").addEventListener("click", plane.showHits);
  byId("zoom-fit").addEventListener("click", plane.showAll);
  byId("by-language").addEventListener("change", paint);
}

export const repaint = () => plane.redraw();

export function closeMap() {
  clearTimeout(timer);
}

export async function openMap(state, answer) {
  if (answer !== shown.answer) pick(null);
  shown = { answer, state };
  drawLists();
  clearTimeout(timer);
  const index = state.index;
  try {
    if (held.index !== index || held.answer?.stale || !held.answer?.points || (answer && answer.generation !== held.answer.generation)) {
      const told = await mapOf(index);
      if (shown.state.index !== index) return;
      held = { index, answer: told };
    }
    const map = held.answer;
    say(map);
    await placeHits(map);
    paint();
    if (map.computing) timer = setTimeout(() => openMap(shown.state, shown.answer), AGAIN);
  } catch (error) {
    failed(error);
  }
}

function say(map) {
  const message = byId("map-message");
  const text = map.status === "computing" ? `Laying out ${plural(map.chunks, "chunk")}. This is done once, and kept with the index.`
    : map.status === "unavailable" ? map.message
    : map.stale ? (map.message ?? (map.computing ? "An older version of the index is shown while the new one is laid out." : "An older version of the index is shown."))
    : map.points.chunk_id.length < map.chunks ? `A sample of ${plural(map.points.chunk_id.length, "chunk")} out of ${map.chunks.toLocaleString("en")}.` : "";
  message.textContent = text;
  message.hidden = !text;
  message.classList.toggle("middle", !map.points);
  const hits = new Set((shown.answer?.results ?? []).flatMap((r) => r.hits.map((hit) => hit.chunk_id)));
  byId("map").setAttribute("aria-label", `Map of ${plural(map.chunks, "chunk")}${hits.size ? `, ${plural(hits.size, "hit")} lit` : ""}; the hits stand in the list beside it`);
  byId("map").dataset.status = map.status;
}

async function placeHits(map) {
  lit = [];
  const { answer, state } = shown;
  if (!answer || !map.points) return;
  const at = new Map(map.points.chunk_id.map((id, i) => [id, [map.points.x[i], map.points.y[i]]]));
  const colours = coloursOf(state.columns);
  const hits = new Map();
  answer.results.forEach((result, column) => {
    for (const hit of result.hits) {
      if (!hits.has(hit.chunk_id)) hits.set(hit.chunk_id, { chunk: hit.chunk_id, hit, colours: [], ranks: [], rank: Infinity });
      const one = hits.get(hit.chunk_id);
      one.colours.push(colours[column]);
      one.ranks.push([column, hit.rank]);
      one.rank = Math.min(one.rank, hit.rank);
    }
  });
  const missing = [...hits.keys()].filter((id) => !at.has(id));
  if (missing.length) {
    const { placed } = await mapOf(state.index, missing);
    for (const [id, point] of Object.entries(placed ?? {})) at.set(Number(id), point);
  }
  for (const one of hits.values()) {
    const point = at.get(one.chunk);
    if (point) lit.push({ ...one, x: point[0], y: point[1] });
  }
  lit.sort((a, b) => a.ranks[0][0] - b.ranks[0][0] || a.ranks[0][1] - b.ranks[0][1]);
}

function paint() {
  const points = held.answer?.points;
  const legend = byId("map-legend");
  const byLanguage = byId("by-language").checked && points;
  let shade = null;
  legend.hidden = !byLanguage;
  if (byLanguage) {
    const counts = new Map();
    for (const code of points.lang) counts.set(code, (counts.get(code) ?? 0) + 1);
    const most = [...counts].sort((a, b) => b[1] - a[1]).slice(0, PALETTE).map(([code]) => code);
    shade = points.lang.map((code) => most.indexOf(code));
    legend.replaceChildren(
      ...most.map((code, i) => h("li", { class: `c${i}` }, h("i", { class: "swatch" }), languageName(code))),
      counts.size > PALETTE ? h("li", {}, h("i", { class: "swatch rest" }), "others") : "",
    );
  }
  plane.show({ x: points?.x ?? [], y: points?.y ?? [], shade, lit });
  byId("map").dataset.lit = String(lit.length);
}

function drawLists() {
  const { answer, state } = shown;
  const lists = byId("map-lists");
  if (!answer) {
    lists.replaceChildren(h("p", { class: "hint" }, "Search, and each task’s hits light up in its colour."));
    return;
  }
  const colours = coloursOf(state.columns);
  lists.replaceChildren(...answer.results.map((result, column) => h(
    "section", { class: `map-list c${colours[column]}`, "aria-label": `Hits under ${nameOf(state.columns[column])}` },
    h("h2", {}, h("i", { class: "swatch" }), nameOf(state.columns[column])),
    result.hits.length ? h("ol", {}, result.hits.map((hit) => h("li", {}, listed(hit)))) : h("p", { class: "hint" }, "No hits."),
  )));
}

function listed(hit) {
  const text = hit.title || hit.snippet?.text || hit.text;
  const button = h(
    "button", { type: "button", class: "map-hit", data: { chunk: String(hit.chunk_id) } },
    h("span", { class: "rank-number" }, String(hit.rank)), h("span", { class: "map-text", dir: "auto", lang: langAttribute(hit.lang) }, [...text].slice(0, 90).join("")),
  );
  const found = () => lit.find((one) => one.chunk === hit.chunk_id) ?? null;
  button.addEventListener("pointerenter", () => hover(found()));
  button.addEventListener("pointerleave", () => hover(null));
  button.addEventListener("focus", () => hover(found()));
  button.addEventListener("blur", () => hover(null));
  button.addEventListener("click", () => {
    const one = found();
    if (!one) return;
    plane.lookAt(one);
    pick(one);
  });
  return button;
}

let picked = null;

function hover(found) {
  plane.mark(found, picked?.chunk ?? null);
  for (const element of document.querySelectorAll(".map-hit.lit")) element.classList.remove("lit");
  if (found?.chunk !== undefined) for (const element of document.querySelectorAll(`.map-hit[data-chunk="${found.chunk}"]`)) element.classList.add("lit");
  card(found ?? picked);
}

function pick(found) {
  picked = found;
  plane.mark(found, found?.chunk ?? null);
  card(found);
}

function step(by) {
  if (!lit.length) return;
  const at = lit.findIndex((one) => one.chunk === picked?.chunk);
  const next = lit[at < 0 ? (by > 0 ? 0 : lit.length - 1) : (at + by + lit.length) % lit.length];
  plane.lookAt(next);
  pick(next);
  byId("status").textContent = `${ranksSaid(next)}: ${next.hit.title || next.hit.text.slice(0, 120)}`;
}

const ranksSaid = (one) => one.ranks.map(([column, rank]) => `#${rank} under ${nameOf(shown.state.columns[column])}`).join(", ");

let carded = [];

function card(found) {
  const box = byId("map-card");
  box.hidden = !found;
  // Drawn anew under a finger, a button would never be clicked.
  const now = [found, picked];
  if (now.every((one, i) => one === carded[i])) return;
  carded = now;
  if (!found) return;
  const points = held.answer?.points;
  const hit = found.hit;
  const lang = hit ? hit.lang : points.lang[found.dot];
  const label = hit ? hit.title || hit.text : points.label[found.dot];
  const passage = hit?.title ? hit.snippet?.text ?? hit.text : null;
  const attributes = { dir: "auto", lang: langAttribute(lang) };
  const clip = (text) => ([...text].length > 220 ? `${[...text].slice(0, 220).join("")}…` : text);
  box.replaceChildren(
    h("p", { class: "card-title", ...attributes }, clip(label)),
    passage ? h("p", attributes, clip(passage)) : "",
    h("p", { class: "hint" }, `${hit ? hit.document_id : points.document_id[found.dot]} · ${languageName(lang)}`),
    hit ? h("p", { class: "card-ranks" }, found.ranks.map(([column, rank], i) => h("span", { class: `also c${found.colours[i]}` }, `#${rank} ${nameOf(shown.state.columns[column])}`))) : "",
    picked === found ? h("button", { type: "button", class: "quiet", onclick: () => searchFor([...(hit?.text ?? label)].slice(0, 300).join("")) }, "Search for this") : "",
  );
}
