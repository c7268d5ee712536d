// What the person looking has chosen: runs, axis, theme, zoom. Kept in the address, so that a link shows the same.

import { byId } from "./dom.js";

const listeners = new Map();

export const state = { runs: [], axis: "step", range: null, chosen: false };

/** on("runs" | "axis" | "range" | "theme", act) */
export function on(what, act) {
  listeners.set(what, [...(listeners.get(what) ?? []), act]);
}

const tell = (what) => (listeners.get(what) ?? []).forEach((act) => act());

function remember() {
  const parts = new URLSearchParams(state.runs.map((run) => ["run", run]));
  if (state.axis !== "step") parts.set("by", state.axis);
  history.replaceState(null, "", `#${parts}`);
}

export function showRuns(runs, chosen = true) {
  if (runs.length === state.runs.length && runs.every((run, i) => run === state.runs[i])) return;
  state.runs = runs;
  if (chosen) {
    state.chosen = true;
    remember();
  }
  tell("runs");
}

export const toggleRun = (run) =>
  showRuns(state.runs.includes(run) ? state.runs.filter((other) => other !== run) : [...state.runs, run].slice(-6));

export function setAxis(axis) {
  state.axis = axis;
  state.range = null;
  byId("axis").textContent = `by ${axis}`;
  byId("reset").hidden = true;
  remember();
  tell("axis");
}

export function setRange(range) {
  if (range === null && state.range === null) return;
  state.range = range;
  byId("reset").hidden = range === null;
  tell("range");
}

export function setTheme(name) {
  document.documentElement.dataset.theme = name;
  byId("theme").textContent = name === "dark" ? "light" : "dark";
  try {
    localStorage.setItem("vqwatch-theme", name);
  } catch {
    // a browser that keeps nothing still shows the page
  }
  tell("theme");
}

export function restore() {
  const parts = new URLSearchParams(location.hash.slice(1));
  state.runs = parts.getAll("run");
  state.chosen = state.runs.length > 0;
  if (parts.get("by") === "time") state.axis = "time";
  byId("axis").textContent = `by ${state.axis}`;
  let kept = null;
  try {
    kept = localStorage.getItem("vqwatch-theme");
  } catch {
    // as above
  }
  setTheme(kept ?? (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light"));
}
