"""Files of JSON lines: logs, which a kill can tear, and what people write.

A line of a log counts once its end is written. A kill can tear the last line
alone: without its end it is dropped. Every other line that cannot be read is
an error that names file and line.
"""

import contextlib
import json
import math
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from dynscaling_jax.files import cannot_write

SYNC_SECONDS = 1.0  # what a power cut, unlike a kill, may cost
PIECE = 1 << 16  # bytes that are read at once
LARGEST = 1e38  # a number that float32 holds, which tables are made of


def dumps(row: Any) -> bytes:
    """Writes one line, in ASCII: every text comes back, lone surrogates too.

    Raises:
        ValueError: a number that is not finite.
    """
    return json.dumps(row, allow_nan=False).encode("ascii") + b"\n"


def loads(line: bytes) -> Any:
    """Reads one line. Raises ValueError where it is no JSON in UTF-8."""
    try:
        # utf-8-sig: an editor may have put a mark before the text
        return json.loads(line.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"expected a JSON object, {error}") from None


def rows(
    path: Path,
    read: Callable[[Any], Any] = lambda row: row,
    log: bool = True,
) -> Iterator[tuple[int, int, Any]]:
    """Yields (start, end, read(row)) of each line of a file.

    Args:
        path: the file.
        read: makes of a row what is wanted.
        log: whether a last line without an end is torn and dropped. Another
            file may have empty lines, and its last line counts as it is.

    Raises:
        ValueError: a line is no JSON in UTF-8, or read raises ValueError; it
            names file and line.
    """
    at = 0
    with open(path, "rb") as file:
        check_encoding(path, file.read(4))
        file.seek(0)
        for number, line in enumerate(file, 1):
            if log and not line.endswith(b"\n"):
                return
            if log or line.strip():
                try:
                    row = read(loads(line))
                except ValueError as error:
                    raise ValueError(
                        f"{path}:{number}: {'malformed line: ' * log}{error}"
                        + log
                        * ". Only a last line can be torn by a kill, so "
                        "the file was changed or damaged; mend or remove that "
                        "line"
                    ) from None
                yield at, at + len(line), row
            at += len(line)


def check_encoding(path: Path, begin: bytes) -> None:
    """Raises ValueError where a file that begins so is no text in UTF-8."""
    if b"\0" in begin:  # no JSON has any
        raise ValueError(
            f"{path} is UTF-16 or UTF-32, or no text; expected UTF-8, which "
            "iconv -f UTF-16 -t UTF-8 makes of it"
        )


def is_number(value: Any) -> bool:
    """Whether a value of JSON is a finite number, of any size."""
    finite = type(value) is float and abs(value) < float("inf")
    return finite or type(value) is int


def finite(value: Any) -> Any:
    """The same with None in place of numbers that JSON has not."""
    if isinstance(value, dict):
        return {key: finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [finite(inner) for inner in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def is_sound(value: Any) -> bool:
    """Whether a value is a number of a size that arithmetic can go on with.

    JSON has whole numbers of 400 digits, which float() does not take.
    """
    return is_number(value) and abs(value) <= LARGEST


def shown(value: Any) -> str:
    """Shows a value in a message: not all of a text of megabytes."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:60]}... ({len(text)} long)"


class Lines:
    """An open log.

    OSErrors of writing name the file and what to do; the file then ends with
    its last complete line. RuntimeError: another program changed its length.
    """

    def __init__(self, path: Path):
        """Opens the log, or begins it.

        Raises:
            OSError: it cannot be written.
        """
        self.path = path
        try:
            self._fd = os.open(
                path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644
            )
        except OSError as error:
            raise cannot_write(path, error) from error
        self.size = os.fstat(self._fd).st_size
        self._synced = time.monotonic()

    def read_all(
        self, read: Callable[[Any], Any] = lambda row: row
    ) -> Iterator[tuple[int, Any]]:
        """Yields (offset, row) of each line, then cuts a torn last one off."""
        end = 0
        for at, end, row in rows(self.path, read):  # noqa: B007
            yield at, row
        if end < self.size:
            self.truncate(end)

    def read(self, at: int) -> bytes:
        """Reads the line at an offset."""
        parts, start = [], at
        while True:
            part = os.pread(self._fd, PIECE, at)
            end = part.find(b"\n") + 1
            parts.append(part[:end] if end else part)
            at += len(part)
            if end:
                return b"".join(parts)
            if not part:  # no end of a line will come
                raise self._changed(f"no line at {start}")

    def append(self, line: bytes) -> int:
        """Writes a line and returns its offset."""
        at, rest = self.size, memoryview(line)
        there = os.fstat(self._fd).st_size
        if there != at:
            raise self._changed(f"{there} bytes in place of {at}")
        try:
            while rest:
                rest = rest[self._guard(os.write, self._fd, rest) :]
        except OSError:
            with contextlib.suppress(OSError):  # else the next start does it
                self.truncate(at)
            raise
        self.size += len(line)
        if time.monotonic() - self._synced > SYNC_SECONDS:
            self.sync()
        return at

    def sync(self) -> None:
        """Waits until the lines are on the disk."""
        self._guard(os.fsync, self._fd)
        self._synced = time.monotonic()

    def close(self) -> None:
        """Closes the file."""
        os.close(self._fd)

    def truncate(self, size: int) -> None:
        """Drops all lines from an offset on."""
        self._guard(os.ftruncate, self._fd, size)
        self.size = size

    def _guard(self, call: Callable, *args: Any) -> Any:
        try:
            return call(*args)
        except OSError as error:
            raise cannot_write(self.path, error) from error

    def _changed(self, how: str) -> RuntimeError:
        return RuntimeError(
            f"another program changed {self.path} while it was in use: it has "
            f"{how}. Put it back, or choose another workdir"
        )
