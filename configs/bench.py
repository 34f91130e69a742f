"""What launch.bench measures, and at which size.

    python -m launch.bench --config=configs/bench.py
    python -m launch.bench --config=configs/bench.py --config.only=allocation

Two minutes on 2 cores. Times depend on the machine; ratios, which compare two
sides measured in turn in one run, much less.
"""

from typing import Any

import ml_collections


def get_config():
    config: Any = ml_collections.ConfigDict()
    config.only = ""  # names, with commas; empty is all
    config.repeats = 5

    # one round of as many grants as queries, for every policy
    config.allocation = ml_collections.ConfigDict()
    config.allocation.queries = 100_000
    config.allocation.capacity = 16
    config.allocation.policies = "all"

    # all replicates of all policies, budgets as marks of one run
    config.replay = ml_collections.ConfigDict()
    config.replay.bank = ""  # a bank file in place of made-up samples
    config.replay.questions = 198
    config.replay.depth = 80
    config.replay.budgets = (2, 4, 8, 16, 32)  # samples a question
    config.replay.replicates = 1000
    config.replay.policies = (
        "uniform,random,ucb,ucb(c=0.2),thompson,posterior_gain,pets,lead_k"
    )
    config.replay.loop_replicates = 2  # of ucb in the NumPy loop; scaled
    return config
