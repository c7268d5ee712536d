// The page: what is heard goes into the store, what changed is drawn. Tiles, alerts and heatmap need no library and
// come first; plotly (1.5 MB deflated) is asked for once they are on the screen.

import * as alerts from "./alerts.js";
import * as charts from "./charts.js";
import { byId, h } from "./dom.js";
import { ask, Feed, ofRun } from "./feed.js";
import { metricsOf, SECTIONS } from "./figures.js";
import { ago, whole } from "./format.js";
import * as heatmap from "./heatmap.js";
import * as overview from "./overview.js";
import { runColour } from "./palette.js";
import { on, restore, setAxis, setRange, setTheme, showRuns, state, toggleRun } from "./state.js";
import * as store from "./store.js";

const POINTS = 400;
let runs = []; // live ones from the feed, then those that only the history knows
let past = [];
let told = { alerts: [], time: Date.now() / 1000 };
let ticks = 0;
let lost = false; // contact was lost, and not found again
const begun = new Set();
const find = (name) => runs.find((run) => run.name === name);
const shown = () => state.runs.map(find).filter(Boolean);

// --- runs ---------------------------------------------------------------------------------------------------------

function drawRuns() {
  const parent = byId("runs");
  const chips = runs.slice(0, 24).map((run) => {
    const at = state.runs.indexOf(run.name);
    const chip = h(
      "button",
      { type: "button", class: "run", "aria-pressed": String(at >= 0), "data-run": run.name, title: `${run.name}: ${run.state}` },
      h("i"),
      h("b", {}, run.name),
      h("small", {}, run.state === "live" ? whole(run.step) : run.state),
    );
    if (at >= 0) chip.style.setProperty("--mark", runColour(at));
    return chip;
  });
  const focused = parent.contains(document.activeElement) ? document.activeElement.dataset.run : null;
  const same = chips.length === parent.children.length && chips.every((chip, i) => chip.isEqualNode(parent.children[i]));
  if (same) return;
  parent.replaceChildren(...chips);
  if (focused !== null) [...parent.children].find((chip) => chip.dataset.run === focused)?.focus();
}

function know(live) {
  const names = new Set(live.map((run) => run.name));
  runs = [...live, ...past.filter((run) => !names.has(run.name))];
  if (!state.runs.length && !state.chosen && runs.length) showRuns([runs[0].name], false);
}

/** Curves from the beginning to now, section by section, so that the first screen is served first. */
async function begin(run) {
  if (begun.has(run)) return;
  begun.add(run);
  if (find(run)?.state === "past") {
    const [judged, readings] = await Promise.all([ask(ofRun(run, "overview")), ask(ofRun(run, "readings"))]).catch(() => [null, {}]);
    if (judged) overview.judge(run, judged);
    store.hear(run, find(run).step, find(run).last_seen, readings);
  }
  const groups = [overview.sparkMetrics(run), ...SECTIONS.map(metricsOf)].filter((group) => group.length);
  for (const group of groups) {
    try {
      store.begin(run, await ask(ofRun(run, "series"), [...group.map((metric) => ["metric", metric]), ["points", POINTS]]));
    } catch {
      return; // no history: curves begin now
    } finally {
      redraw();
    }
  }
}

function redraw() {
  overview.draw(shown(), told.time);
  charts.arrange((figure) => state.runs.some((run) => store.curve(run, figure.metric).step.length || store.values(run, figure.metric).length));
  charts.spoil();
}

// --- zoom ---------------------------------------------------------------------------------------------------------

let finer = null;
function zoom() {
  clearTimeout(finer);
  store.unzoom();
  charts.spoil();
  if (!state.range) return;
  finer = setTimeout(async () => {
    const [start, end] = charts.asked(state.range);
    const metrics = [...new Set(SECTIONS.flatMap(metricsOf))];
    for (const run of state.runs) {
      const answer = await ask(ofRun(run, "series"), [...metrics.map((metric) => ["metric", metric]), ["points", POINTS], ["start", start], ["end", end], ["by", state.axis]]).catch(() => null);
      if (answer && state.range) store.zoomed(run, answer);
    }
    charts.spoil();
  }, 350);
}

// --- the feed -----------------------------------------------------------------------------------------------------

const feed = new Feed(heard, opened);

async function opened() {
  past = (await ask("runs").catch(() => [])).filter((run) => run.state === "past");
  if (lost) begun.clear(); // what was missed comes from the history
  lost = false;
  know(runs.filter((run) => run.state !== "past"));
  state.runs.filter((run) => find(run)).forEach(begin);
}

function heard(tick) {
  ticks += 1;
  told = tick;
  know(tick.runs);
  for (const [run, detail] of Object.entries(tick.detail)) {
    if (!detail) continue;
    overview.judge(run, detail.overview);
    store.hear(run, find(run)?.step ?? 0, tick.time, detail.readings);
    begin(run);
  }
  drawRuns();
  alerts.draw(tick.alerts, state.runs);
  if (Object.keys(tick.detail).length || ticks < 3) redraw();
  else overview.draw(shown(), tick.time);
  if (!document.hidden && heatmap.isLive() && ticks % 3 === 1) heatmap.refresh();
  if (ticks % 15 === 2) heatmap.refreshSteps();
  document.body.dataset.ticks = String(ticks);
  if (ticks === 1) requestAnimationFrame(() => setTimeout(() => charts.load(document.body.dataset.plotly), 50));
}

function pulse() {
  const silent = feed.silence();
  if (ticks && silent > 4) lost = true;
  byId("pulse").dataset.state = ticks === 0 ? "waiting" : lost ? "lost" : "live";
  byId("pulse").textContent = ticks === 0 ? "connecting" : lost ? `no contact, ${ago(silent)}` : "live";
}

// --- what people do -----------------------------------------------------------------------------------------------

function start() {
  restore();
  byId("runs").addEventListener("click", (event) => {
    const chip = event.target.closest("button");
    if (chip) toggleRun(chip.dataset.run);
  });
  byId("axis").addEventListener("click", () => setAxis(state.axis === "step" ? "time" : "step"));
  byId("reset").addEventListener("click", () => setRange(null));
  byId("theme").addEventListener("click", () => setTheme(document.documentElement.dataset.theme === "dark" ? "light" : "dark"));
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.target.matches("input, select, textarea")) return;
    if (event.key === "s") byId("axis").click();
    else if (event.key === "d") byId("theme").click();
    else if (event.key === "Escape") setRange(null);
    else if (/^[1-9]$/.test(event.key) && runs[event.key - 1]) toggleRun(runs[event.key - 1].name);
  });
  on("runs", () => {
    feed.listen(state.runs);
    drawRuns();
    alerts.draw(told.alerts, state.runs);
    state.runs.filter(find).forEach(begin);
    redraw();
    heatmap.refresh();
    heatmap.refreshSteps();
  });
  on("axis", zoom);
  on("range", zoom);
  on("theme", () => {
    heatmap.redraw();
    redraw();
    drawRuns();
  });
  document.addEventListener("visibilitychange", () => charts.work());
  window.addEventListener("resize", () => overview.drawSparks(shown()));
  heatmap.start();
  setInterval(pulse, 500);
  ask("catalogue").then((known) => {
    charts.start(known);
    redraw();
  });
  feed.listen(state.runs);
}

start();
