"""Runs whose workdir is in a bucket, which a directory poses as."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from launch import remote

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
from launch import remote, run
remote.EVERY = 0.2
sys.argv[1:] = sys.argv[2:]
run.cli()
"""
)


def run(bucket, tiny_model, workdir="gs://bucket/run"):
    return subprocess.Popen(
        [
            sys.executable,
            "-c",
            RUN,
            str(bucket),
            f"--config={ROOT}/configs/smollm2_arithmetic.py",
            f"--config.model={tiny_model}",
            "--config.method=dynscaling",
            "--config.task.limit=6",
            "--config.budget.samples_per_query=10.0",
            "--config.engine.max_new_tokens=64",
            "--config.engine.rows=8",
            f"--workdir={workdir}",
        ],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )


def test_a_run_that_is_lost_goes_on_from_the_bucket(tiny_model, tmp_path):
    """Killed without a word once the bucket has samples, then started on
    what might be another machine: the files are those of a run at home."""
    bucket = tmp_path / "buckets"
    there = bucket / "bucket" / "run"
    lost = run(bucket, tiny_model)
    while not (there / "samples.jsonl").exists() and lost.poll() is None:
        time.sleep(0.05)
    assert lost.poll() is None, lost.communicate()
    lost.send_signal(signal.SIGKILL)
    lost.communicate()
    kept = (there / "samples.jsonl").read_bytes()
    again = run(bucket, tiny_model)
    out, err = again.communicate(timeout=240)
    assert again.returncode == 0, err
    home = run(bucket, tiny_model, tmp_path / "home")
    home.communicate(timeout=240)
    assert home.returncode == 0
    names = ("samples.jsonl", "rounds.jsonl", "answers.json", "config.json")
    for name in names[:3]:
        assert (there / name).read_bytes() == (
            tmp_path / "home" / name
        ).read_bytes()
    assert (there / "samples.jsonl").read_bytes().startswith(kept[:100])
    assert (there / "report.html").exists()
    assert not [path for path in there.rglob("*") if path.name == ".lock"]


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


def test_what_cannot_be_copied_stays_here(tmp_path, monkeypatch):
    from etils import epath

    bucket = tmp_path / "bucket"
    monkeypatch.setattr(epath, "Path", lambda _: bucket)
    with (
        pytest.raises(OSError, match="what was drawn is in ") as raised,
        remote.local("gs://bucket") as home,
    ):
        (home / "samples.jsonl").write_text("{}\n")
        bucket.write_text("a file in its place")
    assert str(home) in str(raised.value)
    assert (home / "samples.jsonl").read_text() == "{}\n"


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
        ("gs://bucket/x", r"gcsfs.*pip install 'dynscaling_jax\[gcs\]'"),
    ],
)
def test_what_is_no_workdir(workdir, said):
    with (
        pytest.raises((ValueError, OSError), match=said),
        remote.local(workdir),
    ):
        raise AssertionError
