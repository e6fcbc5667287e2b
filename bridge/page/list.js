// The list of the newest updates, newest first. The list does not change while it is paused, while it is scrolled down,
// or while it has the keyboard focus. While the list does not change, it counts the new updates and keeps the newest
// ones for later.
import { row } from "./row.js";

const MOST_ROWS = 100;

// The minimum time between two changes of the list, because people can't follow more than a few changes a second. On a
// slow machine, the time between two changes is several times as long as a change itself, so that the page stays
// responsive.
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

  let pending = []; // Rows, oldest first. A row keeps only the shown part of an update, which may have megabytes.
  let fresh = 0; // The number of updates since the last change of the list. `pending` may have fewer.
  let isPaused = false;
  let isDue = false;
  let changedMs = -Infinity;
  let calmMs = CALM_MS;

  function holding() {
    if (isPaused) return "Paused";
    const focused = page.activeElement;
    // A clicked link also has the focus, but only `:focus-visible` shows that the focus comes from the keyboard.
    if (rows.contains(focused) && focused.matches(":focus-visible")) return "Held: keyboard in list";
    if (!table.hidden && table.getBoundingClientRect().top < bar.getBoundingClientRect().bottom - 1) {
      return "Held: scrolled down";
    }
    return "";
  }

  function schedule() {
    if (isDue) return;
    isDue = true;
    // The list changes with the browser's next frame, which a hidden tab draws only when it becomes visible.
    setTimeout(() => requestAnimationFrame(refresh), Math.max(0, changedMs + calmMs - performance.now()));
  }

  function refresh() {
    isDue = false;
    const beganMs = (changedMs = performance.now());
    const why = holding();
    if (!why && pending.length > 0) draw();
    if (held.textContent !== why) held.textContent = why;
    showFresh();
    // The measured duration includes the browser's layout and paint, which take most of the time.
    setTimeout(() => {
      changedMs = performance.now();
      calmMs = Math.min(LONGEST_CALM_MS, Math.max(CALM_MS, CALM_TIMES * (changedMs - beganMs)));
    });
  }

  function showFresh() {
    const words = `${number.format(fresh)} new: show${fresh > MOST_ROWS ? ` ${MOST_ROWS}` : ""}`;
    if (more.textContent !== words) more.textContent = words;
    // A button loses the focus when it is hidden, so the focus moves to another element.
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

  function showEmpty(isFiltered, since) {
    const time = new Date().toISOString().slice(11, 16);
    empty.textContent = `No ${isFiltered ? "matching " : ""}updates since ${since} (${time} UTC).`;
  }

  function toggle() {
    isPaused = !isPaused;
    word.textContent = isPaused ? "Resume" : "Pause";
    refresh();
  }

  more.addEventListener("click", () => {
    draw();
    // Scrolls to the new rows if they are out of sight.
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

    // Sets the text that is shown while the list is empty. `isFiltered` is true if a filter is set.
    expect(isFiltered) {
      showEmpty(isFiltered, "this page was opened");
    },

    clear(isFiltered) {
      showEmpty(isFiltered, "the filter was changed");
      pending = [];
      fresh = 0;
      rows.replaceChildren();
      table.hidden = true;
      empty.hidden = false;
      schedule();
    },
  };
}
