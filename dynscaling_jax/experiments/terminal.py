"""What a command writes to its terminal, or to what stands in its place."""

import os
import sys
from collections.abc import Callable
from typing import Any


def plain(text: str, keep: str = "") -> str:
    r"""Shows control characters as \x1b, so that no terminal obeys a text."""
    return "".join(
        c
        if c.isprintable() or c in f"\n\t{keep}"
        else c.encode("unicode_escape").decode()
        for c in text
    )


def prepare() -> Callable[[], str]:
    """Makes stdout and stderr write plain text, and survive what they lose.

    In any locale; a run does not end for what cannot be written.

    Returns a function that says why stdout lost something; empty where it did
    not, was closed, or was a pipe of which nobody reads more.
    """
    for fd, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:  # else a file would get its number
            try:
                os.fstat(fd)
            except OSError:
                os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
    sys.stdout = sys.stdout or open(os.devnull, "w")
    sys.stderr = sys.stderr or open(os.devnull, "w")
    _guard(sys.stderr, keep="\r")  # of progress bars
    lost = _guard(sys.stdout)

    def why() -> str:
        sys.stdout.flush()
        return lost[0] if lost else ""

    return why


def _guard(stream: Any, keep: str = "") -> list[str]:
    """keep: characters more that may pass. Fills a list as prepare says."""
    stream.reconfigure(errors="backslashreplace")
    lost: list[str] = []

    def lossy(call: Callable) -> Callable:
        def called(*args: Any) -> Any:
            try:
                return call(*args)
            except OSError as error:
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
                if not isinstance(error, BrokenPipeError):
                    lost.append(str(error.strerror))

        return called

    write = lossy(stream.write)
    stream.write = lambda text: write(plain(text, keep))
    stream.flush = lossy(stream.flush)
    return lost
