// A sparkline on a canvas: the last stretch of one curve, its newest point marked.

import { curve } from "./store.js";

const MOST_POINTS = 120;

export function spark(canvas, run, metric, labels, colour) {
  const row = curve(run, metric).series.get(JSON.stringify(labels));
  const box = canvas.getBoundingClientRect();
  const ratio = window.devicePixelRatio || 1;
  const [width, height] = [Math.round(box.width * ratio), Math.round(box.height * ratio)];
  if (!width || !height) return;
  if (canvas.width !== width || canvas.height !== height) [canvas.width, canvas.height] = [width, height];
  const pen = canvas.getContext("2d");
  pen.clearRect(0, 0, width, height);
  const all = row?.y ?? [];
  const every = Math.max(1, Math.ceil(all.length / MOST_POINTS));
  const points = all.filter((_, i) => (all.length - 1 - i) % every === 0);
  const known = points.filter(Number.isFinite);
  if (known.length < 2) return;
  const [low, high] = [Math.min(...known), Math.max(...known)];
  const pad = 3 * ratio;
  const x = (i) => pad + (i / (points.length - 1)) * (width - 2 * pad);
  const y = (value) => (high > low ? height - pad - ((value - low) / (high - low)) * (height - 2 * pad) : height / 2);
  pen.strokeStyle = pen.fillStyle = colour;
  pen.lineWidth = 1.6 * ratio;
  pen.lineJoin = "round";
  pen.beginPath();
  let drawing = false;
  points.forEach((value, i) => {
    if (!Number.isFinite(value)) drawing = false;
    else {
      pen[drawing ? "lineTo" : "moveTo"](x(i), y(value));
      drawing = true;
    }
  });
  pen.stroke();
  const last = points.findLastIndex(Number.isFinite);
  pen.beginPath();
  pen.arc(x(last), y(points[last]), 2.4 * ratio, 0, 7);
  pen.fill();
}
