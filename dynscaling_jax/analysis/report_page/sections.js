// The sections around the browser: what a reader wants first, runs side by
// side, accuracy and where runs differ; then what may explain a loss.

const report = JSON.parse(document.getElementById("report").textContent);
const runs = report.runs;
const several = runs.length > 1;
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

// The interval of an accuracy on a scale from 0 to 100%.
function intervalBar(value, low, high, colour) {
  const X = (x) => 2 + 96 * x;
  return svg("svg", { viewBox: "0 0 100 12", class: `interval ${colour}`, "aria-hidden": "true" },
    svg("path", { class: "axis", d: "M2 6H98" }),
    low === null ? null : svg("path", { class: "whisker", d: `M${X(low)} 6H${X(high)}` }),
    value === null ? null : svg("circle", { class: "dot", cx: X(value), cy: 6, r: 3.5 }));
}

const pValue = (p) => (p < 0.001 ? "< 0.001" : p.toFixed(3));

// "+5.0 (−0.5 to +10.0), p 0.070", against the first run.
function ahead(d) {
  if (!d) return "first";
  if (!d.shared) return "no question shared";
  return `${points(d.difference)} (${points(d.low)} to ${points(d.high)}), p ${pValue(d.p_holm)}`;
}

function runDetails(run) {
  const s = run.summary;
  return facts([
    ["method", [s.strategy, s.policy, s.vote].filter(Boolean).join(" × ") || "not recorded"],
    ["samples", `${s.samples} in ${run.time ? courseOf(run.time) : count(run.allocation.rounds.length, "round")}; ` +
      `${s.unparsed ?? 0} without an answer, ${s.failed ?? 0} failed` +
      (run.time?.cancelled ? `, ${run.time.cancelled} cancelled` : "")],
    ["tokens", `${short(s.new_tokens ?? null)} new, ` +
      `${short((s.prompt_tokens ?? 0) - (s.cached_tokens ?? 0))} of prompts, ` +
      `${short(s.cached_tokens ?? null)} cached`],
    ["FLOPs", s.flops ? short(s.flops) : "not recorded"],
  ]);
}

function sideBySide(place) {
  const asked = (run) => `${run.summary.task}, ${count(run.allocation.ids.length, "question")}, ` +
    `answers: ${run.summary.kind}; model ${run.summary.model}`;
  const alike = new Set(runs.map(asked)).size === 1;
  const heads = ["run", "right", "", "95% interval", "one sample", "oracle",
    "samples", "tokens", ...(several ? ["points ahead of the first"] : [])];
  const rows = runs.map((run, r) => {
    const s = run.summary, [low, high] = s.accuracy_ci95 ?? [null, null];
    return [
      node("span", { class: "run" }, swatch(r), run.name),
      node("strong", {}, percent(s.accuracy)),
      intervalBar(s.accuracy, low, high, runColour(r)),
      low === null ? "–" : `${percent(low)} to ${percent(high)}`,
      percent(s.pass_at_1 ?? null), percent(run.outcome.oracle),
      short(run.outcome.samples), short(run.outcome.tokens),
      ...(several ? [ahead(run.difference)] : []),
    ];
  });
  place.append(
    alike ? node("p", {}, asked(runs[0])) : "",
    table(heads, rows),
    node("p", { class: "note" },
      "right: votes that equal the reference. one sample: share of single samples " +
      "that do. oracle: questions with a right sample, which a perfect verifier would " +
      "answer. samples and tokens: a question; prompts count, what the cache held does " +
      "not." + (runs.some((run) => run.time?.cancelled)
        ? " Cancelled samples count in samples and tokens alone." : "") + (several ? " points ahead: on the questions that both were asked, with " +
      "the paired bootstrap's 95% interval and the p of McNemar's exact test, which " +
      "Holm's method corrects for the number of runs." : "")),
    node("details", {}, node("summary", {}, "What each run was"),
      node("div", { class: "cards" }, ...runs.map((run, r) =>
        node("div", { class: "card" }, node("h3", {}, swatch(r), run.name),
          alike ? null : node("div", { class: "note" }, asked(run)), runDetails(run))))));
}

function diagnosticText(d) {
  if (d.value === null) return `${d.name}: cannot be judged (${d.note}). ${d.measure}`;
  const note = d.note ? ` (${d.note})` : "";
  return `${d.measure}: ${fixed(d.value, 3)}${note}; the threshold is ` +
    `${d.above ? "at most" : "at least"} ${fixed(d.threshold, 3)}`;
}

const warning = (title, ...parts) =>
  node("div", { class: "warning" }, node("strong", {}, title), ...parts);

// A figure beyond its threshold stands under the loss that it may explain;
// where nothing was lost it is one figure among the others.
function diagnosticsOf(run, r) {
  const direct = run.diagnostics.filter((d) => d.loss && d.crossed);
  const lost = run.losses.length + direct.length > 0;
  const causes = run.diagnostics.filter((d) => !d.loss && d.crossed && lost);
  const rest = run.diagnostics.filter((d) => !direct.includes(d) && !causes.includes(d));
  const items = (list) => node("ul", {}, ...list.map((d) => node("li", {},
    d.value === null ? diagnosticText(d) : `${d.name}: ${diagnosticText(d)}` +
      (d.crossed ? " (beyond it)" : ""))));
  return node("div", {}, heading(r),
    ...run.losses.map((text) => warning(text)),
    ...direct.map((d) => warning(d.name, node("div", {}, diagnosticText(d)))),
    causes.length ? node("div", {}, node("p", {}, "What may explain it:"), items(causes)) : null,
    lost ? null : node("p", {}, "Nothing was lost that needs an explanation."),
    node("details", {}, node("summary", {}, `${count(rest.length, "figure")} more`), items(rest)));
}

function diagnostics(place) {
  place.append(
    node("p", { class: "note" },
      "Losses that chance does not explain: votes behind the first run or behind single " +
      "samples, samples with a chain behind those without, time that the model did not " +
      "get. Figures of how allocation and chains can fail stand below a loss where they " +
      "cross their threshold; good runs cross some of them too. The names are the " +
      "paper's, figures and thresholds are not."),
    ...runs.map(diagnosticsOf));
}

function curves(place) {
  const units = [...new Set(runs.filter((run) => run.time).map((run) => run.time.unit))];
  const axes = [
    ["samples", "samples a question", "binary"],
    ["tokens", "tokens a question, prompt and new", "decimal"],
    ...units.map((unit) => ["steps", unit, "linear"]),
    ["flops", "FLOPs a question", "decimal"],
  ];
  const curveOf = (run, axis, label) => axis !== "steps" ? run.curve
    : run.time?.unit === label ? run.time.curve : { steps: [] };
  const charts = axes.map(([axis, label, scale]) => {
    const series = runs.map((run, r) => {
      const curve = curveOf(run, axis, label);
      return {
        name: run.name, x: curve[axis], y: curve.accuracy, low: curve.low, high: curve.high,
        colour: runColour(r), dashed: r > 7,
      };
    }).filter((s) => s.x.length && s.x[0] > 0);
    return node("div", { class: "card" }, series.length
      ? curveChart(series, label, scale)
      : node("p", { class: "muted" }, `${label}: not recorded`));
  });
  const legend = several
    ? node("p", { class: "row" }, ...runs.map((run, r) =>
      node("span", {}, swatch(r), run.name))) : "";
  place.append(
    node("p", { class: "note" },
      `The majority over growing prefixes of the recorded samples: ${prefixes()}. ` +
      "A question without a sample so far counts as wrong. The band " +
      "is the 95% percentile bootstrap over questions " +
      `(${report.draws} resamples): how sure the accuracy is for other questions ` +
      "of the kind, not for other samples."),
    legend, node("div", { class: "cards" }, ...charts));
}

function prefixes() {
  const inRounds = "round after round, and within a round the first sample of every " +
    "question before the second of any";
  const inTime = "in the order in which they ended; cancelled ones cost tokens and " +
    "have no vote";
  if (runs.every((run) => !run.time)) return inRounds;
  if (runs.every((run) => run.time)) return inTime;
  return `${inRounds}; where there are no rounds, ${inTime}`;
}

// Of numbers by question, the questions with the largest first.
const mostFirst = (total) =>
  total.map((_, q) => q).sort((p, q) => total[q] - total[p] || p - q);

function allocationOf(run, r) {
  if (run.time) return allocationInTime(run, r);
  const a = run.allocation;
  if (a.rounds.length < 2)
    return node("div", {}, heading(r), node("p", {},
      "There was one round: nothing was learnt in it for another."));
  const total = a.ids.map((_, q) => a.grants.reduce((sum, row) => sum + row[q], 0));
  const order = mostFirst(total);
  const most = Math.max(1, ...a.grants.map((row) => Math.max(...row)));
  const caption = node("p", { class: "note cell", "aria-live": "polite" },
    "Point at a cell to read it, or go there with the arrow keys; a click, a second " +
    "tap or Enter opens its question.");
  const describe = (round, column) => {
    const q = order[column];
    caption.textContent = `${a.ids[q]}, round ${round}: ${a.grants[round][q]} samples ` +
      `granted at uncertainty ${fixed(a.uncertainty[round][q])}; ${total[q]} in all`;
  };
  const chosen = (_, column) => show(r, a.ids[order[column]]);
  const grants = a.grants.map((row) => order.map((q) => Math.sqrt(row[q] / most)));
  const unsure = a.uncertainty.map((row) => order.map((q) => row[q]));
  return node("div", { class: "card" }, heading(r),
    node("div", { class: "row note" },
      `Samples granted (at most ${most}) of each question (across) in each round ` +
      "(down); those that got most stand first ", node("span", { class: "ramp" })),
    heatMap(grants, "Samples granted", describe, chosen),
    node("p", { class: "note" }, "Uncertainty of the same before the round: entropy of its answers, 0 to 1. The " +
      "policy may score questions by something else."),
    heatMap(unsure, "Uncertainty before the round", describe, chosen),
    caption,
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
  const total = run.chain_usage.reduce((sum, row) => sum + row.samples, 0);
  if (!total)
    return node("div", {}, heading(r), node("p", {},
      run.corrupted
        ? "Attempts in the chains of this run were corrupted, and which is not recorded."
        : "No sample of this run read a chain."));
  const share = (part, whole) => percent(whole ? part / whole : null);
  return node("div", { class: "card" }, heading(r),
    table(["a sample that read a chain gave", "samples", "right",
      "majority of its chain right"],
    run.chain_usage.filter((row) => row.samples).map((row) => [
      row.meaning, `${row.samples} (${share(row.samples, total)})`,
      share(row.right, row.samples), share(row.chain_right, row.samples)])));
}

const SHOWN = 200; // questions that a group lists

// Questions as buttons that open them in run r.
function questionGroup(title, found, r) {
  return node("details", {},
    node("summary", {}, `${title}: ${found.length}`),
    node("div", { class: "row" }, ...found.slice(0, SHOWN).map((q) =>
      node("button", { click: () => show(r, q.id, q) }, q.id)),
    found.length > SHOWN ? node("span", {}, `and ${found.length - SHOWN} more`) : null));
}

function differenceOf(run, r) {
  if (!run.difference.shared)
    return node("div", {}, heading(r),
      node("p", {}, "This run and the first share no question."));
  const shared = report.questions.filter((q) => q.runs[0] && q.runs[r]);
  const group = (title, wanted) => questionGroup(title, shared.filter(wanted), r);
  return node("div", {}, heading(r),
    group(`right here, wrong in ${runs[0].name}`,
      (q) => q.runs[r].right && !q.runs[0].right),
    group(`wrong here, right in ${runs[0].name}`,
      (q) => !q.runs[r].right && q.runs[0].right));
}

// One run alone: where its votes are wrong, and what could be done about it.
function outcomes(place) {
  const asked = report.questions.filter((q) => q.runs[0]);
  const group = (title, wanted) => questionGroup(title, asked.filter((q) => wanted(q.runs[0])), 0);
  place.append(
    group("wrong, though some sample is right: another vote would answer them",
      (one) => !one.right && one.right_samples > 0),
    group("wrong, and no sample is right: the model does not reach them",
      (one) => !one.right && !one.right_samples),
    group("right, though most samples are wrong",
      (one) => one.right && one.right_samples <= one.samples / 2));
}

// A column a question on which runs differ, a row a run.
function differenceMap(found) {
  const cell = (one, q, r) => node("td", {}, one === null ? "·" : node("button", {
    class: one.right ? "mark good" : "mark bad", title: `${q.id}: ${one.answer ?? "no answer"}`,
    "aria-label": `${q.id}, ${runs[r].name}: ${one.right ? "right" : "wrong"}`,
    click: () => show(r, q.id, q),
  }, one.right ? "✓" : "✗"));
  return node("div", { class: "scroll map" }, node("table", {}, node("tbody", {},
    ...runs.map((run, r) => node("tr", {},
      node("td", {}, swatch(r), run.name),
      ...found.slice(0, SHOWN).map((q) => cell(q.runs[r], q, r)))))));
}

function differences(place) {
  const ranks = (q) => q.runs.filter((one) => one?.right).length;
  const differing = report.questions
    .filter((q) => new Set(q.runs.filter(Boolean).map((one) => one.right)).size > 1)
    .sort((p, q) => ranks(q) - ranks(p));
  const all = report.questions.filter((q) => q.runs.every((one) => !one || one.right)).length;
  const none = report.questions.length - all - differing.length;
  const d = (run) => run.difference;
  place.append(
    node("p", {}, `All runs are right on ${all} of ${count(report.questions.length, "question")} ` +
      `and wrong on ${none}; they differ on ${differing.length}` +
      (differing.length > SHOWN ? `, of which ${SHOWN} are shown.` : ".") +
      (differing.length ? " A mark opens its question." : "")),
    differing.length ? differenceMap(differing) : "",
    table(["run", "shared questions", "right here alone", "right there alone",
      "points ahead", "95% interval", "p", "p (Holm)"],
    runs.slice(1).map((run) => d(run).shared
      ? [run.name, `${d(run).shared}`, `${d(run).only_this}`, `${d(run).only_first}`,
        points(d(run).difference), `${points(d(run).low)} to ${points(d(run).high)}`,
        pValue(d(run).p), pValue(d(run).p_holm)]
      : [run.name, "0", "–", "–", "–", "–", "–", "–"])),
    node("details", {}, node("summary", {}, "The questions, run by run"),
      ...runs.slice(1).map((run, r) => differenceOf(run, r + 1))));
}
