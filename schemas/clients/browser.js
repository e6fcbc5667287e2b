// Updates of an edk-bridge in a browser, each exactly once: across lost connections, restarts and a laptop's sleep.
// A file to copy. In a module: `import { connect } from "./browser.js"`; in a script: `await import("./browser.js")`.
//
//   connect("ws://localhost:3000/updates?type=killmail", { onUpdate: (update) => console.log(update.data) });

const FIRST_PAUSE_MS = 1_000;
const LONGEST_PAUSE_MS = 30_000;
const LASTING_MS = 10_000; // What ends sooner did not work: without this, a bridge that is full is asked every second.
const NOT_REACHED = 1006; // The browser's own code for an end that nobody announced; a refusal (400, 403) looks alike.
const FULL = 1013;

// `onState` is told "connected" and the id after which all follows, or "disconnected" and the close code; `onMissed`
// what can't be had any more: the data of a `resume` that is not complete, or of a `gap`. `after` is an id to go on
// from: the `lastId()` of an earlier page, which is that of the last update, or the one that came with "connected".
export function connect(url, { onUpdate, onState = () => {}, onMissed = () => {}, after = "", silenceMs = 60_000 }) {
  let lastId = after; // Empty: from now on.
  let current; // The socket whose messages count.
  let next; // The one that is to take its place, until the bridge has answered it.
  let connectedMs = Infinity;
  let failures = 0;
  let timer; // For the one thing that is due: the end of a pause, or of the patience with a silence.

  function schedule(action, ms) {
    clearTimeout(timer);
    timer = setTimeout(action, ms);
  }

  function discard(socket) {
    if (socket) socket.onmessage = socket.onclose = null;
    socket?.close();
  }

  function open() {
    const socket = new WebSocket(`${url}${url.includes("?") ? "&" : "?"}after=${encodeURIComponent(lastId)}`);
    socket.onmessage = (event) => receive(socket, JSON.parse(event.data));
    socket.onclose = (event) => lose(socket, event.code);
    next = socket;
    schedule(() => lose(socket, NOT_REACHED), silenceMs);
  }

  function receive(socket, message) {
    const { type, data, id } = message;
    const isBack = !current;
    // Whichever speaks first is the one: what the old socket says now, the new one would only repeat.
    discard(socket === next ? current : next);
    [current, next] = [socket, undefined];
    // Is silence no news, or a dead line? A script sees no pings, but to ask on a new socket costs and misses nothing.
    schedule(open, silenceMs);
    lastId = type === "resume" ? data.id : (id ?? lastId);
    if (isBack) connectedMs = performance.now();
    if (isBack) onState("connected", lastId);
    if (id !== undefined) onUpdate(message);
    else if (type === "gap" || (type === "resume" && !data.complete)) onMissed(data);
  }

  function lose(socket, code) {
    discard(socket);
    if (socket === current) current = undefined;
    // What the new socket can't reach, the old one has lost too; a bridge that is full or stops has answered it.
    else if (code === NOT_REACHED) current = discard(current);
    if (socket === next) next = undefined;
    if (!current && performance.now() - connectedMs >= LASTING_MS) failures = 0;
    if (!current) connectedMs = Infinity;
    if (code === FULL) failures = Math.max(failures, 3);
    const pauseMs = Math.min(LONGEST_PAUSE_MS, FIRST_PAUSE_MS * 2 ** failures) * (0.5 + Math.random() / 2);
    failures += 1;
    if (!next) schedule(open, pauseMs);
    if (!current) onState("disconnected", code);
  }

  function stop() {
    clearTimeout(timer);
    discard(current);
    discard(next);
  }

  open();
  return { lastId: () => lastId, stop };
}
