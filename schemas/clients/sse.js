// Receives the updates of an edk-bridge as Server-Sent Events, each exactly once, also across lost connections and
// restarts. Copy this file. In a module: `import { connect } from "./sse.js"`; in a script: `await import("./sse.js")`.
//
//   connect("http://localhost:3000/updates?type=killmail", { onUpdate: (update) => console.log(update.data) });
//
// In Node 20 or newer, run `npm install eventsource`, and pass its class: `connect(url, { EventSource, onUpdate })`.
//
// EventSource resumes by itself after a lost connection. But it gives up after a response with a status other than 200,
// such as the 502 of a proxy, and it does not detect a dead connection. In both cases, this client begins again with
// its last id.

const FIRST_PAUSE_MS = 1_000;
const LONGEST_PAUSE_MS = 30_000;
// A connection that does not last this long is a failure, so that the client does not retry a proxy every second.
const LASTING_MS = 10_000;
// The code of a lost connection, and of an attempt that failed. It is the same as for a WebSocket.
const NOT_REACHED = 1006;
const CONNECTING = 0; // In this state, EventSource reconnects by itself.
const NO_ANSWER = "no bridge answers, or it refuses pages of this origin (BRIDGE_ALLOWED_ORIGINS)";

// The options are those of browser.js. `onState("connected", id)` means that all updates after this id follow. In
// `onState("disconnected", code, reason)`, the `code` is the one of a `close` message (1001, 1013), or 1006. The
// `reason` is a text for people, or empty if the reason is unknown. Each failed attempt calls
// `onState("disconnected", ...)` again. `onMissed(data)` means that some updates are lost; `data` is the data of a
// `gap`, or of a `resume` that is not complete. `onHeartbeat(data)` has the data of a `heartbeat`: an id that the client
// can store, and whether the bridge has a working broker (`consuming`). `after` is where to begin: the `lastId()` of an
// earlier page, or "earliest". A connection on which no message arrives for `silenceMs` counts as dead, as the bridge
// sends a heartbeat every 30 s.
export function connect(url, options) {
  const { onUpdate, onState = () => {}, onMissed = () => {}, onHeartbeat = () => {} } = options;
  const { after = "", silenceMs = 75_000, EventSource = globalThis.EventSource } = options;
  let lastId = after; // An empty id means "from now on".
  let source;
  let closed; // The data of the `close` message of this connection.
  let connectedMs = Infinity;
  let failures = 0;
  let timer; // One timer is enough: it ends a pause, or a silence.

  function schedule(action, ms) {
    clearTimeout(timer);
    timer = setTimeout(action, ms);
  }

  function open() {
    source = new EventSource(`${url}${url.includes("?") ? "&" : "?"}after=${encodeURIComponent(lastId)}`);
    source.onmessage = (event) => receive(JSON.parse(event.data));
    source.onerror = () => lose(source);
    awaitMessage();
  }

  function awaitMessage() {
    schedule(() => restart(""), silenceMs);
  }

  function receive(message) {
    awaitMessage();
    const { type, data, id } = message;
    // A message without `id` is the bridge's own. If its data has an id, nothing from before this id will follow.
    lastId = id ?? data?.id ?? lastId;
    if (id !== undefined) onUpdate(message);
    else if (type === "resume") {
      connectedMs = performance.now();
      onState("connected", lastId);
      if (!data.complete) onMissed(data);
    } else if (type === "gap") onMissed(data);
    else if (type === "heartbeat") onHeartbeat(data);
    else if (type === "close") closed = data;
  }

  async function lose(lost) {
    judge();
    if (lost.readyState === CONNECTING) {
      awaitMessage();
      return report("");
    }
    clearTimeout(timer);
    const cause = await causeOf(lost.url).catch(() => NO_ANSWER);
    if (lost === source) restart(cause);
  }

  function restart(cause) {
    source.close();
    judge();
    const pauseMs = Math.min(LONGEST_PAUSE_MS, FIRST_PAUSE_MS * 2 ** failures) * (0.5 + Math.random() / 2);
    failures += 1;
    schedule(open, pauseMs);
    report(cause);
  }

  function judge() {
    if (performance.now() - connectedMs >= LASTING_MS) failures = 0;
    connectedMs = Infinity;
  }

  function report(cause) {
    const { code, reason } = closed ?? { code: NOT_REACHED, reason: cause };
    closed = undefined;
    onState("disconnected", code, reason);
  }

  function stop() {
    clearTimeout(timer);
    source?.close();
    source = undefined;
  }

  open();
  return { lastId: () => lastId, stop };
}

// Finds out why EventSource has given up. EventSource hides the response from scripts, but a script can send another
// request to the same address.
async function causeOf(address) {
  const signal = AbortSignal.timeout(10_000);
  const response = await fetch(address, { cache: "no-store", credentials: "omit", redirect: "manual", signal });
  const { status } = response;
  if (status >= 400 && status !== 426) return `${status}: ${(await response.text()).trim().slice(0, 300)}`;
  await response.body?.cancel();
  // Without `Accept: text/event-stream`, a bridge responds with 426 to a request that is correct.
  return status === 426 ? "" : "the server is not a bridge, or the path is wrong";
}
