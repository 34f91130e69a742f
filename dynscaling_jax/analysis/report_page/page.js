// What is done as the page opens.

const KEYS = {
  j: () => choose(state.at + 1),
  k: () => choose(state.at - 1),
  "/": () => parts.search.focus(),
};
const KEYS_WITHIN = {
  ArrowDown: () => choose(state.at + 1),
  ArrowUp: () => choose(state.at - 1),
  ArrowRight: () => sample(state.sample === null ? 0 : state.sample + 1),
  ArrowLeft: () => sample(state.sample === null ? 0 : state.sample - 1),
};

function pressed(event) {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.target === parts.search) {
    if (event.key === "Escape") parts.list.focus();
    return;
  }
  const within = document.getElementById("browser").contains(document.activeElement);
  const act = KEYS[event.key] ?? (within ? KEYS_WITHIN[event.key] : undefined);
  if (!act) return;
  event.preventDefault();
  act();
}

const title = several ? `${runs.length} runs` : runs[0].name;
document.title = `${title} – dynscaling_jax report`;
document.getElementById("title").textContent = title;
const each = (card) => (place) =>
  place.append(node("div", { class: "cards" }, ...runs.map(card)));

// The sections in their order: id, name in the head of the page, title, and
// what fills the place below it.
const SECTIONS = [
  ["runs", "Runs", several ? "Side by side" : "The run", sideBySide],
  ["curves", "Accuracy", "Accuracy against budget", curves],
  ["differences", "Differences",
    several ? "Where runs differ" : "Where votes go wrong",
    several ? differences : outcomes],
  ["diagnostics", "Diagnostics", "Diagnostics", diagnostics],
  ["allocation", "Allocation", `Allocation over ${courses()}`,
    (place) => place.append(...runs.map(allocationOf))],
  ["calibration", "Calibration", "Calibration", each(calibrationOf)],
  ["chains", "Chains", "What samples make of their chains", each(chainsOf)],
  ["browser", "Questions", "Questions and samples", browser],
];
for (const [id, name, title, fillPlace] of SECTIONS) {
  const place = node("div");
  document.querySelector("nav").append(node("a", { href: `#${id}` }, name));
  document.querySelector("main").append(
    node("section", { id, "aria-labelledby": `${id}-title` },
      node("h2", { id: `${id}-title` }, title), place));
  fillPlace(place);
}
document.addEventListener("keydown", pressed);
document.documentElement.dataset.ready = "true";
