// What a request asks for besides the conversation. What is left empty is left to the server.

import { byId } from "./dom.js";

const NUMBERS = ["temperature", "max_tokens", "seed"];

export const settings = {
  /** The system prompt, as the messages that it is. */
  system: () => {
    const content = byId("system").value.trim();
    return content === "" ? [] : [{ role: "system", content }];
  },

  /** The parameters that are set. */
  sampling: () => {
    const values = NUMBERS.map((name) => [name, byId(name).valueAsNumber]);
    return Object.fromEntries(values.filter(([, value]) => Number.isFinite(value)));
  },

  /** Whether all are in range; if not, the first that is not is shown. */
  areValid: () => {
    const wrong = NUMBERS.map(byId).find((field) => !field.checkValidity());
    // A folded field could not show what is wrong with it.
    if (wrong) byId("settings").open = true;
    return wrong?.reportValidity() ?? true;
  },
};
