// Validates values with Ajv in strict mode, with the schemas in the given folder.
//
// Reads one line for each value: an object with the members `schema` (such as killmail) and `text` (JSON). Answers with
// a line that has the JSON Pointers of all violations, or [] for a valid value.

import { readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import process from "node:process";
import { createInterface } from "node:readline";

import Ajv from "ajv/dist/2020.js";
import addFormats from "ajv-formats";

const folder = process.argv[2];
const ajv = new Ajv({ strict: true, allErrors: true });
addFormats(ajv);
ajv.addVocabulary(["x-identity", "x-role", "x-form-of"]);

const validators = {};
const files = readdirSync(folder).filter((file) => file.endsWith(".json"));
const schemas = files.map((file) => JSON.parse(readFileSync(join(folder, file), "utf8")));
schemas.forEach((schema) => ajv.addSchema(schema));
files.forEach((file, i) => (validators[file.slice(0, -".json".length)] = ajv.getSchema(schemas[i].$id)));

// The JSON Pointer for a missing member names the place where the member should be, as the bridge's pointers do.
const pointer = ({ instancePath, keyword, params }) =>
  keyword === "required"
    ? `${instancePath}/${params.missingProperty.replaceAll("~", "~0").replaceAll("/", "~1")}`
    : instancePath;

for await (const line of createInterface({ input: process.stdin })) {
  const { schema, text } = JSON.parse(line);
  const validate = validators[schema];
  const pointers = validate(JSON.parse(text)) ? [] : [...new Set(validate.errors.map(pointer))];
  process.stdout.write(`${JSON.stringify(pointers)}\n`);
}
