// Keys: / for the query, arrows or j and k through a column, left and right to the same chunk beside, Esc back.

import { byId } from "./dom.js";
import { highlight } from "./columns.js";

const root = byId("columns");

const editable = (element) => element.matches?.("input, textarea, select, [contenteditable]");

function focusHit(button) {
  if (!button) return;
  // One hit of each column is reached by Tab: the one that was looked at last.
  for (const other of button.closest(".hits").querySelectorAll(".hit-open")) other.tabIndex = -1;
  button.tabIndex = 0;
  button.focus();
  button.closest(".hit").scrollIntoView({ block: "nearest", inline: "nearest" });
}

function beside(hit, by) {
  const column = hit.closest(".column");
  const other = root.querySelector(`.column[data-place="${Number(column.dataset.place) + by}"]`);
  if (!other) return null;
  const rows = [...other.querySelectorAll(".hit")];
  const same = rows.find((row) => row.dataset.chunk === hit.dataset.chunk);
  const row = same ?? rows[Math.min([...hit.parentElement.children].indexOf(hit), rows.length - 1)];
  return row?.querySelector(".hit-open");
}

export function goTo(place, chunk) {
  focusHit(root.querySelector(`.column[data-place="${place}"] .hit[data-chunk="${chunk}"] .hit-open`));
}

export const firstHit = () => root.querySelector(".hit-open");

root.addEventListener("keydown", (event) => {
  const hit = event.target.closest(".hit");
  if (!hit || event.ctrlKey || event.metaKey || event.altKey) return;
  const step = { ArrowDown: 1, j: 1, ArrowUp: -1, k: -1 }[event.key];
  const side = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
  let to = null;
  if (step) to = (step > 0 ? hit.nextElementSibling : hit.previousElementSibling)?.querySelector(".hit-open");
  else if (side) to = beside(hit, side);
  else if (event.key === "Home") to = hit.parentElement.firstElementChild.querySelector(".hit-open");
  else if (event.key === "End") to = hit.parentElement.lastElementChild.querySelector(".hit-open");
  else return;
  event.preventDefault();
  focusHit(to);
});

root.addEventListener("click", (event) => {
  const chip = event.target.closest(".also");
  if (chip) goTo(chip.dataset.to, chip.closest(".hit").dataset.chunk);
});

const chunkAt = (element) => element.closest?.(".hit")?.dataset.chunk ?? null;
root.addEventListener("pointerover", (event) => event.pointerType !== "touch" && highlight(chunkAt(event.target)));
root.addEventListener("pointerleave", () => highlight(chunkAt(document.activeElement)));
root.addEventListener("focusin", (event) => highlight(chunkAt(event.target)));
root.addEventListener("focusout", (event) => !event.relatedTarget && highlight(null));

export function listenForKeys() {
  const query = byId("query");
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.isComposing || byId("key-dialog").open) return;
    if (event.key === "/" && !editable(event.target)) {
      event.preventDefault();
      query.focus();
      query.select();
    } else if (event.key === "Escape" && event.target !== query) {
      query.focus();
    } else if (event.target === query && event.key === "ArrowDown") {
      const first = firstHit();
      if (!first) return;
      event.preventDefault();
      focusHit(first);
    }
  });
}
