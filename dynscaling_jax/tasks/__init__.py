"""Questions with reference answers: load, read, compare, grade.

task = load_task("gsm8k", path="test.jsonl", limit=16)
answer = extract(text, task.kind)
with Comparer() as compare:
    ids = classify(answers, task.kind, compare)
    verdict = grade(answer, problem.reference, task.kind, compare)
"""

from dynscaling_jax.tasks.answers import extract as extract
from dynscaling_jax.tasks.answers import with_answers as with_answers
from dynscaling_jax.tasks.benchmarks import BENCHMARKS as BENCHMARKS
from dynscaling_jax.tasks.datasets import Problem as Problem
from dynscaling_jax.tasks.datasets import Task as Task
from dynscaling_jax.tasks.datasets import TaskConfig as TaskConfig
from dynscaling_jax.tasks.datasets import load_task as load_task
from dynscaling_jax.tasks.equivalence import Compare as Compare
from dynscaling_jax.tasks.equivalence import Comparer as Comparer
from dynscaling_jax.tasks.equivalence import classify as classify
from dynscaling_jax.tasks.equivalence import of_question as of_question
from dynscaling_jax.tasks.forms import KINDS as KINDS
from dynscaling_jax.tasks.forms import canonical as canonical
from dynscaling_jax.tasks.generated import (
    arithmetic_problem as arithmetic_problem,
)
from dynscaling_jax.tasks.generated import shares_problem as shares_problem
from dynscaling_jax.tasks.grading import grade as grade
from dynscaling_jax.tasks.grading import kind_of as kind_of
from dynscaling_jax.tasks.grading import read_reference as read_reference
