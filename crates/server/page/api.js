// Requests to the server that this page came from. Paths are relative, so a proxy may put the page below a prefix. A server
// with keys gives the page only to a browser that has asked for one, as a password; the browser then sends it by itself.

/** A request that failed. `status` is HTTP's, or 0 if there was no answer. */
export class RequestError extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

/** The address of a path below this page, without a name and a key that the page's own may have: no request may have them. */
export const at = (path) => new URL(path, location.origin + location.pathname).href;

/** What the server does now. */
export const status = async () => {
  const response = await request("status", { signal: AbortSignal.timeout(5000) });
  return response.json();
};

/** The chunks of a streamed chat completion. `signal` ends it. */
export async function* chat(body, signal) {
  const response = await request("v1/chat/completions", {
    method: "POST",
    headers: { "content-type": "application/json" },
    body: JSON.stringify({ ...body, stream: true, stream_options: { include_usage: true } }),
    signal,
  });
  for await (const data of events(response.body)) {
    if (data === "[DONE]") return;
    const chunk = JSON.parse(data);
    if (chunk.error) throw new RequestError(response.status, chunk.error.message);
    yield chunk;
  }
  throw new RequestError(0, "the connection ended before the answer did");
}

const request = async (path, options) => {
  let response;
  try {
    response = await fetch(at(path), { ...options, cache: "no-store" });
  } catch (error) {
    throw error.name === "AbortError" ? error : new RequestError(0, "the server does not answer");
  }
  if (response.ok) return response;
  const answer = await response.json().catch(() => ({}));
  throw new RequestError(response.status, answer.error?.message ?? `the server answered with status ${response.status}`);
};

/** The data of server-sent events. */
async function* events(stream) {
  const reader = stream.pipeThrough(new TextDecoderStream()).getReader();
  let held = "";
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      const parts = (held + value.replaceAll("\r", "")).split("\n\n");
      held = parts.pop();
      for (const part of parts) {
        const lines = part.split("\n").filter((line) => line.startsWith("data:"));
        if (lines.length) yield lines.map((line) => line.slice(5).trimStart()).join("\n");
      }
    }
  } catch (error) {
    throw error.name === "AbortError" ? error : new RequestError(0, "the connection broke before the answer ended");
  } finally {
    // Who stops listening gives the connection up, so that the server stops too.
    reader.cancel().catch(() => {});
  }
}
