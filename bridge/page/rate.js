// Shows the rate of updates over the last five minutes, as a small chart and in words.

const BAR_S = 5;
const BARS = 60;
const BETWEEN_MS = 1000;

const precise = new Intl.NumberFormat("en", { maximumSignificantDigits: 2 });
const whole = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });

// Starts to show the rate. Returns a function that the caller must call for each update.
export function showRate(page) {
  const words = page.getElementById("rate-words");
  const bars = page.getElementById("rate-bars");
  const scale = page.getElementById("rate-scale");
  const short = page.getElementById("rate-short");
  const unseen = page.getElementById("unseen");
  const startS = performance.now() / 1000;
  const opened = new Date().toISOString().slice(11, 16);
  const counts = new Array(BARS).fill(0); // A ring: the index of a bar is its number modulo the length of the ring.
  let last = 0;

  function barAt(nowS) {
    return Math.floor((nowS - startS) / BAR_S);
  }

  function turnTo(nowS) {
    const bar = barAt(nowS);
    for (let next = Math.max(last + 1, bar - BARS + 1); next <= bar; next += 1) counts[next % BARS] = 0;
    last = bar;
  }

  function show() {
    if (page.hidden) return;
    const nowS = performance.now() / 1000;
    turnTo(nowS);
    const inOrder = counts.map((_, index) => counts[(last + 1 + index) % BARS]);
    // The rate is computed over at least five seconds, because a single second says little about the rate.
    const since = (bar) => Math.max(BAR_S, nowS - startS - Math.max(0, bar) * BAR_S);
    const now = (inOrder[BARS - 1] + inOrder[BARS - 2]) / since(last - 1);
    const average = inOrder.reduce((sum, count) => sum + count, 0) / since(last - BARS + 1);
    // The rate `now` is computed from two bars of the chart, and may exceed the rates of both bars.
    const peak = Math.max(now, average, ...inOrder.map((count) => count / BAR_S));
    write(words, `Now ${figure(now)} a second, average ${figure(average)}, peak ${figure(peak)}`);
    write(short, `${figure(now)} a second`);
    const most = roundUp(peak);
    write(scale, peak > 0 ? `full height: ${figure(most)} a second` : "");
    bars.setAttribute("d", inOrder.map((count, index) => outline(index, count / BAR_S / most)).join(""));
    showUnseen(Math.max(0, BARS - 1 - last));
  }

  // Marks the part of the chart that shows the time before the page was opened. Without the mark, empty bars would look
  // like an outage.
  function showUnseen(before) {
    unseen.hidden = before === 0;
    unseen.style.width = `${(100 * before) / BARS}%`;
    // Hides the label if it does not fit, because an incomplete label could mislead the user.
    unseen.classList.toggle("narrow", before < BARS / 2);
    write(unseen.firstElementChild, before > 0 ? `Unknown before this page was opened (${opened} UTC)` : "");
  }

  setInterval(show, BETWEEN_MS);
  page.addEventListener("visibilitychange", show);
  show();
  return () => {
    turnTo(performance.now() / 1000);
    counts[last % BARS] += 1;
  };
}

function outline(index, part) {
  const height = part === 0 ? 0 : Math.max(1, 60 * part);
  return `M${index * 5} 60v${-height}h4v${height}z`;
}

// Rounds a number up to 1, 2 or 5 times a power of ten, so that the chart's scale changes rarely and has a short label.
function roundUp(value) {
  const power = 10 ** Math.floor(Math.log10(value || 1));
  return power * [1, 2, 5, 10].find((step) => value <= step * power);
}

function figure(value) {
  return (value < 10 ? precise : whole).format(value);
}

function write(element, text) {
  if (element.textContent !== text) element.textContent = text;
}
