"""Files of questions -> rows, each of which knows where it stands.

JSON Lines, JSON (an array, or BBH's object with "examples"), CSV with a
header, and Parquet, from a local path or from the hub. A file is read as a
whole or refused: what is wrong is named with its place.
"""

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from dynscaling_jax.lines import check_encoding

READABLE = (".jsonl", ".json", ".csv", ".parquet")


class Row(NamedTuple):
    values: dict[str, Any]
    place: str  # file and line or row, for messages


class HubFile(NamedTuple):
    """A file of a dataset on the hub; `{split}` stands in the file name."""

    repo: str
    file: str
    revision: str  # a commit


def read_rows(path: Path) -> list[Row]:
    """All rows of a file, in its order.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: an unknown format, a malformed line, an empty file.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no file at {path}")
    readers = {
        ".jsonl": _json_lines,
        ".json": _json_rows,
        ".csv": _csv_rows,
        ".parquet": _parquet_rows,
    }
    if path.suffix not in readers:
        raise ValueError(
            f"{path}: cannot read {path.suffix or 'a file without suffix'}; "
            f"known: {', '.join(readers)}"
        )
    if path.suffix != ".parquet":
        with path.open("rb") as file:
            check_encoding(path, file.read(4))
    rows = []
    for values, place in readers[path.suffix](path):
        if not isinstance(values, dict):
            raise ValueError(
                f"{place}: expected an object with named fields, got "
                f"{type(values).__name__}"
            )
        rows.append(Row(values, place))
    if not rows:
        raise ValueError(f"{path} holds no rows")
    return rows


_Found = Iterator[tuple[Any, str]]


def _json_lines(path: Path) -> _Found:
    # Binary, so that only \n ends a line: a question may hold U+2028.
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                place = f"{path}:{number}"
                yield _parse_json(line, place), place


def _json_rows(path: Path) -> _Found:
    content = _parse_json(path.read_bytes(), str(path))
    if isinstance(content, dict):
        content = content.get("examples")
    if not isinstance(content, list):
        raise ValueError(
            f'{path}: expected a JSON array, or an object with "examples"'
        )
    for number, values in enumerate(content):
        yield values, f"{path}, row {number}"


def _parse_json(data: bytes, place: str) -> Any:
    try:
        return json.loads(data.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{place}: not valid JSON: {error}") from error


def _csv_rows(path: Path) -> _Found:
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file, restkey="", strict=True)
        try:
            for values in reader:
                place = f"{path}:{reader.line_num}"
                if "" in values or None in values.values():
                    raise ValueError(
                        f"{place}: expected {len(reader.fieldnames or ())} "
                        "columns, as in the header"
                    )
                yield values, place
        except (csv.Error, UnicodeDecodeError) as error:
            raise ValueError(
                f"{path}: after line {reader.line_num}: not valid CSV: {error}"
            ) from error


def _parquet_rows(path: Path) -> _Found:
    try:
        from pyarrow import ArrowException, parquet
    except ImportError as error:
        raise ImportError(
            f"{path} is a Parquet file: pip install pyarrow, or give it as "
            ".jsonl"
        ) from error
    try:
        rows = parquet.read_table(path).to_pylist()
    except ArrowException as error:
        raise ValueError(f"{path}: not valid Parquet: {error}") from error
    for number, values in enumerate(rows):
        yield values, f"{path}, row {number}"


def download(source: HubFile, split: str, revision: str) -> Path:
    """The local copy of a file on the hub, fetched where it is missing.

    Raises:
      OSError: the hub cannot be reached, or does not give the file.
    """
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    file = source.file.format(split=split)
    commit = revision or source.revision
    try:
        return Path(
            hf_hub_download(
                source.repo, file, repo_type="dataset", revision=commit
            )
        )
    except (OSError, HfHubHTTPError, HFValidationError) as error:
        first = str(error).strip().partition("\n")[0]
        raise OSError(
            f"could not fetch {file} of the dataset {source.repo} at "
            f"{commit}: {first} ({type(error).__name__}). Is there a network, "
            "and is the dataset open to you? Or give a local file in "
            "config.task.path."
        ) from error
