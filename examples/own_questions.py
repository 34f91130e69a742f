"""DynScaling on questions of one's own.

.venv/bin/python examples/own_questions.py
"""

import jax

from dynscaling_jax.engine import Engine
from dynscaling_jax.models import load_model
from dynscaling_jax.scaling import integrated, majority, parse_policy, scale
from dynscaling_jax.tasks import answered
from dynscaling_jax.types import Budget, Message, Query

questions = ["What is 17 + 25?", "A box holds 6 eggs. How many do 7 hold?"]
engine = Engine(load_model("smollm2-135m-instruct"), max_new_tokens=48)
queries = [Query(q, (Message("user", q),)) for q in questions]
result = scale(
    queries,
    answered(engine, "number"),
    integrated(explore=2),
    parse_policy("opportunity_cost"),
    majority(),
    Budget(samples=8),
    jax.random.key(0),
)
print(result.answers)
