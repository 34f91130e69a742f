"""Speed and memory, one JSON line a measurement.

    python -m launch.bench --config=configs/bench.py

The benchmarks are the modules of launch/benches; --config.only names some.
"""

import importlib
import json
import logging
import sys

from absl import app, flags
from ml_collections import config_flags

from launch.arguments import reader

FIELDS = "configs/bench.py"
CONFIG = config_flags.DEFINE_config_file(
    "config", None, "What is measured; --config.FIELD=VALUE replaces a field."
)
BENCHES = (
    "allocation",
    "replay",
    "decode",
    "prefix",
    "dynscaling",
    "startup",
    "memory",
    "accelerator",
)


def main(_) -> None:
    config = CONFIG.value
    names = [n for n in config.only.split(",") if n] or BENCHES
    for name in names:
        if name not in BENCHES:
            sys.exit(
                f"launch.bench: unknown bench {name!r}; known: "
                f"{', '.join(BENCHES)}"
            )
    for noisy in ("jax", "httpx2", "gguf"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    try:
        for name in names:
            # JAX is imported after the flags are read
            bench = importlib.import_module(f"launch.benches.{name}")
            for line in bench.lines(config):
                print(json.dumps(line), flush=True)
    except (ValueError, OSError, RuntimeError) as error:
        logging.debug("the benchmark failed", exc_info=True)  # --verbosity=1
        sys.exit(f"launch.bench: {error}")


def cli() -> None:
    flags.mark_flags_as_required(["config"])
    app.run(main, flags_parser=reader("launch.bench", FIELDS))


if __name__ == "__main__":
    cli()
