"""Flags as absl reads them, where any mistake in them is one line."""

import contextlib
import functools
import importlib
import logging
import os
import re
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from absl import app, flags
from ml_collections import ConfigDict

from dynscaling_jax.experiments import terminal


class Command(NamedTuple):
    """What a message about the flags of a command needs to know."""

    name: str
    needs: tuple[str, ...]  # flags that it cannot run without
    example: str  # a whole command that runs
    fields: str = ""  # the file that lists what its config may hold


# Old names that are still read, for one release: of version 0.1, and keys.
RENAMED = {
    "--config.engine.rows": "--config.engine.slots",
    "--config.engine.rows_per_group": "--config.engine.slots_per_group",
    "--config.engine.keys": "--config.engine.kv_dtype",
    "--keys": "--kv_dtype",
    "--config.lessons": "--config.examples",
    "--config.shape.width": "--config.shape.hidden_size",
    "--config.shape.layers": "--config.shape.num_hidden_layers",
    "--config.shape.heads": "--config.shape.num_attention_heads",
    "--config.shape.kv_heads": "--config.shape.num_key_value_heads",
    "--config.shape.ffn": "--config.shape.intermediate_size",
    "--config.shape.context": "--config.shape.max_position_embeddings",
    "--pairs": "--count",
}
# within the values of METHODS; a path may hold these words too
RENAMED_METHODS = {
    "dynscaling_planted": "dynscaling_corrupted",
    "planted=": "corrupted=",
}
METHODS = ("--config.method", "--config.strategy", "--methods")


def start(main: Callable[[Any], object], command: Command) -> None:
    """Reads the flags and calls main; does not come back."""
    lost = terminal.prepare()
    sys.argv[1:] = renamed(sys.argv[1:])
    try:
        app.run(main, flags_parser=functools.partial(_read, command))
    finally:
        if why := lost():
            sys.exit(f"{command.name}: cannot print: {why}")


def renamed(words: Sequence[str]) -> Iterator[str]:
    """Gives the words of a command line their names of today, and says so."""
    flag = ""
    for word in words:
        if word.startswith("-"):
            flag = word.partition("=")[0]
        names = dict(RENAMED_METHODS) if flag in METHODS else {}
        if flag in RENAMED and word.startswith(flag):
            names[flag] = RENAMED[flag]
        for old, new in names.items():
            if old in word:
                said = f"{old.strip('=')} is now {new.strip('=')}"
                print(said, file=sys.stderr)
                word = word.replace(old, new)
        yield word


def moved(old: str, new: str) -> None:
    """Runs the command `new`, after a line that says its name."""
    print(f"{old} is now {new}", file=sys.stderr)
    importlib.import_module(new).cli()


def quiet(*loggers: str) -> None:
    """Hides what others log: devices that are not there, each request."""
    for name in loggers:
        logging.getLogger(name).setLevel(logging.WARNING)
    # read at its import, when it sets the level of its logger itself
    os.environ.setdefault("HF_HUB_VERBOSITY", "error")


def resumable(command: Command, work: Callable[[], str]) -> None:
    """Prints what work returns.

    Where it cannot go on, or is told to stop, one line says so and the command
    fails.
    """
    for stop in (signal.SIGINT, signal.SIGTERM, signal.SIGALRM):
        signal.signal(stop, _stop)
    sys.unraisablehook = _again
    try:
        text = work()
    except (ValueError, OSError, RuntimeError, MemoryError) as error:
        logging.debug("%s failed", command.name, exc_info=True)  # --verbosity=1
        said = str(error) or "there is not enough memory"
        sys.exit(f"{command.name}: {' '.join(said.splitlines())}")
    except KeyboardInterrupt:
        with contextlib.suppress(OSError):
            sys.stderr.write(
                f"{command.name}: stopped; the same command goes on from here\n"
            )
            sys.stderr.flush()
        # all is written; JAX and the look-up of a host take time to end
        os._exit(1)
    finally:  # an alarm that comes later would end the process
        signal.setitimer(signal.ITIMER_REAL, 0)
    print(text)


STOP = KeyboardInterrupt()
PATIENCE = 1.5  # seconds to take the samples that have arrived


def _stop(number: int, _: object) -> None:
    """Raises the interrupt.

    Samples that have arrived from a server come first, if they are taken in
    time.
    """
    endpoint = sys.modules.get("dynscaling_jax.inference.endpoint")
    taken = STOP.__traceback__ is not None
    if number == signal.SIGALRM:
        if taken:
            return
    elif endpoint and not taken and not signal.getitimer(signal.ITIMER_REAL)[0]:
        if endpoint.interrupt(STOP):
            signal.setitimer(signal.ITIMER_REAL, PATIENCE)
            return
    raise STOP


def _again(lost: Any) -> None:
    """Raises an interrupt again that was lost in a callback.

    JAX has a callback for each collection of garbage.
    """
    if lost.exc_value is STOP:
        STOP.__traceback__ = None
        signal.setitimer(signal.ITIMER_REAL, 0.1)
    else:
        sys.__unraisablehook__(lost)


def _read(command: Command, args: list[str]) -> list[str]:
    try:
        words = flags.FLAGS(args)
        values: dict[str, Any] = {
            name: flags.FLAGS[name].value for name in command.needs
        }
        missing = [name for name, value in values.items() if value is None]
        empty = [n for n, v in values.items() if v in ("", [], [""])]
        if command.fields and not missing:
            values["config"].to_dict()  # where its file could not be read
    except flags.UnrecognizedFlagError as error:
        empty: list[str] = []
        missing = _needed_first(command, error.flagname)
        if not missing:
            sys.exit(f"{command.name}: {_unknown(command, error)}")
    except AttributeError as error:
        sys.exit(f"{command.name}: {_no_field(command, error)}")
    except (flags.Error, OSError, ValueError) as error:
        sys.exit(f"{command.name}: {_said(command, error)}")
    if missing:
        given = " and ".join(f"--{name}" for name in missing)
        sys.exit(f"{command.name}: give {given}, as in: {command.example}")
    if empty:  # "" is the directory that one is in
        sys.exit(
            f"{command.name}: --{empty[0]} is empty; was a variable not set?"
        )
    if words[1:]:
        sys.exit(f"{command.name}: what is {' '.join(words[1:])!r} for?")
    return words


def _needed_first(command: Command, flag: str) -> Sequence[str]:
    """--config, where a field of it came without it."""
    alone = flag.startswith("config.") and command.fields
    return ("config",) if alone and not flags.FLAGS["config"].present else ()


def _unknown(command: Command, error: flags.UnrecognizedFlagError) -> str:
    name = error.flagname.split("=")[0]
    fields = [f"--config.{field}" for field in _fields(command, name)]
    typo = str(error).partition("Did you mean: ")[2].rstrip(" ?")
    near = [f"--{flag}" for flag in typo.split(", ") if flag]
    close = " or ".join(near or fields)
    hint = f"did you mean {close}?" if close else "--help lists all"
    return f"there is no flag --{name}; {hint}"


def _fields(command: Command, name: str) -> list[str]:
    """The fields of the command's config of that name, at any depth."""
    if not command.fields:
        return []
    module = command.fields.removesuffix(".py").replace("/", ".")
    config = importlib.import_module(module).get_config()
    return [f for f in _paths(config) if f.rpartition(".")[2] == name]


def _paths(config: Any, before: str = "") -> Iterator[str]:
    for key in config:
        if isinstance(config[key], ConfigDict):
            yield from _paths(config[key], f"{before}{key}.")
        else:
            yield f"{before}{key}"


def _no_field(command: Command, error: AttributeError) -> str:
    field = re.search(r"\w+", str(error))
    hint = re.search(r'Did you mean "\w+"', str(error))
    return f"the config has no field {field and field[0]!r}; " + (
        f"{hint[0]}?" if hint else f"see {command.fields}"
    )


def _said(command: Command, error: Exception) -> str:
    last = str(error).strip().splitlines()[-1].strip()
    if isinstance(error, OSError):  # the config cannot be read
        last = last.rpartition("failure to load: ")[2]
        return f"--config: {last}; expected a file as in: {command.example}"
    number = r"invalid literal for int.*|could not convert string to float.*"
    whole = "invalid literal" in last
    return re.sub(number, f"expected a {'whole ' * whole}number", last)
