// The tiles: how fast tokens come, how long requests wait for them, and how full the server is.

import { Bar, Sparkline } from "./charts.js";
import { byId, element, setText } from "./dom.js";
import { compact, count, milliseconds, percent, rate } from "./format.js";

/** A name, its value, a line below, and a drawing. */
class Tile {
  constructor(name, drawing) {
    this.value = element("span", { class: "value", text: "–" });
    this.unit = element("span", { class: "unit" });
    this.note = element("dd", { class: "note muted" });
    const figure = element("dd", { class: "figure" }, this.value, this.unit);
    this.root = element("div", { class: "tile panel" }, element("dt", { text: name }), figure, this.note, element("dd", {}, drawing.root));
  }

  update(text, note) {
    // A number and its unit are set apart.
    const [value, unit = ""] = text.split(" ");
    setText(this.value, value);
    setText(this.unit, unit);
    setText(this.note, note);
  }
}

/** Draws all tiles into the page; gives what updates them from a status. */
export const load = () => {
  const lines = { speed: new Sparkline(), ttft: new Sparkline(), itl: new Sparkline(), requests: new Sparkline(), hits: new Sparkline() };
  const blocks = new Bar(["used", "cached"]);
  const tiles = {
    speed: new Tile("Output tokens/s", lines.speed),
    ttft: new Tile("Time to first token", lines.ttft),
    itl: new Tile("Time between tokens", lines.itl),
    requests: new Tile("Requests running", lines.requests),
    kv: new Tile("KV cache in use", blocks),
    hits: new Tile("Prefix cache hits", lines.hits),
  };
  byId("tiles").append(...Object.values(tiles).map((tile) => tile.root));
  const percentile = (p99) => (p99 === null ? "none in the last minute" : `median; p99 ${milliseconds(p99)}`);

  return ({ rates, load, queued, engine }) => {
    tiles.speed.update(rate(rates.generation_tokens_per_s), `over 10 s; prompts ${rate(rates.prompt_tokens_per_s)}/s`);
    lines.speed.push(rates.generation_tokens_per_s);
    tiles.ttft.update(milliseconds(rates.ttft_ms_p50), percentile(rates.ttft_ms_p99));
    lines.ttft.push(rates.ttft_ms_p50);
    tiles.itl.update(milliseconds(rates.itl_ms_p50), percentile(rates.itl_ms_p99));
    lines.itl.push(rates.itl_ms_p50);

    // What is on its way to the worker waits too.
    const waiting = Math.max(load.waiting, queued);
    const room = engine ? `, room for ${count(engine.max_num_seqs)}` : "";
    tiles.requests.update(count(load.running), `${count(waiting)} waiting${room}`);
    lines.requests.push(load.running);

    const of = (blocks) => (load.kv_blocks > 0 ? blocks / load.kv_blocks : 0);
    const shares = { used: of(load.kv_blocks_used), cached: of(load.kv_blocks_cached) };
    const whole = engine ? `of ${compact(engine.kv_cache_tokens)} tokens; ` : "";
    tiles.kv.update(percent(load.kv_blocks > 0 ? shares.used : NaN, shares.used > 0 && shares.used < 0.0995 ? 1 : 0), `${whole}${percent(shares.cached)} cached`);
    blocks.update(shares, `${percent(shares.used)} in use, ${percent(shares.cached)} cached for reuse`);

    const hits = load.prefix_queries > 0 ? load.prefix_hits / load.prefix_queries : null;
    tiles.hits.update(percent(hits ?? NaN), preemptions(load.preemptions));
    lines.hits.push(hits);
  };
};

const preemptions = (n) => (n === 0 ? "no preemptions" : n === 1 ? "1 preemption" : `${count(n)} preemptions`);
