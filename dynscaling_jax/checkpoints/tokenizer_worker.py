"""The worker process that holds a tokenizer and a chat template.

Run as a program, not imported. Each JSON line of standard input, [seconds,
method of Codec, arguments], is answered by one line: {"value": ...} or
{"error": [type, message]}. The first names `open` and the files.

A template can format, pad and join its way to gigabytes, a normalizer can
double a text forty times, a pattern can panic. No list of what is forbidden is
ever complete; here the operating system bounds memory and processor time,
whatever the interpreter or a library in Rust is doing.
"""

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

# without this file's own folder, whose names would hide others
sys.path.insert(0, str(Path(__file__).parents[2]))

from dynscaling_jax.checkpoints import codec
from dynscaling_jax.workers import limit

MEMORY = 2 << 30  # bytes of address space; 262,144 tokens take a quarter
FULL = "tokenizer or chat template: it needs more than its limit of memory"


def main() -> None:
    limit(MEMORY)
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    # what libraries print is no answer; where they panic, the answer says so
    silent = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silent, 1)
    os.dup2(silent, 2)
    answers.write("ready\n")
    opened: Any = None
    for line in sys.stdin.buffer:
        seconds, name, arguments = json.loads(line)
        signal.setitimer(signal.ITIMER_PROF, seconds)
        try:
            if name == "open":
                opened = None
                opened = codec.open_spec(*arguments)
                value = None
            elif isinstance(opened, Exception):
                raise opened
            else:
                value = getattr(opened, name)(*arguments)
            answer = json.dumps({"value": value})
        except (ValueError, OSError) as error:
            answer = _error(error)
            if name == "open":
                opened = error
        except BaseException as error:  # a panic of Rust is no Exception
            said = f"{type(error).__name__}: {error}"[:500]
            full = isinstance(error, MemoryError)  # it says nothing by itself
            wrapped = ValueError(FULL if full else said)
            answer = _error(wrapped)
            if name == "open":
                opened = wrapped
        signal.setitimer(signal.ITIMER_PROF, 0)
        answers.write(answer + "\n")


def _error(error: Exception) -> str:
    missing = isinstance(error, FileNotFoundError)
    return json.dumps({"error": [missing, str(error)]})


if __name__ == "__main__":
    main()
