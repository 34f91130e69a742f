"""The bundled reasoner, second part: it learns from its own attempts.

    python -m launch.run --config=configs/reasoner_attempts.py \
        --workdir=runs/reasoner/attempts-1
    python -m launch.lessons --out=runs/reasoner/solutions-1.jsonl \
        --problems=3000 --steps=8 --largest=999 --seed=21
    python -m launch.pairs --run=runs/reasoner/attempts-1 \
        --solutions=runs/reasoner/solutions-1.jsonl \
        --pairs=12000 --out=runs/reasoner/pairs-1.jsonl
    python -m launch.lessons --out=runs/reasoner/again.jsonl \
        --problems=8000 --steps=8 --largest=999 --seed=2
    python -m launch.train --config=configs/train_reasoner_chains.py \
        --workdir=runs/reasoner/model-1

Plain lessons stay in the mixture, so that samples without a chain stay as
good as they were. `make reasoner` does the same twice more, each time with
attempts of the model that came of it.
"""

from configs import train_reasoner


def get_config():
    config = train_reasoner.get_config()
    config.model = "runs/reasoner/model-0/model"
    config.lessons = (
        "runs/reasoner/pairs-1.jsonl",
        "runs/reasoner/again.jsonl",
    )
    config.steps = 500
    config.warmup = 30
    config.learning_rate = 1.2e-3
    config.final = 0.05
    config.seed = 1
    config.evaluate_every = 100
    return config
