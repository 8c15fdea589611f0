// The page: asks the server once a second how it is, while the tab is looked at, and hands that to each part.

import { at, status } from "./api.js";
import { chat } from "./chat.js";
import { byId, setText } from "./dom.js";
import { load } from "./load.js";
import { gone, locked, notice } from "./notices.js";
import { ranks } from "./ranks.js";
import { waterfall } from "./waterfall.js";

const EVERY_MS = 1000;
/** While there is no answer. */
const AGAIN_MS = 3000;

let timer;
let lastAnswer = performance.now();
const poll = async () => {
  clearTimeout(timer);
  if (document.hidden) return;
  const again_ms = await look();
  // Somebody else may have begun meanwhile.
  clearTimeout(timer);
  if (again_ms !== null) timer = setTimeout(poll, again_ms);
};

const lock = () => {
  showState("locked");
  locked();
};

const setReady = chat(lock);
const parts = [load(), ranks(), waterfall(), notice];

/** Asks once and draws; gives when to ask again, or null if that is of no use. */
const look = async () => {
  let now;
  try {
    now = await status();
  } catch (error) {
    setReady(false);
    if (error.status === 401) {
      lock();
      return null;
    }
    showState("unreachable");
    gone((performance.now() - lastAnswer) / 1000);
    return AGAIN_MS;
  }
  lastAnswer = performance.now();
  showState(now.state);
  setText(byId("model"), now.model);
  setText(byId("plan"), now.engine ? planWords(now.engine) : "");
  document.title = `${now.model} · Anysplit`;
  parts.forEach((draw) => draw(now));
  setReady(now.state === "ready");
  return EVERY_MS;
};

const showState = (state) => {
  document.body.dataset.state = state;
  setText(byId("state").querySelector(".word"), state);
};

/** How the model is split: the axes that are. */
const planWords = ({ parallel, dtype, quantization }) => {
  const axes = ["tp", "pp", "dp", "ep"].filter((axis) => parallel[axis] > 1).map((axis) => `${axis} ${parallel[axis]}`);
  return [...(axes.length > 0 ? axes : ["1 rank"]), quantization ?? dtype].join(" · ");
};

byId("endpoint").textContent = at("v1");
document.addEventListener("visibilitychange", poll);
poll();
