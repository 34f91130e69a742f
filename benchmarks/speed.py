"""Speed and memory, one JSON line a measurement.

    python -m benchmarks.speed --config=benchmarks/config.py

The benchmarks are the modules of benchmarks; --config.only names some.
"""

import importlib
import json
import logging
import sys

from ml_collections import config_flags

from launch.arguments import Command, quiet, start

COMMAND = Command(
    "benchmarks.speed",
    ("config",),
    "python -m benchmarks.speed --config=benchmarks/config.py",
    "benchmarks/config.py",
)
CONFIG = config_flags.DEFINE_config_file(
    "config", None, "What is measured; --config.FIELD=VALUE replaces a field."
)
BENCHES = (
    "allocation",
    "replay",
    "pages",
    "decode",
    "prefix",
    "long",
    "short",
    "dynscaling",
    "workers",
    "startup",
    "memory",
    "accelerator",
    "traffic",
)
HERE = BENCHES[:-1]  # traffic wants compilers of its own: make aot


def main(_) -> None:
    config = CONFIG.value
    names = [n for n in config.only.split(",") if n] or HERE
    for name in names:
        if name not in BENCHES:
            sys.exit(
                f"benchmarks.speed: unknown bench {name!r}; known: "
                f"{', '.join(BENCHES)}"
            )
    quiet("jax", "httpx2", "gguf")
    try:
        for name in names:
            # JAX is imported after the flags are read
            bench = importlib.import_module(f"benchmarks.{name}")
            for line in bench.lines(config):
                print(json.dumps(line), flush=True)
    except (ValueError, OSError, RuntimeError) as error:
        logging.debug("the benchmark failed", exc_info=True)  # --verbosity=1
        sys.exit(f"benchmarks.speed: {error}")


def cli() -> None:
    start(main, COMMAND)


if __name__ == "__main__":
    cli()
