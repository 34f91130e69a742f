"""Whole experiments on recorded samples."""

import time

import numpy as np

from benchmarks.common import Config, Lines
from dynscaling_jax.analysis.replay import replay_policies, rounds_to
from dynscaling_jax.experiments.bank import Bank, load_bank
from dynscaling_jax.scaling.policies import parse_policies
from dynscaling_jax.scaling.votes import majority


def lines(config: Config) -> Lines:
    """Replicates x policies x budgets on a bank, in seconds with compilation;
    the goal is below 60. Then ucb alone against a NumPy loop over the same
    work, which is timed on a few replicates and scaled; the goal is 100."""
    size = config.replay
    if size.bank:
        bank = load_bank(size.bank)
    else:
        bank = made_up_bank(size.questions, size.depth)
    queries = len(bank.ids)
    budgets = [budget * queries for budget in size.budgets]
    rounds = rounds_to(budgets, queries)

    def seconds(names: str) -> float:
        begin = time.perf_counter()
        replay_policies(
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
