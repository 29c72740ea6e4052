// Language chips: a filter, and how many of the hits each language has.

import { byId, h } from "./dom.js";
import { languageName } from "./languages.js";

const root = byId("languages");
const SHOWN = 8;
let all = false;

// A radio's own arrows choose, and each step would be a search: here they move, Space and Enter choose.
root.addEventListener("keydown", (event) => {
  const inputs = [...root.querySelectorAll("input")];
  const at = inputs.indexOf(event.target);
  const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
  if (at < 0 || !(step || event.key === "Enter") || event.ctrlKey || event.metaKey || event.altKey) return;
  event.preventDefault();
  if (step) inputs.at((at + step) % inputs.length).focus();
  else event.target.click();
});

// `languages`: documents of the index by code. `found`: hits by code, all columns together, null before a search.
export function drawChips(languages, found, chosen, choose) {
  const codes = Object.keys(languages);
  root.hidden = codes.length < 2;
  const rank = (code) => (found?.get(code) ?? 0) * 1e9 + languages[code];
  codes.sort((a, b) => rank(b) - rank(a) || a.localeCompare(b));
  const shown = all ? codes : codes.slice(0, SHOWN);
  if (chosen && !shown.includes(chosen)) shown.unshift(chosen);
  const chip = (code, name, count, one) => {
    const input = h("input", { type: "radio", name: "lang", value: code ?? "", checked: code === chosen });
    input.addEventListener("change", () => choose(code));
    return h("label", { class: count === 0 ? "chip empty" : "chip" }, input, h("span", {}, name, count === null ? "" : h("span", { class: "count" }, h("span", { class: "visually-hidden" }, ", "), count.toLocaleString("en"), h("span", { class: "visually-hidden" }, ` ${one}${count === 1 ? "" : "s"}`))));
  };
  const more = codes.length > SHOWN && h(
    "button",
    { type: "button", class: "quiet more", "aria-expanded": String(all), onclick: () => {
      all = !all;
      drawChips(languages, found, chosen, choose);
      root.querySelector(".more").focus();
    } },
    all ? "fewer" : `+${codes.length - shown.length} languages`,
  );
  const focused = root.contains(document.activeElement) ? document.activeElement.value : null;
  root.replaceChildren(
    root.querySelector("legend"),
    chip(null, "All", null),
    ...shown.map((code) => (found && !chosen ? chip(code, languageName(code), found.get(code) ?? 0, "hit") : chip(code, languageName(code), languages[code] ?? 0, "document"))),
    more || "",
  );
  // Drawn anew under the keyboard: the focus stays where it was.
  if (focused !== null) [...root.querySelectorAll("input")].find((input) => input.value === focused)?.focus();
}
