"""The report of finished runs, joined from its parts: directories to a page."""

import contextlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from dynscaling_jax import lines
from dynscaling_jax.analysis.graded import (
    GradedRun,
    RecordedRun,
    grade_run,
)
from dynscaling_jax.analysis.page import page
from dynscaling_jax.analysis.report import report
from dynscaling_jax.experiments.log import (
    read_samples,
    refuse_changed,
    runs_below,
)
from dynscaling_jax.files import cannot_write, read_json, write_text
from dynscaling_jax.tasks import Compare, Comparer

READ = ("task", "kind", "model", "samples", "accuracy")  # of summary.json


def write(
    workdirs: Sequence[Path], out: Path, compare: Compare | None = None
) -> Path:
    """Writes OUT/report.html in one piece, and returns its path.

    Args:
        workdirs: of finished runs, or of comparisons, as runs_of has them;
            the first is what the others are compared with.
        out: the directory that gets report.html.
        compare: one that has compared their answers already saves the time.

    Raises:
        ValueError: no runs, one twice, or files that are not of a finished
            run, named.
        OSError: a file that cannot be read or written.
    """
    workdirs = [run for workdir in workdirs for run in runs_of(workdir)]
    runs = [*map(read_run, workdirs, names(workdirs))]
    with contextlib.ExitStack() as stack:
        compare = compare or stack.enter_context(Comparer())
        graded = [grade_run(run, compare) for run in runs]
    return write_page(graded, out)


def write_page(runs: Sequence[GradedRun], out: Path) -> Path:
    """Writes OUT/report.html of graded runs, as `write` does."""
    text = page(report(runs))
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise cannot_write(out / "report.html", error) from error
    write_text(out / "report.html", text)
    return out / "report.html"


def runs_of(workdir: Path) -> list[Path]:
    """Lists the runs of a comparison, or the directory of a run itself.

    Those of the first seed, at the largest budget that all methods had.

    Raises:
        ValueError: its report.json is not as launch.compare writes it.
    """
    file = workdir / "report.json"
    if not file.exists():
        return [workdir]
    try:
        found = [
            (str(row["method"]), float(row["budget"]))
            for row in read_json(file)
        ]
        methods = list(dict.fromkeys(method for method, _ in found))
        shared = set.intersection(
            *({b for m, b in found if m == method} for method in methods)
        )
        most = max(shared)
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{file} is not as launch.compare writes it ({error!r})"
        ) from None
    return [workdir / run_name(0, method, most) for method in methods]


def run_name(seed: int, method: str, budget: float) -> str:
    """Tells where launch.compare keeps a run."""
    return f"seed-{seed}/{method}-{budget:g}"


def names(workdirs: Sequence[Path]) -> list[str]:
    """Shortens paths to ends that tell them apart.

    Raises:
        ValueError: none, or two that are one directory.
    """
    paths = [workdir.resolve() for workdir in workdirs]
    if not paths:
        raise ValueError("there are no directories of runs")
    if len(set(paths)) < len(paths):
        twice = next(p for i, p in enumerate(paths) if p in paths[:i])
        raise ValueError(f"{twice} is given twice")
    depth = 1
    while len({path.parts[-depth:] for path in paths}) < len(paths):
        depth += 1
    return ["/".join(path.parts[-depth:]) for path in paths]


STEPS = ("rounds", "events")  # files, of which a run has one


def read_run(workdir: Path, name: str) -> RecordedRun:
    """Reads the files of a finished run, under a name of one's choice.

    Raises:
        ValueError, OSError: as write.
    """
    if not workdir.is_dir():
        raise FileNotFoundError(f"{workdir}: no such directory of a run")
    if not (workdir / "summary.json").exists():
        raise ValueError(
            f"{workdir} has no summary.json: expected the workdir of a run "
            "that has ended; launch.run with the same flags ends it"
            f"{runs_below(workdir)}"
        )
    text = lambda value: isinstance(value, str)
    questions = workdir / "questions.json"  # earlier runs have none
    if not any((workdir / f"{n}.jsonl").exists() for n in STEPS):
        raise FileNotFoundError(
            f"{workdir} has neither rounds.jsonl nor events.jsonl: expected "
            "the whole workdir of a run"
        )
    run = RecordedRun(
        name,
        _object(workdir / "summary.json", lambda _: True, READ),
        _object(workdir / "references.json", text),
        _object(questions, text) if questions.exists() else {},
        _object(workdir / "answers.json", _answer),
        tuple(read_samples(workdir / "samples.jsonl")),
        *(_rows(workdir / f"{name}.jsonl") for name in STEPS),
    )
    refuse_changed(workdir)
    return run


def _rows(path: Path) -> tuple[Any, ...]:
    """The rows of a file; none where a run of its kind has no such file."""
    if not path.exists():
        return ()
    return tuple(row for _, _, row in lines.rows(path))


def _object(
    path: Path, right: Callable[[Any], bool], needs: Sequence[str] = ()
) -> dict[str, Any]:
    value = read_json(path)
    if not isinstance(value, dict) or not all(map(right, value.values())):
        raise ValueError(f"{path} is not as launch.run writes it")
    if missing := [name for name in needs if name not in value]:
        raise ValueError(f"{path} lacks {', '.join(missing)}")
    return value


def _answer(value: Any) -> bool:
    return isinstance(value, dict) and {"answer", "right"} <= value.keys()
