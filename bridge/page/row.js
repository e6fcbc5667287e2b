// Shows an update as a row of the table. The content comes from a publisher, so it is shown as plain text, except that
// ids become links.

// The maximum number of characters in a row, because an update may be megabytes long.
const LONGEST_TEXT = 600;

const ZKILLBOARD = "https://zkillboard.com";
const VICTIM = { corporation: "victimCorporationId", alliance: "victimAllianceId" };

// The text for each reason of a gap. If a newer bridge gives a reason that this page does not know, the page shows the
// reason's slug.
const GAPS = {
  "broker-away": "the bridge had no broker",
  "stream-truncated": "the stream dropped events before the bridge read them",
  "stream-recreated": "the stream was deleted and declared again",
};

// Makes a table row for an update, or for updates that were missed. `missed` is the data of the message `gap`, or of an
// incomplete `resume`.
export function row({ type, data, timestamp, missed }) {
  const sent = new Date(timestamp).toISOString();
  const time = element("time", sent.slice(11, 19));
  time.dateTime = sent;
  const made = document.createElement("tr");
  made.role = "row";
  if (missed) made.className = "missed";
  const kind = cell(missed ? "missing" : type);
  kind.className = "type";
  made.append(cell(time), kind, cell(...content(type, data, sent, missed)));
  return made;
}

function content(type, data, sent, missed) {
  if (missed) return [whatIsMissing(missed)];
  if (type === "killmail") return killmail(data, sent);
  return members(data);
}

function whatIsMissing(data) {
  if ("complete" in data) {
    const known = `the bridge does not have all updates since the last one; it has ${data.replayed}`;
    return `Updates may be missing here: ${known}.`;
  }
  const why = GAPS[data.reason] ?? data.reason;
  return `Updates may be missing from ${moment(data.since)} to ${moment(data.until)} UTC: ${why}.`;
}

function killmail(data, sent) {
  const parts = [
    link("kill", data.killmailId),
    link("system", data.systemId),
    link("ship", data.shipTypeId),
    // If a killmail's victim has no alliance or no corporation, the member with its id is absent, null or 0.
    ...["corporation", "alliance"].filter((kind) => data[VICTIM[kind]]).map((kind) => link(kind, data[VICTIM[kind]])),
    fact(data.attackerCount === 1 ? "1 attacker" : `${data.attackerCount} attackers`),
  ];
  if (!Number.isNaN(Date.parse(data.killmailTime))) {
    const [day, time] = moment(data.killmailTime).split(" ");
    parts.push(fact(`at ${sent.startsWith(day) ? "" : `${day} `}${time}`));
  }
  return parts;
}

function fact(words) {
  const made = element("span", words);
  made.className = "fact";
  return made;
}

function moment(text) {
  return new Date(text).toISOString().slice(0, 19).replace("T", " ");
}

function link(kind, id) {
  const text = `${kind} ${id}`;
  // Makes a link only for a positive integer, because 0 is never an id, and because other values must not become
  // part of a URL.
  if (!Number.isSafeInteger(id) || id <= 0) return element("span", text);
  const made = element("a", text);
  made.href = `${ZKILLBOARD}/${kind}/${id}/`;
  // The link opens in a new tab, because the page would lose its list if the link replaced the page.
  made.target = "_blank";
  made.rel = "noreferrer noopener";
  return made;
}

// Shows the name and the value of each member of an update whose type this page does not know.
function members(data) {
  if (data === null || typeof data !== "object" || Array.isArray(data)) return [element("code", text(data))];
  const shown = [];
  let left = LONGEST_TEXT;
  const names = Object.keys(data);
  for (const [index, name] of names.entries()) {
    if (left <= 0) {
      shown.push(element("span", `(${names.length - index} more members)`));
      break;
    }
    const member = document.createElement("span");
    const value = text(data[name], left);
    member.append(element("b", text(name, left)), " ", element("code", value));
    shown.push(member);
    left -= name.length + value.length;
  }
  return shown;
}

function text(value, longest = LONGEST_TEXT) {
  const whole = typeof value === "string" ? value : JSON.stringify(value);
  const more = whole.length - longest;
  return more > 0 ? `${whole.slice(0, longest)}… (${more} more characters)` : whole;
}

// Sets the default role of a table cell explicitly. Without explicit roles, screen readers ignore a table if CSS
// changes the `display` of its elements.
function cell(...parts) {
  const made = document.createElement("td");
  made.role = "cell";
  // The spaces allow line breaks, and separate the parts in copied text and for a screen reader.
  made.append(...parts.flatMap((part) => [part, " "]));
  return made;
}

function element(name, words) {
  const made = document.createElement(name);
  made.textContent = words;
  return made;
}
