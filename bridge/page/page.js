// The live page: the newest updates of the bridge that served it, and whether it is connected to that.
//
// Whatever comes from an update is written as text, never as markup: a publisher may put anything into it.
"use strict";

const MOST_ROWS = 100;

// An update may have megabytes, and a hundred of them are kept.
const LONGEST_TEXT = 2000;

// As the README asks of every client: a second at first, half a minute at most, and a little random, so that not all
// come back at once.
const FIRST_PAUSE_MS = 1000;
const LONGEST_PAUSE_MS = 30000;

// One that ends sooner did not work: without this, a bridge that is full would be asked every second for ever.
const LASTING_MS = 10000;

const REASONS = {
  1001: "the bridge is stopping",
  1006: "the bridge can't be reached",
  1011: "the bridge had an error",
  1013: "the bridge is full",
  4008: "this page was too slow",
  4009: "the bridge did not hear from this page",
};

const ZKILLBOARD = "https://zkillboard.com";

const state = document.getElementById("state");
const table = document.getElementById("updates");
const rows = table.tBodies[0];

let attempts = 0;
let pending = [];

function show(name, text) {
  state.dataset.state = name;
  if (state.textContent !== text) {
    // Not again at each attempt that fails: a screen reader says whatever is written here.
    state.textContent = text;
  }
}

function connect() {
  // Put together, not resolved: a path that begins with // would name another host.
  const scheme = location.protocol === "https:" ? "wss:" : "ws:";
  const socket = new WebSocket(`${scheme}//${location.host}${document.body.dataset.updatesPath}`);
  let openedMs = Infinity;
  socket.addEventListener("open", () => {
    openedMs = performance.now();
    show("connected", "Connected");
  });
  socket.addEventListener("message", (message) => receive(JSON.parse(message.data)));
  socket.addEventListener("close", (close) => {
    if (performance.now() - openedMs >= LASTING_MS) {
      attempts = 0;
    }
    retry(REASONS[close.code] ?? `code ${close.code}`);
  });
}

function retry(reason) {
  const pauseMs = Math.min(LONGEST_PAUSE_MS, FIRST_PAUSE_MS * 2 ** attempts) * (0.5 + Math.random() / 2);
  attempts += 1;
  // No seconds counted down: they would be read out one by one.
  show("disconnected", `Disconnected: ${reason}. Retrying`);
  setTimeout(connect, pauseMs);
}

function receive(update) {
  if (pending.length === 0) {
    // Once for each picture that is drawn, however many come meanwhile; in a tab that nobody sees, once it is seen.
    requestAnimationFrame(draw);
  }
  pending.push(update);
  if (pending.length > 2 * MOST_ROWS) {
    pending = pending.slice(-MOST_ROWS);
  }
}

function draw() {
  const newest = pending.slice(-MOST_ROWS).reverse();
  pending = [];
  rows.prepend(...newest.map(row));
  while (rows.rows.length > MOST_ROWS) {
    rows.deleteRow(-1);
  }
  document.getElementById("empty").hidden = true;
  table.hidden = false;
}

function row(update) {
  const sent = new Date(update.timestamp).toISOString();
  const time = element("time", sent.slice(11, 19));
  time.dateTime = sent;
  const type = cell(update.type);
  type.className = "type";
  const made = document.createElement("tr");
  made.role = "row";
  made.append(cell(time), type, cell(...(update.type === "killmail" ? killmail(update.data) : [json(update.data)])));
  return made;
}

function killmail(data) {
  return [
    link("kill", data.killmailId),
    link("system", data.systemId),
    link("ship", data.shipTypeId),
    element("span", data.attackerCount === 1 ? "1 attacker" : `${data.attackerCount} attackers`),
  ];
}

function link(kind, id) {
  const text = `${kind} ${id}`;
  // 0 is no id, and anything but a number has no place in an address.
  if (!Number.isSafeInteger(id) || id <= 0) {
    return element("span", text);
  }
  const made = element("a", text);
  made.href = `${ZKILLBOARD}/${kind}/${id}/`;
  made.rel = "noreferrer noopener";
  return made;
}

function json(data) {
  const text = JSON.stringify(data);
  const more = text.length - LONGEST_TEXT;
  return element("code", more > 0 ? `${text.slice(0, LONGEST_TEXT)}… (${more} characters more)` : text);
}

// With roles, though they are a table's own: where the style makes no table of it, it would be none to a screen reader.
function cell(...content) {
  const made = document.createElement("td");
  made.role = "cell";
  made.append(...content);
  return made;
}

function element(name, text) {
  const made = document.createElement(name);
  made.textContent = text;
  return made;
}

connect();
