"""Samples of very different lengths, against other systems.

Each sample generates exactly its number of tokens: no id ends it. The numbers
follow a bank's recorded ones, scaled. Every side runs in a process of its own,
ours before and after the others.
"""

import json
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import against, ours, prompts
from benchmarks.common import ROOT, Config, Lines, last_line, rate
from dynscaling_jax.checkpoints.model import resolve
from dynscaling_jax.tasks import load_task


def lines(config: Config) -> Lines:
    size = config.long
    older = size.before and checked(size.before)
    job = make_job(config, size)
    yield {
        "bench": "long",
        "rows": size.rows,
        "samples": sum(map(len, job["lengths"])),
        "tokens": sum(map(sum, job["lengths"])),
        "longest": max(map(max, job["lengths"])),
        "bank": Path(size.bank).name or "made up",
    }
    first = ask_engine(ROOT, job)
    yield {"bench": "long, this engine", **shown(first)}
    asks = {
        "before": lambda: (
            ask_engine(older, job)
            if older
            else {
                "missing": "a checkout of the project",
                "install": "--config.long.before=CHECKOUT",
            }
        ),
        "llama_cpp": lambda: ask_llama_cpp(config, job),
        "transformers": lambda: ask_transformers(config, job),
    }
    before = first
    for name in [n for n in size.peers.split(",") if n]:
        theirs = asks[name]()
        bench = {"bench": f"long against {name}"}
        if "missing" in theirs:
            yield {**bench, "install": against.INSTALL, **theirs}
            continue
        after = ask_engine(ROOT, job)
        mine = rate(
            before["tokens"] + after["tokens"],
            before["seconds"] + after["seconds"],
        )
        other = rate(theirs["tokens"], theirs["seconds"])
        yield {
            **bench,
            "tokens_per_second": mine,
            "their_tokens_per_second": other,
            "ratio": round(mine / max(other, 0.1), 2),
            "ratio_without_compilation": round(
                warm(before, after) / max(warm(theirs), 0.1), 2
            ),
            "goal": size.goals[name],
            "ours_before": shown(before),
            "ours_after": shown(after),
            "theirs": shown(theirs),
        }
        before = after


def warm(*found: dict[str, Any]) -> float:
    """Tokens a second when all is compiled already."""
    seconds = sum(one["seconds"] for one in found)
    compiling = sum(one.get("compile_seconds", 0.0) for one in found)
    return rate(sum(one["tokens"] for one in found), seconds - compiling)


def shown(found: dict[str, Any]) -> dict[str, Any]:
    speed = rate(found["tokens"], found["seconds"])
    seconds = round(found["seconds"], 1)
    return {**found, "seconds": seconds, "tokens_per_second": speed}


def make_job(config: Config, size: Config) -> dict[str, Any]:
    """What an engine, or a peer, is to do. If `mean` equals `most`, every
    sample has that length."""
    model = ours.load(config)
    task = load_task(**config.task)
    queries = prompts.queries(task, model, size.queries, size.prompt_tokens)
    return {
        "model": config.model,
        "dtype": config.dtype,
        "messages": [
            [[turn.role, turn.content] for turn in query.messages]
            for query in queries
        ],
        "prompts": prompts.ids(model, queries),
        "lengths": scaled(recorded_lengths(size), size.mean, size.most),
        "rows": size.rows,
        "slots_per_group": size.slots_per_group,
        "temperature": size.temperature,
        "threads": len(os.sched_getaffinity(0)),
    }


def recorded_lengths(size: Config) -> list[list[int]]:
    """Of a bank's first questions and samples; made up without a bank."""
    if not size.bank:
        made = np.random.RandomState(0).lognormal(
            5.0, 0.7, (size.queries, size.candidates)
        )
        return made.astype(int).tolist()
    with Path(size.bank).open() as file:
        recorded = [json.loads(line)["new_tokens"] for line in file]
    return [one[: size.candidates] for one in recorded[: size.queries]]


def scaled(
    recorded: Sequence[Sequence[int]], mean: float, most: int
) -> list[list[int]]:
    """Lengths in proportion to recorded ones, but for the longest.

    Their mean is as asked for: [100, 300] with a mean of 20 become [10, 30],
    and [12, 28] where 28 is the most.
    """
    every = [one for question in recorded for one in question]
    low, high = 0.0, most / min(every)
    cut = lambda n, scale: min(most, max(1, round(n * scale)))
    for _ in range(60):
        scale = (low + high) / 2
        if sum(cut(n, scale) for n in every) < mean * len(every):
            low = scale
        else:
            high = scale
    return [[cut(n, high) for n in question] for question in recorded]


def checked(path: str) -> Path:
    """A checkout; ValueError for what is none, where another would answer."""
    if not (Path(path) / "dynscaling_jax").is_dir():
        raise ValueError(f"{path} is no checkout of the project")
    return Path(path)


def ask_engine(checkout: Path, job: dict[str, Any]) -> dict[str, Any]:
    command, env = engine_of(checkout)
    return last_line(
        command, f"the engine of {checkout}", input=json.dumps(job), env=env
    )


def engine_of(checkout: Path) -> tuple[list[str], dict[str, str]]:
    """What serves the engine of a checkout: a command, its environment."""
    script = against.SCRIPTS / "engine_peer.py"
    path = {"PYTHONPATH": str(checkout.absolute())}
    return [sys.executable, str(script)], {**os.environ, **path}


def ask_llama_cpp(config: Config, job: dict[str, Any]) -> dict[str, Any]:
    """Continuous batching: the next sample begins as soon as one ends."""
    python, file = config.peers.llama_python, resolve(config.model).absolute()
    if not Path(python).is_file():
        return {"missing": python}
    if file.suffix != ".gguf":
        return {"missing": "a GGUF file: llama.cpp reads nothing else"}
    job = {**job, "weights": config.long.llama_weights}
    with tempfile.TemporaryDirectory() as folder:
        wide = Path(folder) / "float32.gguf"
        if "float32" in job["weights"]:
            against.write_float32(file, wide)
        job["models"] = {"file": str(file), "float32": str(wide)}
        return against.run(python, "llama_cpp_long_peer.py", job)


def ask_transformers(config: Config, job: dict[str, Any]) -> dict[str, Any]:
    """Its continuous batching, on the first prompts where all take too long."""
    some = config.long.transformers_queries
    return against.run(
        config.peers.transformers_python,
        "transformers_long_peer.py",
        {
            **job,
            "prompts": job["prompts"][:some],
            "lengths": job["lengths"][:some],
            "model": str(resolve(config.model).absolute()),
        },
    )
