"""Files of one value, which are written completely or not at all."""

import contextlib
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any


def read_json(path: Path) -> Any:
    """Reads a file of one JSON value.

    Raises:
      ValueError: it is none; the message names the file.
      OSError: it cannot be read.
    """
    try:
        return json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: expected JSON, {error}") from None


def write_json(path: Path, value: Any) -> None:
    """Writes JSON for a person to read."""
    write_text(path, json.dumps(value, indent=2) + "\n")


def write_text(path: Path, text: str | Iterable[str]) -> None:
    """Writes a text, or its parts, in UTF-8.

    Raises:
      OSError: it names the file; what was there before is still there.
    """
    draft = path.with_name(f".{path.name}.tmp")
    parts = [text] if isinstance(text, str) else text
    try:
        with open(
            draft, "w", encoding="utf-8", errors="backslashreplace", newline=""
        ) as file:
            file.writelines(parts)
            file.flush()
            os.fsync(file.fileno())
        os.replace(draft, path)
    except OSError as error:
        raise cannot_write(path, error) from error
    finally:
        with contextlib.suppress(OSError):
            draft.unlink(missing_ok=True)


def cannot_write(path: Path, error: OSError) -> OSError:
    """Makes an error that names the file of one that does not."""
    return OSError(
        error.errno,
        f"cannot write {path}: {error.strerror}. What was written before is "
        "kept: make room, and start the same command again",
    )
