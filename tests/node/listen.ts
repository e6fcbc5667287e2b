// A typed client: connects to the given URL, and prints a line with the members of each update. The client uses only
// the types of schemas/generated/updates.d.ts, and must compile with `tsc --strict`.

import process from "node:process";

import { WebSocket } from "ws";

import type { UnknownUpdate, Update } from "../../schemas/generated/updates";

function line(update: Update): string {
  switch (update.type) {
    case "killmail": {
      const id: number = update.data.killmailId;
      const alliance: number | null | undefined = update.data.victimAllianceId;
      return `killmail ${id} in ${update.data.systemId.toFixed()} of alliance ${alliance ?? "none"}`;
    }
    case "price-update": {
      const price: number = update.data.price;
      return `price of ${update.data.typeId.toFixed()}: ${price.toFixed(2)} ISK`;
    }
    case "statistics":
      return `${update.data.killmailCount.toFixed()} killmails since ${update.data.periodStart.slice(0, 10)}`;
    case "entity-activity":
      return `${update.data.entityType} ${update.data.entityId.toFixed()}: ${update.data.killCount.toFixed()} kills`;
    case "event":
      return `${update.data.kind.toUpperCase()}: ${update.data.title}`;
    default: {
      const unknown: UnknownUpdate = update;
      return `unknown type ${unknown.type.toLowerCase()}`;
    }
  }
}

const client = new WebSocket(process.argv[2] ?? "ws://localhost:3000/updates");

client.on("open", () => console.log("open"));

client.on("message", (text: Buffer) => {
  const update: Update = JSON.parse(text.toString());
  console.log(line(update));
});
