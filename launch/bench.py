"""Speed and memory, one JSON line a measurement.

python -m launch.bench --config=configs/bench.py
"""

import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

from absl import app, flags
from ml_collections import config_flags

CONFIG = config_flags.DEFINE_config_file(
    "config", None, "What is measured; --config.FIELD=VALUE replaces a field."
)
Lines = Iterator[dict[str, Any]]


def allocation(config) -> Lines:
    """One allocation of a large round, in seconds after compilation; the
    goal is below 1."""
    import jax
    import jax.numpy as jnp

    from dynscaling_jax.scaling.policies import parse_policies
    from dynscaling_jax.types import Candidates

    size = config.allocation
    shape = (size.queries, size.capacity)
    keys = jax.random.split(jax.random.key(0), 3)
    count_Q = jax.random.randint(keys[0], shape[:1], 1, size.capacity // 2)
    candidates = Candidates(
        jax.random.randint(keys[1], shape, 0, 4),
        jax.random.normal(keys[2], shape),
        jnp.full(shape, 100, jnp.int32),
        count_Q,
    )
    for name, policy in parse_policies(size.policies).items():
        state = policy.init(size.queries)
        allocate = jax.jit(policy.allocate)

        def once(policy_allocate=allocate, policy_state=state):
            return policy_allocate(
                jax.random.key(1),
                policy_state,
                candidates,
                jnp.int32(size.queries),
            ).block_until_ready()

        granted = int(once().sum())  # compiles
        yield {
            "bench": "allocation",
            "policy": name,
            "queries": size.queries,
            "grants": granted,
            "seconds": _median(once, config.repeats),
            "goal": 1.0,
        }


def replay(config) -> Lines:
    """Replicates x policies x budgets on a bank, in seconds with compilation;
    the goal is below 60. Then ucb alone against a NumPy loop over the same
    work, which is timed on a few replicates and scaled; the goal is 100."""
    import numpy as np

    from dynscaling_jax.analysis.replay import replay, rounds_to
    from dynscaling_jax.records.bank import read_bank
    from dynscaling_jax.scaling.policies import parse_policies
    from dynscaling_jax.scaling.votes import majority

    size = config.replay
    if size.bank:
        bank = read_bank(size.bank)
    else:
        bank = made_up_bank(size.questions, size.depth)
    queries = len(bank.ids)
    budgets = [budget * queries for budget in size.budgets]
    rounds = rounds_to(budgets, queries)

    def seconds(names: str) -> float:
        begin = time.perf_counter()
        replay(
            bank,
            parse_policies(names),
            majority(),
            rounds,
            replicates=size.replicates,
        )
        return time.perf_counter() - begin

    shape = {
        "questions": queries,
        "depth": bank.answer_QN.shape[1],
        "replicates": size.replicates,
        "budgets": len(budgets),
    }
    yield {
        "bench": "replay",
        **shape,
        "policies": len(parse_policies(size.policies)),
        "seconds": round(seconds(size.policies), 2),
        "goal": 60.0,
    }
    ours = seconds("ucb")
    rng = np.random.default_rng(0)
    begin = time.perf_counter()
    for _ in range(size.loop_replicates):
        for budget in budgets:
            ucb_loop(bank, budget, rng)
    each = (time.perf_counter() - begin) / size.loop_replicates
    yield {
        "bench": "replay against NumPy",
        **shape,
        "policy": "ucb",
        "seconds": round(ours, 2),
        "numpy_seconds": round(each * size.replicates, 1),
        "ratio": round(each * size.replicates / ours, 1),
        "goal": 100.0,
    }


def made_up_bank(questions: int, depth: int):
    """Questions from easy to hard, up to six answers; 5% unreadable."""
    import numpy as np

    from dynscaling_jax.records.bank import Bank

    rng = np.random.default_rng(0)
    share_QA = rng.dirichlet(np.full(6, 0.6), questions)
    answer_QN = np.array([rng.choice(6, depth, p=share) for share in share_QA])
    answer_QN[rng.random(answer_QN.shape) < 0.05] = -1
    right_Q = np.where((answer_QN == 0).any(axis=1), 0, -2)
    return Bank(
        "made-up",
        tuple(map(str, range(questions))),
        answer_QN.astype(np.int32),
        rng.integers(100, 9000, answer_QN.shape).astype(np.int32),
        None,
        right_Q.astype(np.int32),
    )


def ucb_loop(bank, budget: int, rng) -> tuple[float, float]:
    """One replicate of ucb at one budget as a script would write it: counts
    by bincount, one argmax a pull. Returns (accuracy, tokens)."""
    import numpy as np

    queries, depth = bank.answer_QN.shape
    order_QN = rng.random((queries, depth)).argsort(1)
    answer_QN = np.take_along_axis(bank.answer_QN, order_QN, 1)
    tokens_QN = np.take_along_axis(bank.tokens_QN, order_QN, 1)
    count_Q = np.zeros(queries, int)

    def counts(q: int):
        drawn_N = answer_QN[q, : count_Q[q]]
        return np.bincount(drawn_N[drawn_N >= 0])

    def entropy(q: int) -> float:
        counts_A = counts(q)
        n = counts_A.sum()
        if n == 0:
            return 1.0
        p_A = counts_A[counts_A > 0] / n
        dilution = n / count_Q[q]
        spread = -(p_A * np.log(p_A)).sum() / np.log(max(2, n))
        return 1 - dilution * (1 - spread)

    while (left := budget - count_Q.sum()) > 0:
        total = max(1, count_Q.sum())
        uncertain_Q = np.array([entropy(q) for q in range(queries)])
        width = 0.5 * np.sqrt(2 * np.log(total))
        for _ in range(min(left, queries)):
            with np.errstate(divide="ignore", invalid="ignore"):
                score_Q = uncertain_Q + width / np.sqrt(count_Q)
            score_Q[count_Q == 0] = np.inf
            score_Q[count_Q == depth] = -np.inf
            count_Q[score_Q.argmax()] += 1
    right = spent = 0
    for q in range(queries):
        counts_A = counts(q)
        right += (
            bool(len(counts_A)) and counts_A.argmax() == bank.reference_Q[q]
        )
        spent += tokens_QN[q, : count_Q[q]].sum()
    return right / queries, spent / queries


BENCHES: dict[str, Callable[[Any], Lines]] = {
    "allocation": allocation,
    "replay": replay,
}


def _median(once: Callable[[], Any], repeats: int) -> float:
    times = []
    for _ in range(repeats):
        begin = time.perf_counter()
        once()
        times.append(time.perf_counter() - begin)
    return round(statistics.median(times), 4)


def main(_) -> None:
    config = CONFIG.value
    names = [n for n in config.only.split(",") if n] or list(BENCHES)
    for name in names:
        if name not in BENCHES:
            sys.exit(
                f"launch.bench: unknown bench {name!r}; known: "
                f"{', '.join(BENCHES)}"
            )
        for line in BENCHES[name](config):
            print(json.dumps(line), flush=True)


if __name__ == "__main__":
    flags.mark_flags_as_required(["config"])
    app.run(main)
