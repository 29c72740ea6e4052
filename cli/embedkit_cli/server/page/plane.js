// The canvas: dots, lit hits, and how the plane is moved by mouse, touch and keys.

import { byId } from "./dom.js";

const canvas = byId("map");
const context = canvas.getContext("2d");
const NEAR = 14;
const still = matchMedia("(prefers-reduced-motion: reduce)");
// The middle of what is seen, in the map's own units, and how many times it is enlarged.
let view = { x: 0, y: 0, zoom: 1 };
let scene = { x: [], y: [], shade: null, lit: [], wide: 1, high: 1 };
let over = null;
let picked = null;
let waiting = 0;
let moving = 0;
let told = { pick: () => {}, hover: () => {} };

// The plane's axes mean nothing by themselves: each is stretched to fill the frame.
const unit = () => [
  ((canvas.clientWidth / 2 - 16) / scene.wide) * view.zoom,
  ((canvas.clientHeight / 2 - 16) / scene.high) * view.zoom,
];
const toScreen = (x, y, [ux, uy] = unit()) => [canvas.clientWidth / 2 + (x - view.x) * ux, canvas.clientHeight / 2 - (y - view.y) * uy];

function toPlane(sx, sy) {
  const [ux, uy] = unit();
  return [view.x + (sx - canvas.clientWidth / 2) / ux, view.y - (sy - canvas.clientHeight / 2) / uy];
}

// `scene`: x, y of all dots; shade: palette number of each, or null; lit: [{chunk, x, y, colours, rank}].
export function show(newScene) {
  const reach = (values) => values.reduce((most, value) => Math.max(most, Math.abs(value)), 0) || 1;
  scene = { ...newScene, wide: reach(newScene.x), high: reach(newScene.y) };
  later();
}

export function mark(hovered, chosen = picked) {
  over = hovered;
  picked = chosen;
  later();
}

export const redraw = () => later();

function later() {
  if (!waiting) waiting = requestAnimationFrame(draw);
}

function draw() {
  waiting = 0;
  const ratio = window.devicePixelRatio || 1;
  const [width, height] = [canvas.clientWidth, canvas.clientHeight];
  if (canvas.width !== Math.round(width * ratio)) canvas.width = Math.round(width * ratio);
  if (canvas.height !== Math.round(height * ratio)) canvas.height = Math.round(height * ratio);
  const style = getComputedStyle(canvas);
  const colour = (name) => style.getPropertyValue(name);
  context.setTransform(ratio, 0, 0, ratio, 0, 0);
  context.clearRect(0, 0, width, height);
  const radius = Math.min(5, (scene.x.length > 5000 ? 1.6 : 2.8) * Math.sqrt(view.zoom));
  const shades = new Map();
  const units = unit();
  scene.x.forEach((x, i) => {
    const [sx, sy] = toScreen(x, scene.y[i], units);
    if (sx < -9 || sy < -9 || sx > width + 9 || sy > height + 9) return;
    const shade = scene.shade ? scene.shade[i] : -1;
    if (!shades.has(shade)) shades.set(shade, new Path2D());
    const path = shades.get(shade);
    path.moveTo(sx + radius, sy);
    path.arc(sx, sy, radius, 0, 7);
  });
  for (const [shade, path] of shades) {
    context.fillStyle = shade < 0 ? colour("--dot") : colour(`--c${shade}`);
    context.globalAlpha = scene.lit.length && shade >= 0 ? 0.55 : 1;
    context.fill(path);
  }
  context.globalAlpha = 1;
  for (const hit of [...scene.lit].sort((a, b) => order(a) - order(b))) drawHit(hit, colour);
  if (over?.chunk === undefined && over) ring(over, radius + 3, colour("--text"), 2);
}

// Best ranks last, what is pointed at above all.
const order = (hit) => (hit.chunk === picked || hit.chunk === over?.chunk ? 1e9 : -hit.rank);

function drawHit(hit, colour) {
  const [x, y] = toScreen(hit.x, hit.y);
  const chosen = hit.chunk === picked || hit.chunk === over?.chunk;
  const radius = (hit.rank <= 3 ? 9 : 7.5) + (chosen ? 4 : 0);
  const part = (2 * Math.PI) / hit.colours.length;
  hit.colours.forEach((shade, i) => {
    context.beginPath();
    context.moveTo(x, y);
    context.arc(x, y, radius, i * part - Math.PI / 2, (i + 1) * part - Math.PI / 2);
    context.fillStyle = colour(`--c${shade}`);
    context.fill();
  });
  ring(hit, radius, colour(chosen ? "--text" : "--surface"), chosen ? 2.5 : 1.5);
  context.fillStyle = colour("--surface");
  context.font = `600 ${chosen ? 12 : 10}px system-ui, sans-serif`;
  context.textAlign = "center";
  context.textBaseline = "middle";
  context.fillText(String(hit.rank), x, y + 0.5);
}

function ring(point, radius, stroke, width) {
  const [x, y] = toScreen(point.x, point.y);
  context.beginPath();
  context.arc(x, y, radius, 0, 7);
  context.strokeStyle = stroke;
  context.lineWidth = width;
  context.stroke();
}

export function moveTo(x, y, zoom) {
  cancelAnimationFrame(moving);
  const goal = { x, y, zoom: Math.min(80, Math.max(0.5, zoom)) };
  if (still.matches) {
    view = goal;
    later();
    return;
  }
  const [from, began] = [view, performance.now()];
  const step = (now) => {
    const t = Math.min(1, (now - began) / 260);
    const eased = 1 - (1 - t) ** 3;
    view = {
      x: from.x + (goal.x - from.x) * eased,
      y: from.y + (goal.y - from.y) * eased,
      zoom: from.zoom * (goal.zoom / from.zoom) ** eased,
    };
    later();
    if (t < 1) moving = requestAnimationFrame(step);
  };
  moving = requestAnimationFrame(step);
}

export const lookAt = (point) => moveTo(point.x, point.y, Math.max(view.zoom, 3));

export function showHits() {
  if (!scene.lit.length) return;
  const [xs, ys] = [scene.lit.map((hit) => hit.x), scene.lit.map((hit) => hit.y)];
  const ends = (values) => [Math.min(...values), Math.max(...values)];
  const [[x1, x2], [y1, y2]] = [ends(xs), ends(ys)];
  const share = Math.max((x2 - x1) / scene.wide, (y2 - y1) / scene.high) / 2;
  moveTo((x1 + x2) / 2, (y1 + y2) / 2, 0.85 / Math.max(share, 0.04));
}

export const showAll = () => moveTo(0, 0, 1);

export function zoomBy(factor, sx = canvas.clientWidth / 2, sy = canvas.clientHeight / 2) {
  cancelAnimationFrame(moving);
  const [x, y] = toPlane(sx, sy);
  view = { ...view, zoom: Math.min(80, Math.max(0.5, view.zoom * factor)) };
  const [nx, ny] = toPlane(sx, sy);
  view = { ...view, x: view.x + x - nx, y: view.y + y - ny };
  later();
}

function pan(dx, dy) {
  const [ux, uy] = unit();
  view = { ...view, x: view.x - dx / ux, y: view.y + dy / uy };
  later();
}

function nearest(sx, sy) {
  let best = null;
  let least = NEAR ** 2;
  for (const hit of scene.lit) {
    const [x, y] = toScreen(hit.x, hit.y);
    // A hit is larger than a dot, and wins over it.
    const away = ((x - sx) ** 2 + (y - sy) ** 2) / 2;
    if (away < least) [best, least] = [hit, away];
  }
  if (best) return best;
  const units = unit();
  scene.x.forEach((px, i) => {
    const [x, y] = toScreen(px, scene.y[i], units);
    const away = (x - sx) ** 2 + (y - sy) ** 2;
    if (away < least) [best, least] = [{ dot: i, x: px, y: scene.y[i] }, away];
  });
  return best;
}

const pointers = new Map();
let dragged = 0;

export function listen(on) {
  told = on;
  const spot = (event) => [event.offsetX, event.offsetY];
  canvas.addEventListener("wheel", (event) => {
    event.preventDefault();
    zoomBy(Math.exp(-event.deltaY * (event.ctrlKey ? 0.01 : 0.0018)), ...spot(event));
  }, { passive: false });
  canvas.addEventListener("pointerdown", (event) => {
    canvas.setPointerCapture(event.pointerId);
    if (!pointers.size) dragged = 0;
    pointers.set(event.pointerId, spot(event));
  });
  canvas.addEventListener("pointermove", (event) => {
    const before = pointers.get(event.pointerId);
    if (!before) {
      const found = nearest(...spot(event));
      canvas.classList.toggle("pointing", Boolean(found));
      told.hover(found);
      return;
    }
    const now = spot(event);
    pointers.set(event.pointerId, now);
    dragged += Math.hypot(now[0] - before[0], now[1] - before[1]);
    if (pointers.size === 1) pan(now[0] - before[0], now[1] - before[1]);
    else pinch(event.pointerId, before, now);
  });
  const end = (event) => {
    const was = pointers.delete(event.pointerId);
    if (was && event.type === "pointerup" && dragged < 6) told.pick(nearest(...spot(event)));
  };
  canvas.addEventListener("pointerup", end);
  canvas.addEventListener("pointercancel", end);
  canvas.addEventListener("pointerleave", () => told.hover(null));
  canvas.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const way = { ArrowLeft: [60, 0], ArrowRight: [-60, 0], ArrowUp: [0, 60], ArrowDown: [0, -60] }[event.key];
    if (way) pan(...way);
    else if (event.key === "+" || event.key === "=") zoomBy(1.4);
    else if (event.key === "-") zoomBy(1 / 1.4);
    else if (event.key === "0") showAll();
    else if (event.key === "h") showHits();
    else if (event.key === "n" || event.key === "p") told.step(event.key === "n" ? 1 : -1);
    else return;
    event.preventDefault();
  });
  new ResizeObserver(later).observe(canvas);
}

function pinch(id, before, now) {
  const [other] = [...pointers].filter(([key]) => key !== id).map(([, at]) => at);
  const far = (a, b) => Math.hypot(a[0] - b[0], a[1] - b[1]) || 1;
  pan((now[0] - before[0]) / 2, (now[1] - before[1]) / 2);
  zoomBy(far(now, other) / far(before, other), (now[0] + other[0]) / 2, (now[1] + other[1]) / 2);
}
