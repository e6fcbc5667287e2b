// The form's filter is also the query of the page's own address, so that a filtered page can be bookmarked and shared.
//
// The bridge decides whether a filter is valid. The form suggests types and members, which it reads from the bridge's
// AsyncAPI document. The form reports mistakes before it sends the filter.

const DESCRIPTION = "asyncapi.json";

// Maps each JSON type of a member to a description, and to a function that checks whether a text in the query is a
// value of this type.
const NUMBER = /^-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]+)?$/;
const KINDS = {
  string: ["a text", () => true],
  integer: ["an integer (30000142)", (text) => NUMBER.test(text) && Number.isInteger(Number(text))],
  number: ["a number (0.5)", (text) => NUMBER.test(text) && Number.isFinite(Number(text))],
  boolean: ["true or false", (text) => text === "true" || text === "false"],
  null: ["null", (text) => text === "null"],
};

// Calls `onChange` after each change of the filter.
export function filterOf(page, onChange) {
  const details = page.getElementById("filter");
  const words = page.getElementById("filter-words");
  const form = page.getElementById("filter-form");
  const types = page.getElementById("types");
  const conditions = page.getElementById("conditions");
  const member = page.getElementById("member");
  const value = page.getElementById("value");
  const mistake = page.getElementById("mistake");
  const refusal = page.getElementById("refusal");

  let known = []; // The update types of the bridge.
  let kinds; // A map from each member to the JSON types of its values. Undefined until the bridge has described them.
  let asked = read();

  function read() {
    const found = new URLSearchParams(location.search);
    // The function `connect` adds the parameter `after` itself.
    found.delete("after");
    return found;
  }

  function change(wanted) {
    asked = wanted;
    const query = asked.toString();
    history.pushState(null, "", query ? `?${query}` : location.pathname);
    show();
    onChange();
  }

  function show() {
    const chosen = asked.getAll("type");
    const members = [...asked].filter(([name]) => name !== "type");
    words.textContent = `Filter: ${inWords(chosen, members) || "everything"}`;
    showTypes(chosen);
    conditions.replaceChildren(...members.map(([name, wanted]) => condition(name, wanted)));
    conditions.hidden = members.length === 0;
  }

  function showTypes(chosen) {
    // The list includes types that the bridge does not know, so that the user can remove these types from the filter.
    const names = [...new Set([...known, ...chosen])];
    const shown = [...types.querySelectorAll("input")].map((box) => box.value);
    // The elements are replaced only if the names have changed, because a replaced element loses the focus.
    if (shown.join("\n") !== names.join("\n")) types.replaceChildren(...names.map(choice));
    for (const box of types.querySelectorAll("input")) {
      box.checked = chosen.includes(box.value);
      mark(box.parentElement, wrongWith("type", box.value)?.words);
    }
  }

  // Returns the mistake in a condition, and the field that contains the mistake, or undefined if it finds no mistake.
  function wrongWith(name, wanted) {
    if (!kinds) return undefined;
    if (name === "type") {
      if (known.includes(wanted)) return undefined;
      return { field: value, words: `there is no update type '${wanted}'${like(wanted, known)}` };
    }
    const fitting = kinds.get(name);
    if (!fitting) {
      return { field: member, words: `there is no member '${name}' to filter by${like(name, [...kinds.keys()])}` };
    }
    if (fitting.some((kind) => KINDS[kind]?.[1](wanted) ?? true)) return undefined;
    const words = fitting.map((kind) => KINDS[kind][0]).join(" or ");
    return { field: value, words: `${name} must be ${words}; got '${wanted}'` };
  }

  function showMistake(wrong) {
    for (const field of [member, value]) field.ariaInvalid = String(field === wrong?.field);
    mistake.textContent = wrong?.words ?? "";
  }

  function choice(name) {
    const box = document.createElement("input");
    box.type = "checkbox";
    box.value = name;
    box.addEventListener("change", () => {
      const others = new URLSearchParams([...asked].filter(([key, type]) => key !== "type" || type !== name));
      if (box.checked) others.append("type", name);
      change(others);
    });
    const label = document.createElement("label");
    label.append(box, " ", name);
    return label;
  }

  function condition(name, wanted) {
    const remove = document.createElement("button");
    remove.type = "button";
    remove.textContent = "Remove";
    remove.setAttribute("aria-label", `Remove ${name} = ${wanted}`);
    remove.addEventListener("click", () => {
      change(new URLSearchParams([...asked].filter(([key, text]) => key !== name || text !== wanted)));
      // The removed button had the focus, so another element gets the focus.
      member.focus();
    });
    const item = document.createElement("li");
    const text = document.createElement("code");
    text.textContent = `${name} = ${wanted}`;
    item.append(text, " ", remove);
    mark(item, wrongWith(name, wanted)?.words);
    return item;
  }

  async function suggest() {
    try {
      const description = await (await fetch(DESCRIPTION)).json();
      const { type, ...others } = description.channels.updates.bindings.ws.query.properties;
      known = type.items.enum;
      // A parameter that can occur only once, such as `after`, is not a member.
      const members = Object.entries(others).filter(([, { items }]) => items);
      kinds = new Map(members.map(([name, { items }]) => [name, [items.type].flat()]));
      page.getElementById("description").hidden = false;
      page.getElementById("members").replaceChildren(
        ...[...kinds].map(([name, fitting]) => {
          const option = document.createElement("option");
          option.value = name;
          option.label = fitting.join(" or ");
          return option;
        }),
      );
    } catch {
      // If the bridge's document can't be read, the form works without suggestions.
    }
    show();
  }

  form.addEventListener("submit", (event) => {
    event.preventDefault();
    const [name, text] = [member.value.trim(), value.value.trim()];
    const wrong = wrongWith(name, text);
    showMistake(wrong);
    if (wrong) {
      wrong.field.focus();
      return;
    }
    const wanted = new URLSearchParams(asked);
    wanted.append(name, text);
    member.value = value.value = "";
    change(wanted);
    member.focus();
  });
  form.addEventListener("input", () => showMistake());
  addEventListener("popstate", () => {
    asked = read();
    show();
    onChange();
  });
  details.open = asked.size > 0;
  show();
  suggest();

  return {
    query: () => asked.toString(),

    // Shows why the bridge refuses the filter, or nothing if `sentence` is empty.
    refuse(sentence) {
      if (refusal.textContent !== sentence) refusal.textContent = sentence;
      if (!sentence) return;
      details.open = true;
      show();
      if (details.querySelector(".wrong")) return;
      // The form has found no mistake, so it marks the conditions that the bridge's sentence names.
      for (const item of conditions.children) {
        const [name] = item.firstElementChild.textContent.split(" = ");
        if (sentence.includes(name)) mark(item, "this is refused");
      }
    },
  };
}

// Describes a mistake in words next to an element, because color alone is not accessible.
function mark(element, words) {
  element.querySelector(".mistake")?.remove();
  element.classList.toggle("wrong", words !== undefined);
  if (words === undefined) return;
  const made = document.createElement("span");
  made.className = "mistake";
  made.textContent = words;
  element.append(" ", made);
}

function like(name, names) {
  const close = names.find((other) => distance(name.toLowerCase(), other.toLowerCase()) <= 2);
  return close === undefined ? "" : `; did you mean ${close}?`;
}

// Returns how many letters must be inserted, deleted or replaced to change one word into the other.
function distance(one, other) {
  if (Math.abs(one.length - other.length) > 2) return Infinity;
  let row = [...other, ""].map((_, index) => index);
  for (const [index, letter] of [...one].entries()) {
    const next = [index + 1];
    for (let at = 0; at < other.length; at += 1) {
      next.push(Math.min(next[at] + 1, row[at + 1] + 1, row[at] + (letter === other[at] ? 0 : 1)));
    }
    row = next;
  }
  return row[other.length];
}

function inWords(types, members) {
  const values = new Map();
  for (const [name, value] of members) values.set(name, [...(values.get(name) ?? []), value]);
  const parts = [...values].map(([name, wanted]) => `${name} = ${wanted.join(" or ")}`);
  return [...(types.length > 0 ? [types.join(" or ")] : []), ...parts].join(", ");
}
