r"""The bundled reasoner: problems of shares, with and without attempts to read,
and drills of bare calculations.

    python -m projects.reasoner.examples --out=runs/reasoner/chained.jsonl \
        --problems=40000 --seed=1 --attempts=8
    python -m projects.reasoner.examples --out=runs/reasoner/plain.jsonl \
        --problems=40000
    python -m projects.reasoner.examples --out=runs/reasoner/drills.jsonl \
        --problems=30000 --drills=12 --largest=500
    python -m projects.reasoner.examples --out=runs/reasoner/held_out.jsonl \
        --problems=320 --seed=9 --attempts=8
    python -m launch.train --config=projects/reasoner/config.py \
        --workdir=runs/reasoner/training

`make reasoner` runs this, in half an hour on 2 cores; the loss held out ends
at 0.008.
"""

from configs import training


def get_config():
    config = training.get_config()
    config.examples = (
        "runs/reasoner/chained.jsonl",
        "runs/reasoner/plain.jsonl",
        "runs/reasoner/drills.jsonl",
    )
    config.held_out = "runs/reasoner/held_out.jsonl"
    config.shape.vocab_size = 512
    config.shape.num_hidden_layers = 4
    config.steps = 6500
    config.batch = 16
    config.parts = 4
    config.learning_rate = 3e-3
    config.final = 0.05
    config.evaluate_every = config.save_every = 250
    return config
