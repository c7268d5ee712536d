// The codebook usage heatmap: layers by codes, drawn pixel by pixel. A code that was never used shows the hatching
// below the canvas, so that dead codes are told from rare ones without colour.

import { byId, h } from "./dom.js";
import { ask, ofRun } from "./feed.js";
import { clock, short, whole } from "./format.js";
import { heat, rgb } from "./palette.js";
import { state } from "./state.js";

const COLUMNS = 1024;
const held = new Map(); // run -> {answer, cursor: {row, column}}
let steps = []; // snapshots of the first shown run: [step, time]
let at = null; // a step, or null for now

/** Twice uniform use is 0.7, four times is 1: the eye sees both rare and crowded codes. */
const share = (count, layer) => Math.sqrt(count / (4 * (layer.total / layer.size)));

function paint(canvas, layers) {
  const width = Math.max(...layers.map(([, layer]) => layer.values.length));
  canvas.width = width;
  canvas.height = layers.length;
  const pen = canvas.getContext("2d");
  const image = pen.createImageData(width, layers.length);
  layers.forEach(([, layer], row) => {
    for (let column = 0; column < width; column++) {
      const count = layer.values[Math.floor((column * layer.values.length) / width)];
      if (!count) continue; // transparent: the hatching shows
      const [r, g, b] = heat(share(count, layer));
      image.data.set([r, g, b, 255], 4 * (row * width + column));
    }
  });
  pen.putImageData(image, 0, 0);
}

function paintScale(canvas) {
  canvas.width = 64;
  canvas.height = 1;
  const pen = canvas.getContext("2d");
  for (let i = 0; i < 64; i++) {
    pen.fillStyle = rgb(heat(i / 63));
    pen.fillRect(i, 0, 1, 1);
  }
}

function say(box, layers, cursor, order) {
  const text = box.querySelector(".said");
  const mark = box.querySelector(".cursor");
  mark.hidden = cursor === null;
  if (cursor === null) {
    text.textContent = "Point at a code, or walk with the arrow keys.";
    return;
  }
  const [name, layer] = layers[cursor.row];
  const width = layer.values.length;
  const column = Math.min(cursor.column, width - 1);
  const count = layer.values[column];
  const binned = width < layer.size;
  const code = order === "sorted" ? `rank ${column + 1}` : binned ? `codes near ${Math.floor((column * layer.size) / width)}` : `code ${column}`;
  const times = layer.total ? (count * layer.size) / layer.total : 0;
  text.textContent = `layer ${name}, ${code}: ${short(count)} uses${binned ? " each" : ""}${count ? `, ${short(times)}× uniform` : ", never used"}`;
  Object.assign(mark.style, {
    left: `${(100 * column) / width}%`, width: `${100 / width}%`,
    top: `${(100 * cursor.row) / layers.length}%`, height: `${100 / layers.length}%`,
  });
}

function build(run) {
  const plane = h("div", { class: "plane" });
  const canvas = h("canvas", { tabindex: "0", role: "img" });
  plane.append(canvas, h("div", { class: "cursor", hidden: true }));
  const scale = h("canvas", { "aria-hidden": "true" });
  const box = h(
    "div",
    { class: "heatmap", "data-run": run },
    h("h3", {}, run),
    h("div", { class: "rows" }, plane),
    h(
      "div",
      { class: "reading" },
      h("span", { class: "said", role: "status", "aria-live": "polite" }),
      h("span", { class: "scale" }, h("i", {}), "never", scale, "≥ 4× uniform"),
    ),
  );
  paintScale(scale);
  const move = (cursor) => {
    const item = held.get(run);
    if (!item) return;
    item.cursor = cursor;
    say(box, Object.entries(item.answer.layers), cursor, item.answer.order);
  };
  canvas.addEventListener("pointermove", (event) => {
    const area = canvas.getBoundingClientRect();
    const column = Math.floor(((event.clientX - area.left) / area.width) * canvas.width);
    const row = Math.floor(((event.clientY - area.top) / area.height) * canvas.height);
    if (column >= 0 && column < canvas.width && row >= 0 && row < canvas.height) move({ row, column });
  });
  canvas.addEventListener("keydown", (event) => {
    const [down, right] = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[event.key] ?? [0, 0];
    if (!down && !right) return;
    event.preventDefault();
    const cursor = held.get(run)?.cursor ?? { row: 0, column: -1 };
    const bounded = (value, most) => Math.min(Math.max(value, 0), most - 1);
    move({ row: bounded(cursor.row + down, canvas.height), column: bounded(cursor.column + right * (event.shiftKey ? 16 : 1), canvas.width) });
  });
  return box;
}

function show(box, run) {
  const { answer, cursor } = held.get(run);
  const layers = Object.entries(answer.layers);
  if (!layers.length) return;
  const rows = box.querySelector(".rows");
  const plane = rows.querySelector(".plane");
  const labels = layers.flatMap(([name, layer], i) => {
    const place = `grid-row:${i + 1}`;
    const left = h("span", { title: name }, name);
    const right = h("span", {}, `${whole(layer.used)} / ${whole(layer.size)}`);
    left.style.cssText = `${place};grid-column:1`;
    right.style.cssText = `${place};grid-column:3`;
    return [left, right];
  });
  rows.style.setProperty("--rows", layers.length);
  rows.style.gridTemplateRows = `repeat(${layers.length}, minmax(${layers.length > 24 ? ".6rem" : "1.35rem"}, 1fr))`;
  for (const label of rows.querySelectorAll(":scope > span")) label.remove(); // the plane stays, and with it the focus
  rows.append(...labels);
  const canvas = plane.querySelector("canvas");
  paint(canvas, layers);
  const used = layers.map(([name, layer]) => `layer ${name} uses ${layer.used} of ${layer.size}`).join(", ");
  canvas.setAttribute("aria-label", `Code usage of ${run}: ${used}.`);
  box.dataset.step = answer.step ?? "now";
  say(box, layers, cursor ?? null, answer.order);
}

/** Ask for the usage of the runs that are shown, and draw it. */
export async function refresh() {
  const order = byId("order").value;
  const answers = await Promise.all(
    state.runs.map((run) =>
      ask(ofRun(run, "usage"), [["order", order], ["columns", COLUMNS], ["step", at]]).then(
        (answer) => [run, answer],
        () => [run, null],
      ),
    ),
  );
  const known = answers.filter(([, answer]) => answer && Object.values(answer.layers).some((layer) => layer.total));
  for (const [run, answer] of known) held.set(run, { cursor: held.get(run)?.cursor ?? null, answer });
  const parent = byId("heatmaps");
  const boxes = known.map(([run]) => [...parent.children].find((box) => box.dataset.run === run) ?? build(run));
  if (!boxes.length) boxes.push(h("p", { class: "empty" }, "No codes seen yet."));
  if (boxes.length !== parent.children.length || boxes.some((box, i) => box !== parent.children[i])) parent.replaceChildren(...boxes);
  known.forEach(([run], i) => show(boxes[i], run));
}

export function redraw() {
  for (const box of byId("heatmaps").children) {
    if (!held.has(box.dataset.run)) continue;
    paintScale(box.querySelector(".scale canvas"));
    show(box, box.dataset.run);
  }
}

export const isLive = () => at === null;

/** Learn how far back one can scrub. */
export async function refreshSteps() {
  const found = await Promise.all(state.runs.map((run) => ask(ofRun(run, "usage/steps")).catch(() => [])));
  steps = found.reduce((longest, other) => (other.length > longest.length ? other : longest), []);
  const slider = byId("when");
  byId("scrub").hidden = steps.length < 2;
  slider.max = String(steps.length);
  if (at === null) slider.value = slider.max;
}

function scrub(index) {
  const chosen = steps[index];
  at = chosen ? chosen[0] : null;
  byId("when-text").textContent = chosen ? `step ${whole(chosen[0])} · ${clock(chosen[1])}` : "now";
  byId("now").hidden = at === null;
  refresh();
}

export function start() {
  let waiting = null;
  byId("when").addEventListener("input", (event) => {
    clearTimeout(waiting);
    waiting = setTimeout(() => scrub(Number(event.target.value)), 60);
  });
  byId("now").addEventListener("click", () => {
    byId("when").value = byId("when").max;
    scrub(steps.length);
  });
  byId("order").addEventListener("change", refresh);
}
