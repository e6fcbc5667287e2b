// Which updates are asked for: a form, and the page's own address, so that a filtered page can be kept and shared.
//
// Whether a filter is right is the bridge's to judge; what it knows by name is suggested.

const DESCRIPTION = "asyncapi.json";

// `onChange` is called whenever something else is asked for than before.
export function filterOf(page, onChange) {
  const details = page.getElementById("filter");
  const words = page.getElementById("filter-words");
  const form = page.getElementById("filter-form");
  const types = page.getElementById("types");
  const conditions = page.getElementById("conditions");
  const member = page.getElementById("member");
  const value = page.getElementById("value");
  const refusal = page.getElementById("refusal");

  let known = []; // Update types.
  let asked = read();

  function read() {
    const found = new URLSearchParams(location.search);
    // Where to go on is the page's own business.
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
    // Those that the bridge does not know too: they must be there to be taken away.
    const names = [...new Set([...known, ...chosen])];
    const shown = [...types.querySelectorAll("input")].map((box) => box.value);
    // Not made anew where nothing has come or gone: the focus would be lost.
    if (shown.join("\n") !== names.join("\n")) types.replaceChildren(...names.map(choice));
    for (const box of types.querySelectorAll("input")) box.checked = chosen.includes(box.value);
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
      // The button is gone, and the focus with it.
      member.focus();
    });
    const item = document.createElement("li");
    const text = document.createElement("code");
    text.textContent = `${name} = ${wanted}`;
    item.append(text, " ", remove);
    return item;
  }

  async function suggest() {
    try {
      const description = await (await fetch(DESCRIPTION)).json();
      const { type, after, ...members } = description.channels.updates.bindings.ws.query.properties;
      known = type.items.enum;
      page.getElementById("members").replaceChildren(
        ...Object.entries(members).map(([name, { items }]) => {
          const option = document.createElement("option");
          option.value = name;
          option.label = [items.type].flat().join(" or ");
          return option;
        }),
      );
    } catch {
      // It is a help, and no more: what is asked for can be written without it.
    }
    show();
  }

  form.addEventListener("submit", (event) => {
    event.preventDefault();
    const wanted = new URLSearchParams(asked);
    wanted.append(member.value.trim(), value.value.trim());
    member.value = value.value = "";
    change(wanted);
    member.focus();
  });
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

    // Says why the bridge does not answer it; nothing where it does.
    refuse(sentence) {
      if (refusal.textContent !== sentence) refusal.textContent = sentence;
      if (sentence) details.open = true;
    },
  };
}

function inWords(types, members) {
  const values = new Map();
  for (const [name, value] of members) values.set(name, [...(values.get(name) ?? []), value]);
  const parts = [...values].map(([name, wanted]) => `${name} = ${wanted.join(" or ")}`);
  return [...(types.length > 0 ? [types.join(" or ")] : []), ...parts].join(", ");
}
