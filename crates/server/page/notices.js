// What stands above all else: the server loads, is gone, failed, or wants another key.

import { byId, element, setText } from "./dom.js";
import { bytes, percent, seconds } from "./format.js";

/** Shows one notice, or none. It is made anew only if its kind changes, so that it is announced once. */
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

/** Says since when the server has not answered. A screen reader says so once, without the time. */
export const gone = (since_s) => {
  show("gone", goneNotice, (notice) => setText(notice.querySelector(".since"), `Its last answer was ${seconds(since_s)} ago.`));
};

/** Says that the server's key is another one now. Only opening the page anew makes a browser ask for it. */
export const locked = () => show("locked", lockedNotice);

const goneNotice = () =>
  element(
    "p",
    { class: "notice bad", role: "alert" },
    element("span", { text: "The server does not answer. Is it still running? This page asks again by itself. " }),
    element("span", { class: "since", "aria-hidden": "true" }),
  );

const lockedNotice = () => {
  const reload = element("button", { class: "main", type: "button", text: "Reload" });
  reload.addEventListener("click", () => location.reload());
  const words = "The server no longer takes this page’s API key. Reload the page, and give the new key as the password, with any name. ";
  return element("p", { class: "notice warn", role: "alert" }, element("span", { text: words }), reload);
};

const loadingNotice = () =>
  element("div", { class: "notice", role: "status" }, element("span", { text: "Loading the model" }), element("progress", { "aria-label": "Loaded" }), element("span", { class: "done muted", "aria-hidden": "true" }));

const drawLoading = (notice, { done_bytes: done, total_bytes: total }) => {
  const bar = notice.querySelector("progress");
  if (total === 0) return;
  bar.value = done / total;
  setText(notice.querySelector(".done"), `${percent(done / total)} of ${bytes(total)}`);
};
