"""The bundled reasoner, second part: it learns from its own attempts.

    python -m launch.run --config=configs/reasoner_attempts.py \
        --workdir=runs/reasoner/attempts
    python -m launch.lessons --out=runs/reasoner/solutions.jsonl \
        --problems=1500 --steps=8 --largest=999 --seed=21
    python -m launch.pairs --run=runs/reasoner/attempts \
        --solutions=runs/reasoner/solutions.jsonl \
        --pairs=9000 --out=runs/reasoner/pairs.jsonl
    python -m launch.lessons --out=runs/reasoner/again.jsonl \
        --problems=8000 --steps=8 --largest=999 --seed=2
    python -m launch.train --config=configs/train_reasoner_chains.py \
        --workdir=runs/reasoner/second

Plain lessons stay in the mixture, so that samples without a chain stay as
good as they were. `make reasoner` does the same once more, with the attempts
of the model that comes of it.
"""

from configs import train_reasoner


def get_config():
    config = train_reasoner.get_config()
    config.model = "runs/reasoner/first/model"
    config.lessons = (
        "runs/reasoner/pairs.jsonl",
        "runs/reasoner/again.jsonl",
    )
    config.steps = 500
    config.warmup = 30
    config.learning_rate = 1.2e-3
    config.final = 0.05
    config.seed = 1
    config.evaluate_every = 100
    return config
