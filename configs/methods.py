"""Methods by name: a point on the axes strategy x policy x vote.

    python -m launch.run --config=configs/FILE.py --config.method=NAME ...

--config.strategy, --config.policy and --config.vote replace one axis each,
with arguments where wanted: --config.strategy='integrated(k=2)'.
"""

METHODS = {
    # independent samples, as many for each query
    "self_consistency": ("parallel", "uniform", "majority"),
    # the paper: chains of earlier attempts, budget to uncertain queries
    "dynscaling": ("integrated", "ucb", "majority"),
    # each half of it alone
    "integrated_only": ("integrated", "uniform", "majority"),
    "dynamic_only": ("parallel", "ucb", "majority"),
    # revision: each attempt reads the last one
    "sequential": ("revision", "uniform", "majority"),
    # recursive self-aggregation
    "rsa": ("rsa", "uniform", "majority"),
    # agents that read each other's last answers
    "debate": ("debate", "uniform", "majority"),
    # parallel samples until the answer is settled
    "adaptive_consistency": ("parallel", "adaptive_consistency", "majority"),
    "esc": ("parallel", "esc", "majority"),
}
