"""Runs whose workdir is in a bucket, which a directory poses as."""

import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import pytest

from dynscaling_jax.experiments import remote

ROOT = Path(__file__).parents[2]
# a file system for gs:// whose buckets are directories of the one given first
STAND_IN = """
import sys
import fsspec
from fsspec.implementations.dirfs import DirFileSystem
from fsspec.implementations.local import LocalFileSystem

root = sys.argv[1]

class Buckets(DirFileSystem):
    protocol = "gs"
    def __init__(self, **_):
        super().__init__(path=root, fs=LocalFileSystem(auto_mkdir=True))
    @classmethod
    def _strip_protocol(cls, path):
        return path.removeprefix("gs://")
    def _join(self, path):
        return super()._join(self._strip_protocol(path))

fsspec.register_implementation("gcs", Buckets, clobber=True)
"""
RUN = (
    STAND_IN
    + """
from dynscaling_jax.experiments import remote
from launch import run
remote.EVERY = float(sys.argv[2])
sys.argv[1:] = sys.argv[3:]
run.cli()
"""
)


def run(bucket, tiny_model, workdir="gs://bucket/run", every=0.05):
    return subprocess.Popen(
        [
            sys.executable,
            "-c",
            RUN,
            str(bucket),
            str(every),
            f"--config={ROOT}/configs/smollm2_arithmetic.py",
            f"--config.model={tiny_model}",
            "--config.method=dynscaling",
            "--config.task.limit=6",
            "--config.budget.samples_per_query=40.0",
            "--config.engine.max_new_tokens=64",
            "--config.engine.slots=8",
            f"--workdir={workdir}",
        ],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )


def first_row(file):
    return json.loads(file.read_bytes().splitlines()[0])


def until_drawn(process, file):
    while process.poll() is None and not (
        file.exists() and b"\n" in file.read_bytes()
    ):
        time.sleep(0.02)
    assert process.poll() is None, process.communicate()


def test_a_run_that_is_lost_goes_on_from_the_bucket(tiny_model, tmp_path):
    """Killed without a word once the bucket has samples, then started on
    what might be another machine: the files are those of a run at home, but
    for a mark on a row that shows that it was not drawn again."""
    bucket = tmp_path / "buckets"
    there = bucket / "bucket" / "run"
    samples = there / "samples.jsonl"
    lost = run(bucket, tiny_model)
    until_drawn(lost, samples)
    lost.send_signal(signal.SIGKILL)
    lost.communicate()
    # as if it had not come to its end just before
    (there / "summary.json").unlink(missing_ok=True)
    first, *others = samples.read_bytes().splitlines(keepends=True)
    row = json.loads(first)
    marked = first.replace(
        f'"flops": {row["flops"]}'.encode(), b'"flops": 12345.0'
    )
    assert marked != first
    samples.write_bytes(b"".join((marked, *others)))
    again = run(bucket, tiny_model)
    _, err = again.communicate(timeout=240)
    assert again.returncode == 0, err
    home = run(bucket, tiny_model, tmp_path / "home")
    home.communicate(timeout=240)
    assert home.returncode == 0
    for name in ("samples.jsonl", "events.jsonl", "answers.json"):
        got = (there / name).read_bytes().replace(marked, first)
        assert got == (tmp_path / "home" / name).read_bytes()
    assert first_row(samples)["flops"] == 12345.0
    assert (there / "report.html").exists()
    assert not [path for path in there.rglob("*") if path.name == ".lock"]


def test_a_run_that_is_told_to_stop_leaves_what_it_drew(tiny_model, tmp_path):
    bucket = tmp_path / "buckets"
    there = bucket / "bucket" / "run"
    stopped = run(bucket, tiny_model)
    until_drawn(stopped, there / "samples.jsonl")
    stopped.send_signal(signal.SIGTERM)
    _, err = stopped.communicate(timeout=60)
    assert stopped.returncode == 1
    assert "stopped; the same command goes on from here" in err
    assert (there / "samples.jsonl").read_bytes().endswith(b"}\n")
    assert not (there / "summary.json").exists()


def test_another_config_is_refused_by_the_name_of_the_bucket(
    tiny_model, tmp_path
):
    there = tmp_path / "buckets" / "bucket" / "run"
    shutil.copytree(Path(__file__).with_name("run_of_0_1"), there)
    refused = run(tmp_path / "buckets", tiny_model)
    _, err = refused.communicate(timeout=120)
    assert refused.returncode == 1
    assert "gs://bucket/run belongs to a run of another config" in err


def test_a_copy_follows_and_removes(tmp_path):
    here, there = tmp_path / "here", tmp_path / "there"
    (there / "a").mkdir(parents=True)
    (there / "a" / "old").write_text("1")
    (there / "other").write_text("of another process")
    copy = remote.Copy(here, there)
    copy.fetch()
    assert (here / "a" / "old").read_text() == "1"
    (there / "other").write_text("newer")
    (here / "a" / "old").unlink()
    (here / "a" / "new").write_text("2")
    copy.push()
    assert (there / "a" / "new").read_text() == "2"
    assert not (there / "a" / "old").exists()
    assert (there / "other").read_text() == "newer"  # not changed here
    with (here / "a" / "new").open("a") as file:
        file.write("3")
    copy.push()
    assert (there / "a" / "new").read_text() == "23"


class Bucket:
    """A place elsewhere that keeps the order of what is written, or refuses
    it."""

    def __init__(self, log, name="bucket", refuses=None):
        self._log, self.name, self.refuses = log, name, refuses

    def __truediv__(self, name):
        return Bucket(self._log, name, self.refuses)

    @property
    def parent(self):
        return self

    def mkdir(self, **_):
        pass

    def iterdir(self):
        return iter(())

    def unlink(self, **_):
        pass

    def write_bytes(self, data):
        if self.refuses:
            raise self.refuses
        self._log.append(self.name)


def test_no_round_is_there_without_its_samples(tmp_path):
    names = [
        "answers.json",
        "config.json",
        "process-1/samples.jsonl",
        "rounds.jsonl",
        "samples.jsonl",
        "pending.jsonl",
    ]
    (tmp_path / "process-1").mkdir()
    for name in names:
        (tmp_path / name).write_text("1")
    written = []
    remote.Copy(tmp_path, Bucket(written)).push()
    assert written == [
        "config.json",
        "pending.jsonl",
        "process-1/samples.jsonl",
        "samples.jsonl",
        "rounds.jsonl",
        "answers.json",
    ]


@pytest.fixture
def bucket(monkeypatch):
    """What gs://bucket leads to."""
    from etils import epath

    found = Bucket([])
    monkeypatch.setattr(epath, "Path", lambda _: found)
    return found


def test_a_bucket_that_is_not_there_is_found_out_first(
    bucket, tmp_path, monkeypatch
):
    """A backend says of it what a file system says of a file: that once
    passed for a file removed meanwhile, and all that was drawn was lost.
    Nothing stays in the temporary directory."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    bucket.refuses = FileNotFoundError("no bucket")
    with (
        pytest.raises(OSError, match="gs://bucket cannot be used: no bucket"),
        remote.local("gs://bucket"),
    ):
        raise AssertionError
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize(
    "refuses", [FileNotFoundError("no bucket"), KeyboardInterrupt()]
)
def test_what_cannot_be_copied_stays_here(bucket, refuses):
    with (
        pytest.raises(OSError, match="copy what is in ") as raised,
        remote.local("gs://bucket") as home,
    ):
        (home / "samples.jsonl").write_text("{}\n")
        bucket.refuses = refuses
    assert str(home) in str(raised.value)
    assert (str(refuses) or "KeyboardInterrupt") in str(raised.value)
    assert (home / "samples.jsonl").read_text() == "{}\n"


def test_the_error_of_a_run_is_told_before_that_of_its_copy(bucket):
    with (
        pytest.raises(ValueError, match="gs://bucket/samples.jsonl is torn"),
        remote.local("gs://bucket") as home,
    ):
        (home / "samples.jsonl").write_text("{}\n")
        bucket.refuses = OSError("no network")
        raise ValueError(f"{home}/samples.jsonl is torn")


def test_a_copy_that_fails_is_tried_again(tmp_path, monkeypatch):
    copy = remote.Copy(tmp_path / "here", tmp_path / "there")
    done, tries = threading.Event(), []

    def push():
        tries.append(1)
        if len(tries) == 3:
            done.set()
        raise OSError("no network")

    monkeypatch.setattr(remote, "EVERY", 0.01)
    monkeypatch.setattr(copy, "push", push)
    copy.follow(done)
    assert len(tries) == 3


@pytest.mark.parametrize(
    ("workdir", "said"),
    [
        ("foo://x", "expected a path, or an address such as gs://BUCKET/RUN"),
        pytest.param(
            "gs://bucket/x",
            r"gcsfs.*pip install 'dynscaling_jax\[gcs\]'",
            marks=pytest.mark.skipif(
                importlib.util.find_spec("gcsfs") is not None,
                reason="gcsfs is installed",
            ),
        ),
    ],
)
def test_what_is_no_workdir(workdir, said):
    with (
        pytest.raises((ValueError, OSError), match=said),
        remote.local(workdir),
    ):
        raise AssertionError
