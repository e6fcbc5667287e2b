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

// What each of the two fills; a proxy may keep either for the operator.
const SOURCES = ["readyz", "metrics"];

// `onHealth` is told what `/readyz` says; undefined where that can't be had. Returns what asks at once: to be called
// when the connection is there, or lost, so that the figures are those with it.
export function watchHealth(page, onHealth) {
  const panel = page.getElementById("bridge");
  const note = page.getElementById("figures-note");
  const withheld = new Set(); // The sources that somebody on the way answers with 404: the bridge never does.
  let timer;
  let failures = 0;
  let isAsking = false;
  let isStale = false; // Whether what is being answered was asked too early.
  let knownAt = "";

  async function ask() {
    clearTimeout(timer);
    if (isAsking || page.hidden || withheld.size === SOURCES.length) return;
    isAsking = true;
    const [ready, metrics] = await Promise.all([get("readyz", JSON.parse), get("metrics", read)]);
    isAsking = false;
    if (isStale) {
      isStale = false;
      ask();
      return;
    }
    const isKnown = [ready, metrics].every((known, index) => known || withheld.has(SOURCES[index]));
    failures = isKnown ? 0 : failures + 1;
    if (withheld.size < SOURCES.length) {
      timer = setTimeout(ask, Math.min(LONGEST_BETWEEN_MS, BETWEEN_MS * 2 ** Math.max(0, failures - 1)));
    }
    if (isKnown) knownAt = new Date().toISOString().slice(11, 19);
    if (ready) showReady(page, ready);
    if (metrics) showMetrics(page, metrics);
    const words = isKnown ? (ready?.warnings ?? []).join("; ") : unknown();
    if (note.textContent !== words) note.textContent = words;
    note.hidden = words === "";
    showSources();
    onHealth(ready);
  }

  function askAnew() {
    // Once for each connection: whoever answered 404 may have done so because the bridge was away.
    withheld.clear();
    isStale = isAsking;
    ask();
  }

  async function get(path, parse) {
    if (withheld.has(path)) return undefined;
    try {
      const answer = await fetch(path, { signal: AbortSignal.timeout(PATIENCE_MS) });
      // In any case: what is not read to its end is broken off, of which the browser has a line.
      const text = await answer.text();
      if (answer.status === 404) withheld.add(path);
      // That it is not ready is an answer too.
      return answer.ok || answer.status === 503 ? parse(text) : undefined;
    } catch {
      return undefined;
    }
  }

  function showSources() {
    for (const path of SOURCES) {
      for (const part of page.querySelectorAll(`[data-source="${path}"]`)) part.hidden = withheld.has(path);
    }
    panel.hidden = withheld.size === SOURCES.length;
  }

  function unknown() {
    return `The bridge does not say how it is${knownAt && `; these are its figures of ${knownAt} UTC`}.`;
  }

  page.addEventListener("visibilitychange", ask);
  // Where it takes long to connect.
  timer = setTimeout(ask, BETWEEN_MS);
  return askAnew;
}

// What is wrong, for a person, of a bridge that is not ready: `words`, and `ago` to be put in after the first of them,
// which changes each time, with whatever else is known as `why`.
export function troubleOf({ broker, rejects, missing }) {
  // An error is kept after recovery: it says something only while that is not working.
  const why = [[broker, rejects].find((status) => status && status.state !== "working")?.last_error];
  switch (broker.state) {
    case "lost":
      why.push(...missing.slice(1));
      return { words: ["Broker lost", "; trying again. No updates come."], ago: ` ${duration(broker.for_s)} ago`, why };
    case "refused":
      why.push(...missing.slice(1));
      return { words: ["The broker refuses the bridge", "; trying again. No updates come."], ago: "", why };
    case "connecting":
      return { words: ["The bridge connects to its broker", ". No updates come yet."], ago: "", why };
    default:
      why.push(...missing.slice(1));
      return { words: ["Connected", `, but ${missing[0]}`], ago: "", why };
  }
}

function showReady(page, { broker, connections, instance, version }) {
  const words = STATES[broker.state] ?? broker.state;
  fill(page.getElementById("broker"), words, [`for ${duration(broker.for_s)}`]);
  fill(page.getElementById("connections"), number.format(connections));
  page.getElementById("which").textContent = `edk-bridge ${version}, instance ${instance}`;
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
    const details = samples.map(([label, value]) => `${label} ${number.format(value)}`);
    fill(page.getElementById(id), number.format(sum), details);
  }
}

// A line may break between two details, not within one: each is an element.
function fill(element, figure, details = []) {
  const small = document.createElement("small");
  const parts = details.map((words, index) => {
    const part = document.createElement("span");
    part.textContent = index < details.length - 1 ? `${words},` : words;
    return part;
  });
  small.append(...parts.flatMap((part) => [part, " "]).slice(0, -1));
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
