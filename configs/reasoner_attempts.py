"""Attempts at train problems that the first part of training did not hold.

    python -m launch.run --config=configs/reasoner_attempts.py \
        --workdir=runs/reasoner/attempts-1
"""

from configs import reasoner


def get_config():
    config = reasoner.get_config()
    config.model = "runs/reasoner/model-0/model"
    config.task.split = "train"
    config.task.seed = 21
    config.task.limit = 3000
    config.engine.temperature = 1.0
    config.budget.samples_per_query = 4.0
    return config
