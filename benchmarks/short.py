"""Many short samples, beside another checkout of the project.

Both engines stay in their processes and take turns, so that a machine whose
speed moves by a third from minute to minute still tells 3% apart. Each turn has
a new engine, which computes the prompts; all is compiled by the first, which
does not count. For a CPU: an accelerator would not hold both.
"""

import json
import subprocess
from pathlib import Path

import numpy as np

from benchmarks.common import ROOT, Config, Lines, rate
from benchmarks.long import checked, engine_of, make_job


def lines(config: Config) -> Lines:
    size = config.short
    if not size.before:
        yield {
            "bench": "short",
            "missing": "a checkout of the project",
            "install": "--config.short.before=CHECKOUT",
        }
        return
    before = checked(size.before)
    job = make_job(config, size)
    speeds: dict[str, list[float]] = {"ours": [], "theirs": []}
    with Served(ROOT, job) as ours, Served(before, job) as theirs:
        sides = {"ours": ours, "theirs": theirs}
        for turn in range(size.turns):
            for name in [*sides] if turn % 2 else [*sides][::-1]:
                speeds[name].append(sides[name].again())
    ratios = np.divide(speeds["ours"], speeds["theirs"])
    yield {
        "bench": "short",
        "samples": sum(map(len, job["lengths"])),
        "tokens": sum(map(sum, job["lengths"])),
        "tokens_per_second": speeds["ours"],
        "their_tokens_per_second": speeds["theirs"],
        "ratio": round(float(np.median(ratios)), 3),
        "ratio_of_fastest": round(
            max(speeds["ours"]) / max(speeds["theirs"]), 3
        ),
        "goal": size.goal,
    }


class Served:
    """An engine in a process of its own; the first run compiles."""

    def __init__(self, checkout: Path, job: dict):
        command, env = engine_of(checkout)
        self._name = f"the engine of {checkout}"
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=env,
        )
        self._ask(json.dumps(job))

    def again(self) -> float:
        """Does the job once more; returns tokens a second."""
        found = self._ask("")
        return rate(found["tokens"], found["seconds"])

    def __enter__(self) -> "Served":
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()

    def _ask(self, line: str) -> dict:
        """Raises RuntimeError where the engine failed."""
        assert self._process.stdin and self._process.stdout
        try:
            self._process.stdin.write(line + "\n")
            self._process.stdin.flush()
            return json.loads(self._process.stdout.readline())
        except (OSError, ValueError):
            code = self._process.poll()
            raise RuntimeError(
                f"{self._name} failed, exit status {code}; see above"
            ) from None
