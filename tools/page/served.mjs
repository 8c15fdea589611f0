// The page of a real server, with the model that is inside the binary, on two ranks.

import { spawn } from "node:child_process";

import { DESKTOP, PHONE, check, visit } from "./browser.mjs";
import { answered, ask } from "./mocked.mjs";

const READY_WITHIN_MS = 120_000;

/** Runs `use` on the address of a server with further arguments. */
const served = async (binary, args, use) => {
  const server = spawn(binary, ["serve", "--tp", "2", "--port", "0", ...args], { stdio: ["ignore", "ignore", "pipe"] });
  let said = "";
  // It chooses a port that nobody has, and says which.
  const address = () => said.match(/listening on (http:\/\/\S+?),? .*\n/)?.[1];
  server.stderr.on("data", (bytes) => (said += bytes));
  const ended = new Promise((resolve) => server.on("close", resolve));
  try {
    const deadline = Date.now() + READY_WITHIN_MS;
    while (!address() || !(await fetch(`${address()}/ready`).then(({ ok }) => ok, () => false))) {
      check(Date.now() < deadline && server.exitCode === null, `the server is not ready: ${said}`);
      await new Promise((resolve) => setTimeout(resolve, 100));
    }
    await use(`${address()}/`);
  } finally {
    server.kill("SIGTERM");
    await ended;
  }
};

const chats = async (page) => {
  await page.waitForFunction(() => document.getElementById("send") && document.querySelector("#ranks li"));
  await ask(page, "Tell me a story about a fox.");
  check((await answered(page)).length > 20, "there is no answer");
  await page.waitForFunction(() => /first after/.test(document.querySelector(".facts").textContent));
  await page.waitForFunction(() => Number(document.querySelector(".tile .value").textContent) > 0);
  check((await page.locator("#ranks li").count()) === 2, "not both ranks show");
  const tiles = (await page.locator(".tile").allTextContents()).join(" | ");
  check(/Time to first token[\d.]+m?s/.test(tiles) && /KV cache in use[\d.]+%/.test(tiles), `a tile is empty: ${tiles}`);
  check((await page.locator("#waterfall .k-decode").count()) > 0, "the waterfall is empty");
};

const KEY = "sesame";

export const withBinary = (binary) => ({
  "a real server with a key gives its pages to a browser that has it, and to nobody else": (browser) =>
    served(binary, ["--api-key", KEY], async (url) => {
      const refused = await fetch(url);
      check(refused.status === 401 && /^Basic /.test(refused.headers.get("www-authenticate")), "the page is open");
      const httpCredentials = { username: "anyone", password: KEY };
      await visit(browser, url, { httpCredentials, complaints: /status of 401/ }, async (page) => {
        await chats(page);
        await page.getByRole("link", { name: "API" }).click();
        await page.getByText("POST /v1/chat/completions").click();
        const stop = await page.locator("details[open] tr").filter({ hasText: /^stop(string|\s)/ }).first().textContent();
        check(/string or array of string/.test(stop) && !/or or/.test(stop), `stop is ${stop}`);
        check(/"choices": \[\{/.test(await page.locator("details[open] pre").textContent()), "what is answered is not shown");
      });
    }),

  "a real server's page answers a question and shows what it did": (browser, picture) =>
    served(binary, [], async (url) => {
      await visit(browser, url, { viewport: DESKTOP }, async (page) => {
        await chats(page);
        await picture(page, "served-desktop");
      });
      await visit(browser, url, { viewport: PHONE, colorScheme: "dark" }, async (page) => {
        await chats(page);
        await picture(page, "served-phone");
      });
    }),
});
