// The browser: questions on one side, the samples of the chosen one on the
// other. Samples lie in blocks of JSON that are read when they are chosen.

const STEP = 200; // questions of the list that are shown before one scrolls
const LONG = 700; // characters of a sample that are shown at once

const FILTERS = {
  all: () => true,
  wrong: (one) => !one.right,
  right: (one) => one.right,
  uncertain: (one) => one.share <= 0.5,
  "had chains": (one) => one.chains > 0,
  ...(several && {
    "runs differ": (_, q) => new Set(q.runs.filter(Boolean).map((o) => o.right)).size > 1,
  }),
};

const state = { run: 0, filter: "all", words: "", found: [], shown: STEP, at: 0, sample: null };
const parts = {};
const details = (r, q) => {
  const block = document.getElementById(`samples-${r}-${q}`);
  return block ? JSON.parse(block.textContent) : null;
};

const haystacks = [];
function haystack(q) {
  if (haystacks[q] === undefined) {
    const row = report.questions[q];
    const texts = [row.id, row.text, row.reference];
    row.runs.forEach((one, r) => {
      if (!one) return;
      const found = details(r, q);
      texts.push(one.answer ?? "", ...found.text, ...found.answers);
    });
    haystacks[q] = texts.join("\n").toLowerCase();
  }
  return haystacks[q];
}

const passes = (name, q) => {
  const one = report.questions[q].runs[state.run];
  return one !== null && FILTERS[name](one, report.questions[q]);
};

const pressedOne = (within) => within.querySelector('[aria-pressed="true"]');

function search() {
  const chosen = state.found[state.at];
  const words = state.words.trim().toLowerCase();
  state.found = report.questions.map((_, q) => q)
    .filter((q) => passes(state.filter, q) && (!words || haystack(q).includes(words)));
  state.at = Math.max(0, state.found.indexOf(chosen));
  state.shown = STEP;
  const focused = parts.filters.contains(document.activeElement);
  parts.filters.replaceChildren(...Object.keys(FILTERS).map((name) => {
    const size = report.questions.filter((_, q) => passes(name, q)).length;
    return node("button", {
      "aria-pressed": name === state.filter,
      title: name === "uncertain" ? "at most half of the samples agree" : name,
      click: () => { state.filter = name; search(); },
    }, `${name} ${size}`);
  }));
  if (focused) pressedOne(parts.filters).focus();
  list();
  if (state.found[state.at] !== chosen || !parts.detail.firstChild) detail();
}

function item(place) {
  const row = report.questions[state.found[place]];
  const marks = row.runs.map((one) => one === null ? node("span", { class: "muted" }, "·")
    : node("span", { class: one.right ? "good" : "bad" }, one.right ? "✓" : "✗"));
  const own = row.runs[state.run];
  return node("button", {
    class: "item", "aria-current": place === state.at,
    click: () => {
      choose(place);
      if (matchMedia("(max-width: 760px)").matches) parts.detail.scrollIntoView();
    },
  }, node("span", {}, ...marks), node("span", { class: "id" }, row.id),
  node("span", { class: "muted", title: "share of samples that agree" }, percent(own.share, 0)),
  node("span", { class: "snippet" }, row.text.trim().slice(0, 160) || "(text not recorded)"));
}

function list() {
  const rows = state.found.slice(0, state.shown).map((_, place) => item(place));
  if (state.shown < state.found.length)
    rows.push(node("button", { class: "item", click: more }, "more"));
  parts.list.replaceChildren(...rows);
  parts.count.textContent =
    `${state.found.length} of ${report.questions.length} questions`;
}

function more() {
  const from = state.shown;
  state.shown += STEP;
  parts.list.lastChild.remove();
  for (let i = from; i < Math.min(state.shown, state.found.length); i++)
    parts.list.append(item(i));
  if (state.shown < state.found.length)
    parts.list.append(node("button", { class: "item", click: more }, "more"));
}

function choose(place) {
  if (place < 0 || place >= state.found.length) return;
  while (place >= state.shown) more();
  parts.list.children[state.at]?.setAttribute("aria-current", "false");
  state.at = place;
  const own = parts.list.children[place];
  own.setAttribute("aria-current", "true");
  own.scrollIntoView({ block: "nearest" });
  detail();
}

// Opens a question of a run from another section.
function show(r, id, row = null) {
  state.run = r;
  state.filter = "all";
  state.words = parts.search.value = "";
  search();
  const wanted = (q) => row ? report.questions[q] === row
    : report.questions[q].id === id && report.questions[q].runs[r];
  choose(state.found.findIndex(wanted));
  document.getElementById("browser").scrollIntoView();
}

const letter = (own) => own < 0 ? "?" : own < 26 ? String.fromCharCode(65 + own) : `${own + 1}`;

const cancelled = (found, i) => found.finish[i] === "cancelled";

function chip(found, own, answer) {
  return node("span", {
    class: `chip ${classColour(own)}${own < 0 ? " none" : ""}`, title: answer ?? "no answer",
  }, node("b", {}, letter(own)), node("span", {}, answer ?? "no answer"),
  found.right.includes(own) ? node("b", { class: "good" }, "✓") : null);
}

function tally(found) {
  const votes = new Map();
  found.ids.forEach((own, i) => {
    if (!cancelled(found, i)) votes.set(own, (votes.get(own) ?? 0) + 1);
  });
  const ordered = [...votes].sort((a, b) => b[1] - a[1] || a[0] - b[0]);
  const bar = node("div", { class: "tally", "aria-hidden": "true" });
  for (const [own, count] of ordered) {
    const piece = node("span", { class: own < 0 ? "none" : classColour(own) });
    piece.style.flexGrow = count;
    bar.append(piece);
  }
  return node("div", {}, bar, node("div", { class: "row" }, ...ordered.slice(0, 12).map(
    ([own, count]) => node("span", {}, chip(found, own, found.answers[own] ?? null), ` ${count}`)),
  ordered.length > 12 ? node("span", { class: "muted" }, `and ${ordered.length - 12} more`) : null));
}

// Samples as nodes, a block for each round, lines to what each chain held;
// without rounds, a block of those that were granted in turn, one of the others.
function graph(found) {
  const block = (round) => !found.granted ? `round ${round}` : round ? "by the policy" : "in turn";
  const [gap, high] = [30, 8];
  const at = [];
  const labels = [];
  let [x, last, filled] = [16, null, 0];
  found.round.forEach((round, i) => {
    if (round !== last) {
      if (last !== null) x += gap * 1.6;
      [last, filled] = [round, 0];
      labels.push(svg("text", { x: x - 8, y: 10 }, block(round)));
    } else if (filled % high === 0) x += gap;
    at[i] = [x, 26 + gap * 0.8 * (filled % high)];
    filled += 1;
  });
  const width = x + 44, height = Math.max(...at.map(([, y]) => y)) + 16;
  const edges = [];
  found.parents.forEach((parents, i) => parents.forEach((parent) => {
    const [[x0, y0], [x1, y1]] = [at[parent], at[i]];
    const middle = (x0 + x1) / 2;
    edges.push(svg("path", {
      class: "edge", "data-child": i,
      d: `M${x0} ${y0}C${middle} ${y0} ${middle} ${y1} ${x1} ${y1}`,
    }));
  }));
  const dots = at.map(([cx, cy], i) => svg("g", {
    class: `${classColour(found.ids[i])} ${found.ids[i] < 0 ? "hollow" : "filled"}` +
      (cancelled(found, i) ? " cancelled" : ""),
    "data-sample": i, click: () => sample(i),
  }, svg("circle", { cx, cy, r: 9 }), svg("text", { x: cx, y: cy + 3 }, `${found.index[i]}`),
  svg("title", {}, `sample ${found.index[i]}: ` +
    (cancelled(found, i) ? "cancelled" : found.answer[i] ?? "no answer"))));
  return node("div", { class: "graph" }, svg("svg",
    { width, height, viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": "Samples and their chains" },
    ...labels, ...edges, ...dots));
}

const links = (label, found, numbers) => numbers.length ? node("span", {}, `${label} `,
  ...numbers.map((i) => node("button", { class: "link", click: () => sample(i) }, `#${found.index[i]}`))) : null;

function card(found, children, i) {
  const text = node("div", { class: "text" });
  text.textContent = found.text[i].slice(0, LONG);
  let all = null;
  if (found.text[i].length > LONG || found.text[i].split("\n").length > 9) {
    text.classList.add("clamp");
    all = node("button", { class: "link", click: () => {
      text.textContent = found.text[i];
      text.classList.remove("clamp");
      all.remove();
    } }, `show all ${found.text[i].length} characters`);
  }
  const finish = found.finish[i];
  const when = !found.granted ? `round ${found.round[i]}`
    : `granted at ${found.granted[i]}, ${cancelled(found, i) ? "cancelled" : "ended"} at ${found.ended[i]}`;
  return node("div", { class: "card sample", tabindex: -1 },
    node("div", { class: "row" },
      node("span", { class: "number" }, `#${found.index[i]}`),
      cancelled(found, i) ? null : chip(found, found.ids[i], found.answer[i]),
      node("span", { class: "muted" }, `${when}, ${found.new[i]} tokens, ` +
        `${found.prompt[i] - found.cached[i]} of its prompt` +
        (found.confidence[i] === null ? "" : `, confidence ${fixed(found.confidence[i])}`)),
      finish === "stop" ? null : node("span", { class: "bad" }, finish),
      links("chain of", found, found.parents[i]), links("read by", found, children[i])),
    text, all);
}

// Goes to a sample of the shown question, by its place.
function sample(i) {
  const cards = parts.detail.querySelectorAll(".sample");
  if (!cards[i]) return;
  state.sample = i;
  for (const one of parts.detail.querySelectorAll(".on")) one.classList.remove("on");
  cards[i].classList.add("on");
  const own = `[data-sample="${i}"], [data-child="${i}"]`;
  for (const one of parts.detail.querySelectorAll(own)) one.classList.add("on");
  cards[i].focus({ preventScroll: true });
  cards[i].scrollIntoView({ block: "nearest" });
}

// Goes to a sample of the shown question, by its index.
const sampleOf = (index) =>
  sample(details(state.run, state.found[state.at]).index.indexOf(index));

// When the samples of a question were granted, and what became of them.
function timesOf(found) {
  const { unit } = runs[state.run].time;
  const place = found.granted.map((_, i) => i)
    .sort((i, j) => found.granted[i] - found.granted[j] || found.index[i] - found.index[j]);
  return node("details", {},
    node("summary", {}, `Its samples over time, in ${unit}`),
    table(["sample", "granted", "ended", "tokens", "chain of", ""], place.map((i) => [
      node("button", { class: "link", click: () => sample(i) }, `#${found.index[i]}`),
      `${found.granted[i]}`, `${found.ended[i]}`, `${found.new[i]}`,
      found.parents[i].map((p) => `#${found.index[p]}`).join(" ") || "–",
      cancelled(found, i) ? "cancelled" : found.finish[i] === "stop" ? "" : found.finish[i]])));
}

function roundsOf(id) {
  const a = runs[state.run].allocation;
  const q = a.ids.indexOf(id);
  const got = a.rounds.map((_, r) => [`${r}`, `${a.grants[r][q]}`, fixed(a.uncertainty[r][q])]);
  return got.length < 2 ? null : node("details", {},
    node("summary", {}, "Its rounds"),
    table(["round", "samples granted", "uncertainty before"], got));
}

function detail() {
  state.sample = null;
  const q = state.found[state.at];
  if (q === undefined) {
    parts.detail.replaceChildren(node("p", { class: "muted" }, "No question is found."));
    return;
  }
  const row = report.questions[q];
  const tabs = several ? node("div", { class: "row" }, ...runs.map((run, r) => {
    const button = node("button", {
      "aria-pressed": r === state.run,
      click: () => {
        state.run = r;
        if (!passes(state.filter, q)) state.filter = "all"; // the question stays
        search();
        detail();
        pressedOne(parts.detail).focus();
      },
    }, run.name);
    button.disabled = row.runs[r] === null;
    return button;
  })) : null;
  const one = row.runs[state.run];
  const found = details(state.run, q);
  const children = found.ids.map(() => []);
  found.parents.forEach((parents, i) => parents.forEach((p) => children[p].push(i)));
  parts.detail.replaceChildren(...[
    node("h3", {}, row.id), tabs,
    node("div", { class: "question" }, row.text || "(The text was not recorded.)"),
    node("p", {}, "reference ", node("b", {}, row.reference), ", vote ",
      node("b", { class: one.right ? "good" : "bad" }, `${one.answer ?? "none"} ${one.right ? "✓" : "✗"}`),
      ` (${percent(one.share, 0)} of ${one.samples} samples agree; ${one.chains} had chains` +
      (one.cancelled ? `; ${one.cancelled} more cancelled)` : ")")),
    tally(found),
    found.ids.length ? graph(found) : null,
    found.granted ? timesOf(found) : roundsOf(row.id),
    ...found.ids.map((_, i) => card(found, children, i)),
  ].filter(Boolean));
}

function browser(place) {
  let timer = 0;
  parts.search = node("input", {
    type: "search", placeholder: "search questions, answers and samples ( / )",
    "aria-label": "Search", input: () => {
      clearTimeout(timer);
      timer = setTimeout(() => { state.words = parts.search.value; search(); }, 150);
    },
  });
  parts.filters = node("div", { class: "row", role: "group", "aria-label": "Filter" });
  parts.count = node("span", { class: "note", role: "status" });
  parts.list = node("div", { class: "list", tabindex: 0, "aria-label": "Questions" });
  parts.detail = node("div", { class: "detail" });
  parts.list.addEventListener("scroll", () => {
    const { scrollTop, clientHeight, scrollHeight } = parts.list;
    if (state.shown < state.found.length && scrollTop + clientHeight > scrollHeight - 200) more();
  });
  place.append(
    node("p", { class: "note" },
      "j and k, or the arrows within this section, go through questions, ← and → through " +
      "samples; / searches. Answers of one colour and letter are the same answer; ✓ marks " +
      "the reference's. ? is a sample without a readable answer."),
    node("div", { class: "panes" },
      node("div", { class: "pane" },
        node("div", { class: "tools" }, parts.search, parts.filters, parts.count), parts.list),
      parts.detail));
  search();
}
