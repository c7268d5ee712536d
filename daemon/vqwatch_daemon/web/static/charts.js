// Draws figures by plotly once its script has come, those on the screen only, and keeps their axes together.

import { byId, fill, h } from "./dom.js";
import { plain, short } from "./format.js";
import { SECTIONS } from "./figures.js";
import { matrix } from "./matrix.js";
import { distinct, ordered, paper, runColour } from "./palette.js";
import { setRange, state } from "./state.js";
import { curve, values } from "./store.js";

const NARROW = 560;
const BANDED = 4; // at most so many curves show the spread of what they stand for
const CONFIG = {
  displaylogo: false, responsive: true, doubleClick: "reset", plotlyServerURL: "", // nothing leaves this page
  modeBarButtonsToRemove: ["sendChartToCloud", "select2d", "lasso2d", "autoScale2d", "zoomIn2d", "zoomOut2d"],
};
const zone = new Date().getTimezoneOffset() * 60000; // plotly shows dates as UTC: give it local ones

let catalogue = {};
const cards = []; // {figure, card, body, visible, stale}
const nameOrder = (a, b) => a.labels.join("\n").localeCompare(b.labels.join("\n"), "en", { numeric: true });

export const toAxis = (table) => (state.axis === "step" ? table.step : table.time.map((time) => time * 1000 - zone));
const fromAxis = (value) => (state.axis === "step" ? Number(value) : typeof value === "number" ? value : Date.parse(`${value.replace(" ", "T")}Z`));

/** The zoomed range in the units of the daemon's questions. */
export const asked = (range) => (state.axis === "step" ? range : range.map((value) => (value + zone) / 1000));

const codebookSize = (run) => {
  const sizes = new Set(values(run, "codebook_size").map((entry) => entry[1]));
  return sizes.size === 1 ? [...sizes][0] : null;
};

/** Thresholds of a metric's bands in its own unit, or null. */
function bandsOf(figure) {
  const bands = catalogue[figure.metric]?.bands;
  if (!bands) return null;
  const scale = bands.per_code ? codebookSize(state.runs[0]) : 1;
  if (scale === null) return null;
  const scaled = ([low, high]) => [low === null ? -Infinity : low * scale, high === null ? Infinity : high * scale];
  return { healthy: scaled(bands.healthy), concerning: scaled(bands.concerning) };
}

/** Zones of verdicts from bottom to top: [low, high, verdict]. */
function zones(bands) {
  const edges = [...new Set([-Infinity, ...bands.healthy, ...bands.concerning, Infinity])].sort((a, b) => a - b);
  const inside = ([low, high], value) => value >= low && value <= high;
  return edges.slice(1).map((high, i) => {
    const low = edges[i];
    const probe = low === -Infinity ? high - 1e-12 : high === Infinity ? low + 1e-12 : (low + high) / 2;
    return [low, high, inside(bands.healthy, probe) ? "healthy" : inside(bands.concerning, probe) ? "concerning" : "critical"];
  });
}

function extent(figure, traces, bands) {
  if (figure.span) return figure.span;
  let [low, high] = [Infinity, -Infinity];
  for (const trace of traces) {
    for (const value of trace.y) {
      if (value === null || !Number.isFinite(value) || (figure.log && value <= 0)) continue;
      if (value < low) low = value;
      if (value > high) high = value;
    }
  }
  if (low > high) return null;
  if (bands) {
    // let the nearest threshold be seen
    const near = [...bands.healthy, ...bands.concerning].filter((edge) => Number.isFinite(edge) && (!figure.log || edge > 0));
    const reach = figure.log ? (edge) => edge >= low / 30 && edge <= high * 30 : (edge) => edge >= low - 1.2 * (high - low || Math.abs(high)) && edge <= high + 1.2 * (high - low || Math.abs(high));
    for (const edge of near.filter(reach)) [low, high] = [Math.min(low, edge), Math.max(high, edge)];
  }
  if (figure.floor !== undefined) low = Math.min(low, figure.floor);
  if (figure.log) {
    const pad = Math.max(0.06 * Math.log10(high / low), 0.05);
    return [low * 10 ** -pad, high * 10 ** pad];
  }
  const pad = 0.06 * (high - low) || Math.abs(high) * 0.1 || 1;
  return [figure.floor === undefined ? low - pad : low, high + pad];
}

function backdrop(figure, bands, range, xref, last, colours) {
  if (!bands || !range) return { shapes: [], annotations: [] };
  const place = figure.log ? Math.log10 : (value) => value;
  const [bottom, top] = range;
  const shown = zones(bands).map(([low, high, verdict]) => [Math.max(low, bottom), Math.min(high, top), verdict]).filter(([low, high]) => high > low);
  const shapes = shown.map(([y0, y1, verdict]) => ({
    type: "rect", layer: "below", xref: `${xref} domain`, x0: 0, x1: 1, yref: "y", y0, y1,
    fillcolor: colours[verdict], opacity: verdict === "healthy" ? 0.07 : 0.1, line: { width: 0 },
  }));
  const annotations = last
    ? shown
        .filter(([low, high]) => (place(high) - place(low)) / (place(top) - place(bottom)) > 0.18)
        .map(([low, high, verdict]) => ({
          text: verdict, xref: "paper", x: 1, xanchor: "left", textangle: 90, yref: "y", y: (place(low) + place(high)) / 2, showarrow: false,
          font: { size: 10, color: colours[verdict] },
        }))
    : [];
  return { shapes, annotations };
}

const clear = (colour, alpha) => colour.replace(/^#(..)(..)(..)$/, (_, r, g, b) => `rgba(${parseInt(r, 16)}, ${parseInt(g, 16)}, ${parseInt(b, 16)}, 1)`).replace(/[\d.]+\)$/, `${alpha})`);

/** The curves of one run in a figure. */
function curves(figure, run, index, alone) {
  const table = curve(run, figure.metric);
  const x = toAxis(table);
  const rows = [...table.series.values()].sort(nameOrder);
  const many = rows.length > BANDED;
  return rows.flatMap((row, i) => {
    const style = alone ? { color: runColour(index), dash: "solid" } : figure.order ? ordered(i, rows.length) : distinct(i);
    const label = alone ? run : row.labels.join(" · ");
    const line = {
      x, y: row.y, name: plain(alone || !figure.order ? label : `layer ${label}`), mode: x.length > 1 ? "lines" : "markers", type: "scatter",
      line: { width: 1.7, ...style }, legendgroup: label, hovertemplate: figure.percent ? "%{y:.1%}" : "%{y:.4g}",
    };
    if (!row.low || many) return [line];
    const edge = { x, type: "scatter", mode: "lines", line: { width: 0 }, hoverinfo: "skip", showlegend: false, legendgroup: label };
    return [{ ...edge, y: row.low }, { ...edge, y: row.high, fill: "tonexty", fillcolor: clear(style.color, 0.18) }, line];
  });
}

const logTicks = (ratio) => (ratio > 1000 ? { dtick: 1 } : { tickformat: ".3~g", ...(ratio > 5 ? { dtick: "D2" } : {}) });

function xAxis(colours) {
  return {
    type: state.axis === "step" ? "linear" : "date", gridcolor: colours.grid, linecolor: colours.line, zeroline: false, tickfont: { size: 11 },
    nticks: 6, separatethousands: true, ...(state.range ? { range: state.range, autorange: false } : { autorange: true }),
  };
}

function base(colours, width) {
  return {
    margin: { l: 52, r: 18, t: 8, b: 30 }, paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", showlegend: true,
    font: { family: "inherit", size: 12, color: colours.soft }, hovermode: width < NARROW ? "closest" : "x unified",
    hoverlabel: { bgcolor: colours.card, bordercolor: colours.line, font: { color: colours.ink, size: 12 } },
    legend: { orientation: "h", y: -0.14, yanchor: "top", font: { size: 11 }, itemwidth: 30, traceorder: "normal" },
    modebar: { bgcolor: "rgba(0,0,0,0)", color: colours.soft, activecolor: colours.ink },
    dragmode: matchMedia("(pointer: coarse)").matches ? false : "zoom", uirevision: `${state.axis} ${state.range}`,
  };
}

function lines(figure, body) {
  const colours = paper();
  const width = body.clientWidth;
  const scalarOnly = (catalogue[figure.metric]?.labels ?? []).length === 0;
  const shown = state.runs.map((run, index) => [run, curves(figure, run, index, scalarOnly)]).filter(([, traces]) => traces.length);
  if (!shown.length) return;
  const all = shown.flatMap(([, traces]) => traces);
  const bands = bandsOf(figure);
  const range = extent(figure, all, bands);
  const layout = base(colours, width);
  const yAxis = {
    gridcolor: colours.grid, linecolor: colours.line, zeroline: false, type: figure.log ? "log" : "linear", tickfont: { size: 11 },
    tickformat: figure.percent ? ".0%" : undefined, exponentformat: "power", nticks: 6, fixedrange: false,
    ...(range ? { range: figure.log ? range.map(Math.log10) : range } : {}),
  };
  if (figure.log && range) Object.assign(yAxis, logTicks(range[1] / range[0]));
  layout.shapes = [];
  layout.annotations = [];
  const panels = scalarOnly ? [shown.map(([run]) => run)] : shown.map(([run]) => [run]);
  const rows = width < NARROW && panels.length > 1;
  const gap = 0.04;
  panels.forEach((_, i) => {
    const suffix = i ? String(i + 1) : "";
    const n = panels.length;
    const domain = [i / n + (i ? gap / 2 : 0), (i + 1) / n - (i < n - 1 ? gap / 2 : 0)];
    layout[`xaxis${suffix}`] = { ...xAxis(colours), domain: rows ? [0, 1] : domain, anchor: `y${suffix}`, ...(i ? { matches: "x" } : {}) };
    layout[`yaxis${suffix}`] = { ...yAxis, domain: rows ? [1 - domain[1], 1 - domain[0]] : [0, 1], anchor: `x${suffix}`, ...(i ? { matches: "y", showticklabels: rows } : {}) };
    const { shapes, annotations } = backdrop(figure, bands, range, `x${suffix}`, i === panels.length - 1, colours);
    layout.shapes.push(...shapes.map((shape) => ({ ...shape, yref: `y${suffix}` })));
    layout.annotations.push(...annotations.map((text) => ({ ...text, yref: `y${suffix}` })));
    if (n > 1)
      layout.annotations.push({
        text: plain(panels[i][0]), xref: `x${suffix} domain`, yref: `y${suffix} domain`, x: 0, y: 1, xanchor: "left", yanchor: "bottom", showarrow: false,
        font: { size: 11, color: runColour(state.runs.indexOf(panels[i][0])) },
      });
  });
  if (panels.length > 1) layout.margin.t = 20;
  const traces = shown.flatMap(([, own], i) => {
    const suffix = !scalarOnly && i ? String(i + 1) : "";
    return own.map((trace) => ({ ...trace, xaxis: `x${suffix}`, yaxis: `y${suffix}`, showlegend: trace.showlegend ?? (scalarOnly || i === 0) }));
  });
  layout.showlegend = traces.filter((trace) => trace.showlegend).length > 1 && traces.length < 60;
  render(body, traces, layout);
}

function stairs(figure, body) {
  const colours = paper();
  const traces = state.runs.flatMap((run, index) => {
    const entries = values(run, figure.metric).map(([layer, value]) => ({ labels: [layer], value: Number(value) })).sort(nameOrder);
    if (!entries.length) return [];
    const names = ["input", ...entries.map((entry) => `after ${entry.labels[0]}`)];
    return [{
      x: names.map(plain), y: [1, ...entries.map((entry) => entry.value)], name: plain(run), type: "scatter", mode: "lines+markers",
      line: { shape: "hvh", width: 2, color: runColour(index) }, marker: { size: 6 }, hovertemplate: "%{y:.2%} of the input's energy",
    }];
  });
  if (!traces.length) return;
  const layout = base(colours, body.clientWidth);
  const axis = { gridcolor: colours.grid, linecolor: colours.line, tickfont: { size: 11 } };
  layout.xaxis = { ...axis, type: "category", fixedrange: true };
  layout.yaxis = { ...axis, type: "log", tickformat: "~p", nticks: 6 };
  layout.showlegend = traces.length > 1;
  layout.hovermode = "closest";
  layout.margin.b = 44;
  render(body, traces, layout);
}

function matrices(figure, body) {
  const made = state.runs.map((run) => matrix(run, figure.metric, state.runs.length > 1 ? run : "")).filter(Boolean);
  fill(body, ...made);
}

/** One chart per evaluated metric: the mean with its spread, and everything between the smallest and the largest. */
function evaluations(figure, body) {
  const names = new Set(state.runs.flatMap((run) => [...curve(run, figure.metric).series.values()].map((row) => row.labels[0])));
  if (!names.size) return;
  const shown = [...names].sort().slice(0, 9);
  if (body.children.length !== shown.length || shown.some((name, i) => body.children[i].dataset.name !== name))
    body.replaceChildren(...shown.map((name) => h("div", { class: "chart", "data-name": name }, h("h3", {}, name.replaceAll("_", " ")), h("div", { class: "plot" }))));
  const colours = paper();
  shown.forEach((name, at) => {
    const traces = state.runs.flatMap((run, index) => {
      const table = curve(run, figure.metric);
      const stat = (which) => table.series.get(JSON.stringify([name, which]))?.y;
      const mean = stat("mean");
      if (!mean) return [];
      const x = toAxis(table);
      const colour = runColour(index);
      const [low, high, std] = [stat("min"), stat("max"), stat("std")];
      const edge = { x, type: "scatter", mode: "lines", line: { width: 0 }, hoverinfo: "skip", showlegend: false };
      const around = low && high ? [{ ...edge, y: low }, { ...edge, y: high, fill: "tonexty", fillcolor: clear(colour, 0.12) }] : [];
      const point = {
        x, y: mean, name: plain(run), type: "scatter", mode: "lines+markers", line: { width: 1.4, color: colour }, marker: { size: 7 }, hovertemplate: "%{y:.4g}",
        error_y: std ? { type: "data", array: std, thickness: 1.2, width: 4 } : undefined,
      };
      return [...around, point];
    });
    const body_ = body.children[at].lastChild;
    const layout = base(colours, body_.clientWidth);
    layout.xaxis = xAxis(colours);
    layout.yaxis = { gridcolor: colours.grid, linecolor: colours.line, tickfont: { size: 11 }, nticks: 6 };
    layout.showlegend = state.runs.length > 1;
    render(body_, traces, layout);
  });
}

function losses(_figure, body) {
  const rows = state.runs.flatMap((run) => [
    ...values(run, "emitter_dropped_total").filter((entry) => Number(entry[3]) > 0).map(([rank, kind, reason, count]) => [`${run} · rank ${rank}`, `${kind}: ${reason}`, count]),
    ...values(run, "messages_lost_total").filter((entry) => Number(entry[1]) > 0).map(([rank, count]) => [`${run} · rank ${rank}`, "lost on the way", count]),
    ...values(run, "messages_late_total").filter((entry) => Number(entry[1]) > 0).map(([rank, count]) => [`${run} · rank ${rank}`, "too late for its step", count]),
  ]);
  const table = rows.length
    ? h("div", { class: "scroll" }, h("table", { class: "numbers" }, h("tbody", {}, ...rows.slice(0, 40).map(([who, what, count]) => h("tr", {}, h("th", { scope: "row" }, who), h("td", {}, what), h("td", {}, short(count)))))))
    : h("p", { class: "empty" }, "Nothing was dropped or lost.");
  fill(body, table);
}

const KINDS = { lines, stairs, matrix: matrices, evaluations, losses };
const PLOTTED = new Set(["lines", "stairs", "evaluations"]);

function render(body, traces, layout) {
  body.classList.remove("waiting");
  if (!body.dataset.plotted) {
    body.replaceChildren();
    body.dataset.plotted = "yes";
    window.Plotly.newPlot(body, traces, layout, CONFIG);
    body.on("plotly_relayout", moved);
    return;
  }
  window.Plotly.react(body, traces, layout, CONFIG);
}

function moved(change) {
  const keys = Object.keys(change);
  const start = keys.find((key) => /^xaxis\d*\.range\[0\]$/.test(key));
  if (start) setRange([fromAxis(change[start]), fromAxis(change[start.replace("[0]", "[1]")])]);
  else if (keys.some((key) => /^xaxis\d*\.autorange$/.test(key))) setRange(null);
}

// --- cards, and when they are drawn -------------------------------------------------------------------------------

function drawCard(item) {
  item.stale = false;
  if (PLOTTED.has(item.figure.kind) && !window.Plotly) return;
  KINDS[item.figure.kind](item.figure, item.body);
}

const observer = new IntersectionObserver(
  (entries) => {
    for (const entry of entries) {
      const item = cards.find((other) => other.card === entry.target);
      item.visible = entry.isIntersecting;
    }
    work();
  },
  { rootMargin: "200px" },
);

let working = false;
/** Draw what is stale and on the screen, one figure per idle moment. */
export function work() {
  if (working || document.hidden) return;
  const item = cards.find((other) => other.stale && other.visible);
  if (!item) return;
  working = true;
  const act = () => {
    working = false;
    drawCard(item);
    work();
  };
  (window.requestIdleCallback ?? setTimeout)(act, { timeout: 500 });
}

export function spoil() {
  for (const item of cards) item.stale = true;
  work();
}

/** Hide what no shown run has curves of; sections without figures go too. */
export function arrange(has) {
  for (const item of cards) item.card.hidden = !has(item.figure);
  for (const section of byId("charts").children) section.hidden = ![...section.querySelectorAll(".chart, .evaluations")].some((card) => !card.hidden);
  for (const grid of document.querySelectorAll("#charts .grid")) grid.classList.toggle("wide", state.runs.length > 1);
}

export function start(known) {
  catalogue = known;
  byId("charts").replaceChildren(
    ...SECTIONS.map((section) => {
      const made = section.figures.map((figure) => {
        const meaning = catalogue[figure.metric]?.help ?? "";
        const plotted = figure.kind === "lines" || figure.kind === "stairs";
        const body = h("div", { class: figure.kind === "evaluations" ? "grid" : plotted ? "plot waiting" : "", role: plotted ? "group" : null, "aria-label": figure.title }, plotted ? "drawing …" : null);
        const card =
          figure.kind === "evaluations"
            ? h("div", { class: "evaluations" }, body)
            : h("article", { class: "chart", "data-metric": figure.metric }, h("h3", {}, figure.title), h("p", {}, meaning), body);
        cards.push({ figure, card, body, visible: false, stale: true });
        observer.observe(card);
        return card;
      });
      const whole = section.figures.length === 1 && section.figures[0].kind === "evaluations";
      return h("section", {}, h("div", { class: "head" }, h("h2", {}, section.title)), whole ? made[0] : h("div", { class: "grid" }, ...made));
    }),
  );
}

/** Load plotly after everything else has been painted. */
export function load(address) {
  if (!address) {
    for (const item of cards) if (item.body.classList.contains("waiting")) item.body.textContent = "charts need the package plotly beside the daemon";
    return;
  }
  const script = h("script", { src: address, async: true });
  script.addEventListener("load", spoil);
  script.addEventListener("error", () => load(""));
  document.head.append(script);
}
