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
sideBySide();
curves();
differences(show);
diagnostics();
body("allocation").append(...runs.map((run, r) => allocationOf(run, r, show)));
body("calibration").append(
  node("div", { class: "cards" }, ...runs.map(calibrationOf)));
body("chains").append(
  node("div", { class: "cards" }, ...runs.map(chainsOf)));
browser();
document.addEventListener("keydown", pressed);
document.documentElement.dataset.ready = "true";
