"""Methods by name: a point on the axes strategy x policy x vote.

    python -m launch.run --config=configs/FILE.py --config.method=NAME ...

--config.strategy, --config.policy and --config.vote replace one axis each,
with arguments where wanted: --config.strategy='integrated(k=2)'.
"""

from typing import NamedTuple


class Method(NamedTuple):
    """first is the share of a query in the first round, in samples; later
    rounds hold one sample a query, on average."""

    strategy: str
    policy: str
    vote: str = "majority"
    first: int = 1


METHODS = {
    # independent samples, as many for each query
    "self_consistency": Method("parallel", "uniform"),
    # chains of earlier attempts, budget to uncertain queries
    "dynscaling": Method("integrated", "opportunity_cost", first=4),
    # the same with the paper's kind of bandit
    "dynscaling_ucb": Method("integrated", "ucb", first=4),
    # its bandit against chance
    "dynscaling_random": Method("integrated", "random", first=4),
    # its chains with an attempt among them that is made wrong
    "dynscaling_planted": Method(
        "integrated(planted=1)", "opportunity_cost", first=4
    ),
    # each half of it alone
    "integrated_only": Method("integrated", "uniform", first=4),
    "dynamic_only": Method("parallel", "opportunity_cost"),
    # independent samples, of which the model itself chooses one
    "self_judge": Method("parallel", "uniform", "universal"),
    # each attempt reads the last one
    "sequential": Method("revision(depth=16)", "uniform"),
    # recursive self-aggregation
    "rsa": Method("rsa(population=4, k=2)", "uniform", first=4),
    # three agents that read each other's last answers
    "debate": Method("debate(agents=3)", "uniform", first=3),
    # parallel samples until the answer is settled
    "adaptive_consistency": Method("parallel", "adaptive_consistency"),
    "esc": Method("parallel", "esc", first=5),
}
