"""The worker process that compares two formulas with math-verify.

Run as a program, not imported. One JSON line of standard input,
[a, b, seconds], is answered by one line: equal, different, timeout.

math-verify's own time limits use signal handlers, which fail outside the main
thread and wait for the interpreter to leave a long integer power. Here the
kernel ends the process once a comparison has used its seconds of processor
time, whatever the interpreter is doing; the reader of the other end sees the
end of the file. The same limit, and the end of its input, see to it that no
worker outlives its parent.
"""

import contextlib
import json
import logging
import os
import resource
import signal
import sys
from functools import lru_cache

MEMORY = 2 << 30  # bytes of address space


def main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides
    signal.signal(signal.SIGPROF, signal.SIG_DFL)  # ends the process
    with contextlib.suppress(ValueError, OSError):  # not on every platform
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what libraries print must not be read as an answer
    logging.disable(logging.CRITICAL)

    from math_verify import parse, verify
    from math_verify.parser import LatexExtractionConfig

    # The LaTeX grammar alone. The other extraction, of plain expressions,
    # hands text to sympy's parse_expr, which evaluates it as Python.
    latex = [LatexExtractionConfig(boxed_match_priority=-1)]

    @lru_cache(maxsize=4096)
    def formulas(text: str) -> tuple[object, ...]:
        return tuple(
            parse(
                f"${text}$",
                latex,
                fallback_mode="no_fallback",
                parsing_timeout=None,  # type: ignore
            )
        )

    def same(gold: str, other: str) -> bool:
        try:
            return verify(
                list(formulas(gold)),  # type: ignore
                list(formulas(other)),  # type: ignore
                float_rounding=12,
                allow_set_relation_comp=True,
                timeout_seconds=None,
                raise_on_error=True,
            )
        except MemoryError:
            raise
        except Exception:  # sympy raises nearly anything on what it cannot do
            return False

    answers.write("ready\n")
    for line in sys.stdin:
        a, b, seconds = json.loads(line)
        signal.setitimer(signal.ITIMER_PROF, seconds)
        try:  # verify treats its two sides differently; here they are equals
            outcome = "equal" if same(a, b) or same(b, a) else "different"
        except MemoryError:
            outcome = "timeout"
        signal.setitimer(signal.ITIMER_PROF, 0)
        answers.write(outcome + "\n")


if __name__ == "__main__":
    main()
