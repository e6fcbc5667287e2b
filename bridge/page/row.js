// An update as a row of the table. What it holds is a publisher's: it becomes text, and a number may become a link.

// Of an update that may have megabytes, as much as a person reads.
const LONGEST_TEXT = 600;

const ZKILLBOARD = "https://zkillboard.com";
const VICTIM = { corporation: "victimCorporationId", alliance: "victimAllianceId" };

// What a gap's reasons mean. Another one, of a newer bridge, is shown as it is.
const GAPS = {
  "broker-away": "the bridge had no broker",
  "stream-truncated": "the stream dropped events before the bridge read them",
  "stream-recreated": "the stream was deleted and made again",
};

// An update, or what may be missing: `missed` is the data of a `gap`, or of a `resume` that is not complete.
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
    const following = data.replayed === 1 ? "1 update that is kept follows" : `${data.replayed} that are kept follow`;
    return `Updates may be missing here: the bridge does not know or keep all that came after the last one; ${following}.`;
  }
  return `Updates may be missing from ${moment(data.since)} to ${moment(data.until)} UTC: ${GAPS[data.reason] ?? data.reason}.`;
}

function killmail(data, sent) {
  const parts = [
    link("kill", data.killmailId),
    link("system", data.systemId),
    link("ship", data.shipTypeId),
    // Many victims are in no alliance, some in no corporation: left out, null or 0.
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
  // 0 is no id, and anything but a number has no place in an address.
  if (!Number.isSafeInteger(id) || id <= 0) return element("span", text);
  const made = element("a", text);
  made.href = `${ZKILLBOARD}/${kind}/${id}/`;
  // In a tab of its own: this page would lose what it has, and whoever comes back to it would find it empty.
  made.target = "_blank";
  made.rel = "noreferrer noopener";
  return made;
}

// Any type that there may be: name and value of each member.
function members(data) {
  if (data === null || typeof data !== "object" || Array.isArray(data)) return [element("code", text(data))];
  const shown = [];
  let left = LONGEST_TEXT;
  const names = Object.keys(data);
  for (const [index, name] of names.entries()) {
    if (left <= 0) {
      shown.push(element("span", `(${names.length - index} members more)`));
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
  return more > 0 ? `${whole.slice(0, longest)}… (${more} characters more)` : whole;
}

// With roles, though they are a table's own: where the style makes no table of it, it would be none to a screen reader.
function cell(...parts) {
  const made = document.createElement("td");
  made.role = "cell";
  // With a space between them: where a line may break, and where one ends for whoever listens or copies.
  made.append(...parts.flatMap((part) => [part, " "]));
  return made;
}

function element(name, words) {
  const made = document.createElement(name);
  made.textContent = words;
  return made;
}
