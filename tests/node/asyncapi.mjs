// Prints the AsyncAPI parser's messages about documents. Standard input is a JSON array of the documents as strings.
// Each line of the output is a JSON array of messages "severity path: message" about one document.

import { text } from "node:stream/consumers";
import process from "node:process";

import { DiagnosticSeverity, Parser } from "@asyncapi/parser";

for (const source of JSON.parse(await text(process.stdin))) {
  const { document, diagnostics } = await new Parser().parse(source);
  const lines = diagnostics.map(
    ({ severity, path, message }) => `${DiagnosticSeverity[severity].toLowerCase()} /${path.join("/")}: ${message}`,
  );
  if (document === undefined && !lines.some((line) => line.startsWith("error "))) {
    throw new Error("no document, and no error");
  }
  process.stdout.write(`${JSON.stringify(lines)}\n`);
}
