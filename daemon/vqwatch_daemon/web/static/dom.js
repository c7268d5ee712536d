// Builds elements. Text only ever becomes text: nothing here, or anywhere on this page, parses a string as HTML.

/** h("p", {class: "x", onclick: f}, "text", child, …) */
export function h(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === undefined || value === null || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else element.setAttribute(name, value === true ? "" : String(value));
  }
  element.append(...children.filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

export const byId = (id) => document.getElementById(id);

/** A sign that goes with a verdict, so that colour is never alone. */
export const sign = (text) => h("span", { class: "sign", "data-sign": text, "aria-hidden": "true" });

/** Change the children only when they differ, so that focus, selection and open details survive an update. */
export function fill(parent, ...children) {
  const made = children.filter(Boolean);
  const same = parent.childNodes.length === made.length && made.every((node, i) => node.isEqualNode?.(parent.childNodes[i]));
  if (!same) parent.replaceChildren(...made);
}
