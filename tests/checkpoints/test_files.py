"""Text and JSON of files that are not trusted: one line each."""

import pytest

from dynscaling_jax.checkpoints import files


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "not JSON"),
        (b"[1]", "expected a JSON object"),
        (b'{"a":\n\n1x}', "not JSON .*line 3"),
        (b'{"a":\n"\xff"}', "config.json, line 2: not text in utf-8"),
        (b'{"a": \n' + b"9" * 400 + b"}", "line 2: an integer of 400 digits"),
        (b"[" * 100_000, "not JSON .*recursion"),
        (b" " * 2**21, "2097152 bytes; expected 1048576 at most"),
    ],
)
def test_what_is_no_json_is_refused(tmp_path, monkeypatch, data, message):
    monkeypatch.setattr(files.read_text, "__defaults__", (2**20,))
    file = tmp_path / "config.json"
    file.write_bytes(data)
    with pytest.raises(ValueError, match=message) as caught:
        files.read_json(file)
    assert str(file) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_any_encoding_of_unicode_is_read(tmp_path, encoding):
    file = tmp_path / "config.json"
    file.write_bytes('{"\u00e9": 1e400, "b": 7}'.encode(encoding))
    assert files.read_json(file) == {"\u00e9": float("inf"), "b": 7}
