// Small drawings: a line of the last minute, and a bar of parts.

import { element, shape } from "./dom.js";
import { percent } from "./format.js";

const WIDTH = 120;
const HEIGHT = 28;
const SAMPLES = 60;

/** A line through the last minute's values, one a second; `null` is a gap. Its number stands beside it as text. */
export class Sparkline {
  values = [];

  constructor() {
    this.area = shape("path", { class: "area" });
    this.line = shape("path", { class: "line", "vector-effect": "non-scaling-stroke" });
    const view = { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: "none", "aria-hidden": "true" };
    this.root = shape("svg", { class: "sparkline", ...view }, this.area, this.line);
  }

  push(value) {
    this.values = [...this.values, value ?? null].slice(-SAMPLES);
    const top = Math.max(...this.values, 0);
    const runs = this.#runs((value) => HEIGHT - 2 - (top > 0 ? (value / top) * (HEIGHT - 5) : 0));
    const path = (points) => points.map(([x, y]) => `${x.toFixed(1)} ${y.toFixed(1)}`).join("L");
    this.line.setAttribute("d", runs.map((points) => `M${path(points)}`).join(""));
    const area = (points) => `M${points[0][0]} ${HEIGHT}L${path(points)}L${points.at(-1)[0]} ${HEIGHT}Z`;
    this.area.setAttribute("d", runs.map(area).join(""));
  }

  /** Points of each stretch without a gap. The newest is at the right edge. */
  #runs(height) {
    const runs = [[]];
    this.values.forEach((value, i) => {
      if (value === null) runs.push([]);
      else runs.at(-1).push([WIDTH * (1 - (this.values.length - 1 - i) / (SAMPLES - 1)), height(value)]);
    });
    return runs.filter((points) => points.length > 0);
  }
}

/** A bar of parts side by side. */
export class Bar {
  constructor(kinds) {
    this.parts = new Map(kinds.map((kind) => [kind, element("span", { class: `k-${kind}` })]));
    this.root = element("div", { class: "bar", role: "img" }, ...this.parts.values());
  }

  /** `shares` of the whole bar by kind; `label` says the same in words. */
  update(shares, label) {
    let left = 1;
    for (const [kind, part] of this.parts) {
      const share = Math.max(0, Math.min(shares[kind] ?? 0, left));
      left -= share;
      // Not more digits than pixels: a style that is the same is not computed again.
      part.style.width = `${(100 * share).toFixed(1)}%`;
    }
    if (this.root.getAttribute("aria-label") !== label) this.root.setAttribute("aria-label", label);
  }
}

/** Shares by kind in words. */
export const shareWords = (shares) =>
  Object.entries(shares).map(([kind, share]) => `${kind} ${percent(share)}`).join(", ");
