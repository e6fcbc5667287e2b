// The live page shows the updates and the state of the bridge that serves the page. This file connects the parts of the
// live page.
//
// The page writes all content of an update as text and never as markup, because publishers control this content.
import { filterOf } from "./filter.js";
import { troubleOf, watchHealth } from "./health.js";
import { listOf } from "./list.js";
import { showRate } from "./rate.js";
import { connect } from "./schemas/clients/browser.js";

const NOT_REACHED = 1006;

const REASONS = {
  1001: "the bridge is stopping",
  [NOT_REACHED]: "the bridge can't be reached",
  1011: "the bridge had an error",
  1013: "the bridge is full",
  4008: "this page was too slow",
  4009: "the bridge received nothing from this page",
};

// The page begins with the newest updates, so that it is not empty until the next update.
const FIRST_UPDATES = "last=50";

// The maximum length of a broker's error text on the page.
const LONGEST_WHY = 300;

const state = document.getElementById("state");
const why = document.getElementById("why");

let connection;
let connectionState = ["connecting", "Connecting"]; // The name and the text of the state.
let spoken; // The text of the state, without the duration in it.
let health;
let mayNotConnect = false; // Whether the bridge refuses pages of this address.

const list = listOf(document);
const countUpdate = showRate(document);
const askHealth = watchHealth(document, (known) => {
  health = known;
  show();
});
const filter = filterOf(document, () => {
  list.clear(filter.query() !== "");
  open();
});
list.expect(filter.query() !== "");

function open() {
  connection?.stop();
  filter.refuse("");
  say("connecting", "Connecting");
  const query = filter.query();
  let isReplay = true; // Whether the bridge is sending updates from before this connection.
  // The endpoint is in the same folder as the page, whose path a proxy may have changed. The endpoint's URL is
  // concatenated instead of resolved, because a path that begins with // would name another host.
  const folder = location.pathname.slice(0, location.pathname.lastIndexOf("/"));
  const place = `${location.host}${folder}${document.body.dataset.updatesPath}?${query && `${query}&`}${FIRST_UPDATES}`;
  const opened = connect(`${location.protocol === "https:" ? "wss:" : "ws:"}//${place}`, {
    onUpdate: (update) => {
      if (!isReplay) countUpdate();
      list.add(update);
    },
    onHeartbeat: () => (isReplay = false), // The first heartbeat of a connection is the end of the replay.
    onMissed: (data) => list.add({ missed: data, timestamp: Date.now() }),
    onState: (name, detail) => {
      if (name === "connected") {
        isReplay = true;
        mayNotConnect = false;
        say("connected", "Connected");
        askHealth();
        return;
      }
      askHealth();
      // The text has no countdown to the next attempt, because a screen reader would read out each second.
      sayLost(detail);
      if (detail === NOT_REACHED) askWhy();
    },
  });
  connection = opened;

  // Scripts can't read the response to a refused handshake. A plain GET gets the response that a refused handshake
  // would get, but its Origin is not checked. If a GET or HEAD request goes to the page's own host, browsers send no
  // Origin.
  async function askWhy() {
    const url = `${location.protocol}//${place}`;
    const preflight = await fetch(url, { method: "OPTIONS" }).catch(() => undefined);
    const refusal = preflight?.status === 403 ? await textOf(preflight) : "";
    if (opened !== connection) return;
    mayNotConnect = refusal.includes("BRIDGE_ALLOWED_ORIGINS");
    if (connectionState[0] === "disconnected") sayLost(NOT_REACHED);
    if (mayNotConnect || !query) return;
    const answer = await fetch(`${url}&after=`).catch(() => undefined);
    if (answer?.status !== 400) return;
    const sentence = await textOf(answer);
    if (opened !== connection || !sentence) return;
    opened.stop();
    say("disconnected", "Not connected: the filter is refused");
    filter.refuse(sentence.trim());
  }
}

function sayLost(code) {
  const refusal = `This address may not connect. Add ${location.origin} to BRIDGE_ALLOWED_ORIGINS.`;
  say("disconnected", mayNotConnect ? refusal : `Disconnected: ${REASONS[code] ?? `code ${code}`}. Retrying`);
}

function textOf(answer) {
  return answer.text().catch(() => "");
}

function say(name, text) {
  connectionState = [name, text];
  show();
}

// Shows the connection's state, or the bridge's problem if the connection is open but the bridge is not ready.
function show() {
  const [name, text] = connectionState;
  const trouble = name === "connected" && health?.ready === false ? troubleOf(health) : undefined;
  state.dataset.state = trouble ? "doubtful" : name;
  showState(trouble ? trouble.words : [text, ""], trouble?.ago ?? "");
  // The text of the broker's error may change at each attempt to connect. The error is outside the status element,
  // because a screen reader reads out each change of that element.
  write(why, trouble ? trouble.why.filter(Boolean).join("; ").slice(0, LONGEST_WHY) : "");
  why.hidden = why.textContent === "";
}

// Hides the duration from screen readers, because they would otherwise read it out whenever it changes.
function showState([begin, end], ago) {
  if (spoken !== begin + end) {
    const since = document.createElement("span");
    since.ariaHidden = "true";
    state.replaceChildren(begin, since, end);
    spoken = begin + end;
  }
  write(state.querySelector("span"), ago);
}

function write(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

// On a wide screen, the rate and the bridge's figures are expanded. On a narrow screen, the rate and the figures are
// collapsed, because they would push the updates off the screen.
const overview = document.getElementById("overview");
const wide = matchMedia("(min-width: 48rem)");
wide.addEventListener("change", fold);
fold();

function fold() {
  overview.open = wide.matches;
}

open();
