"""Text and JSON of files that are not trusted."""

import json
from pathlib import Path
from typing import Any

MOST = 2**25  # bytes; the largest index of shards has a third of it
MOST_DIGITS = 100  # model_max_length has 31 where a file knows none


def read_text(file: Path, most: int = MOST) -> str:
    """Reads text in any encoding of Unicode, less its byte order mark.

    Raises:
        ValueError: more bytes than `most`, or not text; says in which line.
    """
    size = file.stat().st_size
    if size > most:
        raise ValueError(f"{file}: {size} bytes; expected {most} at most")
    data = file.read_bytes()
    encoding = json.detect_encoding(data)
    try:
        return data.decode(encoding)
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ValueError(
            f"{file}, line {line}: not text in {encoding} ({error.reason}); "
            "save it as UTF-8"
        ) from None


def read_json(file: Path) -> dict[str, Any]:
    """Reads a JSON object.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not a JSON object.
    """
    if not file.is_file():
        raise FileNotFoundError(f"{file.parent}: {file.name} is missing")
    text = read_text(file)

    def whole(digits: str) -> int:
        if len(digits) > MOST_DIGITS:
            line = text.count("\n", 0, text.find(digits)) + 1
            raise ValueError(f"line {line}: an integer of {len(digits)} digits")
        return int(digits)

    try:
        value = json.loads(text, parse_int=whole)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file}: not JSON ({error})") from None
    if not isinstance(value, dict):
        raise ValueError(f"{file}: expected a JSON object")
    return value
