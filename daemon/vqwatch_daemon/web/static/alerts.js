// Alerts as they are now, each with its runbook one click away.

import { byId, fill, h, sign } from "./dom.js";
import { moment, whole } from "./format.js";

const VERDICTS = { critical: "critical", warning: "concerning", info: "info" };
const SIGNS = { critical: "✕", warning: "!", info: "i" };
const ORDER = { critical: 0, warning: 1, info: 2 };

const named = (alert) => Object.entries(alert.labels).filter(([name]) => !["alertname", "severity", "run"].includes(name));

/** "documents · layer 0, 1, 2": where all alerts of a group are. */
function where(group) {
  const places = new Map();
  for (const alert of group)
    for (const [name, value] of named(alert)) places.set(name, (places.get(name) ?? new Set()).add(value));
  const told = [...places].map(([name, values]) => {
    const sorted = [...values].sort((a, b) => a.localeCompare(b, "en", { numeric: true }));
    return `${name} ${sorted.slice(0, 12).join(", ")}${sorted.length > 12 ? ` and ${sorted.length - 12} more` : ""}`;
  });
  return [group[0].run, ...told].filter(Boolean).join(" · ");
}

function since(alert) {
  if (alert.state === "resolved") return `resolved ${moment(alert.resolved_at)}`;
  const step = alert.started_step === null ? "" : `step ${whole(alert.started_step)} · `;
  return `${alert.state} · ${step}${moment(alert.fired_at ?? alert.active_at)}`;
}

/** Alerts that differ only in their layer (or rank, module) stand together. */
function grouped(alerts) {
  const groups = new Map();
  for (const alert of alerts) {
    const key = JSON.stringify([alert.name, alert.severity, alert.run, alert.state]);
    groups.set(key, [...(groups.get(key) ?? []), alert]);
  }
  return [...groups.values()];
}

function item(group) {
  const alert = group[0];
  const verdict = alert.state === "firing" ? (VERDICTS[alert.severity] ?? "info") : alert.state === "resolved" ? "healthy" : "info";
  const mark = alert.state === "firing" ? (SIGNS[alert.severity] ?? "!") : alert.state === "resolved" ? "✓" : "…";
  return h(
    "li",
    { class: "alert", "data-verdict": verdict, "data-state": alert.state },
    sign(mark),
    h(
      "div",
      {},
      h("strong", {}, alert.name),
      h("span", { class: "where" }, ` ${alert.severity} · ${where(group)}`),
      h("p", {}, alert.annotations.description || alert.annotations.summary || ""),
    ),
    h("div", { class: "more" }, h("a", { href: `/runbooks/${encodeURIComponent(alert.name)}`, target: "_blank", rel: "noopener" }, "runbook"), h("time", {}, since(alert))),
  );
}

const list = (alerts) => h("ul", { class: "alerts" }, ...grouped(alerts).map(item));

let openedByHand = false;

export function draw(alerts, runs) {
  const shown = alerts.filter((alert) => !alert.run || runs.includes(alert.run));
  const firing = shown.filter((alert) => alert.state === "firing");
  firing.sort((a, b) => (ORDER[a.severity] ?? 9) - (ORDER[b.severity] ?? 9) || (b.fired_at ?? 0) - (a.fired_at ?? 0));
  const rest = shown.filter((alert) => alert.state !== "firing");
  const elsewhere = alerts.filter((alert) => alert.state === "firing" && !shown.includes(alert)).length;
  const head = h("div", { class: "head" }, h("h2", {}, firing.length ? `Alerts (${grouped(firing).length})` : "Alerts"));
  const quiet = firing.length ? null : h("p", { class: "quiet" }, "Nothing is firing.");
  const other = elsewhere ? h("p", { class: "quiet" }, `${elsewhere} more firing in runs that are not shown.`) : null;
  const details = rest.length
    ? h("details", { open: openedByHand, ontoggle: (event) => (openedByHand = event.target.open) }, h("summary", {}, `${grouped(rest).length} pending or resolved`), list(rest))
    : null;
  fill(byId("alerts"), head, firing.length ? list(firing) : quiet, other, details);
}
