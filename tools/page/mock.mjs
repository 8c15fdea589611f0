// A server for the page alone: its files as the real one sends them, a /status that tells of much at once, and a chat that
// streams or fails as the question says. It shows states that a real server can't be brought into on demand.

import { readFileSync } from "node:fs";
import { createServer } from "node:http";
import { fileURLToPath } from "node:url";

const PAGE = fileURLToPath(new URL("../../crates/server/page/", import.meta.url));
const ROUTE = readFileSync(fileURLToPath(new URL("../../crates/server/src/routes/page.rs", import.meta.url)), "utf8");
// The real server's own table and policy: a file that is not in it is missing here too.
const FILES = new Map([...ROUTE.matchAll(/\("([^"]+)", "([^"]+)", include_bytes!/g)].map(([, name, kind]) => [name, kind]));
const [, POLICY] = ROUTE.match(/CONTENT_SECURITY_POLICY, "([^"]+)"/);

const GB = 1e9;
const WORDS = "Once upon a time there was a fox who lived at the edge of a quiet wood. Every evening she walked to the river, looked at the water, and counted the lights of the boats until she knew that all of them were home.";
/** What an answer to "markup" is made of: none of it may become an element. */
export const MARKUP = "<img src=x onerror=\"document.title='broken'\"><b>bold</b>";
/** Requests of a minute: seconds before now, in the queue, of prefill and of decoding, tokens in, cached, and out. */
const PAST = [
  [38, 0.02, 0.9, 14, 1480, 0, 410], [35, 0.02, 0.3, 9, 96, 64, 260], [31, 0.3, 2.6, 11, 3900, 0, 300],
  [29, 0.9, 0.4, 7, 512, 448, 190], [26, 1.4, 0.5, 12, 640, 448, 320], [22, 0.1, 0.3, 5, 80, 0, 128],
  [19, 0.05, 0.2, 8, 120, 64, 240], [16, 0.1, 0.4, 60, 700, 448, 900], [12, 0.6, 1.9, 60, 2900, 2048, 900],
  [9, 0.2, 0.3, 4, 64, 0, 120], [7, 0.1, 0.5, 60, 300, 64, 900], [4, 1.2, 0.4, 60, 256, 0, 900], [0.6, 60, 0, 0, 2048, 0, 0],
];
const PREEMPTED = 5;

/** Starts it; `state` may be changed while it runs. */
export const startMock = async (state) => {
  const began = Date.now() - 100_000;
  const uptime_s = () => (Date.now() - began) / 1000;
  const chats = [];
  const server = createServer(async (request, response) => {
    const { pathname } = new URL(request.url, "http://localhost");
    // The guard comes before everything, as in the real one.
    if (state.key && !hasKey(request.headers.authorization ?? "", state.key)) {
      const isPage = pathname === "/" || pathname === "/docs" || pathname.startsWith("/page/");
      if (isPage) response.setHeader("www-authenticate", "Basic realm=\"anysplit\"");
      return refuse(response, 401, "the API key is not one of this server's");
    }
    const name = { "/": "index.html", "/docs": "docs.html" }[pathname] ?? pathname.match(/^\/page\/(.+)$/)?.[1];
    if (FILES.has(name)) {
      response.writeHead(200, { "content-type": FILES.get(name), "cache-control": "no-cache", "content-security-policy": POLICY });
      return response.end(readFileSync(PAGE + name));
    }
    if (pathname === "/status") return json(response, 200, status(state, chats, uptime_s()));
    if (pathname === "/v1/chat/completions") return talk(request, response, chats, uptime_s);
    if (pathname === "/openapi.json" && state.openapi) return json(response, 200, state.openapi);
    if (pathname === "/openapi.json") return refuse(response, 503, "the model is loading");
    return refuse(response, 404, `there is no "${pathname}"`);
  });
  await new Promise((resolve) => server.listen(0, "127.0.0.1", resolve));
  return { url: `http://127.0.0.1:${server.address().port}/`, asked: chats, close: () => (server.closeAllConnections(), server.close()) };
};

const hasKey = (given, key) => given === `Bearer ${key}` || (given.startsWith("Basic ") && atob(given.slice(6)).split(/:(.*)/)[1] === key);

const json = (response, status, value) => {
  response.writeHead(status, { "content-type": "application/json" });
  response.end(JSON.stringify(value));
};
const refuse = (response, status, message) => json(response, status, { error: { message, type: "x", param: null, code: null } });

const talk = async (request, response, chats, uptime_s) => {
  let text = "";
  for await (const piece of request) text += piece;
  const body = JSON.parse(text);
  const question = body.messages.at(-1).content;
  if (question.includes("mute")) return refuse(response, 400, "");
  if (question.includes("refuse")) return refuse(response, 400, "messages is longer than the model's 2048 tokens; shorten it");
  response.writeHead(200, { "content-type": "text/event-stream; charset=utf-8", "cache-control": "no-cache" });
  const now = uptime_s();
  const entry = { ...row(`chatcmpl-${"0123456789abcdef".repeat(2)}-${chats.length}`, now, now + 0.05, now + 0.2), prompt_tokens: 21, body };
  chats.push(entry);
  const send = (value) => response.write(`data: ${JSON.stringify(value)}\n\n`);
  const chunk = (delta, finish_reason = null) => send({ choices: [{ index: 0, delta, finish_reason }], usage: null });
  const end = (reason) => ([entry.state, entry.ended_s, entry.finish_reason] = ["ended", uptime_s(), reason]);
  const words = question.includes("markup") ? [MARKUP] : WORDS.split(/(?<= )/).concat(question.includes("long") ? Array(2000).fill("more ") : []);
  chunk({ role: "assistant", content: "" });
  for (const word of words) {
    await new Promise((resolve) => setTimeout(resolve, 15));
    if (response.destroyed) return end("abort");
    chunk({ content: word });
    entry.completion_tokens += 1;
    if (question.includes("break") && entry.completion_tokens === 9) {
      end("error");
      send({ error: { message: "rank 1 has ended: killed by signal 9" } });
      return response.end("data: [DONE]\n\n");
    }
  }
  end("stop");
  chunk({}, "stop");
  send({ choices: [], usage: { prompt_tokens: 21, completion_tokens: words.length, total_tokens: 21 + words.length } });
  response.end("data: [DONE]\n\n");
};

const row = (id, arrived_s, started_s, first_token_s) => ({
  id, state: "decode", arrived_s, started_s, first_token_s, ended_s: null, prompt_tokens: 0, cached_tokens: 0,
  completion_tokens: 0, preempted_s: [], finish_reason: null,
});

/** A request of `PAST`, as it is now. */
const past = ([before, queue, prefill, decode, prompt_tokens, cached_tokens, out], i, now) => {
  const arrived = 100 - before;
  const [started, first, ended] = [arrived + queue, arrived + queue + prefill, arrived + queue + prefill + decode];
  const reached = (at) => (at <= now ? at : null);
  const state = ended <= now ? "ended" : first <= now ? "decode" : started <= now ? "prefill" : "waiting";
  const entry = {
    ...row(`chatcmpl-${((i + 7) * 0x9e3779b1 >>> 0).toString(16).padStart(8, "0").repeat(4)}-0`, arrived, reached(started), reached(first)),
    state, ended_s: reached(ended), prompt_tokens, cached_tokens,
    completion_tokens: Math.round(out * Math.min(1, Math.max(0, (now - first) / decode || 0))),
    finish_reason: state === "ended" ? (i === 3 ? "abort" : i % 2 ? "stop" : "length") : null,
  };
  if (i === PREEMPTED - 1) return { ...entry, preempted_s: [first + 3], resumed_s: [first + 5] };
  return i === PAST.length - 2 ? { ...entry, state: "preempted", preempted_s: [first + 0.9], resumed_s: [] } : entry;
};

const status = ({ state = "ready", isNew = false, num_ranks = 3 }, chats, now) => {
  isNew ||= state === "loading";
  const isUp = state === "ready" || state === "draining";
  const requests = [...(isNew ? [] : PAST.map((request, i) => past(request, i, now))), ...chats.map(({ body, ...entry }) => entry)];
  const running = requests.filter((request) => ["prefill", "decode"].includes(request.state)).length;
  const wave = (period, low, high) => low + (high - low) * (0.5 + 0.5 * Math.sin((2 * Math.PI * now) / period));
  const rank = (rank) => ({
    rank, place: [0, Math.floor(rank / 2), rank % 2], host: "node-a", layers: rank < 2 ? [0, 10] : [10, 16], steps: Math.round(now * 30),
    busy_s: now * (0.61 - 0.08 * rank), communication_s: now * 0.11, waiting_s: now * 0.05 * (rank + 1), last_step_s: 0.0304, utilization: 0.6,
    memory_bytes: { weights: (1.45 - 0.2 * rank) * GB, kv_cache: 0.5 * GB, activations: 0.04 * GB, scratch: 0.02 * GB, process_peak: 6 * GB, free: 21 * GB },
    sent_bytes: now * 1e6, received_bytes: 0,
  });
  return {
    model: "Llama-3.2-1B-Instruct", version: "0.1.0", state, uptime_s: now, queued: 0,
    loading: state === "loading" ? { done_bytes: 1.1 * GB, total_bytes: 2.5 * GB } : null,
    failure: state === "failed" ? "rank 1 has ended: killed by signal 9" : null,
    engine: isUp ? {
      max_model_len: 8192, vocab_size: 128256, max_num_seqs: 64, kv_cache_tokens: 49152, kv_cache_bytes: 1.5 * GB, dtype: "bfloat16", quantization: null,
      parallel: { tp: num_ranks, pp: 1, dp: 1, ep: 1, sp: false }, load_s: 4.2,
    } : null,
    load: {
      running, waiting: isNew ? 0 : 2, kv_blocks: 3072, kv_blocks_used: isNew ? 0 : Math.round(wave(40, 900, 1500)), kv_blocks_cached: isNew ? 0 : 700,
      prefix_queries: isNew ? 0 : 21000, prefix_hits: isNew ? 0 : 13400, preemptions: isNew ? 0 : 2,
    },
    rates: isNew
      ? { generation_tokens_per_s: 0, prompt_tokens_per_s: 0, ttft_ms_p50: null, ttft_ms_p99: null, itl_ms_p50: null, itl_ms_p99: null }
      : { generation_tokens_per_s: wave(17, 118, 164), prompt_tokens_per_s: wave(23, 240, 900), ttft_ms_p50: wave(31, 210, 420), ttft_ms_p99: 2890, itl_ms_p50: wave(13, 28, 37), itl_ms_p99: 61.5 },
    ranks: isUp || state === "failed" ? Array.from({ length: num_ranks }, (_, i) => rank(i)) : [],
    requests,
  };
};
