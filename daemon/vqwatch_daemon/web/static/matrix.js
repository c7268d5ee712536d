// Layer-by-layer matrices as tables of numbers on shaded cells.

import { h } from "./dom.js";
import { shade } from "./palette.js";
import { values } from "./store.js";

const MOST_WITH_NUMBERS = 16;

export function matrix(run, metric, title) {
  const entries = values(run, metric).filter((entry) => entry.length === 3);
  if (!entries.length) return null;
  const names = [...new Set(entries.flatMap(([a, b]) => [a, b]))].sort((a, b) => a.localeCompare(b, "en", { numeric: true }));
  const cells = new Map(entries.flatMap(([a, b, value]) => [[`${a}\n${b}`, Number(value)], [`${b}\n${a}`, Number(value)]]));
  const most = metric.endsWith("correlation") ? 1 : Math.max(1e-9, ...[...cells.values()].filter(Number.isFinite));
  const cell = (a, b) => {
    const value = cells.get(`${a}\n${b}`);
    if (value === undefined || !Number.isFinite(value)) return h("td", {}, a === b ? "" : "·");
    const td = h("td", { title: `${a} and ${b}: ${value.toPrecision(4)}` }, value.toFixed(2).replace("-0.", "−.").replace(/^0\./, "."));
    Object.assign(td.style, shade(value / most));
    return td;
  };
  const head = h("tr", {}, h("th", {}), ...names.map((name) => h("th", { scope: "col" }, name)));
  const rows = names.map((a) => h("tr", {}, h("th", { scope: "row" }, a), ...names.map((b) => cell(a, b))));
  return h(
    "div",
    { class: names.length > MOST_WITH_NUMBERS ? "matrix many" : "matrix" },
    title ? h("h4", {}, title) : null,
    h("table", {}, h("thead", {}, head), h("tbody", {}, ...rows)),
  );
}
