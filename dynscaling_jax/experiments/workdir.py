"""The directory of a run or of a training: who works in it, and of what it is.

WORKDIR/config.json says it:

    schema    version of the directory's files; directories of 0.1 have none
    kind      run or training
    config    what has to be the same for it to go on
    identity  fingerprints of what the config only names: the files of a model,
              the questions; directories of 0.1 have none
    about     what it was begun with: versions, device

The version stands here and not in the logs, whose bytes stay those of a run
that was never killed. A later version may add fields to the rows of a log,
which are read over; a change that makes old rows mean something else raises
SCHEMA, and is refused by what knows less.
"""

import contextlib
import errno
import fcntl
import hashlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from dynscaling_jax.experiments.config import renamed
from dynscaling_jax.files import read_json, write_json
from dynscaling_jax.lines import dumps, loads, shown

SCHEMA = 1
BLOCK, STRIDE = 1 << 16, 1 << 22  # bytes: of each STRIDE a BLOCK is read
FULL = 1 << 27  # bytes of a file that is read in full


@contextlib.contextmanager
def locked(workdir: Path) -> Iterator[None]:
    """Makes a directory and keeps all others out of it.

    Raises:
      RuntimeError: another holds it.
      OSError: it cannot be made or locked.
    """
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        fd = os.open(workdir / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise OSError(
            error.errno, f"{workdir} cannot be a workdir: {error.strerror}"
        ) from error
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(fd)
        if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
            raise RuntimeError(
                f"{workdir} is in use by another run; wait for it to end, or "
                "choose another workdir"
            ) from None
        raise OSError(
            error.errno,
            f"the file system of {workdir} locks no files ({error.strerror}), "
            "and two runs would tear each other's; choose a workdir on a "
            "local disk",
        ) from error
    try:
        yield
    finally:
        os.close(fd)


def claim(
    workdir: Path,
    kind: str,
    config: Mapping[str, Any],
    *,
    begun: bool,
    unversioned: bool,
    identity: Mapping[str, Any] | None = None,
    about: Mapping[str, Any] | None = None,
    defaults: Mapping[str, Any] | None = None,
) -> None:
    """Writes config.json, or checks that it says the same.

    Nothing is spoilt where nothing was begun: a directory whose start was
    refused may be claimed again for another config.

    begun says whether the directory holds what was made of its config,
    unversioned whether a config.json without a version is of this kind;
    defaults are of fields that a config of an earlier version lacks.

    Raises:
      ValueError: the directory is of something else; it names what differs.
    """
    path = workdir / "config.json"
    ours = loads(dumps({"config": config, "identity": identity or {}}))
    there = read_config(workdir)
    if there is None and path.exists():
        raise ValueError(
            f"{path} is no config of a {kind}; choose another workdir"
        )
    if there is None and begun:
        raise ValueError(
            f"{workdir} holds a {kind} and no config.json, so that nobody can "
            "tell what it is of; choose another workdir"
        )
    if there is not None:
        same = unversioned if "schema" not in there else there["kind"] == kind
        if not same:
            raise ValueError(
                f"{workdir} is not of a {kind}, as its config.json says; "
                "choose another workdir"
            )
        if begun:
            _same(workdir, kind, there, ours, defaults or {})
            return
    row = {"schema": SCHEMA, "kind": kind, **ours, "about": about or {}}
    write_json(path, row)


def read_config(workdir: Path) -> dict[str, Any] | None:
    """Reads config.json; None where there is none of this library.

    Raises:
      ValueError: it is of a later version.
    """
    path = workdir / "config.json"
    try:
        row = read_json(path)
    except (OSError, ValueError):
        return None
    if not isinstance(row, dict) or not isinstance(row.get("config"), dict):
        return None
    schema = row.get("schema", 0)
    if schema not in range(SCHEMA + 1) or schema and "kind" not in row:
        raise ValueError(
            f"{path}: schema {shown(schema)} is not known; this version of "
            f"dynscaling_jax reads up to {SCHEMA}: a later one wrote it"
        )
    return row


def fingerprint(path: Path) -> str:
    """Tells whether a file, or any file in a directory, is still the same.

    A file of up to 128 MiB is read in full. Of a larger one its size, its first
    128 MiB, its end and 64 KiB of every further 4 MiB are: no tensor of 4 MiB
    can change unseen, and 140 GB cost the time of 2.
    """
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.is_file())
        parts = [
            (file.relative_to(path).as_posix(), fingerprint(file))
            for file in files
        ]
        return hashlib.sha256(dumps(parts)).hexdigest()
    with open(path, "rb") as data:
        size = os.fstat(data.fileno()).st_size
        if size <= FULL:
            return hashlib.file_digest(data, "sha256").hexdigest()
        digest = hashlib.sha256(b"%d" % size)
        digest.update(data.read(FULL))
        for at in (*range(FULL, size, STRIDE), size - BLOCK):
            digest.update(os.pread(data.fileno(), BLOCK, at))
        return digest.hexdigest()


def _same(
    workdir: Path,
    kind: str,
    there: Mapping[str, Any],
    ours: Mapping[str, Any],
    defaults: Mapping[str, Any],
) -> None:
    config = _filled(renamed(there["config"]), loads(dumps(defaults)))
    differing = list(_differences(config, ours["config"]))
    thought = "end_of_thinking"  # its default was "" in version 0.1
    if config.get(thought) == "" and ours["config"].get(thought) is None:
        differing.append(f"--config.{thought}= goes on as it was")
    if differing:
        raise ValueError(
            f"{workdir} belongs to a {kind} of another config: "
            f"{'; '.join(differing)}. Choose another workdir, or the config "
            "that it was begun with"
        )
    if not isinstance(there.get("identity"), dict):  # of version 0.1
        return
    old, new = there["identity"], ours["identity"]
    changed = [
        name for name in sorted({*old, *new}) if old.get(name) != new.get(name)
    ]
    if changed:
        raise ValueError(
            f"{workdir} was begun with other contents of "
            f"{', '.join(changed)}: they changed since. Put back what was "
            "there, or choose another workdir"
        )


def _filled(config: Any, defaults: Any) -> Any:
    """A config with the default of each field that it lacks."""
    if not isinstance(config, dict) or not isinstance(defaults, dict):
        return config
    return defaults | {
        name: _filled(value, defaults.get(name))
        for name, value in config.items()
    }


def _differences(old: Any, new: Any, name: str = "") -> Iterator[str]:
    if isinstance(old, dict) and isinstance(new, dict):
        for key in sorted(old.keys() | new.keys()):
            inner = f"{name}.{key}" if name else key
            if key not in old:
                yield f"{inner} was not set, is {shown(new[key])}"
            elif key not in new:
                yield f"{inner} was {shown(old[key])}, is not set"
            else:
                yield from _differences(old[key], new[key], inner)
    elif old != new:
        yield f"{name} was {shown(old)}, is {shown(new)}"
