"""Workdirs in a bucket: gs://BUCKET/RUN, s3:// and whatever etils.epath reads.

A log appends to its files and waits for the disk, of which a bucket can do
neither. So a run works in a directory of this machine that begins as a copy of
its workdir, and files that changed are copied to the workdir every
half minute and at the end. A machine that is lost takes that half minute along;
the same command, on any machine, goes on from the rest. Nothing locks a bucket:
two runs of one workdir at a time are not noticed.
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
# in which a log writes its files; all others come behind them
ORDER = (
    "config.json",
    "pending.jsonl",
    "samples.jsonl",
    "rounds.jsonl",
    "events.jsonl",
)


@contextlib.contextmanager
def local(workdir: str) -> Iterator[Path]:
    """Gives the directory to work in: a local path, or a copy of a bucket's.

    The bucket follows the copy.

    Raises:
        ValueError: an address that epath does not know.
        OSError: the workdir cannot be read or written; its samples are then
            in a directory that the message names.
    """
    if "://" not in workdir:
        yield Path(workdir)
        return
    from etils import epath

    directory = Path(tempfile.mkdtemp(prefix="dynscaling-"))
    try:
        there = epath.Path(workdir)
        home = directory / (there.name or "workdir")
        copy = Copy(home, there)
        copy.fetch()
    except BaseException as error:
        shutil.rmtree(directory)
        raise _refusal(workdir, error) from None
    done = threading.Event()
    following = threading.Thread(target=copy.follow, args=(done,), daemon=True)
    following.start()

    def end() -> None:
        try:
            done.set()
            following.join()
            copy.push()
        except BaseException as error:
            why = error if str(error) else type(error).__name__
            raise OSError(
                f"--workdir={workdir}: not all was copied there ({why}); "
                f"copy what is in {home} before the same command can go on"
            ) from None
        shutil.rmtree(directory)

    try:
        yield home
    except BaseException as error:
        try:
            end()
        except OSError as second:
            logging.error("%s", second)  # the first is what is raised
        for kind in (ValueError, OSError, RuntimeError):
            if isinstance(error, kind):  # as the user knows the directory
                text = str(error).replace(str(home), workdir)
                raise kind(text) from error
        raise
    end()


def page(workdir: str) -> str:
    """Tells where a person finds the page of a workdir."""
    return f"{workdir.rstrip('/')}/report.html"


class Copy:
    """A directory and the one elsewhere that it is copied to.

    What others write there meanwhile, and this one lacks, stays as it is.
    """

    def __init__(self, here: Path, there: Any):
        """Copies nothing yet."""
        self._here, self._there = here, there
        self._same: dict[str, tuple[int, int]] = {}  # name -> _version

    def fetch(self) -> None:
        """Copies all that is there, and sees that it can be written."""
        self._here.mkdir(parents=True, exist_ok=True)
        self._there.mkdir(parents=True, exist_ok=True)
        probe = self._there / ".probe"
        probe.write_bytes(b"")
        self._fetch(self._there, self._here)
        probe.unlink(missing_ok=True)

    def _fetch(self, there: Any, here: Path) -> None:
        here.mkdir(exist_ok=True)
        for path in there.iterdir():
            copy = here / path.name
            if path.is_dir():
                self._fetch(path, copy)
            elif path.name == ".probe" or (
                # a bucket may list a mark of the directory within it
                path.name == there.name and not path.exists()
            ):
                continue
            else:
                copy.write_bytes(path.read_bytes())
                name = copy.relative_to(self._here).as_posix()
                self._same[name] = _version(copy)

    def push(self) -> None:
        """Copies what changed, and removes there what was removed here.

        In the order in which a log writes: a row that moves from
        pending.jsonl to samples.jsonl meanwhile is in one of them, and no
        round is there without its samples.
        """
        files = [
            (ORDER.index(path.name) if path.name in ORDER else len(ORDER), path)
            for path in self._here.rglob("*")
            if path.is_file() and path.name != ".lock"
        ]
        now = {
            path.relative_to(self._here).as_posix(): path
            for _, path in sorted(files)
        }
        for name, path in now.items():
            try:
                version = _version(path)
                if self._same.get(name) == version:
                    continue
                data = path.read_bytes()
            except FileNotFoundError:  # removed meanwhile
                continue
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


def _refusal(workdir: str, error: BaseException) -> BaseException:
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
        return OSError(f"--workdir={workdir} cannot be used: {error}")
    return error
