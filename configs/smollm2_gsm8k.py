"""SmolLM2-135M-Instruct on GSM8K.

    python -m launch.run --config=configs/smollm2_gsm8k.py \
        --config.task.path=gsm8k/test.jsonl --config.task.limit=16 \
        --workdir=runs/gsm8k

Seven minutes on 2 busy cores for 16 questions x 8 samples (42 new tokens/s).
1.6% of single samples are right and no vote is: the model is too small.
"""

from configs import common


def get_config():
    config = common.get_config()
    config.task.name = "gsm8k"
    return config
