// The conversation: questions, answers as they stream, and what went wrong, in place.

import { RequestError, chat as stream } from "./api.js";
import { byId, element, setText } from "./dom.js";
import { count, milliseconds, rate } from "./format.js";
import { settings } from "./settings.js";

/** Why an answer ended, where that is worth saying. */
const ENDS = { length: "cut at its most tokens", abort: "aborted by the server", stopped: "stopped" };

/** A question and its answer. */
class Turn {
  answer = "";

  constructor(question, retry) {
    this.question = question;
    // Appending to a text node costs the same however long the answer is.
    this.text = document.createTextNode("");
    this.facts = element("p", { class: "facts muted" });
    this.error = element("div", { class: "error", role: "alert", hidden: "" });
    this.retry = element("button", { type: "button", class: "quiet", text: "Try again" });
    this.retry.addEventListener("click", () => retry(this));
    this.body = element("div", { class: "text" });
    this.body.append(this.text);
    const said = (who, kind, ...children) =>
      element("div", { class: `message ${kind}` }, element("h3", { class: "hidden", text: who }), ...children);
    this.root = element(
      "article",
      { class: "turn" },
      said("You", "question", element("div", { class: "text", text: question })),
      said("Model", "answer", this.body, this.error, this.facts),
    );
  }

  begin() {
    this.answer = this.text.data = "";
    this.error.hidden = true;
    setText(this.facts, "");
    this.root.classList.add("is-running");
  }

  add(text) {
    this.answer += text;
    this.text.appendData(text);
  }

  end() {
    this.root.classList.remove("is-running");
    this.body.hidden = this.answer === "";
  }

  fail(message) {
    this.error.hidden = false;
    this.error.replaceChildren(element("p", { text: message }), this.retry);
  }

  /** As the next request has it. A question without an answer is left out: many templates want turns in pairs. */
  messages() {
    if (this.answer === "") return [];
    return [{ role: "user", content: this.question }, { role: "assistant", content: this.answer }];
  }
}

/** Wires the chat up; gives what tells it whether the server takes requests. `onRefused` is called when the key is no longer the server's. */
export const chat = (onRefused) => {
  const [log, question, send, stop, clear] = ["conversation", "question", "send", "stop", "clear"].map(byId);
  const turns = [];
  let running = null;
  let isReady = false;

  const show = () => {
    send.hidden = running !== null;
    stop.hidden = running === null;
    send.disabled = !isReady || question.value.trim() === "";
    clear.disabled = turns.length === 0;
    byId("welcome").hidden = turns.length > 0;
    // A screen reader waits for the whole answer.
    log.setAttribute("aria-busy", String(running !== null));
    turns.forEach((turn, i) => (turn.retry.hidden = running !== null || i < turns.length - 1));
  };

  const answer = async (turn) => {
    const controller = (running = new AbortController());
    turn.begin();
    show();
    scrollDown(log);
    const began = performance.now();
    const times = [];
    let [usage, reason] = [null, null];
    try {
      const before = turns.slice(0, turns.indexOf(turn)).flatMap((turn) => turn.messages());
      const messages = [...settings.system(), ...before, { role: "user", content: turn.question }];
      for await (const chunk of stream({ messages, ...settings.sampling() }, controller.signal)) {
        usage = chunk.usage ?? usage;
        const [choice] = chunk.choices;
        reason = choice?.finish_reason ?? reason;
        if (!choice?.delta.content) continue;
        times.push(performance.now());
        const isAtEnd = log.scrollHeight - log.scrollTop - log.clientHeight < 40;
        turn.add(choice.delta.content);
        if (isAtEnd) scrollDown(log);
      }
      if (turn.answer === "") turn.fail("The model ended its answer without a word.");
    } catch (error) {
      if (error.name === "AbortError") reason = "stopped";
      else turn.fail(sentence(error));
      if (error instanceof RequestError && error.status === 401) onRefused();
    }
    // A stop that comes after Clear ends a turn that is no longer shown.
    turn.end();
    setText(turn.facts, facts(began, times, usage, reason));
    if (running === controller) running = null;
    show();
    scrollDown(log);
  };

  const ask = () => {
    const text = question.value.trim();
    if (text === "" || running !== null || !isReady || !settings.areValid()) return;
    const turn = new Turn(text, answer);
    turns.push(turn);
    log.append(turn.root);
    question.value = "";
    fit(question);
    // The button that had the focus is about to go.
    question.focus();
    answer(turn);
  };

  byId("ask").addEventListener("submit", (event) => {
    event.preventDefault();
    ask();
  });
  question.addEventListener("keydown", (event) => {
    // Enter that ends a word of an input method is not meant for us.
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    ask();
  });
  question.addEventListener("input", () => {
    fit(question);
    show();
  });
  stop.addEventListener("click", () => {
    running?.abort();
    question.focus();
  });
  clear.addEventListener("click", () => {
    running?.abort();
    turns.splice(0).forEach((turn) => turn.root.remove());
    question.focus();
    show();
  });
  for (const example of document.querySelectorAll(".example")) {
    example.addEventListener("click", () => {
      question.value = example.textContent;
      fit(question);
      question.focus();
      show();
    });
  }
  show();

  return (ready) => {
    isReady = ready;
    show();
  };
};

/** A text area as high as its text; the style sheet has its limit. */
const fit = (area) => {
  area.style.height = "auto";
  area.style.height = `${area.scrollHeight + 2}px`;
};

const scrollDown = (log) => (log.scrollTop = log.scrollHeight);

const facts = (began, times, usage, reason) => {
  const tokens = usage?.completion_tokens;
  const elapsed_s = (times.at(-1) - times[0]) / 1000;
  return [
    tokens ? `${count(tokens)} tokens` : "",
    tokens > 1 && elapsed_s > 0 ? `${rate((tokens - 1) / elapsed_s)} per second` : "",
    times.length > 0 ? `first after ${milliseconds(times[0] - began)}` : "",
    ENDS[reason] ?? "",
  ].filter(Boolean).join(" · ");
};

const sentence = ({ message }) => {
  const said = message || "the request failed, and nothing says why";
  return `${said[0].toUpperCase()}${said.slice(1)}${/[.!?]$/.test(said) ? "" : "."}`;
};
