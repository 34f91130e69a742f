"""The bundled reasoner on fresh problems of shares, with 1 to 5 others.

python -m launch.run --config=configs/reasoner.py --workdir=runs/reasoner
"""

from configs import common


def get_config():
    config = common.get_config()
    config.model = "reasoner"
    config.task.name = "shares"
    config.task.template = "{question}"
    config.task.limit = 200
    config.task.steps = 5
    config.task.largest = 400
    config.engine.max_new_tokens = 200
    config.engine.temperature = 1.0
    return config
