"""The bundled reasoner, first part: word problems with written-out steps, with
and without made-up attempts to read, and as many drills of calculations.

    python -m launch.lessons --out=runs/reasoner/plain.jsonl \
        --problems=60000 --steps=8 --largest=999
    python -m launch.lessons --out=runs/reasoner/slips.jsonl \
        --problems=60000 --steps=8 --largest=999 --seed=1 \
        --attempts=8 --slips=0.3
    python -m launch.lessons --out=runs/reasoner/drills.jsonl \
        --problems=60000 --largest=999 --drills=12
    python -m launch.lessons --out=runs/reasoner/held_out.jsonl \
        --problems=320 --steps=8 --largest=999 --seed=9
    python -m launch.train --config=configs/train_reasoner.py \
        --workdir=runs/reasoner/model-0

`make reasoner` runs this and what follows.
"""

from configs import training


def get_config():
    config = training.get_config()
    config.lessons = (
        "runs/reasoner/plain.jsonl",
        "runs/reasoner/slips.jsonl",
        "runs/reasoner/drills.jsonl",
    )
    config.held_out = "runs/reasoner/held_out.jsonl"
    config.steps = 3000
    config.batch = 16
    config.parts = 4
    config.learning_rate = 3e-3
    config.final = 0.35  # what follows goes on from there
    config.evaluate_every = config.save_every = 250
    return config
