// The first screen: one sentence and one tile per metric group, for each run that is shown.

import { byId, fill, h, sign } from "./dom.js";
import { ago, short, whole } from "./format.js";
import { spark } from "./spark.js";
import { scalar } from "./store.js";

const overviews = new Map(); // run -> what the daemon judged last
const WORDS = { healthy: "healthy", concerning: "concerning", critical: "critical", info: "no bands", unknown: "no evidence" };

export const judge = (run, overview) => overviews.set(run, overview);

function facts(run, now) {
  if (run.state === "past") return [h("b", {}, run.name), ` · step ${whole(run.step)} · from the history, last seen ${ago(now - run.last_seen)}`];
  const speed = scalar(run.name, "steps_per_second");
  const parts = [h("b", {}, run.name), ` · step ${whole(run.step)}`];
  if (run.state === "live" && speed !== null) parts.push(` · ${short(speed)} steps/s`);
  parts.push(` · ${run.ranks} of ${run.world_size} rank${run.world_size === 1 ? "" : "s"}`);
  if (run.state !== "live") parts.push(` · ${run.state}, last seen ${ago(now - run.last_seen)}`);
  return parts;
}

function tile(run, item) {
  return h(
    "article",
    { class: "tile", "data-verdict": item.verdict, "data-key": item.key, "aria-label": `${item.title}: ${item.value}, ${WORDS[item.verdict]}. ${item.detail}` },
    h("h3", {}, item.title),
    h("div", { class: "value" }, item.value),
    h("div", { class: "word" }, sign(item.sign), WORDS[item.verdict]),
    h("div", { class: "detail" }, item.detail),
    h("canvas", { "aria-hidden": "true" }),
  );
}

const SIGNS = { healthy: "✓", concerning: "!", critical: "✕", info: "·", unknown: "?" };

function banner(run, overview, now) {
  return h(
    "div",
    { class: "verdict", "data-verdict": overview.verdict },
    sign(SIGNS[overview.verdict]),
    h("h1", {}, overview.sentence),
    h("p", {}, ...facts(run, now)),
  );
}

/** Put one run's banner and tiles in place; elements stay where they are so that nothing jumps. */
function show(box, run, now) {
  const overview = overviews.get(run.name) ?? { verdict: "unknown", sentence: run.state === "past" ? run.name : "Waiting for readings.", tiles: [] };
  const made = banner(run, overview, now);
  if (!box.firstChild) box.append(made, h("div", { class: "tiles" }));
  else if (!made.isEqualNode(box.firstChild)) box.firstChild.replaceWith(made);
  const tiles = box.lastChild;
  overview.tiles.forEach((item, i) => {
    const made = tile(run.name, item);
    const there = tiles.children[i];
    if (!there) tiles.append(made);
    else {
      const canvas = there.querySelector("canvas");
      for (const [name, value] of Object.entries({ "data-verdict": item.verdict, "data-key": item.key, "aria-label": made.getAttribute("aria-label") })) there.setAttribute(name, value);
      there.replaceChildren(...[...made.childNodes].slice(0, 4), canvas);
    }
  });
}

export function draw(runs, now) {
  const parent = byId("overview");
  if (!runs.length) {
    fill(parent, h("p", { class: "empty" }, "No run yet. A training script that calls vqwatch.attach(model) shows up here by itself."));
    return;
  }
  const boxes = new Map([...parent.children].filter((box) => box.dataset.run !== undefined).map((box) => [box.dataset.run, box]));
  const wanted = runs.map((run) => boxes.get(run.name) ?? h("div", { class: "overview", "data-run": run.name }));
  if (wanted.length !== parent.children.length || wanted.some((box, i) => box !== parent.children[i])) parent.replaceChildren(...wanted);
  wanted.forEach((box, i) => show(box, runs[i], now));
  drawSparks(runs);
}

export function drawSparks(runs) {
  for (const run of runs) {
    const box = [...byId("overview").children].find((item) => item.dataset.run === run.name);
    const tiles = overviews.get(run.name)?.tiles ?? [];
    tiles.forEach((item, i) => {
      const there = box?.lastChild.children[i];
      if (there) spark(there.querySelector("canvas"), run.name, item.metric, item.labels, getComputedStyle(there).getPropertyValue("--tone"));
    });
  }
}

/** The metrics that the sparklines draw. */
export const sparkMetrics = (run) => [...new Set((overviews.get(run)?.tiles ?? []).map((item) => item.metric))];
