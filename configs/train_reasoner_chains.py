"""The bundled reasoner, second part: it learns to use a chain of attempts.

    python -m launch.lessons --out=runs/reasoner/solutions.jsonl \
        --problems=3000 --seed=1
    python -m launch.pairs --run=runs/reasoner/attempts \
        --solutions=runs/reasoner/solutions.jsonl \
        --pairs=15000 --out=runs/reasoner/chained.jsonl
    python -m launch.lessons --out=runs/reasoner/again.jsonl \
        --problems=5000 --seed=2
    python -m launch.train --config=configs/train_reasoner_chains.py \
        --workdir=runs/reasoner/chained

Plain lessons stay in the mixture, so that samples without a chain stay as
good as they were.
"""

from configs import train_reasoner


def get_config():
    config = train_reasoner.get_config()
    config.model = "runs/reasoner/plain/model"
    config.lessons = (
        "runs/reasoner/chained.jsonl",
        "runs/reasoner/again.jsonl",
    )
    config.batch = 16
    config.steps = 560
    config.warmup = 50
    config.learning_rate = 1e-3
    config.seed = 1
    return config
