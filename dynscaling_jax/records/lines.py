"""Append-only files of JSON lines that survive a kill.

A line counts once its end is written. A kill can tear the last line alone:
without its end it is dropped. Every other line that cannot be read is an
error that names file and line.
"""

import contextlib
import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

SYNC_SECONDS = 1.0  # what a power cut, unlike a kill, may cost


def dumps(row: Any) -> bytes:
    """One line: ASCII alone, so that every text comes back as it was, lone
    surrogates too. Raises ValueError for numbers that are not finite."""
    return json.dumps(row, allow_nan=False).encode("ascii") + b"\n"


def rows(
    path: Path, read: Callable[[Any], Any] = lambda row: row
) -> Iterator[tuple[int, int, Any]]:
    """(start, end, what read makes of the row) of each whole line of a file.

    Raises ValueError, with file and line, where a line is no JSON or read
    raises ValueError.
    """
    at = 0
    with open(path, "rb") as file:
        for number, line in enumerate(file, 1):
            if not line.endswith(b"\n"):
                return
            try:
                row = read(json.loads(line))
            except (ValueError, RecursionError) as error:
                raise ValueError(
                    f"{path}:{number}: malformed line: {error}. Only a last "
                    "line can be torn by a kill, so the file was changed or "
                    "damaged; mend or remove that line"
                ) from None
            yield at, at + len(line), row
            at += len(line)


class Lines:
    """An open file of JSON lines.

    OSErrors of writing name the file and what to do; the file then ends with
    its last whole line.
    """

    def __init__(self, path: Path):
        self.path = path
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        self.size = os.fstat(self._fd).st_size
        self._synced = time.monotonic()

    def read_all(
        self, read: Callable[[Any], Any] = lambda row: row
    ) -> Iterator[tuple[int, Any]]:
        """(offset, row) of each line; a torn last one is cut off after."""
        end = 0
        for at, end, row in rows(self.path, read):  # noqa: B007
            yield at, row
        if end < self.size:
            self._truncate(end)

    def read(self, at: int) -> bytes:
        """The line at an offset."""
        line = b""
        while not line.endswith(b"\n"):
            part = os.pread(self._fd, 1 << 16, at + len(line))
            end = part.find(b"\n") + 1
            line += part[:end] if end else part
        return line

    def append(self, line: bytes) -> int:
        """Writes a whole line; its offset."""
        at, rest = self.size, memoryview(line)
        try:
            while rest:
                rest = rest[self._guard(os.write, self._fd, rest) :]
        except OSError:
            with contextlib.suppress(OSError):  # else the next start does it
                self._truncate(at)
            raise
        self.size += len(line)
        if time.monotonic() - self._synced > SYNC_SECONDS:
            self.sync()
        return at

    def sync(self) -> None:
        self._guard(os.fsync, self._fd)
        self._synced = time.monotonic()

    def clear(self) -> None:
        self._truncate(0)

    def close(self) -> None:
        os.close(self._fd)

    def _truncate(self, size: int) -> None:
        self._guard(os.ftruncate, self._fd, size)
        self.size = size

    def _guard(self, call: Callable, *args: Any) -> Any:
        try:
            return call(*args)
        except OSError as error:
            raise cannot_write(self.path, error) from error


def cannot_write(path: Path, error: OSError) -> OSError:
    return OSError(
        error.errno,
        f"cannot write {path}: {error.strerror}. What was written before is "
        "kept: make room, and start the same command again",
    )
