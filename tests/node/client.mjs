// Connects to the URL given, says so, and prints each message as a line: what Node's ws makes of the bridge's frames.

import process from "node:process";

import { WebSocket } from "ws";

const client = new WebSocket(process.argv[2]);

client.on("open", () => process.stdout.write("open\n"));

client.on("message", (data, isBinary) => {
  process.stdout.write(isBinary ? "binary" : data);
  process.stdout.write("\n");
});

client.on("close", (code) => process.stdout.write(`closed ${code}\n`));

client.on("error", (error) => {
  process.stderr.write(`${error.message}\n`);
  process.exitCode = 1;
});
