import errno
import os

import pytest

from dynscaling_jax import files


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_no_room_names_the_file_and_keeps_the_old_one(
    tmp_path, monkeypatch, call
):
    """An error of writing names no file."""
    path = tmp_path / "summary.json"
    files.write_json(path, {"a": 1})
    before = path.read_bytes()

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, call, full)
    with pytest.raises(OSError, match=r"cannot write .*summary\.json: No spac"):
        files.write_json(path, {"a": 2})
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_parts_that_fail_leave_nothing(tmp_path):
    def parts():
        yield "one\n"
        raise ValueError("two")

    with pytest.raises(ValueError, match="two"):
        files.write_text(tmp_path / "examples.jsonl", parts())
    assert not list(tmp_path.iterdir())
