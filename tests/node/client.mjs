// Connects to the given URL with the package ws for Node. Prints a line when it is connected, and a line for each
// message.

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
