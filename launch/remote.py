"""Workdirs in a bucket: gs://BUCKET/RUN, s3:// and whatever etils.epath reads.

A log appends to its files and waits for the disk, of which a bucket can do
neither. So a run works in a directory of this machine that begins as a copy of
its workdir, and files that changed there are copied to the workdir, whole, every
half minute and at the end. A machine that is lost takes that half minute with
it; the same command, on any machine, goes on from the rest. Nothing locks a
bucket: two runs of one workdir at a time are not noticed.
"""

import contextlib
import logging
import shutil
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

EVERY = 30.0  # seconds between two copies


@contextlib.contextmanager
def local(workdir: str) -> Iterator[Path]:
    """The directory to work in: a path of this machine itself, or a copy of
    what is elsewhere, which follows it.

    Raises:
        ValueError: an address that epath does not know.
        OSError: the workdir cannot be read or written; what was drawn is then
            in a directory that the message names.
    """
    if "://" not in workdir:
        yield Path(workdir)
        return
    from etils import epath

    home = Path(tempfile.mkdtemp(prefix="dynscaling-"))
    try:
        copy = Copy(home, epath.Path(workdir))
        copy.fetch()
    except BaseException as error:
        shutil.rmtree(home)
        raise _said(workdir, error) from None
    done = threading.Event()
    following = threading.Thread(target=copy.follow, args=(done,), daemon=True)
    following.start()
    try:
        yield home
    finally:
        done.set()
        following.join()
        try:
            copy.push()
        except BaseException as error:
            said = _said(workdir, error)
            raise OSError(f"{said}; what was drawn is in {home}") from None
        shutil.rmtree(home)


class Copy:
    """A directory and the one elsewhere that it is copied to. What others
    write there meanwhile, and this one does not have, stays as it is."""

    def __init__(self, here: Path, there: Any):
        self._here, self._there = here, there
        self._same: dict[str, tuple[int, int]] = {}  # name -> _version

    def fetch(self) -> None:
        """Copies all that is there."""
        if self._there.exists():
            self._fetch(self._there, self._here)

    def _fetch(self, there: Any, here: Path) -> None:
        here.mkdir(exist_ok=True)
        for path in there.iterdir():
            own = here / path.name
            if path.is_dir():
                self._fetch(path, own)
            else:
                own.write_bytes(path.read_bytes())
                self._same[own.relative_to(self._here).as_posix()] = _version(
                    own
                )

    def push(self) -> None:
        """Copies what changed, and removes there what was removed here.

        In the order of the names: config.json comes first, and a row that
        moves from pending.jsonl to samples.jsonl meanwhile is in one of them.
        """
        now = {
            path.relative_to(self._here).as_posix(): path
            for path in sorted(self._here.rglob("*"))
            if path.is_file() and path.name != ".lock"
        }
        for name, path in now.items():
            with contextlib.suppress(FileNotFoundError):  # removed meanwhile
                version = _version(path)
                if self._same.get(name) != version:
                    data = path.read_bytes()
                    target = self._there / name
                    target.parent.mkdir(parents=True, exist_ok=True)
                    target.write_bytes(data)
                    self._same[name] = version
        for name in [name for name in self._same if name not in now]:
            (self._there / name).unlink(missing_ok=True)
            del self._same[name]

    def follow(self, done: threading.Event) -> None:
        """Pushes until it is done; what fails is tried again."""
        while not done.wait(EVERY):
            try:
                self.push()
            except Exception as error:  # of any backend
                logging.warning("%s: not copied yet: %s", self._there, error)


def _version(path: Path) -> tuple[int, int]:
    stat = path.stat()
    return stat.st_size, stat.st_mtime_ns


def _said(workdir: str, error: BaseException) -> BaseException:
    """What to raise for what a backend raised."""
    if isinstance(error, (KeyError, NotImplementedError)):  # the scheme
        return ValueError(
            f"--workdir={workdir}: expected a path, or an address such as "
            "gs://BUCKET/RUN"
        )
    if isinstance(error, ImportError):
        return OSError(
            f"--workdir={workdir}: {error}: pip install 'dynscaling_jax[gcs]'"
        )
    if isinstance(error, Exception):
        return OSError(f"--workdir={workdir}: {error}")
    return error
