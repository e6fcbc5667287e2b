// Follows a bridge with the example for Server-Sent Events, sse.mjs, in the same folder, and the package eventsource.
// Prints a line for each callback: ["update", ...], ["missed", ...], ["heartbeat", ...], ["connected", id],
// ["disconnected", code, reason]. A line on standard input ends the program.

import process from "node:process";
import { createInterface } from "node:readline";

import { EventSource } from "eventsource";

import { connect } from "./sse.mjs";

const [url, options] = process.argv.slice(2);
const say = (...what) => process.stdout.write(`${JSON.stringify(what)}\n`);
const connection = connect(url, {
  ...JSON.parse(options),
  EventSource,
  onUpdate: (update) => say("update", update),
  onState: say,
  onMissed: (data) => say("missed", data),
  onHeartbeat: (data) => say("heartbeat", data),
});
const input = createInterface({ input: process.stdin });
input.once("line", () => {
  connection.stop();
  input.close();
  process.stdin.destroy();
});
