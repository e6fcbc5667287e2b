// The bridge's own state: what `/readyz` and `/metrics` say, asked for every few seconds while somebody looks.

const BETWEEN_MS = 3000;
const LONGEST_BETWEEN_MS = 30000;
const PATIENCE_MS = 5000;

const STATES = {
  connecting: "connecting",
  working: "consuming",
  lost: "lost",
  refused: "refused",
  stopped: "stopped",
};

const number = new Intl.NumberFormat("en");

// `onHealth` is told whether the bridge is `ready`, what is `missing` and the broker's `error`; undefined where that
// can't be had. Returns what asks at once.
export function watchHealth(page, onHealth) {
  const note = page.getElementById("figures-note");
  let timer;
  let failures = 0;
  let isAsking = false;
  let knownAt = "";

  async function ask() {
    if (isAsking || page.hidden) return;
    isAsking = true;
    clearTimeout(timer);
    const [ready, metrics] = await Promise.all([get("readyz", (answer) => answer.json()), get("metrics", textOf)]);
    isAsking = false;
    failures = ready && metrics ? 0 : failures + 1;
    timer = setTimeout(ask, Math.min(LONGEST_BETWEEN_MS, BETWEEN_MS * 2 ** Math.max(0, failures - 1)));
    if (ready && metrics) knownAt = new Date().toISOString().slice(11, 19);
    if (ready) showReady(page, ready);
    if (metrics) showMetrics(page, read(metrics));
    const words = ready && metrics ? (ready.warnings ?? []).join("; ") : unknown();
    if (note.textContent !== words) note.textContent = words;
    note.hidden = words === "";
    onHealth(ready && { ready: ready.ready, missing: ready.missing, error: errorOf(ready) });
  }

  function unknown() {
    return `The bridge does not say how it is${knownAt && `; these are its figures of ${knownAt} UTC`}.`;
  }

  page.addEventListener("visibilitychange", ask);
  ask();
  return ask;
}

function textOf(answer) {
  return answer.text();
}

async function get(path, body) {
  try {
    const answer = await fetch(path, { signal: AbortSignal.timeout(PATIENCE_MS) });
    // That it is not ready is an answer too.
    return answer.ok || answer.status === 503 ? await body(answer) : undefined;
  } catch {
    return undefined;
  }
}

function errorOf({ broker, rejects }) {
  // Either is kept after recovery: it says something only while that is not working.
  const connection = [broker, rejects].find((status) => status && status.state !== "working");
  return connection?.last_error ?? "";
}

function showReady(page, { broker, connections }) {
  const words = STATES[broker.state] ?? broker.state;
  fill(page.getElementById("broker"), words, `for ${duration(broker.for_s)}`);
  fill(page.getElementById("connections"), number.format(connections));
}

function showMetrics(page, metrics) {
  for (const [id, name] of [
    ["updates-sent", "bridge_updates_total"],
    ["rejects", "bridge_rejects_total"],
    ["evictions", "bridge_evictions_total"],
    ["duplicates", "bridge_duplicates_total"],
  ]) {
    const samples = [...(metrics.get(name) ?? [])].filter(([, value]) => value > 0);
    const sum = samples.reduce((so_far, [, value]) => so_far + value, 0);
    fill(page.getElementById(id), number.format(sum), samples.map(([label, value]) => `${label} ${value}`).join(", "));
  }
}

function fill(element, figure, detail = "") {
  const small = document.createElement("small");
  small.textContent = detail;
  // A space between them, where they are copied or read out.
  element.replaceChildren(figure, " ", small);
}

function duration(seconds) {
  if (seconds < 120) return `${Math.round(seconds)} s`;
  if (seconds < 7200) return `${Math.round(seconds / 60)} min`;
  return seconds < 172800 ? `${Math.round(seconds / 3600)} h` : `${Math.round(seconds / 86400)} days`;
}

// Prometheus' text format, as far as it is needed here: names to label values (one label, or none) to numbers.
function read(text) {
  const found = new Map();
  for (const line of text.split("\n")) {
    const [, name, label, value] = /^(\w+)(?:\{\w+="((?:[^"\\]|\\.)*)"\})? (\S+)$/.exec(line) ?? [];
    if (name === undefined) continue;
    if (!found.has(name)) found.set(name, new Map());
    found.get(name).set((label ?? "").replace(/\\(.)/g, (_, escaped) => (escaped === "n" ? "\n" : escaped)), +value);
  }
  return found;
}
