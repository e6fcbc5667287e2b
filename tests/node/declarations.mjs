// Prints TypeScript declarations for the schema files in the folder given: an interface for each file, a map of the
// update types, and the unions of all updates and of all else that a client may get.

import { readdirSync, readFileSync } from "node:fs";
import path from "node:path";
import process from "node:process";

import { compile } from "json-schema-to-typescript";
import { format } from "prettier";

const HEADER = `// Generated from the schema files by \`make contract\`: change those instead.
`;

const UPDATES = `/** The update types, and what the data of each is. An interface, so that you can declare types of your own in it. */
export interface UpdateData {
  TYPES
}

export type UpdateType = keyof UpdateData;

/** Any update: switch on its type, and its data is known. One of a type that is not here may come: ignore it. */
export type Update = { [Type in UpdateType]: UpdateOf<Type> }[UpdateType];

/** The same as a client gets it that asked for ids. */
export type UpdateWithId = { [Type in UpdateType]: UpdateWithIdOf<Type> }[UpdateType];

/** What the bridge itself tells a client that asked for ids, and the data of each. */
export interface MessageData {
  MESSAGES
}

export type Message = { [Type in keyof MessageData]: MessageOf<Type> }[keyof MessageData];

/** Whatever a client gets that asked for ids: switch on its type. */
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
  // Members that nobody declared may come, but a misspelled one should not compile.
  additionalProperties: false,
  bannerComment: "",
  // What a file refers to is declared by its own.
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

/** The same schema, in which what says nothing of a value says so: the generator takes it for an object. */
function outspoken(schema) {
  return JSON.parse(JSON.stringify(schema), (key, value) =>
    typeof value?.description === "string" && Object.keys(value).length === 1 ? { ...value, tsType: "unknown" } : value,
  );
}

const declared = (schema) => compile(outspoken(schema), schema.title, OPTIONS);

// Generic, so that its type and its data belong together.
async function enveloped(name, types, data) {
  const envelope = structuredClone(schemas.get("update"));
  envelope.title = name;
  envelope.properties.type.tsType = "Type";
  envelope.properties.data.tsType = `${data}[Type]`;
  return generic(await declared(envelope), name, `<Type extends ${types}>`);
}

const generic = (declaration, name, rest) => declaration.replace(`interface ${name}`, () => `interface ${name}${rest}`);

// Nothing but the id: the rest comes from the envelope without one.
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
