// Lines in the gaps between columns, from each hit to the same chunk in the next column.

import { byId, svg } from "./dom.js";

const root = byId("columns");
let drawn = { columns: [], ranks: new Map() };
let waiting = 0;

// Without ranks, those that were drawn last, between columns that were drawn anew.
export function drawLinks(columns, ranks = drawn.ranks) {
  drawn = { columns, ranks };
  redraw();
}

function redraw() {
  waiting = 0;
  root.querySelector(".links")?.remove();
  const { columns, ranks } = drawn;
  if (columns.length < 2 || !ranks.size) return;
  const base = root.getBoundingClientRect();
  const canvas = svg("svg", { class: "links", "aria-hidden": "true", width: root.scrollWidth, height: root.scrollHeight });
  const place = (x, y) => [x - base.left + root.scrollLeft, y - base.top + root.scrollTop];
  for (const chunk of ranks.keys()) {
    for (let i = 0; i + 1 < columns.length; i += 1) {
      const [a, b] = [columns[i], columns[i + 1]].map((c) => c.querySelector(`.hit[data-chunk="${chunk}"]`)?.getBoundingClientRect());
      if (!a || !b) continue;
      const [x1, y1] = place(a.right, a.top + 22);
      const [x2, y2] = place(b.left, b.top + 22);
      const bend = (x2 - x1) / 2;
      canvas.append(svg("path", { d: `M${x1} ${y1}C${x1 + bend} ${y1} ${x2 - bend} ${y2} ${x2} ${y2}`, "data-chunk": chunk }));
    }
  }
  root.prepend(canvas);
}

function later() {
  if (!waiting) waiting = requestAnimationFrame(redraw);
}

new ResizeObserver(later).observe(root);
root.addEventListener("resized", later);
root.addEventListener("toggle", later, true);
