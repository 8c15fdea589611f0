// See ./check, which runs this.

import { mkdirSync } from "node:fs";
import { join } from "node:path";
import { parseArgs } from "node:util";

import { launch } from "./browser.mjs";
import { MOCKED } from "./mocked.mjs";
import { withBinary } from "./served.mjs";

const { values } = parseArgs({ options: { binary: { type: "string" }, out: { type: "string" } } });
if (values.out) mkdirSync(values.out, { recursive: true });
const picture = (page, name) => values.out && page.screenshot({ path: join(values.out, `${name}.png`), fullPage: name.includes("phone") });

const browser = await launch();
let failed = 0;
const tests = [...Object.entries(MOCKED), ...(values.binary ? Object.entries(withBinary(values.binary)) : [])];
for (const [sentence, test] of tests) {
  try {
    await test(browser, picture);
    console.log(`ok      ${sentence}`);
  } catch (error) {
    failed += 1;
    console.log(`FAILED  ${sentence}\n  ${error.message}`);
  }
}
await browser.close();
if (!values.binary) console.log("not run: the page of a real server; give --binary");
process.exitCode = failed > 0 ? 1 : 0;
