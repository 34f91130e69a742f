r"""Makes lessons in using chains, from the samples of a run.

    python -m launch.run --config=configs/reasoner.py \
        --config.task.split=train --workdir=runs/attempts
    python -m launch.chain_examples --run=runs/attempts --out=runs/pairs.jsonl

The run must be on questions that no test will ask. Chains are those of its
config. What is to be written is a right sample of the same question, or its
completion in --solutions, a file of lessons with ids. launch.train reads the
result.
"""

import json
import sys
from pathlib import Path
from typing import Any

from absl import flags

from launch.arguments import Command, start

COMMAND = Command(
    "launch.chain_examples",
    ("run", "out"),
    "python -m launch.chain_examples --run=runs/attempts --out=chained.jsonl",
)
RUN = flags.DEFINE_string("run", None, "Directory of a run.")
OUT = flags.DEFINE_string("out", None, "The file, JSON Lines.")
SOLUTIONS = flags.DEFINE_string("solutions", "", "Lessons with ids.")
PAIRS = flags.DEFINE_integer("pairs", 40_000, "How many at most.", 1)
SEED = flags.DEFINE_integer("seed", 0, "Of the choice of attempts.")


def main(_) -> None:
    out = Path(str(OUT.value))
    try:
        write(Path(str(RUN.value)), out)
    except (ValueError, OSError) as error:
        sys.exit(f"launch.chain_examples: {error}")
    print(out)


def write(run: Path, path: Path) -> None:
    """Writes the pairs of a run, and says how many there are of each kind."""
    from dynscaling_jax.training import chain_examples as pairs
    from dynscaling_jax.training.sft_examples import row_of, write_rows

    config = config_of(run)
    chain, reader = reading(config)
    wanted = pairs.wanted(chain.k, PAIRS.value)
    drawn = attempts(run, config, solutions(SOLUTIONS.value))
    made = list(pairs.pairs(drawn, chain, PAIRS.value, SEED.value, reader))
    if not made:
        raise ValueError(
            f"{run}: no question has right samples to learn from; draw more, "
            "or give --solutions"
        )
    write_rows(path, (row_of(lesson) for _, lesson in made))
    print("attempts  right  pairs  wanted")
    count = pairs.counted(made)
    for kind, most in wanted.items():
        print(
            f"{kind.attempts:8}  {kind.right:5}  {count[kind]:5}  {most:6}"
            + "  too few questions have this mixture" * (count[kind] < most)
        )


def config_of(run: Path) -> Any:
    """The config of a run, from its directory.

    Raises:
        ValueError: there is none.
    """
    import ml_collections

    file = run / "config.json"
    if not file.is_file():
        raise ValueError(f"{run} is no directory of a run: it has no {file}")
    row = json.loads(file.read_bytes())
    row = row.get("config") if isinstance(row, dict) else None
    if (
        not isinstance(row, dict)
        or not {"task", "chain", "model"} <= row.keys()
    ):
        raise ValueError(f"{file}: expected the config of a run")
    return ml_collections.ConfigDict(row)


def reading(config: Any) -> tuple[Any, Any]:
    """The chains that a run builds or would, and who reads them."""
    from dynscaling_jax.checkpoints import load_model
    from dynscaling_jax.experiments.run import chain_options, thinking_of
    from dynscaling_jax.scaling.chains import Chain, Reader

    options = chain_options(config.chain)
    options.pop("explore", None)  # of the strategy
    chain = Chain(**options).checked()
    if chain.content == "tail" and not config.model.startswith("openai://"):
        tokenizer = load_model(config.model).tokenizer
        return chain, Reader(
            lambda turns: len(tokenizer.encode_chat(turns)),
            thinking=thinking_of(config, tokenizer.thinking),
        )
    return chain, Reader(thinking=thinking_of(config))


def attempts(run: Path, config: Any, known: dict[str, str]) -> list[Any]:
    """The questions of a run with their samples, graded.

    Raises:
        ValueError: a solution that is not the answer of its question.
    """
    from dynscaling_jax.experiments.log import read_samples
    from dynscaling_jax.tasks import Comparer, extract, grade, load_task
    from dynscaling_jax.tasks.choices import options
    from dynscaling_jax.training.chain_examples import Attempts

    task = load_task(**config.task)
    samples: dict[str, list] = {}
    for sample in read_samples(run / "samples.jsonl"):
        if sample.answer is not None:
            samples.setdefault(sample.query_id, []).append(sample)
    drawn = []
    with Comparer() as compare:
        for query, reference in task.problems:
            own = samples.get(query.id, [])
            one = compare.question()
            verdict = {
                answer: grade(answer, reference, task.kind, one) == "right"
                for answer in {sample.answer for sample in own}
            }
            right = tuple(verdict[sample.answer] for sample in own)
            solution = known.get(query.id)
            if solution is not None:
                found = extract(solution, task.kind, letters=options(query))
                if grade(found, reference, task.kind, one) != "right":
                    raise ValueError(
                        f"the solution of {query.id} says {found}, and its "
                        f"reference {reference}: is --solutions of another "
                        "seed, or of other questions?"
                    )
            drawn.append(Attempts(query, tuple(own), right, solution))
    return drawn


def solutions(path: str) -> dict[str, str]:
    """Id -> completion, from a file of lessons."""
    from dynscaling_jax.tasks.sources import read_rows

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


def cli() -> None:
    start(main, COMMAND)


if __name__ == "__main__":
    cli()
