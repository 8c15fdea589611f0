// Chromium, and what is true of every page in it: it asks only its own server, and complains of nothing.

import { createRequire } from "node:module";

const { chromium } = createRequire(import.meta.url)(process.env.PLAYWRIGHT);

export const DESKTOP = { width: 1280, height: 900 };
export const PHONE = { width: 390, height: 844 };

export const launch = () => chromium.launch({ executablePath: process.env.CHROMIUM, args: ["--no-sandbox"] });

/** Fails with a sentence. */
export const check = (holds, sentence) => {
  if (!holds) throw new Error(sentence);
};

/** Opens a page, lets `visit` use it, and checks what must hold of any. `complaints` are those that are expected,
 * `httpCredentials` what a user types when the browser asks. */
export const visit = async (browser, url, { viewport = DESKTOP, colorScheme = "light", complaints = /^$/, httpCredentials }, use) => {
  const context = await browser.newContext({ viewport, colorScheme, httpCredentials, deviceScaleFactor: viewport === PHONE ? 2 : 1 });
  const found = [];
  context.on("request", (request) => {
    if (new URL(request.url()).host !== new URL(url).host) found.push(`it asked ${request.url()}`);
  });
  context.on("console", (message) => {
    const isBad = ["error", "warning"].includes(message.type());
    if (isBad && !complaints.test(message.text())) found.push(`the console says: ${message.text()} (${message.location().url})`);
  });
  const page = await context.newPage();
  page.setDefaultTimeout(20_000);
  page.on("pageerror", (error) => found.push(`a script failed: ${error.message}`));
  await page.goto(url);
  try {
    await use(page);
    check(await fits(page), "the page is wider than its window");
  } catch (error) {
    found.push(error.message);
  }
  await context.close();
  check(found.length === 0, found.join("\n  "));
};

/** Whether nothing has to be scrolled sideways. */
const fits = (page) => page.evaluate(() => document.documentElement.scrollWidth <= window.innerWidth);
