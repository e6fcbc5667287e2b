// Follows a bridge with the example for Node, node.mjs, in the same folder. Prints a line for each callback and update:
// ["update", ...], ["missed", ...], ["heartbeat", ...], ["connected", id], ["disconnected", why], ["refused", sentence].
//
// Without a third argument, a line on standard input ends the program. With "slow" as the third argument, the program
// reads one update, and then waits for a line on standard input before it reads any others.

import process from "node:process";
import { createInterface } from "node:readline";

import { Refused, updates } from "./node.mjs";

const [url, options, speed] = process.argv.slice(2);
const say = (...what) => process.stdout.write(`${JSON.stringify(what)}\n`);
const ending = new AbortController();
const input = createInterface({ input: process.stdin });
const line = new Promise((resolve) => input.once("line", resolve));
line.then(() => speed !== "slow" && ending.abort());

try {
  const callbacks = {
    onState: say,
    onMissed: (data) => say("missed", data),
    onHeartbeat: (data) => say("heartbeat", data),
    signal: ending.signal,
  };
  for await (const update of updates(url, { ...callbacks, ...JSON.parse(options) })) {
    say("update", update);
    if (speed === "slow") await line;
  }
} catch (error) {
  if (error instanceof Refused) say("refused", error.message);
  else if (error.name !== "AbortError") throw error;
}
input.close();
process.stdin.destroy();
