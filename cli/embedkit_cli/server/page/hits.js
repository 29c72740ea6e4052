// One hit: rank, title, the best-matching passage in its surroundings, the score, and where else the chunk stands.

import { h } from "./dom.js";
import { langAttribute, languageName } from "./languages.js";
import { changeOf } from "./ranking.js";

const BEFORE = 90;
const LENGTH = 300;

// Python counts characters where JavaScript counts UTF-16 units.
function excerpt(text, snippet) {
  const letters = [...text];
  const place = snippet ?? { start: 0, end: 0 };
  const short = letters.length <= LENGTH;
  const from = short || place.start <= BEFORE ? 0 : place.start - BEFORE;
  const to = short ? letters.length : Math.min(letters.length, Math.max(place.end, from + LENGTH));
  const part = (start, end) => letters.slice(start, end).join("");
  return {
    before: (from > 0 ? "…" : "") + part(from, place.start),
    match: part(place.start, place.end),
    after: part(place.end, to) + (to < letters.length ? "…" : ""),
    whole: short || (from === 0 && to === letters.length),
  };
}

// A title is embedded before its chunk's text, and stands above it here.
export function withoutTitle(hit) {
  const title = `${hit.title}\n`;
  if (!hit.title || !hit.text.startsWith(title)) return hit;
  const by = [...title].length;
  const text = hit.text.slice(title.length).trimStart();
  const cut = by + [...hit.text.slice(title.length)].length - [...text].length;
  const { snippet } = hit;
  return {
    ...hit,
    text,
    snippet: snippet && snippet.end > cut ? { start: Math.max(0, snippet.start - cut), end: snippet.end - cut } : null,
  };
}

function marked(found) {
  const hit = withoutTitle(found);
  const cut = excerpt(hit.text, hit.snippet);
  // Marking all of a text marks nothing.
  return [cut.before, cut.match && (cut.before || cut.after) ? h("mark", {}, cut.match) : cut.match, cut.after];
}

export const markPassage = (item, hit) => item.querySelector(".passage").replaceChildren(...marked(hit));

const number = (value) => (Math.abs(value) >= 10 ? value.toFixed(1) : value.toFixed(3));

function score(hit, view) {
  const bar = h("span", { class: "bar", "aria-hidden": "true" }, h("span"));
  // Cosines compare across columns; other scores with the column's best alone.
  const share = view.mode === "dense" ? hit.score : hit.score / (view.best || 1);
  bar.firstChild.style.width = `${Math.round(Math.min(1, Math.max(0.01, share)) * 100)}%`;
  const meaning = { dense: "cosine", hybrid: "fused ranks", lexical: "BM25" }[view.mode];
  return h(
    "p",
    { class: "score", title: meaning },
    h("span", { class: "visually-hidden" }, `Score, ${meaning}: `), bar, h("span", {}, number(hit.score)),
  );
}

function facts(hit) {
  const rows = [["document", hit.document_id], ["source", hit.source]];
  rows.push(["characters", `${hit.start.toLocaleString("en")} to ${hit.end.toLocaleString("en")}`]);
  if (hit.cosine !== null) rows.push(["cosine", number(hit.cosine)]);
  if (hit.bm25 !== null) rows.push(["BM25", number(hit.bm25)]);
  for (const [name, value] of Object.entries(hit.metadata)) {
    rows.push([name, typeof value === "string" ? value : JSON.stringify(value)]);
  }
  return h(
    "dl",
    { class: "facts" },
    rows.filter(([, value]) => value !== "").map(([name, value]) => h("div", {}, h("dt", { dir: "auto" }, name), h("dd", { dir: "auto" }, value))),
  );
}

export function hitDetails(hit) {
  return h(
    "div",
    { class: "details" },
    h("p", { class: "whole", dir: "auto", lang: langAttribute(hit.lang) }, withoutTitle(hit).text),
    facts(hit),
  );
}

function elsewhere(ranks, view) {
  const chips = [];
  view.names.forEach((name, other) => {
    if (other === view.column || ranks[other] === undefined) return;
    chips.push(
      h(
        "button",
        { type: "button", class: `also c${view.colours[other]}`, tabIndex: -1, data: { to: String(other) } },
        h("span", { class: "visually-hidden" }, "also "), `#${ranks[other]} `, h("bdi", { class: "also-name" }, name),
      ),
    );
  });
  if (!chips.length && view.names.length > 1) chips.push(h("span", { class: "only" }, "only here"));
  return chips;
}

// `view`: column, names and colours of all columns, mode, best score, ranks of all chunks.
export function hitItem(hit, view) {
  const ranks = view.ranks.get(hit.chunk_id);
  const change = changeOf(ranks, view.column);
  const open = h(
    "button",
    { type: "button", class: "hit-open", "aria-expanded": "false", tabIndex: hit.rank === 1 ? 0 : -1 },
    h("span", { class: hit.title ? "title" : "title id", dir: "auto", lang: hit.title ? langAttribute(hit.lang) : undefined }, hit.title || hit.document_id),
  );
  const item = h(
    "li",
    { class: "hit", data: { chunk: String(hit.chunk_id) } },
    h("div", { class: "rank" },
      h("span", { class: "rank-number" }, h("span", { class: "visually-hidden" }, "Rank "), String(hit.rank)),
      change && h("span", { class: `change ${change.kind}`, title: change.spoken },
        h("span", { "aria-hidden": "true" }, change.text), h("span", { class: "visually-hidden" }, `, ${change.spoken}`))),
    h("div", { class: "body" },
      h("div", { class: "head" }, h("h3", {}, open), h("span", { class: "lang", title: languageName(hit.lang) }, h("span", { class: "visually-hidden" }, `${languageName(hit.lang)} `), h("span", { "aria-hidden": "true" }, hit.lang))),
      h("p", { class: "passage", dir: "auto", lang: langAttribute(hit.lang) }, marked(hit)),
      h("div", { class: "foot" }, score(hit, view), elsewhere(ranks, view))),
  );
  open.addEventListener("click", () => toggle(item, hit, open));
  return item;
}

function toggle(item, hit, open) {
  const shown = item.querySelector(".details");
  if (shown) shown.remove();
  else item.querySelector(".body").append(hitDetails(hit));
  item.classList.toggle("open", !shown);
  open.setAttribute("aria-expanded", String(!shown));
  item.dispatchEvent(new CustomEvent("resized", { bubbles: true }));
}
