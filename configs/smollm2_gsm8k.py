"""SmolLM2-135M-Instruct on GSM8K.

    python -m launch.run --config=configs/smollm2_gsm8k.py \
        --config.task.path=gsm8k/test.jsonl --config.task.limit=16 \
        --workdir=runs/gsm8k
"""

from configs import common


def get_config():
    config = common.get_config()
    config.task.name = "gsm8k"
    return config
