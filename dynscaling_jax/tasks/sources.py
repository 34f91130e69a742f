"""Files of questions -> rows, each of which knows where it stands.

JSON Lines, JSON (an array, or BBH's object with "examples"), CSV with a
header, and Parquet, from a local path or from the hub. A file is read as a
whole or refused: what is wrong is named with its place.
"""

import csv
import json
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from dynscaling_jax.lines import check_encoding

_Rows = Iterator[tuple[Any, str]]


class Row(NamedTuple):
    """A row of a file; `place` is the file and the line or row."""

    values: dict[str, Any]
    place: str


class HubFile(NamedTuple):
    """A file of a dataset on the hub; `{split}` stands in the file name."""

    repo: str
    file: str
    revision: str  # a commit


def read_rows(path: Path) -> list[Row]:
    """Reads all rows of a file, in its order.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: an unknown format, a malformed line, an empty file.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no file at {path}")
    if path.suffix not in _READERS:
        raise ValueError(
            f"{path}: cannot read {path.suffix or 'a file without suffix'}; "
            f"known: {', '.join(_READERS)}"
        )
    if path.suffix != ".parquet":
        with path.open("rb") as file:
            check_encoding(path, file.read(4))
    rows = []
    for values, place in _READERS[path.suffix](path):
        if not isinstance(values, dict):
            raise ValueError(
                f"{place}: expected an object with named fields, got "
                f"{type(values).__name__}"
            )
        rows.append(Row(values, place))
    if not rows:
        raise ValueError(f"{path} holds no rows")
    return rows


def _json_lines(path: Path) -> _Rows:
    # Binary, so that only \n ends a line: a question may hold U+2028.
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                place = f"{path}:{number}"
                yield _parse_json(line, place), place


def _json_rows(path: Path) -> _Rows:
    content = _parse_json(path.read_bytes(), str(path))
    if isinstance(content, dict):
        content = content.get("examples")
    if not isinstance(content, list):
        raise ValueError(
            f'{path}: expected a JSON array, or an object with "examples"'
        )
    return _numbered(content, path)


def _numbered(rows: list[Any], path: Path) -> _Rows:
    return ((row, f"{path}, row {number}") for number, row in enumerate(rows))


def _parse_json(data: bytes, place: str) -> Any:
    try:
        return json.loads(data.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{place}: not valid JSON: {error}") from error


def _csv_rows(path: Path) -> _Rows:
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


def _parquet_rows(path: Path) -> _Rows:
    from pyarrow import ArrowException, parquet

    try:
        return _numbered(parquet.read_table(path).to_pylist(), path)
    except ArrowException as error:
        raise ValueError(f"{path}: not valid Parquet: {error}") from error


_READERS = {
    ".jsonl": _json_lines,
    ".json": _json_rows,
    ".csv": _csv_rows,
    ".parquet": _parquet_rows,
}


def bundled(name: str) -> dict[str, Any]:
    """Reads a TOML file that comes with the package."""
    file = Path(__file__).parents[1] / "bundled" / name
    return tomllib.loads(file.read_text(encoding="utf-8"))


def download(source: HubFile, split: str, revision: str) -> Path:
    """Returns the local copy of a file on the hub, fetched if it is missing.

    Raises:
      OSError: the hub cannot be reached, or does not give the file.
    """
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    file = source.file.format(split=split)
    commit = revision or source.revision
    try:
        path = hf_hub_download(
            source.repo, file, repo_type="dataset", revision=commit
        )
    except (OSError, HfHubHTTPError, HFValidationError) as error:
        first = str(error).strip().partition("\n")[0]
        raise OSError(
            f"could not fetch {file} of the dataset {source.repo} at "
            f"{commit}: {first} ({type(error).__name__}). Is there a network, "
            "and is the dataset open to you? Or give a local file in "
            "config.task.path."
        ) from error
    return Path(path)
