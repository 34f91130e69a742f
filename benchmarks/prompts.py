"""Prompts of a given length, made of a benchmark's questions."""

from collections.abc import Sequence

from dynscaling_jax.checkpoints import Model
from dynscaling_jax.tasks import Problem, Task
from dynscaling_jax.types import Message, Query

SHORTEST = 0.75  # of the length asked for


def queries(task: Task, model: Model, count: int, tokens: int) -> list[Query]:
    """So many queries of nearly `tokens` tokens, none longer: a question
    behind as many solved earlier ones as fit.

    Raises:
        ValueError: the task holds too few that can be made so.
    """
    found: list[Query] = []
    for at, problem in enumerate(task.problems):
        messages = _padded(task.problems, at, model, tokens)
        length = len(model.tokenizer.encode_chat(messages))
        if SHORTEST * tokens <= length <= tokens:
            found.append(Query(problem.query.id, messages))
        if len(found) == count:
            return found
    raise ValueError(
        f"{task.name} gives {len(found)} prompts of about {tokens} tokens; "
        f"{count} are wanted"
    )


def _padded(
    problems: Sequence[Problem], at: int, model: Model, tokens: int
) -> tuple[Message, ...]:
    """The longest that fits; the question alone where nothing else does."""
    messages = problems[at].query.messages
    for earlier in range(at - 1, -1, -1):
        reference = problems[earlier].reference
        solved = (
            *problems[earlier].query.messages,
            Message("assistant", f"The answer is {reference}."),
        )
        longer = (*solved, *messages)
        if len(model.tokenizer.encode_chat(longer)) > tokens:
            return messages
        messages = longer
    return messages


def ids(model: Model, queries: Sequence[Query]) -> list[list[int]]:
    return [model.tokenizer.encode_chat(query.messages) for query in queries]
