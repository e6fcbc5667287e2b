// Prints TypeScript declarations for the schema files in the given folder: of what clients receive, or, with the second
// argument `source-formats`, of the source formats that publishers can send.
//
// For clients, there is an interface for each file, maps of the update types and of the bridge's own messages, and unions
// of all updates and of all messages that a client can receive.

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

/** The bridge's own messages to clients with ids, each with its data. */
export interface MessageData {
  MESSAGES
}

export type MessageType = keyof MessageData;

/** A type that is not declared here: a string, but none of the declared types. This enumeration exists only as a type. */
declare enum UnknownType {
  UNKNOWN = "a type that is not declared here",
}

export type UpdateOf<Type extends UpdateType> = Envelope<Type, UpdateData[Type]>;
export type UpdateWithIdOf<Type extends UpdateType> = EnvelopeWithId<Type, UpdateData[Type]>;
export type MessageOf<Type extends MessageType> = MessageEnvelope<Type, MessageData[Type]>;

/** An update of a type that is not declared here. Ignore it. */
export type UnknownUpdate = Envelope<UnknownType, unknown>;
export type UnknownUpdateWithId = EnvelopeWithId<UnknownType, unknown>;

/** An own message of a type that is not declared here. If its data has an id, adopt this id. Otherwise, ignore it. */
export type UnknownMessage = MessageEnvelope<UnknownType, { id?: string; [member: string]: unknown }>;

/** Any update. In a switch on the type, each case narrows the data, and the default is an unknown update. */
export type Update = { [Type in UpdateType]: UpdateOf<Type> }[UpdateType] | UnknownUpdate;

/** Any update for clients with ids. */
export type UpdateWithId = { [Type in UpdateType]: UpdateWithIdOf<Type> }[UpdateType] | UnknownUpdateWithId;

/** Any own message. */
export type Message = { [Type in MessageType]: MessageOf<Type> }[MessageType] | UnknownMessage;

/** Any message to clients with ids. The member id tells an update from an own message, which has none. */
export type Received = UpdateWithId | Message;

/** The envelope of the bridge's own messages. */
export interface MessageEnvelope<Type, Data> extends Envelope<Type, Data> {
  id?: undefined;
}
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

const print = async (...parts) =>
  process.stdout.write(await format([HEADER, ...parts].join("\n"), { parser: "typescript", printWidth: 120 }));

const withRole = (...roles) => [...schemas].filter(([, schema]) => roles.includes(schema["x-role"]));
const interfaces = (...roles) => Promise.all(withRole(...roles).map(([, schema]) => declared(schema)));
const members = (role) => withRole(role).map(([name, { title }]) => `${JSON.stringify(name)}: ${title};`).join("\n");

const generic = (declaration, name, rest) => declaration.replace(`interface ${name}`, () => `interface ${name}${rest}`);

/** The envelopes are generic, so that the type determines the data. */
async function envelopes() {
  const envelope = structuredClone(schemas.get("update"));
  envelope.title = "Envelope";
  envelope.properties.type.tsType = "Type";
  envelope.properties.data.tsType = "Data";
  // The interface of an envelope with an id declares only the id.
  const { description, properties } = schemas.get("update-with-id");
  const withId = { title: "EnvelopeWithId", description, type: "object", required: ["id"], properties: { id: properties.id } };
  return [
    generic(await declared(envelope), envelope.title, "<Type, Data>"),
    generic(await declared(withId), withId.title, "<Type, Data> extends Envelope<Type, Data>"),
  ];
}

/** The parts of a response are the messages that clients receive in other ways. */
function response() {
  const { properties } = schemas.get("updates-response");
  properties.updates.tsType = "UpdateWithId[]";
  properties.gaps.tsType = "Gap[]";
}

if (process.argv[3] === "source-formats") {
  await print(...(await interfaces("form")));
} else {
  response();
  const updates = UPDATES.replace("TYPES", () => members(undefined)).replace("MESSAGES", () => members("message"));
  await print(updates, ...(await envelopes()), ...(await interfaces(undefined, "message", "response")));
}
