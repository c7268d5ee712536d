// Colours for what is drawn, in both themes. Layers are ordered and get a ramp; parts of a whole get distinct hues.

const RAMPS = {
  light: ["#2a2f7e", "#2f62b5", "#178a9b", "#3f9a4b", "#a58a00", "#c8610f", "#a5243d"],
  dark: ["#9aa5ff", "#6db8ff", "#4fd1c5", "#86d77e", "#e6cf5a", "#ff9f5c", "#ff7d93"],
};
const HUES = {
  light: ["#3546a8", "#c2530a", "#0a7f6f", "#9c2c77", "#7a6a00", "#2b7bba", "#a3352b", "#55606f"],
  dark: ["#9db0ff", "#ffa35e", "#5fd6c0", "#f08fce", "#dcc853", "#74c0ff", "#ff8d84", "#a9b4c6"],
};
const DASHES = ["solid", "dot", "dash"];
const VIRIDIS = ["#440154", "#482878", "#3e4a89", "#31688e", "#26828e", "#1f9e89", "#35b779", "#6ece58", "#b5de2b", "#fde725"];

export const theme = () => document.documentElement.dataset.theme;

const channels = (hex) => [1, 3, 5].map((at) => parseInt(hex.slice(at, at + 2), 16));

export function mix(colours, share) {
  const place = Math.min(Math.max(share, 0), 1) * (colours.length - 1);
  const left = Math.min(Math.floor(place), colours.length - 2);
  const [a, b] = [channels(colours[left]), channels(colours[left + 1])];
  return a.map((value, i) => Math.round(value + (b[i] - value) * (place - left)));
}

export const rgb = ([r, g, b], alpha = 1) => `rgba(${r}, ${g}, ${b}, ${alpha})`;

/** Colour and dash of the i-th of n ordered lines. */
export const ordered = (i, n) => ({ color: rgb(mix(RAMPS[theme()], n > 1 ? i / (n - 1) : 0.2)), dash: DASHES[n > 3 ? i % 3 : 0] });

/** Colour and dash of the i-th of several unordered lines. */
export const distinct = (i) => ({ color: HUES[theme()][i % 8], dash: DASHES[Math.floor(i / 8) % 3] });

export const runColour = (i) => HUES[theme()][i % 8];

/** Red, green, blue of a use between 0 (never) and 1 (four times uniform use or more). */
export const heat = (share) => mix(VIRIDIS, share);

/** Background and ink of a number between -1 and 1, or 0 and 1. */
export function shade(share) {
  const dark = theme() === "dark";
  const ends = share < 0 ? (dark ? ["#1d2430", "#ff9f5c"] : ["#f4f5f8", "#b4530a"]) : dark ? ["#1d2430", "#7f95ff"] : ["#f4f5f8", "#3546a8"];
  const strength = Math.min(1, Math.abs(share));
  return { background: rgb(mix(ends, strength)), color: dark ? (strength > 0.55 ? "#0e1218" : "#e8ecf3") : strength > 0.5 ? "#ffffff" : "#171c26" };
}

/** What plotly needs to know of the theme. */
export function paper() {
  const style = getComputedStyle(document.documentElement);
  const of = (name) => style.getPropertyValue(name).trim();
  return { ink: of("--ink"), soft: of("--soft"), line: of("--line"), grid: of("--line-soft"), card: of("--card"), healthy: of("--healthy"), concerning: of("--concerning"), critical: of("--critical") };
}
