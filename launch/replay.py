r"""Replays policies on banks of recorded samples.

    python -m launch.replay --bank=A.jsonl,B.jsonl \
        --policies=uniform,ucb,opportunity_cost --budgets=2,4,8,16,32 \
        --replicates=1000 --seed=0 --out=DIR

Writes DIR/replay.json and figures, and prints a table. A bank is a file of
recorded samples or the directory of a run; a budget is the average number of
samples a question; --policies=all runs every policy that the banks
can serve, and `oracle`, which reads the references, may be named too.

Answers are compared as answers of a kind, as votes and grading do: 033 is 33
where the kind is number. The references tell it, or --kind does.

replay.json holds the settings and, in `banks`, one object a bank:

- kind: of its answers.
- results: of each policy and budget the accuracy, its stderr (of the mean
  over replicates), accuracy_ci95 (over questions, by the bootstrap),
  samples_per_query and new_tokens_per_query, which are what was spent and
  below the budget where a policy stops, and regret, the accuracy that the
  oracle has more on the same draws (null where oracle is not played).
- savings: of each policy and target the samples and tokens a question that
  uniform and the policy need to come the target's share of the way from
  pass@1 to the uniform vote at 40 samples; their ratio, ratio_ci95 and
  token_ratio. See analysis/savings.py for how; null where a bank holds fewer
  than 40 samples a question, the vote gains nothing, or the policy never
  gets there.
"""

import logging
import math
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from absl import flags

from dynscaling_jax.files import write_json
from launch.arguments import Command, quiet, start

if TYPE_CHECKING:
    from dynscaling_jax.analysis.replay import Played, Player
    from dynscaling_jax.experiments.bank import Bank, Keys
    from dynscaling_jax.tasks import Comparer

COMMAND = Command(
    "launch.replay",
    ("bank", "out"),
    "python -m launch.replay --bank=runs/a --out=runs/replay",
)
BANK = flags.DEFINE_list("bank", None, "Bank files, or directories of runs.")
USUAL = (2.0, 4.0, 8.0, 16.0, 32.0)
POLICIES = flags.DEFINE_string(
    "policies",
    "uniform,ucb,opportunity_cost",
    "Names, with hyper-parameters: ucb(uncertainty=beta,c=0.2); or all.",
)
KIND = flags.DEFINE_string(
    "kind",
    None,
    "Kind of the answers: number, math, choice, boolean or text; by default "
    "each bank's references tell it.",
)
VOTE = flags.DEFINE_string("vote", "majority", "The vote.")
BUDGETS = flags.DEFINE_list(
    "budgets",
    None,
    "Average samples a question; by default 2, 4, 8, 16 and 32, as far as the "
    "bank goes.",
)
REPLICATES = flags.DEFINE_integer(
    "replicates", 1000, "Orders of draws.", lower_bound=1
)
SEED = flags.DEFINE_integer(
    "seed", 0, "Seed of all randomness.", lower_bound=0, upper_bound=2**31 - 1
)
OUT = flags.DEFINE_string("out", None, "Directory of the results.")
ROUND = flags.DEFINE_float(
    "round",
    0.25,
    "Samples a question in a round.",
    lower_bound=0.01,
    upper_bound=1e6,
)
FIRST = flags.DEFINE_float(
    "first",
    None,
    "Samples a question in the first round; by default as in the others.",
    lower_bound=0.01,
    upper_bound=1e6,
)
DEPTH = flags.DEFINE_integer(
    "depth", None, "Keeps the first so many samples of each question."
)
CHUNK = flags.DEFINE_integer(
    "chunk", 25, "Replicates in memory at once.", lower_bound=1
)
TARGETS = (0.8, 0.9, 0.95)
LEGEND = """
@8     accuracy of the vote at 8 samples a question, on average
spent  samples a question that were drawn of the last budget
x 0.9  how often uniform's samples go into the policy's, where each has come
       90% of the way from pass@1 to the uniform vote at 40
-      no such number: the bank holds fewer than 40 samples a question, the
       vote gains nothing over one sample, or the policy never gets there"""
FULL = 40  # samples of the uniform vote that sets the goal of savings


def main(_) -> None:
    quiet("jax", "matplotlib")
    out = Path(OUT.value or "")
    try:
        # JAX is imported after the flags are read, so that --help answers at
        # once.
        from dynscaling_jax.analysis.plots import accuracy_curves
        from dynscaling_jax.experiments.bank import read_bank
        from dynscaling_jax.tasks import Comparer

        asked = BUDGETS.value
        budgets = None if asked is None else read_budgets(asked)
        if not BANK.value:
            raise ValueError("bank: expected at least one file.")
        if out.exists() and not out.is_dir():
            raise ValueError(f"out: {out} is a file; expected a directory.")
        banks, kinds = [], []
        with Comparer() as compare:
            for path in BANK.value:
                keys = keys_of(KIND.value or "", compare, kinds)
                banks.append(read_bank(path, depth=DEPTH.value, keys=keys))
        names = [bank.name for bank in banks]
        if len(set(names)) < len(names):
            raise ValueError(f"bank: two of one name among {names}.")
        for bank in banks:
            prepare(bank, budgets or usual(bank))
        out.mkdir(parents=True, exist_ok=True)
        reports, curves = [], {}
        for bank, kind in zip(banks, kinds, strict=True):
            report, curves[bank.name] = study(bank, budgets or usual(bank))
            report["kind"] = kind
            reports.append(report)
            print(table(report), flush=True)
        write(out / "replay.json", {**settings(), "banks": reports})
        for name, played in curves.items():
            accuracy_curves(played, name, out / name)
    except (ValueError, OSError, ImportError) as error:
        logging.debug("the replay failed", exc_info=True)  # --verbosity=1
        sys.exit(f"launch.replay: {error}")
    except KeyboardInterrupt:
        sys.exit("launch.replay: stopped")
    if len(reports) > 1:
        print(overall(reports))
    print(LEGEND)
    print(f"\n{out / 'replay.json'}")


def keys_of(kind: str, compare: "Comparer", kinds: list[str]) -> "Keys":
    """What tells which recorded answers are the same.

    An answer that `kind` does not read whole keeps a class of its own: it was
    an answer, if a wrong one. The kind that was used goes into `kinds`.
    """
    from dynscaling_jax.experiments.bank import tidy
    from dynscaling_jax.tasks import classify, kind_of, read_reference

    def keys(questions):
        used = kind or kind_of([right for _, right in questions])
        kinds.append(used)
        for answers, right in questions:
            texts = [*answers, right]
            read = [text and read_reference(text, used) for text in texts]
            ids = classify(read, used, compare)
            yield [
                None if text is None else tidy(text) if id < 0 else id
                for text, id in zip(texts, ids, strict=True)
            ]

    return keys


def read_budgets(texts: Sequence[str]) -> list[float]:
    """The budgets, in rising order. Raises ValueError for what is none."""
    budgets = []
    for text in texts:
        try:
            budgets.append(float(text))
        except ValueError:
            budgets.append(math.nan)
        if not 0 < budgets[-1] < math.inf:
            raise ValueError(
                f"budget {text!r}: expected samples a question, above 0."
            )
    if not budgets:
        raise ValueError("budgets: expected at least one.")
    return sorted(set(budgets))


def usual(bank: "Bank") -> list[float]:
    """The budgets of a bank where none are given."""
    depth = bank.answer_QN.shape[1]
    return [budget for budget in USUAL if budget <= depth] or [float(depth)]


def prepare(bank: "Bank", budgets: list[float]) -> dict[str, "Player"]:
    """The policies that are asked for, checked against what the bank has.

    Raises ValueError for an unknown policy, one that the bank cannot serve,
    or a budget over its depth.
    """
    from dynscaling_jax.analysis.oracle import oracle
    from dynscaling_jax.analysis.replay import check
    from dynscaling_jax.scaling import spec
    from dynscaling_jax.scaling.policies import parse_policies, split_names
    from dynscaling_jax.scaling.votes import VOTES

    depth = bank.answer_QN.shape[1]
    if budgets[-1] > depth:
        raise ValueError(
            f"{bank.name}: a budget of {budgets[-1]:g} samples a question is "
            f"over the {depth} that the bank holds; give --budgets="
            + ",".join(f"{budget:g}" for budget in usual(bank))
        )
    names = split_names(POLICIES.value)
    live = ",".join(name for name in names if name != "oracle")
    policies = parse_policies(live) if live or "oracle" not in names else {}
    if live == "all" and bank.logprob_QN is None:
        policies = {n: p for n, p in policies.items() if p.reads is None}
    players: dict[str, Player] = {**policies}
    if "oracle" in names:
        players["oracle"] = lambda drawn: oracle(drawn.reference_Q)
    check(bank, players, spec.parse(VOTE.value, VOTES, "vote"))
    return players


def study(
    bank: "Bank", budgets: list[float]
) -> tuple[dict[str, Any], dict[str, "Played"]]:
    """The report of one bank, and the curve of each policy."""
    from tqdm import tqdm

    from dynscaling_jax.analysis.replay import replay, rounds_to
    from dynscaling_jax.analysis.savings import pass_at_1, saving
    from dynscaling_jax.scaling import spec
    from dynscaling_jax.scaling.policies import parse_policy
    from dynscaling_jax.scaling.votes import VOTES

    begin = time.monotonic()
    players = prepare(bank, budgets)
    asked = list(players)
    players = {"uniform": parse_policy("uniform")} | players
    vote = spec.parse(VOTE.value, VOTES, "vote")
    queries, depth = bank.answer_QN.shape
    size = max(1, round(ROUND.value * queries))
    first = max(1, round((FIRST.value or ROUND.value) * queries))
    most = round(max(min(FULL, depth), budgets[-1]) * queries)
    ends = [*range(first, most, size), most]
    asked_for = [max(1, round(budget * queries)) for budget in budgets]
    runs = 1 + sum(samples not in ends for samples in asked_for)
    with tqdm(
        total=runs * len(players) * REPLICATES.value,
        desc=bank.name,
        unit="replicate",
        disable=None,
    ) as bar:

        def play(rounds):
            return replay(
                bank,
                players,
                vote,
                rounds,
                replicates=REPLICATES.value,
                seed=SEED.value,
                chunk=CHUNK.value,
                progress=bar.update,
            )

        curves = play(rounds_to(ends, size, first))
        results = []
        for budget, samples in zip(budgets, asked_for, strict=True):
            played, at = curves, -1
            if samples in ends:
                at = ends.index(samples)
            else:  # it ends within a round, so it is a run of its own
                played = play(rounds_to([samples], size, first))
            results += [
                result(name, budget, played[name], at, played.get("oracle"))
                for name in asked
            ]
    single = pass_at_1(bank)
    savings = [
        {
            "policy": name,
            **saving(
                curves["uniform"], curves[name], single, target, FULL
            )._asdict(),
        }
        for name in asked
        for target in TARGETS
    ]
    report = {
        "bank": bank.name,
        "questions": queries,
        "depth": depth,
        "pass_at_1": single,
        "seconds": round(time.monotonic() - begin, 2),
        "results": results,
        "savings": savings,
    }
    return report, {name: curves[name] for name in asked}


def result(
    name: str,
    budget: float,
    played: "Played",
    at: int,
    best: "Played | None",
) -> dict[str, Any]:
    """One row of results."""
    from dynscaling_jax.analysis.oracle import regret
    from dynscaling_jax.analysis.statistics import bootstrap_interval

    accuracy_R = played.accuracy_RM[:, at]
    replicates = len(accuracy_R)
    stderr = math.nan
    if replicates > 1:
        stderr = float(accuracy_R.std(ddof=1) / replicates**0.5)
    behind = math.nan
    if best is not None:
        behind = float(regret(played.accuracy_RM, best.accuracy_RM)[at])
    return {
        "policy": name,
        "budget": budget,
        "accuracy": float(accuracy_R.mean()),
        "stderr": stderr,
        "accuracy_ci95": bootstrap_interval(
            played.right_QM[:, at], seed=SEED.value
        ),
        "regret": behind,
        "samples_per_query": float(played.samples_RM[:, at].mean()),
        "new_tokens_per_query": float(played.tokens_RM[:, at].mean()),
    }


def settings() -> dict[str, Any]:
    return {
        "vote": VOTE.value,
        "replicates": REPLICATES.value,
        "seed": SEED.value,
        "round": ROUND.value,
        "first": FIRST.value or ROUND.value,
    }


def write(path: Path, value: Any) -> None:
    """Whole or not at all; nan becomes null."""
    write_json(path, _finite(value))


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(inner) for inner in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def table(report: dict[str, Any]) -> str:
    """Accuracy at each budget, the samples spent of the last, and how often
    uniform's samples go into the policy's, for a person to read."""
    names = list(dict.fromkeys(row["policy"] for row in report["results"]))
    budgets = list(dict.fromkeys(row["budget"] for row in report["results"]))
    accuracy = {
        (row["policy"], row["budget"]): row["accuracy"]
        for row in report["results"]
    }
    ratio = {
        (row["policy"], row["target"]): row["ratio"]
        for row in report["savings"]
    }
    spent = {
        row["policy"]: row["samples_per_query"] for row in report["results"]
    }
    width = max(map(len, names))
    lines = [
        f"\n{report['bank']}: {report['questions']} questions, answers: "
        f"{report['kind']}, pass@1 {report['pass_at_1']:.3f}",
        " " * width
        + "".join(f"{f'@{budget:g}':>8}" for budget in budgets)
        + f"{'spent':>8}"
        + "".join(f"{f'x {target:g}':>8}" for target in TARGETS),
    ]
    for name in names:
        lines.append(
            f"{name:<{width}}"
            + "".join(f"{accuracy[name, b]:>8.3f}" for b in budgets)
            + f"{spent[name]:>8.1f}"
            + "".join(_ratio(ratio[name, t]) for t in TARGETS)
        )
    return "\n".join(lines)


def overall(reports: list[dict[str, Any]]) -> str:
    """The geometric mean over banks of the savings of each policy."""
    rows: dict[tuple[str, float], list[float]] = {}
    for report in reports:
        for row in report["savings"]:
            key = row["policy"], row["target"]
            rows.setdefault(key, []).append(row["ratio"])
    names = list(dict.fromkeys(name for name, _ in rows))
    width = max(map(len, names))
    lines = [
        f"\nGeometric mean over {len(reports)} banks; - where a bank has none",
        " " * width + "".join(f"{f'x {target:g}':>8}" for target in TARGETS),
    ]
    for name in names:
        means = [
            math.exp(sum(map(math.log, rows[name, t])) / len(reports))
            for t in TARGETS
        ]
        lines.append(f"{name:<{width}}" + "".join(map(_ratio, means)))
    return "\n".join(lines)


def _ratio(value: float) -> str:
    return f"{'-' if math.isnan(value) else f'{value:.2f}':>8}"


def cli() -> None:
    start(main, COMMAND)


if __name__ == "__main__":
    cli()
