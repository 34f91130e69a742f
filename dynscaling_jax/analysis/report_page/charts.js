// Elements and figures. Texts become text nodes and nothing else: neither
// markup nor an address is ever made of data.

const SVG = "http://www.w3.org/2000/svg";

function fill(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (typeof value === "function") element.addEventListener(name, value);
    else element.setAttribute(name, value);
  }
  element.append(...children.filter((child) => child !== null));
  return element;
}

const node = (tag, attributes = {}, ...children) =>
  fill(document.createElement(tag), attributes, children);
const svg = (tag, attributes = {}, ...children) =>
  fill(document.createElementNS(SVG, tag), attributes, children);

const percent = (x, digits = 1) =>
  x === null ? "–" : `${(100 * x).toFixed(digits)}%`;
const points = (x) => (x < 0 ? "−" : "+") + Math.abs(100 * x).toFixed(1);
const short = (x) => {
  if (x === null) return "–";
  for (const [size, unit] of [[1e12, "T"], [1e9, "G"], [1e6, "M"], [1e3, "k"]])
    if (Math.abs(x) >= size) return `${+(x / size).toPrecision(3)}${unit}`;
  return `${+x.toPrecision(3)}`;
};
const count = (n, what) => `${n} ${what}${n === 1 ? "" : "s"}`;
const fixed = (x, digits = 2) => (x === null ? "–" : x.toFixed(digits));

// Runs and classes of answers take the same colours; past eight runs lines
// are dashed too, past eight classes all are grey.
const runColour = (r) => `c${r % 8}`;
const classColour = (own) => (own < 0 || own > 7 ? "cx" : `c${own}`);

function logTicks(low, high, binary) {
  const steps = [];
  if (binary) {
    for (let x = 2 ** Math.ceil(Math.log2(low)); x <= high; x *= 2) steps.push(x);
  } else {
    for (let ten = 10 ** Math.floor(Math.log10(low)); ten <= high; ten *= 10)
      for (const m of [1, 2, 5])
        if (m * ten >= low && m * ten <= high) steps.push(m * ten);
  }
  const every = Math.ceil(steps.length / 6);
  return steps.filter((_, i) => i % every === 0);
}

function linearTicks(low, high) {
  const step = [0.01, 0.02, 0.05, 0.1, 0.2].find((s) => (high - low) / s <= 6);
  const ticks = [];
  for (let i = Math.ceil(low / step - 1e-9); i * step <= high + 1e-9; i++)
    ticks.push(i * step);
  return ticks;
}

// From 0 in round whole steps, at most seven of them.
function wholeTicks(high) {
  let step = 1;
  for (let ten = 1; high / step > 6; ten *= 10)
    step = [1, 2, 5, 10].map((m) => m * ten).find((s) => high / s <= 6) ?? step;
  return Array.from({ length: Math.floor(high / step) + 1 }, (_, i) => i * step);
}

// series: [{name, x, y, low, high, colour, dashed}], x above 0; scale: binary
// or decimal, both logarithmic, or linear.
function curveChart(series, label, scale) {
  const [W, H, left, right, top, bottom] = [360, 250, 42, 10, 8, 36];
  const xs = series.flatMap((s) => s.x);
  const lows = series.flatMap((s) => s.low);
  const highs = series.flatMap((s) => s.high);
  let [x0, x1] = [Math.min(...xs), Math.max(...xs)];
  if (x1 <= x0) [x0, x1] = [x0 / 1.5, x1 * 1.5];
  const linear = scale === "linear";
  const y1 = Math.max(Math.ceil(20 * Math.max(...highs)) / 20, 0.05);
  const y0 = Math.max(0, Math.min(Math.floor(20 * Math.min(...lows)) / 20, y1 - 0.05));
  const X = (x) => left + (W - left - right) *
    (linear ? x / x1 : Math.log(x / x0) / Math.log(x1 / x0));
  const Y = (y) => top + ((y1 - y) / (y1 - y0)) * (H - top - bottom);
  const chart = svg("svg", {
    viewBox: `0 0 ${W} ${H}`, role: "img", "aria-label": `Accuracy against ${label}`,
  });
  for (const y of linearTicks(y0, y1))
    chart.append(
      svg("path", { class: "axis", d: `M${left} ${Y(y)}H${W - right}` }),
      svg("text", { x: left - 6, y: Y(y) + 4, "text-anchor": "end" }, percent(y, 0)),
    );
  for (const x of linear ? wholeTicks(x1) : logTicks(x0, x1, scale === "binary"))
    chart.append(
      svg("path", { class: "axis", d: `M${X(x)} ${H - bottom}v4` }),
      svg("text", { x: X(x), y: H - bottom + 16, "text-anchor": "middle" }, short(x)),
    );
  chart.append(
    svg("text", { x: (left + W - right) / 2, y: H - 3, "text-anchor": "middle" }, label),
  );
  for (const s of series) {
    const at = (ys) => s.x.map((x, i) => `${X(x).toFixed(1)} ${Y(ys[i]).toFixed(1)}`);
    const band = `M${at(s.high).join("L")}L${at(s.low).reverse().join("L")}Z`;
    const group = svg("g", { class: s.colour },
      svg("path", { class: "band", d: band }),
      svg("path", { class: s.dashed ? "line dash" : "line", d: `M${at(s.y).join("L")}` }));
    s.x.forEach((x, i) => {
      const title = `${s.name}: ${percent(s.y[i])} (${percent(s.low[i])} to ` +
        `${percent(s.high[i])}) at ${short(x)}`;
      group.append(svg("circle", { class: "dot", cx: X(x), cy: Y(s.y[i]), r: 2.4 },
        svg("title", {}, title)));
    });
    chart.append(group);
  }
  return chart;
}

// The share that agreed against how often it was right; dots are as large as the bins are full.
function reliabilityChart(c, colour) {
  const [S, left, top, bottom] = [300, 42, 8, 36];
  const X = (x) => left + x * (S - left - 8);
  const Y = (y) => top + (1 - y) * (S - top - bottom);
  const chart = svg("svg", {
    viewBox: `0 0 ${S} ${S}`, class: "square", role: "img",
    "aria-label": "Share of right votes against the share of samples that agreed",
  });
  for (const t of [0, 0.25, 0.5, 0.75, 1])
    chart.append(
      svg("path", { class: "axis", d: `M${left} ${Y(t)}H${S - 8}` }),
      svg("text", { x: left - 6, y: Y(t) + 4, "text-anchor": "end" }, percent(t, 0)),
      svg("text", { x: X(t), y: S - bottom + 16, "text-anchor": "middle" }, percent(t, 0)),
    );
  chart.append(
    svg("path", { class: "diagonal", d: `M${X(0)} ${Y(0)}L${X(1)} ${Y(1)}` }),
    svg("text", { x: X(0.5), y: S - 3, "text-anchor": "middle" }, "share of samples that agreed"),
  );
  const most = Math.max(...c.count);
  c.count.forEach((size, b) => {
    if (!size) return;
    const [x, y] = [X(c.confidence[b]), Y(c.right[b])];
    const title = `${count(size, "question")}: ${percent(c.confidence[b])} agreed, ` +
      `${percent(c.right[b])} right (${percent(c.low[b])} to ${percent(c.high[b])})`;
    chart.append(svg("g", { class: colour },
      svg("path", { class: "whisker", d: `M${x} ${Y(c.low[b])}V${Y(c.high[b])}` }),
      svg("circle", { class: "dot", cx: x, cy: y, r: 3 + 7 * Math.sqrt(size / most) },
        svg("title", {}, title))));
  });
  return chart;
}

const redraws = [];
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () =>
  redraws.forEach((redraw) => redraw()));

const within = (place, count) => Math.max(0, Math.min(count - 1, place));

// Cells of a figure, in rows, that a reader points at, or goes through with the
// arrow keys; a click, a second tap or Enter chooses one. at(event) is a
// [row, column], or null beside all cells; columns(row) says how many there are.
function readable(figure, at, rows, columns, describe, chosen) {
  let cell = [0, 0], touched = "", finger = false;
  const read = (event) => {
    const found = at(event);
    if (found) describe(...(cell = found));
    return found;
  };
  figure.addEventListener("pointermove", read);
  figure.addEventListener("pointerdown", (event) => {
    finger = event.pointerType === "touch";
  });
  figure.addEventListener("focus", () => describe(...cell));
  figure.addEventListener("click", (event) => {
    if (!read(event)) return;
    // a finger reads a cell first, and opens it by a second tap
    const open = !finger || touched === `${cell}`;
    touched = `${cell}`;
    if (open) chosen(...cell);
  });
  figure.addEventListener("keydown", (event) => {
    const steps = {
      ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1],
    };
    const step = steps[event.key];
    if (event.key === "Enter") chosen(...cell);
    if (!step || event.altKey || event.ctrlKey || event.metaKey) return;
    event.preventDefault();
    const row = within(cell[0] + step[0], rows);
    cell = [row, within(cell[1] + step[1], columns(row))];
    describe(...cell);
  });
}

// A cell for each row and column; describe and chosen get both. values are in
// [0, 1]. A cell is as high as there is room, at least so many pixels as least
// says; all of them may be squeezed into most.
function heatMap(values, label, describe, chosen, { room = 320, least = 4, most = Infinity } = {}) {
  const rows = values.length, columns = values[0].length;
  const height = Math.max(least, Math.min(22, Math.floor(room / rows)));
  const canvas = node("canvas", { role: "img", tabindex: 0, "aria-label": label });
  const draw = () => {
    const style = getComputedStyle(document.documentElement);
    const colour = (name) => style.getPropertyValue(name).trim();
    const width = Math.ceil(1200 / columns);
    canvas.width = columns * width;
    canvas.height = rows * height;
    canvas.style.height = `${Math.min(most, rows * height)}px`;
    const pen = canvas.getContext("2d");
    pen.fillStyle = colour("--soft");
    pen.fillRect(0, 0, canvas.width, canvas.height);
    pen.fillStyle = colour("--accent");
    const [across, down] = [width > 6 ? 1 : 0, height > 3 ? 1 : 0];
    values.forEach((row, r) => row.forEach((value, q) => {
      pen.globalAlpha = value;
      pen.fillRect(q * width, r * height, width - across, height - down);
    }));
  };
  const at = (event) => {
    const box = canvas.getBoundingClientRect();
    const place = (share, count) => within(Math.floor(share * count), count);
    return [place((event.clientY - box.top) / box.height, rows),
      place((event.clientX - box.left) / box.width, columns)];
  };
  readable(canvas, at, rows, () => columns, describe, chosen);
  redraws.push(draw);
  draw();
  return canvas;
}
