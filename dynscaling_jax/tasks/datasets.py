"""The benchmarks: configuration -> queries with their reference answers."""

from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path
from string import ascii_uppercase
from typing import Any, NamedTuple

from dynscaling_jax.tasks.benchmarks import (
    BENCHMARKS,
    FIELDS,
    OPTIONS,
    Benchmark,
)
from dynscaling_jax.tasks.forms import check_kind
from dynscaling_jax.tasks.generated import GENERATED, LARGEST
from dynscaling_jax.tasks.grading import kind_of, read_reference
from dynscaling_jax.tasks.noise import misspelt
from dynscaling_jax.tasks.sources import Row, bundled, download, read_rows
from dynscaling_jax.types import Message, Query


class Problem(NamedTuple):
    """A query with its reference answer, in canonical form."""

    query: Query
    reference: str


class Task(NamedTuple):
    """The problems of a benchmark and the kind of answer they ask for."""

    name: str
    kind: str
    problems: tuple[Problem, ...]


class TaskConfig(NamedTuple):
    """What `load_task` reads; every field may be left out."""

    name: str = "gsm8k"  # one of GENERATED or BENCHMARKS
    path: str = ""  # a local file; "" is the hub
    revision: str = ""  # a commit on the hub; "" is the pinned one
    split: str = ""  # "" is the usual one; bbh: the subtask; aime: the year
    offset: int = 0  # problems to leave out at the start
    limit: int = 0  # problems to take; 0 is all
    kind: str = ""  # of answer; "" is that of the task
    system_prompt: str = ""  # "" is no system message
    template: str = ""  # holds {question}; "" is the one of the kind
    few_shot: int = 0  # worked examples before the question
    seed: int = 0  # of shuffled options and generated problems
    steps: int = 4  # generated: difficulty runs from 1 to this
    largest: int = LARGEST  # generated: no number is larger
    noise: float = 0.0  # share of a question's words that are misspelt
    shuffled: bool = False  # options in another order; gpqa's always are
    fields: dict[str, str] = {}  # jsonl: question, answer, id, choices


_PROMPTS = bundled("prompts.toml")
TEMPLATES: dict[str, str] = {k: p["template"] for k, p in _PROMPTS.items()}
EXAMPLES: dict[str, list[tuple[str, str]]] = {
    kind: [(e["question"], e["answer"]) for e in prompts["examples"]]
    for kind, prompts in _PROMPTS.items()
}
_LEAST = {"offset": 0, "limit": 0, "few_shot": 0, "steps": 1}
GENERATED_SIZE = 1_000  # problems where no limit is given


def load_task(name: str, **fields: Any) -> Task:
    """Reads a benchmark.

    Problem i of the file is the query "NAME/i", whatever the offset and the
    limit; ids that the file holds are kept. Options are shuffled by
    (seed, query id) alone.

    Args:
      name: of the task.
      fields: the other fields of TaskConfig.

    Raises:
      ValueError: an unknown task, field or kind, a malformed file, a missing
        column, a reference that cannot be read, ids that occur twice, an
        offset or a limit past the end.
      OSError: a file that is not there, or that the hub does not give.
    """
    settings = _settings({"name": name, **fields})
    if settings.name in GENERATED:
        return _generated(settings)
    benchmark = BENCHMARKS[settings.name]
    path, subset = _locate(settings, benchmark)
    name = f"{settings.name}/{subset}" if subset else settings.name
    rows = _chosen(read_rows(path), settings, path)
    items = [benchmark.read(row, settings.fields) for row in rows]
    kind = settings.kind or benchmark.kind
    if not kind and items[0].options:
        kind = "choice"
    kind = kind or kind_of([item.answer for item in items])
    shuffled = settings.shuffled or benchmark.shuffled
    problems: dict[str, Problem] = {}
    for number, (row, item) in enumerate(
        zip(rows, items, strict=True), settings.offset
    ):
        id = f"{name}/{item.id or number}"
        if id in problems:
            raise ValueError(f"{row.place}: the id {id!r} occurs twice")
        if shuffled and not item.options:
            raise ValueError(
                f"{row.place}: config.task.shuffled, and a question without "
                "options"
            )
        key = f"{settings.seed}/{id}"
        question = misspelt(item.question, settings.noise, key)
        answer = item.answer
        if item.options:
            order = _order(len(item.options), key if shuffled else None)
            question = _with_options(question, item.options, order)
            answer = ascii_uppercase[order.index(int(answer))]
        canonical = read_reference(answer, kind)
        if canonical is None:
            raise ValueError(
                f"{row.place}: the answer {answer!r} cannot be read whole as "
                f"{kind}; mend it, or set config.task.kind to another, such "
                "as math or text"
            )
        query = Query(id, _messages(question, kind, settings))
        problems[id] = Problem(query, canonical)
    return Task(name, kind, tuple(problems.values()))


def _generated(settings: TaskConfig) -> Task:
    name, seed = settings.name, settings.seed
    if settings.shuffled:
        raise ValueError(f"config.task.shuffled: {name} has no options")
    if settings.path or settings.revision:
        raise ValueError(f"{name} is generated: it has no path or revision")
    kind = settings.kind or "number"
    split = settings.split or "test"
    stop = settings.offset + (settings.limit or GENERATED_SIZE)
    problems = []
    for index in range(settings.offset, stop):
        steps = 1 + index % settings.steps
        made = GENERATED[name](seed, index, steps, split, settings.largest)
        id = f"{name}/{index}"
        question = misspelt(made.question, settings.noise, f"{seed}/{id}")
        query = Query(id, _messages(question, kind, settings))
        problems.append(Problem(query, str(made.answer)))
    return Task(name, kind, tuple(problems))


def _settings(given: dict[str, Any]) -> TaskConfig:
    defaults = TaskConfig()._asdict()
    unknown = sorted(given.keys() - defaults.keys())
    if unknown:
        raise ValueError(
            f"unknown field config.task.{unknown[0]}; known: "
            f"{', '.join(defaults)}"
        )
    for field, value in given.items():
        if hasattr(value, "items"):  # a ConfigDict is no Mapping
            given[field] = value = {k: v for k, v in value.items() if v}
        expected = type(defaults[field])
        if type(value) is not expected:
            raise ValueError(
                f"config.task.{field}: expected {expected.__name__}, got "
                f"{value!r}"
            )
    settings = TaskConfig(**given)
    known = (*GENERATED, *BENCHMARKS)
    if settings.name not in known:
        raise ValueError(
            f"unknown task {settings.name!r}; known: {', '.join(known)}"
        )
    for field, least in _LEAST.items():
        if getattr(settings, field) < least:
            raise ValueError(f"config.task.{field} must be at least {least}")
    if settings.kind:
        check_kind(settings.kind)
    strange = sorted(settings.fields.keys() - set(FIELDS))
    if strange or (settings.fields and settings.name != "jsonl"):
        raise ValueError(
            "config.task.fields names the columns of a jsonl task: "
            f"{', '.join(FIELDS)}; got {dict(settings.fields)} for "
            f"{settings.name}"
        )
    if not 0 <= settings.noise <= 1:
        raise ValueError(
            f"config.task.noise must lie in [0, 1], got {settings.noise}"
        )
    if settings.template and "{question}" not in settings.template:
        raise ValueError("config.task.template must hold {question}")
    return settings


def _locate(settings: TaskConfig, benchmark: Benchmark) -> tuple[Path, str]:
    """The file, and the subset that belongs to the task's name."""
    if settings.path:
        if settings.revision:
            raise ValueError(
                "config.task.revision names a commit on the hub, and "
                "config.task.path a local file: give one of them"
            )
        path = Path(settings.path)
        # BBH's files are named after their subtasks.
        subtask = path.stem if settings.name == "bbh" else ""
        return path, settings.split or subtask if benchmark.subset else ""
    if not benchmark.hub:
        raise ValueError(f"{settings.name} needs a file in config.task.path")
    split = settings.split or benchmark.split
    source = benchmark.hub.get(split) or benchmark.hub.get("*")
    if not split or source is None:
        known = ", ".join(sorted(benchmark.hub.keys() - {"*"}))
        raise ValueError(
            f"config.task.split of {settings.name} is {split!r}; expected "
            f"{known or 'the name of a subtask'}"
        )
    path = download(source, split, settings.revision)
    return path, split if benchmark.subset else ""


def _chosen(rows: list[Row], settings: TaskConfig, path: Path) -> list[Row]:
    size, offset, limit = len(rows), settings.offset, settings.limit
    stop = offset + limit if limit else size
    if offset >= size or stop > size:
        raise ValueError(
            f"{path} holds {size} problems; config.task.offset={offset} with "
            f"limit={limit} passes its end"
        )
    return rows[offset:stop]


def _messages(
    question: str, kind: str, settings: TaskConfig
) -> tuple[Message, ...]:
    template = settings.template or TEMPLATES[kind]
    examples = EXAMPLES[kind]
    if settings.few_shot > len(examples):
        raise ValueError(
            f"config.task.few_shot={settings.few_shot}: there are "
            f"{len(examples)} examples of kind {kind}"
        )
    turns = []
    if settings.system_prompt:
        turns.append(Message("system", settings.system_prompt))
    for example, solution in examples[: settings.few_shot]:
        turns.append(Message("user", template.replace("{question}", example)))
        turns.append(Message("assistant", solution))
    turns.append(Message("user", template.replace("{question}", question)))
    return tuple(turns)


def _order(size: int, key: str | None) -> list[int]:
    """The options' order; shuffled by a hash of the key, where there is one."""
    order = list(range(size))
    if key is not None:
        order.sort(key=lambda i: sha256(f"{key}/{i}".encode()).digest())
    return order


def _with_options(
    question: str, options: Sequence[str], order: Sequence[int]
) -> str:
    gap = "\n" if question.endswith(f"\n{OPTIONS}") else "\n\n"
    letters = zip(ascii_uppercase, order, strict=False)
    lines = [f"({letter}) {options[i]}" for letter, i in letters]
    return question + gap + "\n".join(lines)
