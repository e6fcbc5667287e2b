// The newest updates, newest first. It holds still while somebody reads: paused, scrolled down, or with the keyboard
// in it. What comes meanwhile is counted, and the newest of it kept.
import { row } from "./row.js";

const MOST_ROWS = 100;

// Between two changes of what is seen, however many updates come: a few a second are as many as anybody can follow. On
// a slow machine it is some times what a change takes, so that the page answers in between.
const CALM_MS = 300;
const LONGEST_CALM_MS = 2000;
const CALM_TIMES = 5;

const number = new Intl.NumberFormat("en");

export function listOf(page) {
  const table = page.getElementById("updates");
  const empty = page.getElementById("empty");
  const bar = page.getElementById("bar");
  const held = page.getElementById("held");
  const more = page.getElementById("more");
  const pause = page.getElementById("pause");
  const word = page.getElementById("pause-word");
  const rows = table.tBodies[0];

  let pending = []; // Rows, oldest first: of an update that has megabytes, no more is kept than a row shows.
  let fresh = 0; // Updates that came since the list was changed; not all of them may be pending any more.
  let isPaused = false;
  let isDue = false;
  let changedMs = -Infinity;
  let calmMs = CALM_MS;

  function holding() {
    if (isPaused) return "Paused";
    const focused = page.activeElement;
    // A link that was clicked keeps the focus, but whoever clicked it is not in the list with the keyboard.
    if (rows.contains(focused) && focused.matches(":focus-visible")) return "Held: keyboard in list";
    if (!table.hidden && table.getBoundingClientRect().top < bar.getBoundingClientRect().bottom - 1) {
      return "Held: scrolled down";
    }
    return "";
  }

  function schedule() {
    if (isDue) return;
    isDue = true;
    // With a picture that is drawn anyway; in a tab that nobody sees, once it is seen.
    setTimeout(() => requestAnimationFrame(refresh), Math.max(0, changedMs + calmMs - performance.now()));
  }

  function refresh() {
    isDue = false;
    const beganMs = (changedMs = performance.now());
    const why = holding();
    if (!why && pending.length > 0) draw();
    if (held.textContent !== why) held.textContent = why;
    tellFresh();
    // Once it is laid out and drawn, which takes most of the time.
    setTimeout(() => {
      changedMs = performance.now();
      calmMs = Math.min(LONGEST_CALM_MS, Math.max(CALM_MS, CALM_TIMES * (changedMs - beganMs)));
    });
  }

  function tellFresh() {
    const words = `${number.format(fresh)} new: show${fresh > MOST_ROWS ? ` ${MOST_ROWS}` : ""}`;
    if (more.textContent !== words) more.textContent = words;
    // The focus would be lost with it.
    if (fresh === 0 && page.activeElement === more) pause.focus();
    more.hidden = fresh === 0;
  }

  function draw() {
    rows.prepend(...pending.slice(-MOST_ROWS).reverse());
    pending = [];
    fresh = 0;
    while (rows.rows.length > MOST_ROWS) rows.deleteRow(-1);
    empty.hidden = true;
    table.hidden = false;
  }

  function told(isFiltered, since) {
    const time = new Date().toISOString().slice(11, 16);
    empty.textContent = `Nothing ${isFiltered ? "that fits " : ""}has come since ${since} (${time} UTC).`;
  }

  function toggle() {
    isPaused = !isPaused;
    word.textContent = isPaused ? "Resume" : "Pause";
    refresh();
  }

  more.addEventListener("click", () => {
    draw();
    // To where the new ones are, if they are out of sight.
    if (table.getBoundingClientRect().top < bar.getBoundingClientRect().bottom - 1) bar.parentElement.scrollIntoView();
    refresh();
  });
  pause.addEventListener("click", toggle);
  page.addEventListener("keydown", (event) => {
    if (event.key !== "p" || event.ctrlKey || event.metaKey || event.altKey || event.repeat) return;
    if (!event.target.closest("input, select, textarea")) toggle();
  });
  page.addEventListener("scroll", schedule, { passive: true });
  rows.addEventListener("focusin", schedule);
  rows.addEventListener("focusout", schedule);

  return {
    add(item) {
      pending.push(row(item));
      if (pending.length > 2 * MOST_ROWS) pending = pending.slice(-MOST_ROWS);
      fresh += 1;
      schedule();
    },

    // Says what is missing in it where nothing has come. `isFiltered` is whether only some of the updates may.
    expect(isFiltered) {
      told(isFiltered, "this page was opened");
    },

    clear(isFiltered) {
      told(isFiltered, "the filter was changed");
      pending = [];
      fresh = 0;
      rows.replaceChildren();
      table.hidden = true;
      empty.hidden = false;
      schedule();
    },
  };
}
