"""The named methods, as values: a strategy, a policy, a vote and a schedule.

ds.methods.dynscaling()
ds.methods.dynscaling()._replace(policy=ds.policies.ucb(c=0.2))
"""

import math

from dynscaling_jax.sampler import watch_of
from dynscaling_jax.scaling import policies, strategies, votes
from dynscaling_jax.scaling.spec import named
from dynscaling_jax.types import Method, Sampler, Schedule

_ONE_ROUND = Schedule(math.inf, math.inf)  # nothing is learnt in between
ROUNDS = Schedule(first_round=4)  # which the first chains then hold
WITHOUT_ROUNDS = Schedule(first_round=2, concurrent=64)


@named
def self_consistency() -> Method:
    """Independent samples, as many for each query (arXiv 2203.11171)."""
    return Method(
        strategies.parallel(),
        policies.uniform(),
        votes.majority(),
        _ONE_ROUND,
    )


@named
def dynscaling() -> Method:
    """Chains of earlier attempts, and budget where answers are uncertain.

    This is DynScaling (arXiv 2506.16043) with a policy of ours, and without
    its rounds.
    """
    return Method(
        strategies.integrated(),
        policies.opportunity_cost(),
        votes.majority(),
        WITHOUT_ROUNDS,
    )


@named
def dynscaling_adaptive() -> Method:
    """DynScaling with chains as far as they are worth their tokens."""
    return dynscaling()._replace(strategy=strategies.adaptive())


@named
def dynscaling_ucb() -> Method:
    """DynScaling with the paper's kind of bandit, in rounds as there."""
    return dynscaling()._replace(policy=policies.ucb(), schedule=ROUNDS)


@named
def dynscaling_random() -> Method:
    """DynScaling with chance in place of its bandit: a control."""
    return dynscaling()._replace(policy=policies.random())


@named
def dynscaling_corrupted() -> Method:
    """DynScaling whose chains hold an attempt that is made wrong: a control."""
    return dynscaling()._replace(strategy=strategies.integrated(corrupted=1))


@named
def integrated_only() -> Method:
    """The chains of DynScaling alone, with the same budget for each query."""
    return dynscaling()._replace(policy=policies.uniform())


@named
def dynamic_only() -> Method:
    """The bandit of DynScaling alone, on independent samples."""
    return dynscaling()._replace(strategy=strategies.parallel())


@named
def self_judge() -> Method:
    """The model chooses among independent samples (arXiv 2311.17311)."""
    return self_consistency()._replace(vote=votes.universal())


@named
def sequential() -> Method:
    """Each attempt reads the last one."""
    return Method(
        strategies.revision(depth=16), policies.uniform(), votes.majority()
    )


@named
def rsa() -> Method:
    """Recursive self-aggregation (arXiv 2509.26626)."""
    return Method(
        strategies.rsa(population=4, k=2),
        policies.uniform(),
        votes.majority(),
        Schedule(first_round=4),
    )


@named
def debate() -> Method:
    """Three agents that read each other's last answers (arXiv 2305.14325)."""
    return Method(
        strategies.debate(agents=3),
        policies.uniform(),
        votes.majority(),
        Schedule(first_round=3),
    )


@named
def adaptive_consistency() -> Method:
    """Independent samples until the answer is settled (arXiv 2305.11860)."""
    return Method(
        strategies.parallel(),
        policies.adaptive_consistency(),
        votes.majority(),
    )


@named
def esc() -> Method:
    """Independent samples until a window of them agrees (arXiv 2401.10480)."""
    return Method(
        strategies.parallel(),
        policies.esc(),
        votes.majority(),
        Schedule(first_round=5),
    )


def in_rounds(method: Method) -> Method:
    """A method with rounds, in place of a schedule without.

    The first round gives each query 4 samples, or 1 where the strategy is one
    of those that build no chains of them.
    """
    schedule = method.schedule
    if not schedule.concurrent:
        return method
    alone = method.strategy.name.partition("(")[0] in ("parallel", "deepconf")
    rounds = Schedule() if alone else ROUNDS
    return method._replace(
        schedule=rounds._replace(capacity=schedule.capacity), cancel=None
    )


def for_sampler(method: Method, sampler: Sampler) -> Method:
    """A method as a sampler can serve it.

    One that cannot be watched, such as a function of many requests, has
    rounds all the same: it would be asked for one sample at a time.

    Raises:
      ValueError: the method cancels samples, which takes a watch.
    """
    if watch_of(sampler):
        return method
    if method.cancel:
        raise ValueError(
            f"method.cancel={method.cancel.name} ends samples that are under "
            "way, and this sampler has no watch; see types.Watch, or leave "
            "cancel out"
        )
    return in_rounds(method)


METHODS = {
    method.__name__: method
    for method in (
        self_consistency,
        dynscaling,
        dynscaling_adaptive,
        dynscaling_ucb,
        dynscaling_random,
        dynscaling_corrupted,
        integrated_only,
        dynamic_only,
        self_judge,
        sequential,
        rsa,
        debate,
        adaptive_consistency,
        esc,
    )
}
