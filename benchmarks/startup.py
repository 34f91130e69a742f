"""From an empty process to a compiled engine, without and with compiled code
kept by an earlier process."""

import itertools
import json
import os
import sys
import tempfile
import time

from benchmarks.common import ROOT, Config, Lines, last_line

GOALS = {"cold": 40.0, "kept": 10.0}


def lines(config: Config) -> Lines:
    with tempfile.TemporaryDirectory() as folder:
        for name, goal in GOALS.items():
            parts = _child(config, folder)
            sampling = parts["sample"]
            yield {
                "bench": f"startup, {name}",
                **parts,
                "seconds": round(sum(parts.values()) - sampling, 2),
                "goal": goal,
            }


def _child(config: Config, folder: str) -> dict[str, float]:
    job = {
        "model": config.model,
        "dtype": config.dtype,
        **config.startup.to_dict(),
    }
    return last_line(
        [sys.executable, "-m", "benchmarks.startup", json.dumps(job)],
        "the process",
        cwd=ROOT,
        env={**os.environ, "JAX_COMPILATION_CACHE_DIR": folder},
    )


def start(job: dict) -> dict[str, float]:
    """Seconds of what a process does until it could sample at full speed, and
    of sampling then."""
    marks = [time.perf_counter()]

    def mark() -> None:
        marks.append(time.perf_counter())

    from dynscaling_jax.checkpoints import load_model
    from dynscaling_jax.experiments.environment import use_compilation_cache
    from dynscaling_jax.inference import Engine

    use_compilation_cache()
    mark()
    model = load_model(job["model"], job["dtype"])
    engine = Engine(model, max_new_tokens=job["new_tokens"], slots=job["slots"])
    mark()
    for question in ("What is 6 times 7?", "What is 7 times 8?"):
        engine.generate([question], n=job["slots"])
        mark()
    names = ("imports", "load", "compile", "sample")
    spent = [after - before for before, after in itertools.pairwise(marks)]
    spent[2] -= spent[3]  # the first sampling is not compilation
    return dict(zip(names, (round(s, 2) for s in spent), strict=True))


if __name__ == "__main__":
    print(json.dumps(start(json.loads(sys.argv[1]))))
