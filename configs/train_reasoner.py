"""The bundled reasoner, first part: word problems with written-out steps.

    python -m launch.lessons --out=runs/reasoner/plain.jsonl
    python -m launch.lessons --out=runs/reasoner/held_out.jsonl \
        --problems=600 --seed=9
    python -m launch.train --config=configs/train_reasoner.py \
        --workdir=runs/reasoner/plain

`make reasoner` runs this and what follows.
"""

from configs import training


def get_config():
    config = training.get_config()
    config.lessons = ("runs/reasoner/plain.jsonl",)
    config.held_out = "runs/reasoner/held_out.jsonl"
    config.steps = 1600
    config.learning_rate = 3e-3
    return config
