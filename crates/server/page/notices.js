// What stands above all else: the server loads, is gone, failed, or wants a key.

import { key } from "./api.js";
import { byId, element, setText } from "./dom.js";
import { bytes, percent, seconds } from "./format.js";

/** Shows one notice, or none. It is made anew only if its kind changes, so that a key that is being typed stays. */
const show = (kind, make, update = () => {}) => {
  const place = byId("notices");
  if ((place.dataset.kind ?? "") !== kind) {
    place.dataset.kind = kind;
    place.replaceChildren(...(kind ? [make()] : []));
  }
  if (kind) update(place.firstElementChild);
};

const plain = (kind, role = "status") => () => element("p", { class: `notice ${kind}`, role });

/** Shows what a status says. */
export const notice = ({ state, loading, failure }) => {
  if (state === "loading") {
    show("loading", loadingNotice, (notice) => drawLoading(notice, loading));
  } else if (state === "failed") {
    show("failed", plain("bad", "alert"), (notice) => setText(notice, `The model’s process has ended: ${failure}`));
  } else if (state === "draining") {
    show("draining", plain("warn"), (notice) => setText(notice, "The server is shutting down. It finishes what runs and takes no new requests."));
  } else {
    show("");
  }
};

/** Says since when the server has not answered. */
export const gone = (since_s) => {
  const words = `The server does not answer, since ${seconds(since_s)}. Is it still running? This page asks again by itself.`;
  show("gone", plain("bad", "alert"), (notice) => setText(notice, words));
};

/** Asks for a key; `onKey` is called when there is one. Why the one before was refused is told with it. */
export const askForKey = (message, onKey) => {
  const wasRefused = key.get() !== "";
  show("key", () => keyForm(onKey), (form) => setText(form.querySelector(".why"), wasRefused ? `Refused: ${message}.` : ""));
};

const loadingNotice = () =>
  element("div", { class: "notice", role: "status" }, element("span", { text: "Loading the model" }), element("progress", { "aria-label": "Loaded" }), element("span", { class: "done muted" }));

const drawLoading = (notice, { done_bytes: done, total_bytes: total }) => {
  const bar = notice.querySelector("progress");
  if (total === 0) return;
  bar.value = done / total;
  setText(notice.querySelector(".done"), `${percent(done / total)} of ${bytes(total)}`);
};

const keyForm = (onKey) => {
  const field = element("input", { id: "key", type: "password", autocomplete: "off", required: "", spellcheck: "false" });
  const form = element(
    "form",
    { class: "notice key-form" },
    element("label", { for: "key", text: "This server needs an API key. It is kept until you close this tab." }),
    field,
    element("button", { class: "main", type: "submit", text: "Use key" }),
    element("p", { class: "why", role: "alert" }),
  );
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    key.set(field.value);
    field.value = "";
    onKey();
  });
  return form;
};
