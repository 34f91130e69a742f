"""What is asked, and what counts as right.

task = load_task({"name": "gsm8k", "path": "test.jsonl", "limit": 16})
answer = extract(text, task.kind)
with Comparer() as compare:
    ids = classify(answers, task.kind, compare)
    verdict = grade(answer, problem.reference, task.kind, compare)
"""

from dynscaling_jax.tasks.answers import answered, extract
from dynscaling_jax.tasks.benchmarks import BENCHMARKS
from dynscaling_jax.tasks.datasets import (
    Problem,
    Task,
    TaskConfig,
    load_task,
)
from dynscaling_jax.tasks.equivalence import (
    Compare,
    Comparer,
    Outcome,
    classify,
    of_question,
)
from dynscaling_jax.tasks.forms import KINDS, canonical
from dynscaling_jax.tasks.generated import (
    ArithmeticProblem,
    SharesProblem,
    arithmetic_problem,
    shares_problem,
)
from dynscaling_jax.tasks.grading import Verdict, grade, kind_of, read_reference

__all__ = [
    "BENCHMARKS",
    "KINDS",
    "ArithmeticProblem",
    "Compare",
    "Comparer",
    "Outcome",
    "Problem",
    "SharesProblem",
    "Task",
    "TaskConfig",
    "Verdict",
    "answered",
    "arithmetic_problem",
    "canonical",
    "classify",
    "extract",
    "grade",
    "kind_of",
    "load_task",
    "of_question",
    "read_reference",
    "shares_problem",
]
