// What the page does, shown against the mock server.

import { createServer, request as http } from "node:http";

import { DESKTOP, PHONE, check, visit } from "./browser.mjs";
import { MARKUP, startMock } from "./mock.mjs";

/** Runs `use` on the page of a mock in some state. */
const mocked = async (browser, state, options, use) => {
  const mock = await startMock(state);
  try {
    await visit(browser, mock.url, options, (page) => use(page, mock));
  } finally {
    mock.close();
  }
};

/** Types a question and clicks Send. */
export const ask = async (page, question) => {
  await page.getByLabel("Your message").fill(question);
  await page.getByRole("button", { name: "Send" }).click();
};

/** Waits until an answer is whole; gives its text. */
export const answered = async (page) => {
  await page.locator(".turn.is-running").waitFor({ state: "detached" });
  return page.locator(".turn:last-child .answer .text").textContent();
};

const text = (page, selector) => page.locator(selector).first().textContent();

const looks = async (browser, picture, viewport, colorScheme, name) =>
  mocked(browser, {}, { viewport, colorScheme }, async (page) => {
    await page.getByLabel("Your message").fill("Tell me a story about a fox.");
    await page.getByRole("button", { name: "Send" }).click();
    await answered(page);
    await page.waitForFunction(() => document.querySelectorAll("#waterfall li").length > 8);
    // Shares of ranks need two polls, and lines some more.
    await page.waitForFunction(() => document.querySelector(".sparkline .line").getAttribute("d").split("L").length > 4);
    const labels = await page.locator("#axis .scale span").evaluateAll((all) => all.map((label) => label.getBoundingClientRect()));
    const axis = await page.locator("#axis").boundingBox();
    check(labels.every(({ left }) => left >= axis.x), "a time below the waterfall is beyond its edge");
    check(labels.every(({ right }, i) => i === 0 || right < labels[i - 1].left), "times below the waterfall overlap");
    await picture(page, name);
  });

export const MOCKED = {
  "a question is answered as it streams, and the load, ranks and requests show": (browser) =>
    mocked(browser, {}, {}, async (page, mock) => {
      await ask(page, "Tell me a story.");
      await page.waitForFunction(() => document.querySelector(".is-running .answer .text")?.textContent.includes("fox"));
      const whole = await answered(page);
      check(whole.endsWith("all of them were home."), `the answer is ${whole}`);
      check(/\d+ tokens · [\d.]+ per second · first after/.test(await text(page, ".facts")), "the facts below it are missing");
      check(!("temperature" in mock.asked[0].body), "a setting that is empty was sent");
      await page.waitForFunction(() => document.querySelector("#ranks .numbers").textContent === "busy 61 %comm. 11 %waiting 5 %step 30.4 ms");
      check((await page.locator("#ranks li").count()) === 3, "not all ranks show");
      const tiles = (await page.locator(".tile").allTextContents()).join(" | ");
      for (const words of [/Output tokens\/s1\d\d/, /Time to first token[\d.]+ms/, /p99 2.89 s/, /Time between tokens[\d.]+ms/, /KV cache in use\d+%/, /Prefix cache hits64%2 preemptions/]) {
        check(words.test(tiles), `${words} is not in the tiles: ${tiles}`);
      }
      const kinds = await page.locator("#waterfall .track span").evaluateAll((parts) => [...new Set(parts.map((part) => part.className))].sort());
      check(kinds.join() === "k-decode,k-preempted,k-prefill,k-queue", `the waterfall has ${kinds}`);
      check((await text(page, "#waterfall li .id")) === "012345", "the newest request is not on top");
    }),

  "settings are sent, and a wrong one is shown instead": (browser) =>
    mocked(browser, {}, {}, async (page, mock) => {
      await page.locator("#settings summary").click();
      await page.getByLabel("System prompt").fill("Be brief.");
      await page.getByLabel("Temperature").fill("-1");
      await ask(page, "one");
      check((await page.locator(".turn").count()) === 0, "a wrong temperature was sent");
      await page.getByLabel("Temperature").fill("0.5");
      await page.getByLabel("Most tokens").fill("12");
      await page.getByLabel("Seed").fill("7");
      await page.locator("#settings summary").click();
      await page.getByLabel("Your message").press("Enter");
      await answered(page);
      await ask(page, "two");
      await answered(page);
      const { temperature, max_tokens, seed, messages } = mock.asked[1].body;
      check(temperature === 0.5 && max_tokens === 12 && seed === 7, "settings are not in the request");
      check(messages.map(({ role }) => role).join() === "system,user,assistant,user", "the conversation is not in the request");
    }),

  "an answer can be stopped, and the conversation cleared": (browser) =>
    mocked(browser, {}, {}, async (page, mock) => {
      await ask(page, "a long one");
      await page.waitForFunction(() => document.querySelector(".is-running .answer .text")?.textContent.includes("fox"));
      await page.getByRole("button", { name: "Stop" }).click();
      await page.locator(".facts", { hasText: "stopped" }).waitFor();
      await page.waitForFunction(() => document.querySelector("#waterfall li").dataset.end === "abort");
      check(mock.asked[0].finish_reason === "abort", "the server went on");
      await page.getByRole("button", { name: "Clear" }).click();
      check((await page.locator(".turn").count()) === 0 && (await page.locator("#welcome").isVisible()), "the conversation is still there");
    }),

  "errors stand where the answer would, and can be tried again": (browser) =>
    mocked(browser, {}, { complaints: /status of 400/ }, async (page, mock) => {
      await ask(page, "please refuse");
      await page.getByRole("alert").filter({ hasText: "Messages is longer than the model's 2048 tokens; shorten it." }).waitFor();
      await ask(page, "please be mute");
      await page.getByRole("alert").filter({ hasText: "The request failed, and nothing says why." }).waitFor();
      await ask(page, "please break");
      await page.getByRole("alert").filter({ hasText: "Rank 1 has ended: killed by signal 9." }).waitFor();
      check((await answered(page)).startsWith("Once upon"), "what had come is gone");
      check((await page.getByRole("button", { name: "Try again" }).count()) === 1, "only the last can be tried again");
      const before = mock.asked.length;
      // The error may be gone for a moment only, so it is the page that notes it.
      await page.evaluate(() => {
        const noted = () => document.querySelector(".turn:last-child .error")?.checkVisibility() || (window.wasHidden = true);
        new MutationObserver(noted).observe(document.body, { subtree: true, childList: true, attributes: true });
      });
      await page.getByRole("button", { name: "Try again" }).click();
      await page.waitForFunction(() => window.wasHidden && document.querySelector(".turn:last-child .error")?.checkVisibility());
      check(mock.asked.length === before + 1, "it was not asked once more");
    }),

  "markup in an answer stays text": (browser) =>
    mocked(browser, {}, {}, async (page) => {
      await ask(page, "markup");
      check((await answered(page)) === MARKUP, "the text was changed");
      check((await page.locator(".conversation img, .conversation b").count()) === 0, "the answer became elements");
    }),

  "a server with keys gives its page to who has one, and says so when it is another": (browser, picture) => {
    const state = { key: "secret" };
    return mocked(browser, state, { complaints: /status of 401/, httpCredentials: { username: "anyone", password: "secret" } }, async (page) => {
      await page.locator("#ranks li").first().waitFor();
      await ask(page, "Who are you?");
      check((await answered(page)).length > 0, "the chat has no key");
      state.key = "other";
      await page.getByRole("alert").filter({ hasText: "The server no longer takes this page’s API key." }).waitFor();
      await picture(page, "locked");
      check(await page.getByRole("button", { name: "Send" }).isDisabled(), "Send works without a key");
      state.key = "secret";
      await page.getByRole("button", { name: "Reload" }).click();
      await page.locator("#ranks li").first().waitFor();
      const kept = await page.evaluate(() => [sessionStorage.length, localStorage.length, document.cookie.length]);
      check(kept.join() === "0,0,0", `something is kept: ${kept}`);
    });
  },

  "what changes every second is told to nobody who listens": async (browser) => {
    const state = { state: "loading" };
    await mocked(browser, state, { complaints: /ERR_CONNECTION_REFUSED|ERR_EMPTY_RESPONSE|ERR_CONNECTION_RESET/ }, async (page, mock) => {
      const numbers = (role) => page.locator(`#notices [role=${role}]`).evaluate((notice) => {
        const heard = notice.cloneNode(true);
        heard.querySelectorAll("[aria-hidden=true]").forEach((part) => part.remove());
        return [/\d/.test(heard.textContent), /\d/.test(notice.textContent)].join();
      });
      await page.getByText("44 % of 2.50 GB").waitFor();
      check((await numbers("status")) === "false,true", "a number of loading is heard");
      mock.close();
      await page.getByText("Its last answer was").waitFor();
      check((await numbers("alert")) === "false,true", "a number of seconds is heard");
    });
  },

  "the page of the API works below a proxy's prefix, and says what is wrong": async (browser) => {
    const state = {};
    const mock = await startMock(state);
    const { host } = new URL(mock.url);
    const proxied = createServer((request, response) => {
      if (!request.url.startsWith("/prefix/")) return response.writeHead(404).end();
      const asked = { host: "127.0.0.1", port: host.split(":")[1], path: request.url.slice("/prefix".length), headers: request.headers };
      http(asked, (answer) => answer.pipe(response.writeHead(answer.statusCode, answer.headers))).end();
    });
    await new Promise((resolve) => proxied.listen(0, "127.0.0.1", resolve));
    const url = `http://127.0.0.1:${proxied.address().port}/prefix/docs`;
    try {
      await visit(browser, url, { complaints: /status of 503/ }, (page) => page.getByRole("alert").filter({ hasText: "the model is loading" }).waitFor());
      const schema = { type: "object", properties: { version: { type: "string" } } };
      const responses = { 200: { content: { "application/json": { schema } } } };
      state.openapi = { paths: { "/version": { get: { summary: "Which one", responses } } } };
      await visit(browser, url, {}, (page) => page.getByText("GET /version").waitFor());
    } finally {
      proxied.closeAllConnections();
      proxied.close();
      mock.close();
    }
  },

  "a server that loads, is new, failed, or is gone says so": async (browser, picture) => {
    const state = { state: "loading" };
    await mocked(browser, state, { complaints: /ERR_CONNECTION_REFUSED|ERR_EMPTY_RESPONSE|ERR_CONNECTION_RESET/ }, async (page, mock) => {
      await page.getByText("44 % of 2.50 GB").waitFor();
      await picture(page, "loading");
      await page.getByLabel("Your message").fill("Hello");
      check(await page.getByRole("button", { name: "Send" }).isDisabled(), "Send works while loading");
      Object.assign(state, { state: "ready", isNew: true });
      await page.locator("#ranks li").first().waitFor();
      check(await page.getByText("none in the last minute").first().isVisible(), "nothing says that there are no latencies");
      check(await page.getByText("No requests yet.").isVisible(), "nothing says that there are no requests");
      await picture(page, "new");
      check(await page.getByRole("button", { name: "Send" }).isEnabled(), "Send does not work");
      state.state = "failed";
      await page.getByText("The model’s process has ended: rank 1 has ended: killed by signal 9").waitFor();
      check((await text(page, "#ranks .state")) === "dead", "ranks do not show as dead");
      await picture(page, "failed");
      mock.close();
      await page.getByText("The server does not answer").waitFor();
    });
  },

  "it fits a desktop, light": (browser, picture) => looks(browser, picture, DESKTOP, "light", "desktop-light"),
  "it fits a desktop, dark": (browser, picture) => looks(browser, picture, DESKTOP, "dark", "desktop-dark"),
  "it fits a phone, light": (browser, picture) => looks(browser, picture, PHONE, "light", "phone-light"),
  "it fits a phone, dark": (browser, picture) => looks(browser, picture, PHONE, "dark", "phone-dark"),
};
