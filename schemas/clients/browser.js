// Receives the updates of an edk-bridge in a browser, each exactly once, also across lost connections and restarts.
// Copy this file. In a module: `import { connect } from "./browser.js"`; in a script: `await import("./browser.js")`.
//
//   connect("ws://localhost:3000/updates?type=killmail", { onUpdate: (update) => console.log(update.data) });

const FIRST_PAUSE_MS = 1_000;
const LONGEST_PAUSE_MS = 30_000;
// A connection that does not last this long is a failure, so that the client does not retry a full bridge every second.
const LASTING_MS = 10_000;
// The browser reports this code after a refused handshake, and after an end without a close frame.
const NOT_REACHED = 1006;
const FULL = 1013;
const LOOPBACK = /^(localhost|.*\.localhost|127\.[\d.]+|\[::1\])$/;
const MIXED = "a page over https can open ws:// only to localhost: use wss:// (mixed content)";
const NO_UPGRADE = "the bridge answers, but a proxy may not pass the upgrade on, or this host's cookies are too large";

// `onState("connected", id)` means that all updates after this id follow. In `onState("disconnected", code, reason)`,
// the `reason` is a text for people, or empty if the reason is unknown. Each failed attempt calls
// `onState("disconnected", ...)` again. `onMissed(data)` means that some updates are lost; `data` is the data of a
// `gap`, or of a `resume` that is not complete. `onHeartbeat(data)` has the data of a `heartbeat`: an id that the client
// can store, and whether the bridge has a working broker (`consuming`). `after` is where to begin: the `lastId()` of an
// earlier page, or "earliest". A connection on which no message arrives for `silenceMs` counts as dead, as the bridge
// sends a heartbeat every 30 s.
export function connect(url, options) {
  const { onUpdate, onState = () => {}, onMissed = () => {}, onHeartbeat = () => {} } = options;
  const { after = "", silenceMs = 75_000 } = options;
  let lastId = after; // An empty id means "from now on".
  let socket;
  let connectedMs = Infinity;
  let failures = 0;
  let unopened = 0; // The number of connections in a row that never opened.
  let reason = "";
  let diagnosis; // The AbortController of the newest diagnosis.
  let timer; // One timer is enough: it ends a pause, or a silence.

  function schedule(action, ms) {
    clearTimeout(timer);
    timer = setTimeout(action, ms);
  }

  function discard() {
    if (socket) socket.onopen = socket.onmessage = socket.onclose = null;
    socket?.close();
  }

  function open() {
    const address = `${url}${url.includes("?") ? "&" : "?"}after=${encodeURIComponent(lastId)}`;
    try {
      socket = new WebSocket(address);
    } catch (error) {
      if (error.name !== "SecurityError") throw error;
      // After a SecurityError, no later attempt can succeed. `onState` is called later, because the caller does not
      // have the result of `connect` yet.
      return queueMicrotask(() => onState("disconnected", NOT_REACHED, MIXED));
    }
    socket.onopen = () => (socket.hasOpened = true);
    socket.onmessage = (event) => receive(JSON.parse(event.data));
    socket.onclose = (event) => lose(event.code, event.reason);
    awaitMessage();
  }

  function awaitMessage() {
    schedule(() => lose(NOT_REACHED), silenceMs);
  }

  function receive(message) {
    awaitMessage();
    const { type, data, id } = message;
    // A message without `id` is the bridge's own. If its data has an id, nothing from before this id will follow.
    lastId = id ?? data?.id ?? lastId;
    unopened = 0;
    if (id !== undefined) onUpdate(message);
    else if (type === "resume") {
      connectedMs = performance.now();
      onState("connected", lastId);
      if (!data.complete) onMissed(data);
    } else if (type === "gap") onMissed(data);
    else if (type === "heartbeat") onHeartbeat(data);
  }

  function lose(code, phrase = "") {
    discard();
    if (performance.now() - connectedMs >= LASTING_MS) failures = 0;
    connectedMs = Infinity;
    if (code === FULL) failures = Math.max(failures, 3);
    const pauseMs = Math.min(LONGEST_PAUSE_MS, FIRST_PAUSE_MS * 2 ** failures) * (0.5 + Math.random() / 2);
    failures += 1;
    unopened = code === NOT_REACHED && !socket.hasOpened ? unopened + 1 : 0;
    if (!unopened) reason = phrase;
    schedule(open, pauseMs);
    onState("disconnected", code, reason);
    // The diagnosis runs only after 2, 4, 8, ... failures in a row, so that a full bridge gets few requests.
    if (unopened > 1 && Number.isInteger(Math.log2(unopened))) diagnose(socket.url);
  }

  async function diagnose(address) {
    const request = (diagnosis = new AbortController());
    setTimeout(() => request.abort(), 10_000);
    const cause = await causeOf(address, request.signal).catch(() => reason);
    // The next failure reports the cause, unless the client connects first.
    if (unopened && request === diagnosis) reason = cause;
  }

  function stop() {
    clearTimeout(timer);
    diagnosis?.abort();
    discard();
  }

  open();
  return { lastId: () => lastId, stop };
}

// Finds out why a connection does not open. A script can't read the response to a handshake, but can send an HTTP
// request to the same address.
async function causeOf(address, signal) {
  const url = new URL(address.replace(/^ws/, "http"));
  url.username = url.password = ""; // `fetch` refuses a URL with a user name or a password.
  // In a request to its own origin, a page sends the header Origin with OPTIONS, but not with GET. The bridge may
  // refuse requests because of this header.
  const methods = url.origin === location.origin ? ["OPTIONS", "GET"] : ["GET"];
  for (const method of methods) {
    const options = { method, cache: "no-store", credentials: "omit", redirect: "manual", signal };
    const [status = 0, text] = await fetch(url, options)
      .then(async (response) => [response.status, response.status >= 400 ? await response.text() : ""])
      .catch(() => []); // Nothing answers, or the browser hides the response from pages of this origin.
    // Cookies are sent only with handshakes, so they may be why a handshake fails.
    if (status === 426) return NO_UPGRADE;
    if (status >= 400) return `${status}: ${text.trim().slice(0, 300)}`;
  }
  if (location.protocol === "https:" && url.protocol === "http:" && !LOOPBACK.test(url.hostname)) return MIXED;
  const query = navigator.permissions?.query({ name: "local-network-access" }); // Chromium 142 and newer.
  const permission = await query?.then(({ state }) => state).catch(() => undefined);
  if (permission === "denied") return "the browser denies this page the permission Local Network Access";
  const causes = [`no bridge answers at ${url.origin}${url.pathname}`, "the path is wrong", "the bridge is full"];
  if (url.protocol === "https:") causes.push("its certificate is not trusted");
  if (!methods.includes("OPTIONS") && !LOOPBACK.test(location.hostname)) {
    causes.push(`it refuses pages of ${location.origin} (BRIDGE_ALLOWED_ORIGINS)`);
    if (permission === "prompt") causes.push("this page needs https and the permission Local Network Access");
  }
  return causes.join(", or ");
}
