"""Examples of how to use a chain, from the samples of a run."""

from pathlib import Path
from typing import Any

import ml_collections

from dynscaling_jax.checkpoints import load_model
from dynscaling_jax.experiments.configured import (
    chain_options,
    thinking_of,
)
from dynscaling_jax.experiments.log import read_samples
from dynscaling_jax.files import read_json
from dynscaling_jax.scaling import spec
from dynscaling_jax.scaling.chains import Chain, Reader
from dynscaling_jax.tasks import Comparer, extract, grade, load_task
from dynscaling_jax.tasks.choices import options
from dynscaling_jax.tasks.sources import read_rows
from dynscaling_jax.training import chain_examples
from dynscaling_jax.training.chain_examples import Attempts
from dynscaling_jax.training.sft_examples import row_of, write_rows


def write(run: Path, path: Path, solutions: str, count: int, seed: int) -> str:
    """Writes the examples that the samples of a run give, as JSON Lines.

    Args:
        run: its directory.
        path: of the file to write.
        solutions: a file of examples with ids, whose completions are to be
            written; "" takes right samples.
        count: examples at most.
        seed: of the choice of attempts.

    Returns:
        A table of how many there are of each kind.

    Raises:
        ValueError, OSError: with what to do about it.
    """
    config = config_of(run)
    chain, reader = reading(config)
    wanted = chain_examples.wanted(chain.k, count)
    found = attempts(run, config, completions(solutions))
    made = list(chain_examples.examples(found, chain, count, seed, reader))
    if not made:
        raise ValueError(
            f"{run}: no question has right samples to learn from; draw more, "
            "or give --solutions"
        )
    write_rows(path, (row_of(example) for _, example in made))
    found = chain_examples.counted(made)
    return "\n".join(
        [
            "attempts  right  examples  wanted",
            *(
                f"{kind.attempts:8}  {kind.right:5}  {found[kind]:8}  {most:6}"
                + "  too few questions have this mixture" * (found[kind] < most)
                for kind, most in wanted.items()
            ),
        ]
    )


def config_of(run: Path) -> Any:
    """Reads the config of a run from its directory.

    Raises:
        ValueError: there is none.
    """
    file = run / "config.json"
    if not file.is_file():
        raise ValueError(f"{run} is no directory of a run: it has no {file}")
    row = read_json(file)
    row = row.get("config") if isinstance(row, dict) else None
    if (
        not isinstance(row, dict)
        or not {"task", "chain", "model"} <= row.keys()
    ):
        raise ValueError(f"{file}: expected the config of a run")
    return ml_collections.ConfigDict(row)


def reading(config: Any) -> tuple[Chain, Reader]:
    """Tells what chains a run builds or would, and who reads them.

    Options are those of config.strategy, and else of config.chain. Presets
    whose chains are fixed (sequential, rsa, debate) count as integrated.
    """
    given = {
        **chain_options(config.chain),
        **spec.read(config.get("strategy") or "integrated", "strategy")[1],
    }
    own = {name: given[name] for name in Chain._fields if name in given}
    chain = Chain(**own).checked()
    if chain.content == "tail" and not config.model.startswith("openai://"):
        tokenizer = load_model(config.model).tokenizer
        return chain, Reader(
            lambda turns: len(tokenizer.encode_chat(turns)),
            thinking=thinking_of(config, tokenizer.thinking),
        )
    return chain, Reader(thinking=thinking_of(config))


def attempts(run: Path, config: Any, known: dict[str, str]) -> list[Attempts]:
    """Grades the samples of a run, question by question.

    Raises:
        ValueError: a solution that is not the answer of its question.
    """
    task = load_task(**config.task)
    samples: dict[str, list] = {}
    for sample in read_samples(run / "samples.jsonl"):
        if sample.answer is not None:
            samples.setdefault(sample.query_id, []).append(sample)
    found = []
    with Comparer() as compare:
        for query, reference in task.problems:
            answered = samples.get(query.id, [])
            same = compare.question()
            verdict = {
                answer: grade(answer, reference, task.kind, same) == "right"
                for answer in {sample.answer for sample in answered}
            }
            right = tuple(verdict[sample.answer] for sample in answered)
            solution = known.get(query.id)
            if solution is not None:
                read = extract(solution, task.kind, letters=options(query))
                if grade(read, reference, task.kind, same) != "right":
                    raise ValueError(
                        f"the solution of {query.id} says {read}, and its "
                        f"reference {reference}: is --solutions of another "
                        "seed, or of other questions?"
                    )
            found.append(Attempts(query, tuple(answered), right, solution))
    return found


def completions(path: str) -> dict[str, str]:
    """Reads a file of examples: id -> completion."""
    if not path:
        return {}
    found = {}
    for row, place in read_rows(Path(path)):
        if not isinstance(row.get("id"), str) or not isinstance(
            row.get("completion"), str
        ):
            raise ValueError(f'{place}: expected texts "id" and "completion"')
        found[row["id"]] = row["completion"]
    return found
