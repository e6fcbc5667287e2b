// Shows the bridge's own state, from `/readyz` and `/metrics`. While the page is visible, it requests `/readyz` and
// `/metrics` every few seconds.

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

// A proxy may hide `/readyz` or `/metrics` from everyone except the operator.
const SOURCES = ["readyz", "metrics"];

// Calls `onHealth` with the body of `/readyz`, or with undefined if `/readyz` is unavailable. Returns a function that
// requests `/readyz` and `/metrics` immediately. Call the returned function when the connection opens or is lost, so
// that the figures are up to date.
export function watchHealth(page, onHealth) {
  const panel = page.getElementById("bridge");
  const note = page.getElementById("figures-note");
  const withheld = new Set(); // The paths for which a proxy answers 404. The bridge itself never answers 404 there.
  let timer;
  let failures = 0;
  let isAsking = false;
  let isStale = false; // Whether the current request began before the last change of the connection.
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
    // After each change of the connection, all paths are requested again, because an earlier 404 may have come from a
    // proxy that could not reach the bridge.
    withheld.clear();
    isStale = isAsking;
    ask();
  }

  async function get(path, parse) {
    if (withheld.has(path)) return undefined;
    try {
      const answer = await fetch(path, { signal: AbortSignal.timeout(PATIENCE_MS) });
      // Reads each response completely. If a response is not read, the browser aborts the request and logs an error.
      const text = await answer.text();
      if (answer.status === 404) withheld.add(path);
      // `/readyz` answers 503 while the bridge is not ready.
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
    return `The state of the bridge is unavailable${knownAt && `; these figures are from ${knownAt} UTC`}.`;
  }

  page.addEventListener("visibilitychange", ask);
  // If the connection takes longer than `BETWEEN_MS` to open, this timer requests the state.
  timer = setTimeout(ask, BETWEEN_MS);
  return askAnew;
}

// Describes why a bridge is not ready. `words` has two texts, and the page shows `ago` between them. `ago` is a
// duration that changes over time. `why` has further details of the problem.
export function troubleOf({ broker, rejects, missing }) {
  // `last_error` remains set after a recovery, so it is used only while the state is not `working`.
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

// Each detail is an element, so that lines break between details and not within a detail.
function fill(element, figure, details = []) {
  const small = document.createElement("small");
  const parts = details.map((words, index) => {
    const part = document.createElement("span");
    part.textContent = index < details.length - 1 ? `${words},` : words;
    return part;
  });
  small.append(...parts.flatMap((part) => [part, " "]).slice(0, -1));
  // The space separates the figure from the details in copied text and for a screen reader.
  element.replaceChildren(figure, " ", small);
}

function duration(seconds) {
  if (seconds < 120) return `${Math.round(seconds)} s`;
  if (seconds < 7200) return `${Math.round(seconds / 60)} min`;
  return seconds < 172800 ? `${Math.round(seconds / 3600)} h` : `${Math.round(seconds / 86400)} days`;
}

// Parses metrics in the Prometheus text format, and ignores metrics with more than one label. This page needs only
// metrics with at most one label. The result maps each metric's name to another map, from label values to numbers.
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
