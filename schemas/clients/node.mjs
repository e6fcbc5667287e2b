// Receives the updates of an edk-bridge in Node (20.10 or newer), each exactly once, also across lost connections.
// Copy this file, and run `npm install ws`.
//
//   import { updates } from "./node.mjs";
//   for await (const update of updates("ws://localhost:3000/updates")) console.log(update.id, update.data);

import { on } from "node:events";
import { text } from "node:stream/consumers";
import { setTimeout as sleep } from "node:timers/promises";

import { WebSocket } from "ws";

const FIRST_PAUSE_MS = 1_000;
const LONGEST_PAUSE_MS = 30_000;
// A connection that does not last this long is a failure, so that the client does not retry a full bridge every second.
const LASTING_MS = 10_000;
const FULL = 1013;
const TRY_AGAIN = [408, 429];

// The bridge refused the client: the query is invalid (400), or the access is forbidden (403). The error's message
// gives the bridge's reason.
export class Refused extends Error {}

// `onState("connected", id)` means that all updates after this id follow. `onState("disconnected", reason)` has a close
// code or a text as its reason. `onMissed(data)` means that some updates are lost; `data` is the data of a `gap`, or of
// a `resume` that is not complete. `onHeartbeat(data)` has the data of a `heartbeat`: an id that the program can store,
// and whether the bridge has a working broker (`consuming`). `after` is where to begin: an id of an earlier run, or
// "earliest". A connection on which nothing arrives for `silenceMs` counts as dead, as the bridge sends a heartbeat
// every 30 s. If `signal`, an AbortSignal, is aborted, the connection is closed and the loop throws an AbortError.
export async function* updates(url, options = {}) {
  const { onState = () => {}, onMissed = () => {}, onHeartbeat = () => {} } = options;
  const { after = "", silenceMs = 75_000, signal } = options;
  let lastId = after; // An empty id means "from now on".
  for (let failures = 0; ; failures += 1) {
    const address = `${url}${url.includes("?") ? "&" : "?"}after=${encodeURIComponent(lastId)}`;
    const socket = new WebSocket(address, { handshakeTimeout: 10_000, perMessageDeflate: false });
    let [connectedMs, reason, broken] = [Infinity];
    // If the program takes updates too slowly, the socket is paused and reads no pings. The time of such a pause does
    // not count as silence.
    const silence = setTimeout(() => (socket.isPaused ? silence.refresh() : socket.terminate()), silenceMs);
    for (const sign of ["ping", "message"]) socket.on(sign, () => silence.refresh());
    socket.on("close", (code) => (reason = code));
    socket.on("error", (error) => (broken ??= error));
    socket.on("unexpected-response", async (_, response) => {
      const status = response.statusCode;
      const sentence = `${status} ${(await text(response).catch(() => "")).trim()}`;
      const isFinal = status >= 400 && status < 500 && !TRY_AGAIN.includes(status);
      socket.emit("error", isFinal ? new Refused(sentence) : new Error(sentence));
    });
    try {
      // This program buffers only a few updates. All other updates wait in the bridge.
      const limits = { highWaterMark: 64, lowWaterMark: 16 };
      for await (const [body] of on(socket, "message", { close: ["close"], signal, ...limits })) {
        const message = JSON.parse(body);
        const { type, data, id } = message;
        // A message without `id` is the bridge's own. If its data has an id, nothing from before this id will follow.
        lastId = id ?? data?.id ?? lastId;
        if (id !== undefined) yield message;
        else if (type === "resume") {
          connectedMs = performance.now();
          onState("connected", lastId);
          if (!data.complete) onMissed(data);
        } else if (type === "gap") onMissed(data);
        else if (type === "heartbeat") onHeartbeat(data);
      }
    } catch (error) {
      if (error !== broken || error instanceof Refused) throw error;
      reason = error.message;
    } finally {
      clearTimeout(silence);
      socket.terminate();
    }
    onState("disconnected", reason);
    if (performance.now() - connectedMs >= LASTING_MS) failures = 0;
    if (reason === FULL) failures = Math.max(failures, 3);
    const pauseMs = Math.min(LONGEST_PAUSE_MS, FIRST_PAUSE_MS * 2 ** failures) * (0.5 + Math.random() / 2);
    await sleep(pauseMs, undefined, { signal });
  }
}
