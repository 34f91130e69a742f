// Runs without rounds: what was under way when, and who got it.

const WIDE = 900; // of the figures over time, in their own units
const courseOf = (t) => `${t.steps} ${t.unit}`;

// What the page says that budgets were spent over.
function courses() {
  if (runs.every((run) => !run.time)) return "rounds";
  return runs.every((run) => run.time) ? "time" : "rounds and time";
}

// Where a step lies; the figures of a run end where its last bin does.
const across = (t, left) => {
  const end = t.grants.length * t.width;
  return (step) => left + (step / end) * (WIDE - left);
};

// The number of samples under way, above an axis for the figure below it.
function underWayChart(t, left) {
  const [H, top, bottom] = [104, 14, 34];
  const X = across(t, left);
  const Y = (y) => top + (1 - y / Math.max(1, t.most)) * (H - top - bottom);
  const chart = svg("svg", {
    viewBox: `0 0 ${WIDE} ${H}`, role: "img", "aria-label": "Samples under way over time",
  });
  const end = (p) => X(Math.min((p + 1) * t.part, t.steps));
  const late = X(t.last_grant) > left + 200; // there is room before it
  const line = t.under_way.map((y, p) => `V${Y(y).toFixed(1)}H${end(p).toFixed(1)}`).join("");
  chart.append(
    svg("path", { class: "axis", d: `M${left} ${Y(t.most)}H${WIDE}M${left} ${Y(0)}H${WIDE}` }),
    svg("path", { class: "under", d: `M${left} ${Y(0)}${line}V${Y(0)}Z` }),
    svg("path", { class: "diagonal", d: `M${X(t.last_grant)} ${top}V${Y(0)}` }),
    svg("text", { x: left, y: top - 4 }, `${t.most} under way`),
    svg("text", {
      x: late ? X(t.last_grant) - 4 : Math.max(left + 100, X(t.last_grant) + 4), y: top - 4,
      "text-anchor": late ? "end" : "start",
    }, "last grant"));
  for (const step of wholeTicks(t.steps)) {
    const x = X(step);
    const anchor = x < left + 20 ? "start" : x > WIDE - 20 ? "end" : "middle";
    chart.append(
      svg("path", { class: "axis", d: `M${x} ${Y(0)}v4` }),
      svg("text", { x, y: Y(0) + 15, "text-anchor": anchor }, short(step)));
  }
  chart.append(svg("text", { x: (left + WIDE) / 2, y: Y(0) + 28, "text-anchor": "middle" }, t.unit));
  return chart;
}

const kindOf = (bar) => (bar.chain ? "chain " : "") + bar.kind;

// A bar for each sample, from its grant to its end; a band for each question.
function barChart(t, ids, order, left, describe, chosen) {
  const [lane, gap, least] = [6, 4, 13];
  const X = across(t, left);
  const chart = svg("svg", { role: "img", tabindex: 0, class: "bars", "aria-label": "Samples over time" });
  const rows = ids.map(() => []);
  for (const bar of t.bars) rows[bar.question].push(bar);
  const drawn = new Map();
  let y = 0;
  order.forEach((q, row) => {
    const height = Math.max(least, lane * t.lanes[q]);
    const name = ids[q].length > 18 ? `${ids[q].slice(0, 17)}…` : ids[q];
    chart.append(
      svg("path", { class: "axis", d: `M0 ${y + height + gap / 2}H${WIDE}` }),
      svg("text", { x: 0, y: y + 10 }, name, svg("title", {}, ids[q])));
    rows[q].forEach((bar, column) => {
      const x = X(bar.start);
      const box = svg("rect", {
        class: `bar ${kindOf(bar)}`, x: x + 1, y: y + lane * bar.lane + 0.5,
        width: Math.max(0.5, X(bar.end) - x - 2), height: lane - 1.5,
      });
      drawn.set(box, [row, column]);
      chart.append(box);
    });
    y += height + gap;
  });
  chart.setAttribute("viewBox", `0 0 ${WIDE} ${y}`);
  const boxes = order.map(() => []);
  for (const [box, [row, column]] of drawn) boxes[row][column] = box;
  const read = (row, column) => {
    chart.querySelector(".on")?.classList.remove("on");
    boxes[row][column]?.classList.add("on");
    describe(order[row], rows[order[row]][column]);
  };
  readable(chart, (event) => drawn.get(event.target) ?? null, order.length,
    (row) => Math.max(1, boxes[row].length), read,
    (row, column) => chosen(order[row], rows[order[row]][column]));
  return chart;
}

function barText(id, bar, all) {
  if (!bar) return `${id}: no sample`;
  const how = { end: `ended at ${bar.end}`, cancel: `cancelled at ${bar.end}`,
    left: "under way when the run ended" }[bar.kind];
  return `${id}, sample ${bar.index}${bar.chain ? ", which reads a chain" : ""}: ` +
    `granted at ${bar.start}, ${how}; ${all} in all`;
}

const BARS = [
  ["end", "ended"], ["chain end", "read a chain, and ended"],
  ["cancel", "cancelled"], ["chain cancel", "read a chain, and cancelled"],
  ["left", "under way when the run ended"], ["chain left", "the same, reading a chain"],
];

function barLegend(t) {
  const held = new Set(t.bars.map(kindOf));
  return node("div", { class: "row note" }, ...BARS.filter(([kind]) => held.has(kind)).map(
    ([kind, text]) => node("span", {}, svg("svg", { viewBox: "0 0 22 8", class: "key" },
      svg("rect", { class: `bar ${kind}`, x: 0.5, y: 0.5, width: 21, height: 7 })), text)));
}

function timeText(t) {
  const idle = t.most ? 1 - t.mean / t.most : 0;
  const tail = t.steps - t.last_grant;
  return `At most ${count(t.most, "sample")} were under way at once, ${fixed(t.mean, 1)} on average: ` +
    `${percent(idle, 0)} of the places were idle. The last grant was at ${t.last_grant} of ` +
    `${courseOf(t)}; the tail after it is ${percent(t.steps ? tail / t.steps : 0, 0)} of the run.` +
    (t.cancelled ? ` Cancelled samples: ${t.cancelled}.` : "") +
    (t.left ? ` Samples under way when the run ended, which count nowhere: ${t.left}.` : "");
}

function allocationInTime(run, r) {
  const t = run.time, { ids } = run.allocation;
  const sum = (numbers) => numbers.reduce((a, b) => a + b, 0);
  const total = ids.map((_, q) => sum(t.grants.map((row) => row[q])));
  const order = mostFirst(total);
  const most = Math.max(1, ...t.grants.map((row) => Math.max(...row)));
  const bin = (b) => `${b * t.width} to ${Math.min((b + 1) * t.width - 1, t.steps)}`;
  const caption = node("p", { class: "note cell", "aria-live": "polite" },
    "Point at a bar or a cell to read it, or go there with the arrow keys; a click, a second " +
    "tap or Enter opens its question.");
  const describe = (row, b) => {
    const q = order[row];
    caption.textContent = `${ids[q]}, ${bin(b)}: ${t.grants[b][q]} samples granted ` +
      `(${t.chains[b][q]} of a chain) at uncertainty ${fixed(t.uncertainty[b][q])}, ` +
      `${t.ends[b][q]} ended, ${t.cancels[b][q]} cancelled; ${total[q]} in all`;
  };
  const chosen = (row) => show(r, ids[order[row]]);
  const map = (values, label) => heatMap(
    order.map((q) => values.map((row) => row[q])), label, describe, chosen,
    { room: 480, least: 1, most: 640 });
  const left = t.bars ? 120 : 0;
  const inTime = (...children) => node("div", { class: t.bars ? "time named" : "time" },
    node("div", {}, ...children));
  const figure = t.bars
    ? [barChart(t, ids, order, left,
      (q, bar) => { caption.textContent = barText(ids[q], bar, total[q]); },
      (q, bar) => { show(r, ids[q]); if (bar) sampleOf(bar.index); })]
    : [node("div", { class: "row note" },
      `Samples granted (at most ${most}) of each question (down) over time (across), in ` +
      `${count(t.grants.length, "bin")}; those that got most stand first `,
    node("span", { class: "ramp" })),
    map(t.grants.map((row) => row.map((n) => Math.sqrt(n / most))), "Samples granted")];
  return node("div", { class: "card" }, heading(r),
    node("p", {}, timeText(t)),
    t.bars ? barLegend(t) : null,
    inTime(underWayChart(t, left), ...figure), caption,
    node("p", { class: "note" }, "Uncertainty of the same over time, in " +
      `${count(t.grants.length, "bin")}: entropy of the answers that had ended before each, 0 to 1. ` +
      "The policy may score questions by something else."),
    inTime(map(t.uncertainty, "Uncertainty over time")),
    table([t.unit, "granted", "of a chain", "ended", "cancelled", "questions that got any",
      "their uncertainty", "that of the others"],
    t.bins.map((row, b) => [bin(b), ...[t.grants, t.chains, t.ends, t.cancels]
      .map((rows) => `${sum(rows[b])}`), `${row.questions}`,
      fixed(row.uncertainty), fixed(row.uncertainty_of_others)])));
}
