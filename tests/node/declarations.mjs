// Prints TypeScript declarations for the schema files in the given folder: an interface for each file, a map of the
// update types, and unions of all updates and of all messages that a client can receive.

import { readdirSync, readFileSync } from "node:fs";
import path from "node:path";
import process from "node:process";

import { compile } from "json-schema-to-typescript";
import { format } from "prettier";

const HEADER = `// Generated from the schema files by \`make contract\`. Change the schema files instead.
`;

const UPDATES = `/** The update types, each with its data. UpdateData is an interface: you can declare your own types in it. */
export interface UpdateData {
  TYPES
}

export type UpdateType = keyof UpdateData;

/** Any update. A switch on the type narrows the data. Updates of other types may arrive: ignore them. */
export type Update = { [Type in UpdateType]: UpdateOf<Type> }[UpdateType];

/** Any update for clients that asked for ids. */
export type UpdateWithId = { [Type in UpdateType]: UpdateWithIdOf<Type> }[UpdateType];

/** The bridge's own messages to clients that asked for ids, each with its data. */
export interface MessageData {
  MESSAGES
}

export type Message = { [Type in keyof MessageData]: MessageOf<Type> }[keyof MessageData];

/** Any message to clients that asked for ids. A switch on the type narrows the data. */
export type Received = UpdateWithId | Message;
`;

const folder = process.argv[2];
const schemas = new Map(
  readdirSync(folder)
    .filter((file) => file.endsWith(".json"))
    .sort()
    .map((file) => [path.basename(file, ".json"), JSON.parse(readFileSync(path.join(folder, file), "utf8"))]),
);
const byId = new Map([...schemas.values()].map((schema) => [schema.$id, schema]));

const OPTIONS = {
  // Unknown members may arrive at run time, but a misspelled member in a program should not compile.
  additionalProperties: false,
  bannerComment: "",
  // A file that another schema references has its own declaration.
  declareExternallyReferenced: false,
  format: false,
  ignoreMinAndMaxItems: true,
  unknownAny: true,
  $refOptions: {
    resolve: {
      urn: { order: 1, canRead: ({ url }) => byId.has(url), read: ({ url }) => JSON.stringify(byId.get(url)) },
    },
  },
};

/** Gives the type `unknown` to parts that have only a description, which the generator would take for objects. */
function withUnknown(schema) {
  return JSON.parse(JSON.stringify(schema), (key, value) =>
    typeof value?.description === "string" && Object.keys(value).length === 1 ? { ...value, tsType: "unknown" } : value,
  );
}

const declared = (schema) => compile(withUnknown(schema), schema.title, OPTIONS);

// The envelope is generic, so that the type determines the data.
async function enveloped(name, types, data) {
  const envelope = structuredClone(schemas.get("update"));
  envelope.title = name;
  envelope.properties.type.tsType = "Type";
  envelope.properties.data.tsType = `${data}[Type]`;
  return generic(await declared(envelope), name, `<Type extends ${types}>`);
}

const generic = (declaration, name, rest) => declaration.replace(`interface ${name}`, () => `interface ${name}${rest}`);

// The interface of an update with an id declares only the id, and extends the envelope without an id.
const { title, description, properties } = schemas.get("update-with-id");
const withId = { title: `${title}Of`, description, type: "object", required: ["id"], properties: { id: properties.id } };

const envelopes = [
  await enveloped("UpdateOf", "UpdateType", "UpdateData"),
  generic(await declared(withId), withId.title, "<Type extends UpdateType> extends UpdateOf<Type>"),
  await enveloped("MessageOf", "keyof MessageData", "MessageData"),
];
const interfaces = [];
for (const schema of schemas.values()) {
  if (schema["x-role"] !== "envelope") {
    interfaces.push(await declared(schema));
  }
}
const members = (role) =>
  [...schemas]
    .filter(([, schema]) => schema["x-role"] === role)
    .map(([name, { title }]) => `${JSON.stringify(name)}: ${title};`)
    .join("\n");
const updates = UPDATES.replace("TYPES", () => members(undefined)).replace("MESSAGES", () => members("message"));

process.stdout.write(
  await format([HEADER, updates, ...envelopes, ...interfaces].join("\n"), { parser: "typescript", printWidth: 120 }),
);
