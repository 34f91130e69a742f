"""The replay study: policies side by side on recorded samples.

`replay` plays policies on one bank; `write_studies` does it for the banks and
policies that launch.replay names, and writes what it found:

- DIR/replay.json: the settings and, in `banks`, one object a bank, as
  `Study.row` says.
- DIR/BANK-samples.png and DIR/BANK-tokens.png: the curves of each policy.
"""

import math
import numbers
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tqdm import tqdm

from dynscaling_jax.analysis.async_replay import Terms, replay_async
from dynscaling_jax.analysis.bank import Bank
from dynscaling_jax.analysis.oracle import oracle, regret
from dynscaling_jax.analysis.replay import (
    Curve,
    PolicyOrMaker,
    check,
    replay_policies,
    rounds_to,
)
from dynscaling_jax.analysis.sample_efficiency import (
    AXES,
    SampleEfficiency,
    pass_at_1,
    sample_efficiency,
)
from dynscaling_jax.analysis.statistics import bootstrap_interval
from dynscaling_jax.experiments.bank import load_bank
from dynscaling_jax.files import write_json
from dynscaling_jax.lines import finite, shown
from dynscaling_jax.scaling import spec
from dynscaling_jax.scaling.bandits import uniform
from dynscaling_jax.scaling.cancelling import parse_cancel
from dynscaling_jax.scaling.policies import parse_policies, split_names
from dynscaling_jax.scaling.votes import VOTES, Vote, majority
from dynscaling_jax.tasks import Comparer
from dynscaling_jax.types import Cancel, Policy

BUDGETS = (2.0, 4.0, 8.0, 16.0, 32.0)  # samples a question, by default
TARGETS = (0.8, 0.9, 0.95)
SIGNS = {"samples": "x", "tokens": "t", "steps": "s"}  # of ratios
MARKS = (  # samples a question of runs without rounds, by which curves go
    *(1, 1.5, 2, 2.5, 3, 3.5, 4, 5, 6, 7, 8, 10, 12, 14, 16, 18, 20),
    *(24, 28, 32, 36, 40),
)
MOST_SLOTS = 2**16
FULL = 40  # samples a question of the uniform vote that sets the goal
LEGEND = """
@N     accuracy of the vote at N samples a question, on average
spent  samples a question that were played of the last budget
x 0.9  samples of uniform allocation over those of the policy, each where it
       has come 90% of the way from pass@1 to the uniform vote at 40
t 0.9  the same of tokens, s 0.9 of decode steps until the end of the run
-      no such number: the bank holds fewer than 40 samples a question, the
       vote gains nothing over one sample, or the policy never gets there"""


class Result(NamedTuple):
    """What one policy reached with one budget, in samples a question.

    stderr is of the mean over replicates, accuracy_ci95 over questions, by
    the bootstrap. A policy that stops spends less than its budget. regret is
    the accuracy that the oracle has more on the same orders; nan where it was
    not played. steps is the mean end of the runs in decode steps, of a
    schedule without rounds.
    """

    policy: str
    budget: float
    accuracy: float
    stderr: float
    accuracy_ci95: tuple[float, float]
    regret: float
    samples_per_query: float
    new_tokens_per_query: float
    steps: float = math.nan


class Study(NamedTuple):
    """Policies side by side on one bank; its text is the table."""

    bank: str
    kind: str  # of answers
    questions: int
    depth: int
    pass_at_1: float
    seconds: float  # that it took
    results: tuple[Result, ...]  # of each budget, of each policy
    efficiency: Mapping[str, tuple[SampleEfficiency, ...]]  # of each target
    curves: Mapping[str, Curve]
    settings: Mapping[str, Any]  # as replay.json has them

    def row(self) -> dict[str, Any]:
        """Gives what replay.json says of a bank; its keys are a contract."""
        names = ("bank", "questions", "depth", "pass_at_1", "seconds")
        return {
            **{name: getattr(self, name) for name in names},
            "results": [result._asdict() for result in self.results],
            "savings": [
                {"policy": name, **one._asdict()}
                for name, found in self.efficiency.items()
                for one in found
            ],
            "kind": self.kind,
        }

    def __str__(self) -> str:
        """Shows accuracies, samples spent and sample efficiency as a table."""
        width = max(map(len, self.curves))
        steps = self.settings["schedule"] == "async"
        budgets = dict.fromkeys(result.budget for result in self.results)
        lines = [
            f"{self.bank}: {self.questions} questions, "
            f"answers: {self.kind or 'of no kind'}, "
            f"pass@1 {self.pass_at_1:.3f}",
            " " * width
            + "".join(f"{f'@{budget:g}':>8}" for budget in budgets)
            + f"{'spent':>8}"
            + _heads(AXES if steps else AXES[:1]),
        ]
        for name, efficiency in self.efficiency.items():
            found = [one for one in self.results if one.policy == name]
            lines.append(
                f"{name:<{width}}"
                + "".join(f"{one.accuracy:>8.3f}" for one in found)
                + f"{found[-1].samples_per_query:>8.1f}"
                + "".join(_ratio(one.ratio) for one in efficiency)
            )
        return "\n".join(lines)

    def _repr_markdown_(self) -> str:
        """Shows the table in a notebook."""
        return f"```\n{self}\n```"


def replay(
    bank: Bank,
    policies: Sequence[Policy] | Mapping[str, PolicyOrMaker],
    budgets: Sequence[float] | None = None,
    *,
    vote: Vote = majority(),  # noqa: B008, immutable
    replicates: int = 1000,
    seed: int = 0,
    round_per_query: float | None = None,
    first_round_per_query: float | None = None,
    schedule: str = "rounds",
    slots: int | None = None,
    poll_steps: int | None = None,
    cancel: Cancel | None = None,
    chunk: int = 25,
) -> Study:
    """Plays policies on a bank, all on the same orders of its samples.

    Uniform allocation is played too, to measure the others by.

    Args:
        bank: the recorded samples.
        policies: by name; those of a sequence have names of their own, or are
            called policy 0, policy 1.
        budgets: samples a question; by default 2, 4, 8, 16 and 32, as far as
            the bank goes.
        vote: one that reads no texts.
        replicates: orders of the samples; all numbers are means over them.
        seed: of the orders and of policies that draw at random.
        round_per_query: samples a question in a round; by default 0.25.
        first_round_per_query: in the first one; by default as many. Without
            rounds, samples that each question has before the policy is asked;
            by default two.
        schedule: rounds; or async, where one more sample is granted whenever
            one ends, and uniform allocation has no rounds either.
        slots: samples under way at once, without rounds; by default 64.
        poll_steps: decode steps between two looks at what has ended there; by
            default 16.
        cancel: ends samples early there, but not those of uniform allocation.
        chunk: replicates in memory at once.

    Raises:
        ValueError: no policy; a budget over what the bank holds; a policy or
            a vote that reads what it has not.
    """
    begin = time.monotonic()
    for name, value, least in (
        ("replicates", replicates, 1),
        ("chunk", chunk, 1),
        ("seed", seed, 0),
    ):
        if not isinstance(value, numbers.Integral) or value < least:
            raise ValueError(
                f"{name}={shown(value)}: expected a whole number from {least} "
                "on."
            )
    for name, value in (
        ("round_per_query", round_per_query),
        ("first_round_per_query", first_round_per_query),
    ):
        if value is not None and not (
            isinstance(value, numbers.Real) and 0 < value < math.inf
        ):
            raise ValueError(
                f"{name}={shown(value)}: expected samples a question, above 0."
            )
    if not isinstance(policies, Mapping):
        if isinstance(policies, Policy | str) or not isinstance(
            policies, Iterable
        ):
            raise ValueError("policies: expected a list of them, got one.")
        policies = list(policies)
        _check_policies(policies, Policy)
        names = [p.name or f"policy {i}" for i, p in enumerate(policies)]
        if len(set(names)) < len(names):
            raise ValueError(f"policies: two of one name among {names}.")
        policies = dict(zip(names, policies, strict=True))
    if not policies:
        raise ValueError("policies: expected at least one.")
    _check_policies(policies.values(), Callable | Policy)
    budgets = _budgets(bank, budgets)
    check(bank, policies, vote)
    played = {"uniform": uniform(), **policies}
    if schedule not in ("rounds", "async"):
        raise ValueError(f"schedule={schedule!r}: expected rounds or async.")
    others = (
        {"round_per_query": round_per_query}
        if schedule == "async"
        else {"slots": slots, "poll_steps": poll_steps, "cancel": cancel}
    )
    for name, value in others.items():
        if value is not None:
            raise ValueError(
                f"{name} is not of schedule={schedule}; leave it out, or set "
                f"schedule={'rounds' if schedule == 'async' else 'async'}."
            )
    size = 0.25 if round_per_query is None else round_per_query
    slots = 64 if slots is None else slots
    poll_steps = 16 if poll_steps is None else poll_steps
    game = _Game(bank, played, vote, replicates, seed, chunk)
    if schedule == "async":
        if not all(isinstance(p, Policy) for p in played.values()):
            raise ValueError(
                "schedule=async: a policy that knows the replicate, such as "
                "oracle, plays in rounds alone."
            )
        first = 2 if first_round_per_query is None else first_round_per_query
        curves, results = _play_async(
            game, budgets, Terms(slots, _whole(first, bank), poll_steps, cancel)
        )
    else:
        first = size if first_round_per_query is None else first_round_per_query
        curves, results = _play_rounds(game, budgets, size, first)
    results = [one for one in results if one.policy in policies]
    axes = AXES if schedule == "async" else AXES[:1]
    single = pass_at_1(bank)
    return Study(
        bank.name,
        bank.kind,
        len(bank.ids),
        bank.answer_QN.shape[1],
        single,
        round(time.monotonic() - begin, 2),
        tuple(results),
        {
            name: tuple(
                sample_efficiency(
                    curves["uniform"],
                    curves[name],
                    single,
                    target,
                    FULL,
                    axis=axis,
                )
                for axis in axes
                for target in TARGETS
            )
            for name in policies
        },
        {name: curves[name] for name in policies},
        {
            "replicates": replicates,
            "seed": seed,
            "first": first,
            "schedule": schedule,
            **(
                {
                    "slots": slots,
                    "poll_steps": poll_steps,
                    "cancel": cancel.name if cancel else "none",
                }
                if schedule == "async"
                else {"round": size}
            ),
        },
    )


class _Game(NamedTuple):
    """What is played, on which bank."""

    bank: Bank
    players: Mapping[str, PolicyOrMaker]
    vote: Vote
    replicates: int
    seed: int
    chunk: int

    def results(
        self, curves: Mapping[str, Curve], budget: float, at: int
    ) -> list[Result]:
        """What each player reached at a mark."""
        best = curves.get("oracle")
        return [
            _result(name, budget, curve, at, best, self.seed)
            for name, curve in curves.items()
        ]


def _play_rounds(
    game: _Game, budgets: Sequence[float], size: float, first: float
) -> tuple[dict[str, Curve], list[Result]]:
    """Plays rounds; a curve has a mark after each of them."""
    queries, depth = game.bank.answer_QN.shape
    round_size = max(1, round(size * queries))
    first_size = max(1, round(first * queries))
    most = round(max(min(FULL, depth), budgets[-1]) * queries)
    ends = [*range(first_size, most, round_size), most]
    samples_of = {b: max(1, round(b * queries)) for b in budgets}
    # a budget that ends within a round is a run of its own
    runs = 1 + sum(samples not in ends for samples in samples_of.values())
    results = []
    with _progress(game, runs) as bar:

        def play(ends: Sequence[int]) -> dict[str, Curve]:
            return replay_policies(
                game.bank,
                game.players,
                game.vote,
                rounds_to(ends, round_size, first_size),
                replicates=game.replicates,
                seed=game.seed,
                chunk=game.chunk,
                progress=bar.update,
            )

        curves = play(ends)
        for budget, samples in samples_of.items():
            whole = samples in ends
            at = ends.index(samples) if whole else -1
            found = curves if whole else play([samples])
            results += game.results(found, budget, at)
    return curves, results


def _whole(first: float, bank: Bank) -> int:
    """Samples of each question that are granted in turn.

    Raises:
        ValueError: no whole number, or more than the bank holds.
    """
    depth = bank.answer_QN.shape[1]
    if first != round(first) or not 1 <= first <= depth:
        raise ValueError(
            f"first_round_per_query={first:g}: expected a whole number of "
            f"samples, of which the bank holds {depth} of each question."
        )
    return int(first)


def _play_async(
    game: _Game, budgets: Sequence[float], terms: Terms
) -> tuple[dict[str, Curve], list[Result]]:
    """Plays without rounds; a curve has a mark for each of some budgets."""
    queries, depth = game.bank.answer_QN.shape
    slots, first, poll_steps, _ = terms
    for name, value in (("slots", slots), ("poll_steps", poll_steps)):
        whole = isinstance(value, numbers.Integral)
        if not (whole and 1 <= value <= MOST_SLOTS):
            raise ValueError(
                f"{name}={shown(value)}: expected a whole number from 1 to "
                f"{MOST_SLOTS}."
            )
    most = max(min(FULL, depth), budgets[-1])
    marks = sorted({*budgets, *(m for m in MARKS if m <= most), most})
    samples_of = [max(1, round(mark * queries)) for mark in marks]
    terms = Terms(int(slots), int(first), int(poll_steps), terms.cancel)
    with _progress(game, 1) as bar:
        curves = replay_async(
            game.bank,
            game.players,
            game.vote,
            samples_of,
            {
                name: terms._replace(cancel=None, first=1)
                if name == "uniform"
                else terms
                for name in game.players
            },
            replicates=game.replicates,
            seed=game.seed,
            chunk=game.chunk,
            progress=bar.update,
        )
    results = []
    for budget in budgets:
        results += game.results(curves, budget, marks.index(budget))
    return curves, results


def _progress(game: _Game, runs: int) -> tqdm:
    return tqdm(
        total=runs * len(game.players) * game.replicates,
        desc=game.bank.name,
        unit="replicate",
        disable=None,
    )


def _check_policies(policies: Iterable[object], kind: Any) -> None:
    for policy in policies:
        named = getattr(policy, "__wrapped__", None)  # ucb in place of ucb()
        if named or not isinstance(policy, kind):
            raise ValueError(
                f"policies: {shown(policy)} is no Policy; expected one such "
                "as policies.ucb()."
            )


def _result(
    name: str,
    budget: float,
    curve: Curve,
    at: int,
    best: Curve | None,
    seed: int,
) -> Result:
    accuracy_R = curve.accuracy_RM[:, at]
    replicates, behind, stderr = len(accuracy_R), math.nan, math.nan
    if replicates > 1:
        stderr = float(accuracy_R.std(ddof=1) / replicates**0.5)
    if best is not None:
        behind = float(regret(curve.accuracy_RM, best.accuracy_RM)[at])
    return Result(
        name,
        budget,
        float(accuracy_R.mean()),
        stderr,
        bootstrap_interval(curve.right_QM[:, at], seed=seed),
        behind,
        float(curve.samples_RM[:, at].mean()),
        float(curve.tokens_RM[:, at].mean()),
        math.nan if curve.steps_RM is None else curve.steps_RM[:, at].mean(),
    )


def write_studies(
    paths: Sequence[str],
    out: Path,
    policies: str,
    budgets: Sequence[str] | None = None,
    *,
    vote: str = "majority",
    cancel: str = "",
    kind: str = "",
    depth: int | None = None,
    show: Callable[[str], object] = print,
    **settings: Any,
) -> None:
    """Replays policies, named by a text, on banks, and shows their tables.

    Nothing is written before every bank, policy and budget is known to serve.
    policies is a text that `parse_policies` reads, with oracle among them;
    kind and depth are those of `load_bank`, settings those of `replay`.

    Raises:
        ValueError, OSError, ImportError: with what to do about it.
    """
    from dynscaling_jax.analysis.plots import accuracy_curves

    wanted = None if budgets is None else read_budgets(budgets)
    if not paths:
        raise ValueError("bank: expected at least one file.")
    if out.exists() and not out.is_dir():
        raise ValueError(f"out: {out} is a file; expected a directory.")
    with Comparer() as compare:
        banks = [
            load_bank(path, kind=kind, depth=depth, compare=compare)
            for path in paths
        ]
    names = [bank.name for bank in banks]
    if len(set(names)) < len(names):
        raise ValueError(f"bank: two of one name among {names}.")
    rule, ending = spec.parse(vote, VOTES, "vote"), parse_cancel(cancel)
    players = []
    for bank in banks:
        _budgets(bank, wanted)
        players.append(parse_players(policies, bank))
        check(bank, players[-1], rule)
    out.mkdir(parents=True, exist_ok=True)
    studies = []
    for bank, one in zip(banks, players, strict=True):
        study = replay(bank, one, wanted, vote=rule, cancel=ending, **settings)
        studies.append(study)
        show(f"\n{study}")
    banks = [study.row() for study in studies]
    row = {"vote": vote, **studies[0].settings, "banks": banks}
    write_json(out / "replay.json", finite(row))
    for study in studies:
        accuracy_curves(study.curves, study.bank, out / study.bank)
    if len(studies) > 1:
        show(overall(studies))
    show(LEGEND)
    show(f"\n{out / 'replay.json'}")


def parse_players(text: str, bank: Bank) -> dict[str, PolicyOrMaker]:
    """Reads the names of policies, with oracle, which knows the references.

    all is every policy that the bank can serve.

    Raises:
        ValueError: an unknown policy, or a setting that it has not.
    """
    names = split_names(text)
    live = ",".join(name for name in names if name != "oracle")
    policies = parse_policies(live) if live or "oracle" not in names else {}
    if live == "all" and bank.logprob_QN is None:
        policies = {n: p for n, p in policies.items() if p.reads is None}
    players: dict[str, PolicyOrMaker] = {**policies}
    if "oracle" in names:
        players["oracle"] = lambda replicate: oracle(replicate.reference_Q)
    return players


def read_budgets(texts: Sequence[str]) -> list[float]:
    """Reads budgets, in rising order.

    Raises:
        ValueError: none, or a text that is no number above 0.
    """
    budgets = set()
    for text in texts:
        try:
            budget = float(text)
        except ValueError:
            budget = math.nan
        if not 0 < budget < math.inf:
            raise ValueError(
                f"budget {text!r}: expected samples a question, above 0."
            )
        budgets.add(budget)
    if not budgets:
        raise ValueError("budgets: expected at least one.")
    return sorted(budgets)


def _budgets(bank: Bank, budgets: Sequence[float] | None) -> list[float]:
    """The budgets of a bank, or the usual ones where none are given."""
    depth = bank.answer_QN.shape[1]
    usual = [budget for budget in BUDGETS if budget <= depth] or [float(depth)]
    if budgets is None:
        return usual
    if isinstance(budgets, str) or not isinstance(budgets, Iterable):
        raise ValueError(f"budgets={budgets!r}: expected a list of them.")
    found = read_budgets([str(budget) for budget in budgets])
    if found[-1] > depth:
        raise ValueError(
            f"{bank.name}: a budget of {found[-1]:g} samples a question is "
            f"over the {depth} that the bank holds; give --budgets="
            + ",".join(f"{budget:g}" for budget in usual)
        )
    return found


def overall(studies: Sequence[Study]) -> str:
    """Tabulates the geometric mean of the sample efficiency over banks."""
    names = dict.fromkeys(n for study in studies for n in study.efficiency)
    width = max(map(len, names))
    axes = dict.fromkeys(
        one.axis for s in studies for of in s.efficiency.values() for one in of
    )
    lines = [
        f"\nGeometric mean over {len(studies)} banks; - where a bank has none",
        " " * width + _heads([*axes]),
    ]
    for name in names:
        means = []
        for t in range(len(axes) * len(TARGETS)):
            ratios = [
                s.efficiency[name][t].ratio
                for s in studies
                if name in s.efficiency
            ]
            all_have = len(ratios) == len(studies)
            mean = math.exp(sum(map(math.log, ratios)) / len(ratios))
            means.append(mean if all_have else math.nan)
        lines.append(f"{name:<{width}}" + "".join(map(_ratio, means)))
    return "\n".join(lines)


def _heads(axes: Sequence[str]) -> str:
    """The heads of the columns of ratios, axis by axis."""
    return "".join(
        f"{f'{SIGNS[axis]} {target:g}':>8}"
        for axis in axes
        for target in TARGETS
    )


def _ratio(value: float) -> str:
    return f"{'-' if math.isnan(value) else f'{value:.2f}':>8}"
