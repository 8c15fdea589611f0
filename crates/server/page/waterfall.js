// The waterfall: one row per request, newest on top, and in it when it waited, was prefilled, and decoded.

import { byId, element, setText } from "./dom.js";
import { count, seconds } from "./format.js";

const ROWS = 20;
/** What ended longer before the newest end is not shown. */
const SPAN_S = 60;
const STEPS_S = [0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 60];

/** From one label of the axis to the next, at least. */
const LABEL_PX = 100;

/** What a request did from when to when, as `{kind, from, to}`. */
export const segments = (request, now) => {
  const end = request.ended_s ?? now;
  const marks = [
    { kind: "queue", from: request.arrived_s },
    { kind: "prefill", from: request.started_s },
    { kind: "decode", from: request.first_token_s },
  ].filter(({ from }) => from !== null);
  const spans = marks.map(({ kind, from }, i) => ({ kind, from, to: marks[i + 1]?.from ?? end }));
  // When it went on again is told of the earlier ones; the last one lasts while it is preempted.
  request.preempted_s.forEach((from, i) => {
    const isLasting = request.state === "preempted" && i === request.preempted_s.length - 1;
    spans.push({ kind: "preempted", from, to: request.resumed_s?.[i] ?? (isLasting ? end : from) });
  });
  return spans;
};

class Row {
  constructor(id) {
    this.name = element("span", { class: "id", text: shortId(id) });
    this.tokens = element("span", { class: "tokens muted" });
    this.track = element("div", { class: "track", "aria-hidden": "true" });
    this.total = element("span", { class: "total" });
    this.words = element("span", { class: "hidden" });
    this.root = element("li", {}, element("span", { class: "who" }, this.name, this.tokens), this.track, this.total, this.words);
  }

  draw(request, now, [start, end]) {
    const spans = segments(request, now);
    this.track.replaceChildren(...spans.map(({ kind, from, to }) => {
      const [left, right] = [from, to].map((at) => Math.min(1, Math.max(0, (at - start) / (end - start))));
      const part = element("span", { class: `k-${kind}` });
      part.style.left = `${100 * left}%`;
      part.style.width = `${100 * (right - left)}%`;
      return part;
    }));
    const cached = request.cached_tokens > 0 ? `, ${count(request.cached_tokens)} cached` : "";
    setText(this.tokens, `${count(request.prompt_tokens)} in${cached}, ${count(request.completion_tokens)} out`);
    setText(this.total, seconds((request.ended_s ?? now) - request.arrived_s));
    this.root.dataset.end = request.finish_reason ?? "";
    const times = spans.map(({ kind, from, to }) => `${kind} ${seconds(to - from)}`).join(", ");
    const end_ = request.finish_reason ? `ended by ${request.finish_reason}` : request.state;
    // Who reads with ears hears of the end, not of each second.
    setText(this.words, request.ended_s === null ? request.state : `${times}; ${end_}`);
    this.root.title = `${request.id}\n${times}\n${end_}`;
  }
}

/** Gives what draws a status's requests. */
export const waterfall = () => {
  const rows = new Map();
  return ({ requests, uptime_s }) => {
    const ends = requests.map((request) => request.ended_s ?? uptime_s);
    const latest = Math.max(...ends, 0);
    const shown = requests.filter((_, i) => ends[i] > latest - SPAN_S);
    shown.sort((a, b) => b.arrived_s - a.arrived_s);
    shown.splice(ROWS);
    byId("requests").hidden = shown.length === 0;
    byId("requests-empty").hidden = shown.length > 0;
    if (shown.length === 0) return;

    const start = Math.max(latest - SPAN_S, Math.min(...shown.map((request) => request.arrived_s)));
    // At least a tenth of a second, so that nothing is divided by zero.
    const window = [start, Math.max(latest, start + 0.1)];
    const list = byId("waterfall");
    shown.forEach((request, i) => {
      if (!rows.has(request.id)) rows.set(request.id, new Row(request.id));
      const row = rows.get(request.id);
      row.draw(request, uptime_s, window);
      if (list.children[i] !== row.root) list.insertBefore(row.root, list.children[i] ?? null);
    });
    const kept = new Set(shown.map((request) => request.id));
    for (const [id, row] of rows) {
      if (!kept.has(id)) {
        row.root.remove();
        rows.delete(id);
      }
    }
    drawAxis(window, uptime_s, list.querySelector(".track").clientWidth);
  };
};

const drawAxis = ([start, end], now, width) => {
  const most = Math.min(4, Math.max(1, width / LABEL_PX));
  const step = STEPS_S.find((step) => (end - start) / step <= most) ?? STEPS_S.at(-1);
  const isNow = now - end < 2;
  const ticks = [];
  // The last label has room for its other half.
  const last = (end - start) * Math.max(0, 1 - LABEL_PX / 2 / width);
  for (let before = 0; before <= last; before += step) {
    const zero = isNow ? "now" : `${seconds(now - end)} ago`;
    const tick = element("span", { text: before === 0 ? zero : `−${Number(before.toFixed(2))} s` });
    tick.style.right = `${(100 * before) / (end - start)}%`;
    ticks.push(tick);
  }
  byId("axis").replaceChildren(element("span", { class: "scale" }, ...ticks));
};

/** The part of an id that tells requests apart, short; which choice it is, but for the first. */
const shortId = (id) => {
  const [, code, choice] = id.match(/-([0-9a-f]{6})[0-9a-f]*-(\d+)$/) ?? [];
  if (code === undefined) return id.slice(-8);
  return choice === "0" ? code : `${code}/${choice}`;
};
