"""The worker process that holds a tokenizer and a chat template.

Run as a program, not imported. Each request, [seconds, method of Codec,
arguments], is answered by {"value": ...} or {"error": [is the file missing,
message]}. The first names `open` and the files.

A template can format, pad and join its way to gigabytes, a normalizer can
double a text forty times, a pattern can panic: hence the limits.
"""

import sys
from pathlib import Path
from typing import Any

# without this file's own folder, whose names would hide others
sys.path.insert(0, str(Path(__file__).parents[2]))

from dynscaling_jax.checkpoints import codec
from dynscaling_jax.workers import serve

MEMORY = 2 << 30  # bytes of address space; 262,144 tokens take a quarter
FULL = "tokenizer or chat template: it needs more than its limit of memory"


class Server:
    """Holds the codec, or the error that opening it raised."""

    codec: Any = None

    def answer(self, method: str, arguments: list[Any]) -> dict[str, Any]:
        """Returns what the method returned, or what went wrong."""
        opens = method == "open"
        try:
            if opens:
                self.codec = None
                self.codec = codec.open_spec(*arguments)
                return {"value": None}
            if isinstance(self.codec, Exception):
                raise self.codec
            return {"value": getattr(self.codec, method)(*arguments)}
        except (ValueError, OSError) as error:
            failure: Exception = error
        except BaseException as error:  # a panic of Rust is no Exception
            said = f"{type(error).__name__}: {error}"[:500]
            full = isinstance(error, MemoryError)  # it says nothing by itself
            failure = ValueError(FULL if full else said)
        if opens:
            self.codec = failure
        missing = isinstance(failure, FileNotFoundError)
        return {"error": [missing, str(failure)]}


if __name__ == "__main__":
    serve(Server().answer, MEMORY)
