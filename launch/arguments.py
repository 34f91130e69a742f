"""Flags as absl reads them; a mistyped field of a config is one line."""

import functools
import re
import sys
from collections.abc import Callable

from absl import app


def reader(program: str, fields: str) -> Callable[[list[str]], list[str]]:
    """A flags parser for app.run. fields is the file that lists what a
    config may hold."""
    return functools.partial(_read, program, fields)


def _read(program: str, fields: str, args: list[str]) -> list[str]:
    try:
        return app.parse_flags_with_usage(args)
    except AttributeError as error:
        field = re.search(r"\w+", str(error))
        hint = re.search(r'Did you mean "\w+"', str(error))
        sys.exit(
            f"{program}: the config has no field {field and field[0]!r}; "
            + (f"{hint[0]}?" if hint else f"see {fields}")
        )
