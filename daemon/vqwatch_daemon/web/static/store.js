// The curves that the page holds: one table per run and metric, its columns aligned by row. Bounded: a table that grows
// too long merges the rows of its older half by twos, and keeps the extremes of what it merged.

import { real } from "./format.js";

const MOST_ROWS = 900;
const key = (labels) => JSON.stringify(labels);

const middle = (a, b) => (a === null ? b : b === null ? a : (a + b) / 2);
const extreme = (pick, a, b) => (!Number.isFinite(a) ? b : !Number.isFinite(b) ? a : pick(a, b));

class Table {
  constructor() {
    this.step = [];
    this.time = [];
    this.series = new Map(); // key -> {labels, y, low, high}; low and high only where rows stand for several samples
  }

  static of(curve) {
    const table = new Table();
    table.step = curve.step;
    table.time = curve.time;
    curve.series.forEach((labels, i) => {
      const row = { labels, y: curve.value[i].map(real) };
      if (curve.low) {
        row.low = curve.low[i].map(real);
        row.high = curve.high[i].map(real);
      }
      table.series.set(key(labels), row);
    });
    return table;
  }

  append(step, time, values) {
    const n = this.step.length;
    if (n && time <= this.time[n - 1]) return;
    this.step.push(step);
    this.time.push(time);
    for (const value of values) {
      const labels = value.slice(0, -1);
      let row = this.series.get(key(labels));
      if (!row) {
        row = { labels, y: new Array(n).fill(null) };
        this.series.set(key(labels), row);
      }
      row.y[n] = real(value[value.length - 1]);
    }
    for (const row of this.series.values()) {
      if (row.y.length <= n) row.y.push(null);
      if (row.low) {
        row.low[n] = row.y[n];
        row.high[n] = row.y[n];
      }
    }
    if (n + 1 > MOST_ROWS) this.thin();
  }

  thin() {
    const n = this.step.length;
    const half = (n >> 1) & ~1;
    const later = (_, i) => i >= half || i % 2 === 1;
    for (const row of this.series.values()) {
      const { y, low = y, high = y } = row;
      const merged = { y: [], low: [], high: [] };
      for (let i = 0; i < half; i += 2) {
        merged.y.push(middle(y[i], y[i + 1]));
        merged.low.push(extreme(Math.min, low[i], low[i + 1]));
        merged.high.push(extreme(Math.max, high[i], high[i + 1]));
      }
      row.y = merged.y.concat(y.slice(half));
      row.low = merged.low.concat(low.slice(half));
      row.high = merged.high.concat(high.slice(half));
    }
    this.step = this.step.filter(later);
    this.time = this.time.filter(later);
  }

  /** This table up to its end, then the rows of `later` that come after. */
  followedBy(later) {
    const last = this.time[this.time.length - 1] ?? -Infinity;
    const from = later.time.findIndex((time) => time > last);
    if (from < 0) return this;
    const joined = new Table();
    joined.step = [...this.step, ...later.step.slice(from)];
    joined.time = [...this.time, ...later.time.slice(from)];
    for (const id of new Set([...this.series.keys(), ...later.series.keys()])) {
      const [a, b] = [this.series.get(id), later.series.get(id)];
      const [before, after] = [new Array(this.step.length).fill(null), new Array(later.step.length - from).fill(null)];
      const row = { labels: (a ?? b).labels, y: [...(a?.y ?? before), ...(b?.y.slice(from) ?? after)] };
      for (const side of ["low", "high"]) {
        if (a?.[side] || b?.[side]) row[side] = [...(a?.[side] ?? a?.y ?? before), ...((b?.[side] ?? b?.y)?.slice(from) ?? after)];
      }
      joined.series.set(id, row);
    }
    return joined;
  }
}

const whole = new Map(); // run -> metric -> Table, from the beginning to now
const detail = new Map(); // the same, finer, of the range that is zoomed into
const readings = new Map(); // run -> the latest readings
const EMPTY = new Table();

export const latest = (run) => readings.get(run) ?? {};

export const values = (run, metric) => latest(run)[metric]?.values ?? [];

export const scalar = (run, metric) => values(run, metric).find((value) => value.length === 1)?.[0] ?? null;

export function curve(run, metric) {
  const base = whole.get(run)?.get(metric) ?? EMPTY;
  const fine = detail.get(run)?.get(metric);
  return fine ? fine.followedBy(base) : base;
}

export function begin(run, answer) {
  const tables = whole.get(run) ?? new Map();
  for (const [metric, item] of Object.entries(answer)) {
    const table = Table.of(item);
    const live = tables.get(metric);
    tables.set(metric, live ? table.followedBy(live) : table);
  }
  whole.set(run, tables);
}

export const zoomed = (run, answer) => detail.set(run, new Map(Object.entries(answer).map(([metric, item]) => [metric, Table.of(item)])));

export const unzoom = () => detail.clear();

export function forget(run) {
  for (const held of [whole, detail, readings]) held.delete(run);
}

const unchanged = (before, after) => before && JSON.stringify(before.values) === JSON.stringify(after.values);

/** Take the readings of a tick. Evaluations are points, not curves: they only count when they change. */
export function hear(run, step, time, now) {
  const before = latest(run);
  readings.set(run, now);
  const tables = whole.get(run) ?? new Map();
  whole.set(run, tables);
  for (const [metric, item] of Object.entries(now)) {
    if (item.labels.includes("other_layer") || (metric === "evaluation" && unchanged(before[metric], item))) continue;
    let table = tables.get(metric);
    if (!table) tables.set(metric, (table = new Table()));
    table.append(step, time, item.values);
  }
}

/** How many numbers are held, for the curious and the tests. */
export function size() {
  let count = 0;
  for (const tables of whole.values()) for (const table of tables.values()) count += table.step.length * (2 + table.series.size);
  return count;
}
