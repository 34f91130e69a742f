// The sections above the browser: runs, signs, curves, allocation,
// calibration, differences.

const report = JSON.parse(document.getElementById("report").textContent);
const runs = report.runs;
const several = runs.length > 1;
const body = (id) => document.querySelector(`#${id} > div`);
const swatch = (r) =>
  node("span", { class: runColour(r) }, node("span", { class: "swatch" }));
const heading = (r) =>
  several ? node("h3", {}, swatch(r), runs[r].name) : null;

function table(heads, rows) {
  return node("div", { class: "scroll" }, node("table", {},
    node("thead", {}, node("tr", {}, ...heads.map((h) => node("th", {}, h)))),
    node("tbody", {}, ...rows.map((row) =>
      node("tr", {}, ...row.map((cell) => node("td", {}, cell)))))));
}

function facts(pairs) {
  return node("dl", {}, ...pairs.flatMap(([name, text]) =>
    [node("dt", {}, name), node("dd", {}, `${text}`)]));
}

function runCard(run, r) {
  const s = run.summary;
  const [low, high] = s.accuracy_ci95 ?? [null, null];
  return node("div", { class: "card" },
    node("h3", {}, several ? swatch(r) : null, run.name),
    node("div", { class: "big" }, percent(s.accuracy)),
    node("div", { class: "note" },
      `of the votes are right (95% interval ${percent(low)} to ${percent(high)}); ` +
      `${percent(s.pass_at_1 ?? null)} of single samples`),
    facts([
      ["task", `${s.task}, ${count(run.allocation.ids.length, "question")}, answers: ${s.kind}`],
      ["model", s.model],
      ["method", [s.strategy, s.policy, s.vote].filter(Boolean).join(" × ")],
      ["samples", `${s.samples} in ${count(run.allocation.rounds.length, "round")}; ` +
        `${s.unparsed ?? 0} without an answer, ${s.failed ?? 0} failed`],
      ["tokens", `${short(s.new_tokens ?? null)} new, ` +
        `${short((s.prompt_tokens ?? 0) - (s.cached_tokens ?? 0))} read, ` +
        `${short(s.cached_tokens ?? null)} cached`],
      ["FLOPs", s.flops ? short(s.flops) : "not recorded"],
    ]));
}

function signText(s) {
  if (s.value === null)
    return `${s.name}: cannot be judged (${s.note}). ${s.measure}`;
  const side = s.above ? "above" : "below";
  const note = s.note ? ` (${s.note})` : "";
  return `${s.measure}: ${fixed(s.value, 3)}${note}; the sign is a value ` +
    `${side} ${fixed(s.threshold, 3)}`;
}

function signsOf(run, r) {
  const seen = run.signs.filter((s) => s.occurs);
  const rest = run.signs.filter((s) => !s.occurs);
  const unjudged = rest.filter((s) => s.value === null).length;
  return node("div", {}, heading(r),
    ...seen.map((s) => node("div", { class: "sign" },
      node("strong", {}, s.name), node("div", {}, signText(s)))),
    seen.length ? null : node("p", {}, unjudged
      ? "No sign occurs among those that can be judged." : "None of the signs occurs."),
    node("details", {},
      node("summary", {}, `${count(rest.length, "figure")} without a sign` +
        (unjudged ? `, ${unjudged} of which cannot be judged` : "")),
      node("ul", {}, ...rest.map((s) => node("li", {},
        s.value === null ? signText(s) : `${s.name}: ${signText(s)}`)))));
}

function curves() {
  const axes = [
    ["samples", "samples a question", true],
    ["tokens", "tokens a question, read and new", false],
    ["flops", "FLOPs a question", false],
  ];
  const charts = axes.map(([axis, label, binary]) => {
    const series = runs.map((run, r) => ({
      name: run.name, x: run.curve[axis], y: run.curve.accuracy,
      low: run.curve.low, high: run.curve.high, colour: runColour(r),
      dashed: r > 7,
    })).filter((s) => s.x.length && s.x[0] > 0);
    return node("div", { class: "card" }, series.length
      ? curveChart(series, label, binary)
      : node("p", { class: "muted" }, `${label}: not recorded`));
  });
  const legend = several
    ? node("p", { class: "row" }, ...runs.map((run, r) =>
      node("span", {}, swatch(r), run.name))) : "";
  body("curves").append(
    node("p", { class: "note" },
      "The majority over growing prefixes of the recorded samples: round after " +
      "round, and within a round the first sample of every question before the " +
      "second of any. A question without a sample so far counts as wrong. The band " +
      "is the 95% percentile bootstrap over questions " +
      `(${report.draws} resamples): how sure the accuracy is for other questions ` +
      "of the kind, not for other samples."),
    legend, node("div", { class: "cards" }, ...charts));
}

function allocationOf(run, r, show) {
  const a = run.allocation;
  if (a.rounds.length < 2)
    return node("div", {}, heading(r), node("p", {},
      "There was one round: nothing was learnt in it for another."));
  const total = a.ids.map((_, q) => a.grants.reduce((sum, row) => sum + row[q], 0));
  const order = a.ids.map((_, q) => q).sort((p, q) => total[q] - total[p] || p - q);
  const most = Math.max(1, ...a.grants.map((row) => Math.max(...row)));
  const says = node("p", { class: "note told", "aria-live": "polite" },
    "Point at a cell to read it, or go there with the arrow keys; a click, a second " +
    "tap or Enter opens its question.");
  const told = (round, column) => {
    const q = order[column];
    says.textContent = `${a.ids[q]}, round ${round}: ${a.grants[round][q]} samples ` +
      `granted at uncertainty ${fixed(a.uncertainty[round][q])}; ${total[q]} in all`;
  };
  const chosen = (_, column) => show(r, a.ids[order[column]]);
  const grants = a.grants.map((row) => order.map((q) => Math.sqrt(row[q] / most)));
  const unsure = a.uncertainty.map((row) => order.map((q) => row[q]));
  return node("div", { class: "card" }, heading(r),
    node("div", { class: "row note" },
      `Samples granted (at most ${most}) of each question (across) in each round ` +
      "(down); those that got most stand first ", node("span", { class: "ramp" })),
    heatMap(grants, "Samples granted", told, chosen),
    node("p", { class: "note" }, "Uncertainty of the same before the round: entropy of its answers, 0 to 1. The " +
      "policy may score questions by something else."),
    heatMap(unsure, "Uncertainty before the round", told, chosen),
    says,
    table(["round", "samples", "questions that got any", "their uncertainty",
      "that of the others"],
    a.rounds.map((row, i) => [`${i}`, `${row.samples}`, `${row.questions}`,
      fixed(row.uncertainty), fixed(row.uncertainty_of_others)])));
}

function calibrationOf(run, r) {
  const c = run.calibration;
  const measures = Object.entries(c.of_samples);
  return node("div", { class: "card" }, heading(r),
    reliabilityChart(c, runColour(r)),
    node("p", { class: "note" },
      `Mean gap (ECE, ten bins): ${fixed(c.ece, 3)}. A right vote has the larger ` +
      `share than a wrong one in ${percent(c.auroc, 0)} of pairs (AUROC). ` +
      "Whiskers: Wilson's 95% interval." + (`${run.summary.vote ?? "majority"}`.startsWith("majority") ? "" :
        ` All of the majority of the samples, not of this run's own vote (${run.summary.vote}).`)),
    measures.length ? table(["of single samples", "AUROC of being right", "samples"],
      measures.map(([name, m]) => [name, fixed(m.auroc), `${m.samples}`])) : null);
}

function chainsOf(run, r) {
  const total = run.coherence.reduce((sum, row) => sum + row.samples, 0);
  if (!total)
    return node("div", {}, heading(r), node("p", {},
      run.planted
        ? "Attempts were planted in the chains of this run, and which is not recorded."
        : "No sample of this run read a chain."));
  const share = (part, whole) => percent(whole ? part / whole : null);
  return node("div", { class: "card" }, heading(r),
    table(["a sample that read a chain gave", "samples", "right",
      "majority of its chain right"],
    run.coherence.filter((row) => row.samples).map((row) => [
      row.meaning, `${row.samples} (${share(row.samples, total)})`,
      share(row.right, row.samples), share(row.chain_right, row.samples)])));
}

function differenceOf(run, r, show) {
  const d = run.difference;
  if (!d.shared)
    return node("div", {}, heading(r),
      node("p", {}, "This run and the first share no question."));
  const shared = report.questions.filter((q) => q.runs[0] && q.runs[r]);
  const group = (title, wanted) => {
    const found = shared.filter(wanted);
    return node("details", {},
      node("summary", {}, `${title}: ${found.length}`),
      node("div", { class: "row" }, ...found.slice(0, 200).map((q) =>
        node("button", { click: () => show(r, q.id, q) }, q.id)),
      found.length > 200 ? node("span", {}, `and ${found.length - 200} more`) : null));
  };
  return node("div", {}, heading(r),
    group(`right here, wrong in ${runs[0].name}`,
      (q) => q.runs[r].right && !q.runs[0].right),
    group(`wrong here, right in ${runs[0].name}`,
      (q) => !q.runs[r].right && q.runs[0].right));
}

function differences(show) {
  const place = body("differences");
  if (!several) {
    place.append(node("p", { class: "muted" },
      "One run is shown. launch.report lays several side by side."));
    return;
  }
  const others = runs.map((run, r) => [run, r]).slice(1);
  const p = (x) => (x < 0.001 ? "< 0.001" : x.toFixed(3));
  place.append(
    node("p", { class: "note" },
      `The runs' own votes on the questions they share with ${runs[0].name}: points ` +
      "ahead of it with the paired bootstrap's 95% interval, and the exact p of " +
      "McNemar's test that both are right equally often; Holm's corrects it for " +
      "how many runs are compared."),
    table(["run", "shared questions", "right here alone", "right there alone",
      "points ahead", "95% interval", "p", "p (Holm)"],
    others.map(([run]) => {
      const d = run.difference;
      if (!d.shared) return [run.name, "0", "–", "–", "–", "–", "–", "–"];
      return [run.name, `${d.shared}`, `${d.only_this}`, `${d.only_first}`,
        points(d.difference), `${points(d.low)} to ${points(d.high)}`,
        p(d.p), p(d.p_holm)];
    })),
    ...others.map(([run, r]) => differenceOf(run, r, show)));
}
