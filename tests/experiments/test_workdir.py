"""Who may work in a directory, and of what it is."""

import errno
import fcntl
import hashlib
import json
import os

import pytest

from dynscaling_jax.experiments import workdir as records
from dynscaling_jax.experiments.workdir import claim, fingerprint, locked


def claimed(workdir, config, kind="run", begun=True, old=False, **origin):
    claim(workdir, kind, config, begun=begun, unversioned=old, **origin)


@pytest.mark.parametrize("fault", ["ENOLCK", "EOPNOTSUPP", "ENOSYS"])
def test_a_file_system_without_locks_is_named(tmp_path, monkeypatch, fault):
    """Any refusal was taken for another run that holds the directory."""

    def refuse(*_):
        raise OSError(getattr(errno, fault), os.strerror(getattr(errno, fault)))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.raises(OSError, match="locks no files"), locked(tmp_path):
        pass


def test_one_at_a_time(tmp_path):
    with locked(tmp_path):
        with pytest.raises(RuntimeError, match="in use"), locked(tmp_path):
            pass
    with locked(tmp_path):
        pass


def test_other_contents_are_refused_by_name(tmp_path):
    """Weights were replaced, or questions edited, between a kill and the next
    start, and the run went on with both."""
    before = {"model.safetensors": "a", "the questions": "b"}
    claimed(tmp_path, {}, begun=False, identity=before)
    claimed(tmp_path, {}, identity=before)
    for change, said in [
        ({"model.safetensors": "c"}, "other contents of model.safetensors:"),
        ({"the questions": "c"}, "other contents of the questions:"),
        ({"revision": "d"}, "other contents of revision:"),
    ]:
        with pytest.raises(ValueError, match=said):
            claimed(tmp_path, {}, identity=before | change)


def test_a_config_of_0_1_has_the_defaults_of_what_came_later(tmp_path):
    file = tmp_path / "config.json"
    file.write_text('{"config": {"a": {"b": 1}}, "about": {}}')
    new = {"a": {"b": 1, "c": 2}, "d": ""}
    origin = {"defaults": new | {"a": {"b": 0, "c": 2}}, "identity": {"m": "x"}}
    claimed(tmp_path, new, old=True, **origin)
    with pytest.raises(ValueError, match=r"a\.c was 2, is 3"):
        claimed(tmp_path, {"a": {"b": 1, "c": 3}, "d": ""}, old=True, **origin)


@pytest.mark.parametrize("begun", [True, False])
def test_a_directory_of_another_kind_is_left_alone(tmp_path, begun):
    claimed(tmp_path, {"examples": 1}, "training", begun=False)
    before = (tmp_path / "config.json").read_bytes()
    with pytest.raises(ValueError, match="is not of a run"):
        claimed(tmp_path, {"seed": 1}, begun=begun)
    row = json.loads(before)
    del row["schema"], row["kind"]  # as version 0.1 wrote it
    before = json.dumps(row).encode()
    (tmp_path / "config.json").write_bytes(before)
    with pytest.raises(ValueError, match="is not of a run"):
        claimed(tmp_path, {"seed": 1}, begun=begun)
    assert (tmp_path / "config.json").read_bytes() == before


def test_long_values_are_not_shown_whole(tmp_path):
    claimed(tmp_path, {"template": "x" * 10**6}, begun=False)
    with pytest.raises(ValueError) as error:
        claimed(tmp_path, {"template": "y", "n": 10**400})
    assert len(str(error.value)) < 600


def test_a_fingerprint_sees_every_tensor(tmp_path, monkeypatch):
    """Of what is past the first bytes parts are read."""
    monkeypatch.setattr(records, "FULL", FULL := 2**23)
    small, large = tmp_path / "small", tmp_path / "large"
    small.write_bytes(b"abc")
    assert fingerprint(small) == hashlib.sha256(b"abc").hexdigest()
    size = FULL + 10 * 2**22
    with open(large, "wb") as file:
        file.truncate(size)
    seen = {fingerprint(large)}
    for at, length in [(5, 1), (FULL + 3 * 2**22 + 99, 2**22), (size - 1, 1)]:
        with open(large, "r+b") as file:
            file.seek(at)
            file.write(b"x" * length)
        seen.add(fingerprint(large))
    os.truncate(large, size + 1)
    assert len(seen | {fingerprint(large)}) == 5
    before = fingerprint(tmp_path)
    small.rename(tmp_path / "other")
    assert fingerprint(tmp_path) != before
