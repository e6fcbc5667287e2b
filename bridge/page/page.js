// The live page: what the bridge that served it sends, and whether all is well with that. This file joins its parts.
//
// Whatever comes from an update is written as text, never as markup: a publisher may put anything into it.
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
  4009: "the bridge did not hear from this page",
};

// An error in the broker's own words has no bound of its own.
const LONGEST_WHY = 300;

const state = document.getElementById("state");
const why = document.getElementById("why");

let connection;
let line = ["connecting", "Connecting"]; // Of the connection: its state, and the words for it.
let spoken; // What the state says, but for how long ago that was.
let health;
let mayNotConnect = false; // The bridge refuses pages of this address.

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
  // Beside the page, which a proxy may have moved into a folder. Put together, not resolved: a path that begins with //
  // would name another host.
  const folder = location.pathname.slice(0, location.pathname.lastIndexOf("/"));
  const place = `${location.host}${folder}${document.body.dataset.updatesPath}${query && `?${query}`}`;
  const opened = connect(`${location.protocol === "https:" ? "wss:" : "ws:"}//${place}`, {
    onUpdate: (update) => {
      countUpdate();
      list.add(update);
    },
    onMissed: (data) => list.add({ missed: data, timestamp: Date.now() }),
    onState: (name, detail) => {
      if (name === "connected") {
        mayNotConnect = false;
        say("connected", "Connected");
        askHealth();
        return;
      }
      askHealth();
      // No seconds counted down: they would be read out one by one.
      sayLost(detail);
      if (detail === NOT_REACHED) askWhy();
    },
  });
  connection = opened;

  // Scripts can't read the response to a refused handshake. A plain GET gets the same response, except for the check
  // of Origin: to the page's own host, a browser sends Origin only with methods other than GET and HEAD.
  async function askWhy() {
    const url = `${location.protocol}//${place}`;
    const preflight = await fetch(url, { method: "OPTIONS" }).catch(() => undefined);
    const refusal = preflight?.status === 403 ? await textOf(preflight) : "";
    if (opened !== connection) return;
    mayNotConnect = refusal.includes("BRIDGE_ALLOWED_ORIGINS");
    if (line[0] === "disconnected") sayLost(NOT_REACHED);
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
  line = [name, text];
  show();
}

// The connection may be well while the bridge has nothing to send.
function show() {
  const [name, text] = line;
  const trouble = name === "connected" && health?.ready === false ? troubleOf(health) : undefined;
  state.dataset.state = trouble ? "doubtful" : name;
  showState(trouble ? trouble.words : [text, ""], trouble?.ago ?? "");
  // Not in the status: at each attempt the words may differ, and a screen reader says whatever is written there.
  write(why, trouble ? trouble.why.filter(Boolean).join("; ").slice(0, LONGEST_WHY) : "");
  why.hidden = why.textContent === "";
}

// How long ago it was is for the eyes only, for the same reason.
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

// The rate and the bridge's figures: beside each other where there is room, and folded up where they would push the
// updates off the screen.
const overview = document.getElementById("overview");
const wide = matchMedia("(min-width: 48rem)");
wide.addEventListener("change", fold);
fold();

function fold() {
  overview.open = wide.matches;
}

open();
