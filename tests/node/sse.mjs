// Reads {"urls": [...], "once": true|false} from standard input, and prints what the package eventsource delivers.

import process from "node:process";
import { text } from "node:stream/consumers";

import { EventSource } from "eventsource";

import { recordAll } from "./event_source.mjs";

const { urls, once } = JSON.parse(await text(process.stdin));
process.stdout.write(JSON.stringify(await recordAll(EventSource, urls, once)), () => process.exit(0));
