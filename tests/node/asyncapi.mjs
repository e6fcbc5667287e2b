// Prints what the AsyncAPI parser finds in the document on standard input: a line for each, "severity path: message".

import { text } from "node:stream/consumers";
import process from "node:process";

import { DiagnosticSeverity, Parser } from "@asyncapi/parser";

const { document, diagnostics } = await new Parser().parse(await text(process.stdin));

for (const { severity, path, message } of diagnostics) {
  process.stdout.write(`${DiagnosticSeverity[severity].toLowerCase()} /${path.join("/")}: ${message}\n`);
}

if (document === undefined) {
  process.exitCode = 1;
}
