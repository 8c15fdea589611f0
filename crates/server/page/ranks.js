// The strip of ranks: what each did lately, and what it holds.

import { Bar, shareWords } from "./charts.js";
import { byId, element, setText } from "./dom.js";
import { bytes, percent, seconds } from "./format.js";

/** Shares are of so many seconds, since a rank tells of itself about once a second. */
const WINDOW_S = 3;
/** A rank that takes no step for so long, while requests run, is stalled. */
const STALLED_S = 10;
const DID = ["busy", "communication", "waiting"];
const NAMES = { communication: "comm." };
/** Kinds of memory by their names here. */
const HOLDS = { weights: "weights", KV: "kv_cache", activations: "activations", scratch: "scratch" };

class Rank {
  /** What it told of itself, `{at, told}`; the oldest is at least `WINDOW_S` old if there is one. */
  history = [];
  stepped = { at: 0, steps: -1 };

  constructor(number) {
    this.did = new Bar(DID);
    this.holds = new Bar(Object.keys(HOLDS));
    this.layers = element("p", { class: "muted" });
    this.place = element("p", { class: "muted" });
    this.word = element("span", { class: "word" });
    this.shares = element("p", { class: "numbers" });
    this.memory = element("p", { class: "numbers" });
    const state = element("span", { class: "state" }, element("span", { class: "dot" }), this.word);
    const head = element("div", { class: "rank-head" }, element("h3", { text: `Rank ${number}` }), state);
    const part = (...children) => element("div", {}, ...children);
    this.root = element("li", {}, part(head, this.layers, this.place), part(this.did.root, this.shares), part(this.holds.root, this.memory));
  }

  /** What it told when the server was `at` seconds old. */
  take(told, at, isRunning) {
    if (told.steps !== this.stepped.steps || !isRunning) this.stepped = { at, steps: told.steps };
    this.history.push({ at, told });
    while (this.history.length > 2 && this.history[1].at <= at - WINDOW_S) this.history.shift();
  }

  draw(serverState, isRunning, atMost) {
    const { at, told } = this.history.at(-1);
    const shares = this.#shares();
    this.did.update(shares, shareWords(shares));
    setText(this.layers, `${[told.host, told.device].filter(Boolean).map((word) => `${word}, `).join("")}layers ${told.layers[0]}–${told.layers[1] - 1}`);
    setText(this.place, placeWords(told));
    const step = ["", "step", seconds(told.last_step_s || NaN)];
    draw(this.shares, [...DID.map((kind) => [kind, NAMES[kind] ?? kind, percent(shares[kind])]), step]);

    const memory = memoryOf(told);
    const ofMost = Object.entries(memory).map(([kind, held]) => [kind, atMost > 0 ? held / atMost : 0]);
    const sizes = Object.entries(memory).map(([kind, held]) => [kind, kind, bytes(held)]);
    this.holds.update(Object.fromEntries(ofMost), sizes.map(([, kind, size]) => `${kind} ${size}`).join(", "));
    const free = told.memory_bytes.free;
    draw(this.memory, free === null ? sizes : [...sizes, ["", "free", bytes(free)]]);

    const state = stateOf(serverState, isRunning, shares, at - this.stepped.at);
    this.root.dataset.state = state;
    setText(this.word, state);
  }

  #shares() {
    const [first, last] = [this.history[0], this.history.at(-1)];
    const elapsed = last.at - first.at;
    const share = (field) => (elapsed > 0 ? Math.max(0, last.told[field] - first.told[field]) / elapsed : 0);
    return { busy: share("busy_s"), communication: share("communication_s"), waiting: share("waiting_s") };
  }
}

/** Gives what draws a status's ranks. */
export const ranks = () => {
  const known = new Map();
  return ({ ranks, state, uptime_s, load }) => {
    if (ranks.length > 0 && state !== "failed") {
      for (const told of ranks) {
        if (!known.has(told.rank)) {
          known.set(told.rank, new Rank(told.rank));
          byId("ranks").append(known.get(told.rank).root);
        }
        const rank = known.get(told.rank);
        // Sums that shrink are those of a worker that was started again.
        if (rank.history.at(-1)?.at > uptime_s || rank.history.at(-1)?.told.steps > told.steps) rank.history = [];
        rank.take(told, uptime_s, load.running > 0);
      }
    }
    const held = ({ told }) => Object.values(memoryOf(told)).reduce((sum, held) => sum + held, 0);
    const atMost = Math.max(0, ...[...known.values()].map((rank) => held(rank.history.at(-1))));
    known.forEach((rank) => rank.draw(state, load.running > 0, atMost));
    byId("ranks").hidden = known.size === 0;
    byId("ranks-empty").hidden = known.size > 0;
  };
};

const stateOf = (serverState, isRunning, shares, stillFor_s) => {
  if (serverState === "failed") return "dead";
  if (serverState === "loading") return "loading";
  if (stillFor_s > STALLED_S) return "stalled";
  // Shares are of the last seconds, in which something may have run.
  if (!isRunning) return "idle";
  return shares.busy + shares.communication + shares.waiting > 0.005 ? "working" : "idle";
};

const placeWords = ({ place: [dp, pp, tp] }) => `dp ${dp} · pp ${pp} · tp ${tp}`;

const memoryOf = ({ memory_bytes }) => Object.fromEntries(Object.entries(HOLDS).map(([kind, name]) => [kind, memory_bytes[name]]));

/** Writes a bar's parts below it, each as `[kind, name, number]`; without a kind, it is no part. */
const draw = (place, items) => {
  if (place.children.length !== items.length) {
    place.replaceChildren(...items.map(([kind, name]) => element("span", { class: kind && `key k-${kind}` }, `${name} `, element("b"))));
  }
  items.forEach(([, , number], i) => setText(place.children[i].lastChild, number));
};
