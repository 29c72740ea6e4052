// The map: every chunk a dot, each task's hits lit in its colour, and the same hits as a list beside it.

import { mapOf } from "./api.js";
import { coloursOf } from "./colours.js";
import { byId, h, plural } from "./dom.js";
import { withoutTitle } from "./hits.js";
import { langAttribute, languageName } from "./languages.js";
import { fillLists } from "./map_lists.js";
import * as plane from "./plane.js";
import { nameOf } from "./state.js";

const PALETTE = 8;
const AGAIN = 1000;
// What the server told last; `at` says where chunks are that it was asked for, or that are on the map.
let held = { index: null, map: null, at: new Map() };
let shown = null;
// The hits that have a place on the map.
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
  shown = null;
}

export function openMap(state, answer) {
  const same = answer === shown?.answer;
  if (!same) pick(null);
  const hits = same ? shown.hits : together(answer, state);
  shown = { answer, state, hits };
  // The lists do not wait for the map: a hit can be chosen before it has a place there.
  fillLists(answer, { hover: (chunk) => hover(hits.get(chunk) ?? null), choose: (chunk) => choose(hits.get(chunk)) });
  return look();
}

// Every step may find that something newer is to be shown, and leaves the rest to it.
async function look() {
  const mine = shown;
  clearTimeout(timer);
  try {
    await fetchMap(mine);
    if (shown !== mine) return;
    say(held.map);
    const hits = await placed(mine);
    if (shown !== mine) return;
    lit = hits;
    paint();
    if (lit.includes(awaited)) choose(awaited);
    if (held.map.computing) timer = setTimeout(look, AGAIN);
  } catch (error) {
    if (shown === mine) failed(error);
  }
}

async function fetchMap({ state, answer }) {
  const { index } = state;
  const before = held.index === index ? held.map : null;
  if (before?.points && !before.stale && (!answer || answer.generation === before.generation)) return;
  let told = await mapOf(index, { points: false });
  if (told.status === "ready" && !(told.stale && before?.points)) told = await mapOf(index);
  else told.points = before?.points ?? null;
  if (shown?.state.index !== index) return;
  if (told.points !== held.map?.points) {
    const { x, y, chunk_id: chunks } = told.points ?? { chunk_id: [] };
    held = { index, map: told, at: new Map(chunks.map((id, i) => [id, [x[i], y[i]]])) };
    // A dot of the map before is no more; a hit stays one.
    if (picked?.dot !== undefined) pick(null);
    if (pointed?.dot !== undefined) hover(null);
  } else held = { ...held, index, map: told };
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

// The hits of all tasks, each chunk once.
function together(answer, state) {
  const colours = coloursOf(state.columns);
  const hits = new Map();
  (answer?.results ?? []).forEach((result, column) => {
    for (const hit of result.hits) {
      if (!hits.has(hit.chunk_id)) hits.set(hit.chunk_id, { chunk: hit.chunk_id, hit, colours: [], ranks: [], rank: Infinity });
      const one = hits.get(hit.chunk_id);
      one.colours.push(colours[column]);
      one.ranks.push([column, hit.rank]);
      one.rank = Math.min(one.rank, hit.rank);
    }
  });
  return hits;
}

async function placed({ hits, state }) {
  if (!hits.size || !held.map.points) return [];
  const { at } = held;
  const missing = [...hits.keys()].filter((id) => !at.has(id));
  if (missing.length) {
    const found = (await mapOf(state.index, { chunks: missing.join(",") })).placed ?? {};
    for (const id of missing) at.set(id, found[id] ?? null);
  }
  return [...hits.values()]
    .filter((one) => at.get(one.chunk))
    .map((one) => Object.assign(one, { x: at.get(one.chunk)[0], y: at.get(one.chunk)[1] }))
    .sort((a, b) => a.ranks[0][0] - b.ranks[0][0] || a.ranks[0][1] - b.ranks[0][1]);
}

function paint() {
  const points = held.map?.points;
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

let picked = null;
let pointed = null;
// A hit that was chosen before it had its place on the map.
let awaited = null;

function hover(found) {
  pointed = found;
  plane.mark(found, picked?.chunk ?? null);
  for (const element of document.querySelectorAll(".map-hit.lit")) element.classList.remove("lit");
  if (found?.chunk !== undefined) for (const element of document.querySelectorAll(`.map-hit[data-chunk="${found.chunk}"]`)) element.classList.add("lit");
  card(found ?? picked);
}

function pick(found) {
  picked = found;
  awaited = null;
  plane.mark(found, found?.chunk ?? null);
  card(found);
}

function choose(found) {
  pick(found);
  if (lit.includes(found)) plane.lookAt(found);
  else awaited = found;
}

function step(by) {
  if (!lit.length) return;
  const at = lit.findIndex((one) => one.chunk === picked?.chunk);
  const next = lit[at < 0 ? (by > 0 ? 0 : lit.length - 1) : (at + by + lit.length) % lit.length];
  choose(next);
  const ranks = next.ranks.flatMap(([column, rank], i) => [`${i ? ", " : ""}#${rank} under `, h("bdi", {}, nameOf(shown.state.columns[column]))]);
  byId("status").replaceChildren(...ranks, ": ", h("bdi", {}, next.hit.title || next.hit.text.slice(0, 120)));
}

function passageOf(hit) {
  const { text, snippet } = withoutTitle(hit);
  return snippet ? [...text].slice(snippet.start, snippet.end).join("") : text;
}

let carded = [];

function card(found) {
  const box = byId("map-card");
  box.hidden = !found;
  // Drawn anew under a finger, a button would never be clicked.
  const now = [found, picked];
  if (now.every((one, i) => one === carded[i])) return;
  carded = now;
  if (!found) return;
  const points = held.map?.points;
  const hit = found.hit;
  const lang = hit ? hit.lang : points.lang[found.dot];
  const label = hit ? hit.title || hit.text : points.label[found.dot];
  const passage = hit?.title ? passageOf(hit) : null;
  const attributes = { dir: "auto", lang: langAttribute(lang) };
  const clip = (text) => ([...text].length > 220 ? `${[...text].slice(0, 220).join("")}…` : text);
  box.replaceChildren(
    h("p", { class: "card-title", ...attributes }, clip(label)),
    passage ? h("p", attributes, clip(passage)) : "",
    h("p", { class: "hint" }, h("bdi", {}, hit ? hit.document_id : points.document_id[found.dot]), ` · ${languageName(lang)}`),
    hit ? h("p", { class: "card-ranks" }, found.ranks.map(([column, rank], i) => h("span", { class: `also c${found.colours[i]}` }, `#${rank} `, h("bdi", {}, nameOf(shown.state.columns[column]))))) : "",
    picked === found ? h("button", { type: "button", class: "quiet", onclick: () => searchFor([...(hit?.text ?? label)].slice(0, 300).join("")) }, "Search for this") : "",
  );
}
