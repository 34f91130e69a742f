import errno
import json
import os
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dynscaling_jax.lines import Lines, dumps, rows


def test_lines_come_back_from_their_offsets(tmp_path):
    lines = Lines(tmp_path / "a.jsonl")
    long = "x" * 200_000  # of several reads
    at = [lines.append(dumps(row)) for row in ([1], long, {"a": None})]
    assert [json.loads(lines.read(i)) for i in at] == [[1], long, {"a": None}]
    lines.close()
    again = Lines(tmp_path / "a.jsonl")
    assert [i for i, _ in again.read_all()] == at
    again.close()


@settings(deadline=None)
@given(st.lists(st.text(st.characters(codec=None)), max_size=5))
def test_every_text_comes_back(tmp_path_factory, texts):
    """Line separators of Unicode, NUL and lone surrogates too: a reader that
    splits at U+2028 sees two broken lines."""
    path = tmp_path_factory.mktemp("lines") / "a.jsonl"
    texts += ["a\u2028b\x85c\x0bd\x00", "\ud800", "\r\n"]
    lines = Lines(path)
    for text in texts:
        lines.append(dumps(text))
    lines.close()
    # json joins two surrogates that make a pair, as any reader would
    joined = [
        t.encode("utf-16", "surrogatepass").decode("utf-16", "surrogatepass")
        for t in texts
    ]
    assert [row for _, _, row in rows(path)] == joined


@pytest.mark.parametrize("cut", range(1, 8))
def test_a_torn_last_line_is_dropped(tmp_path, cut):
    path = tmp_path / "a.jsonl"
    whole = dumps([1]) + dumps("ä")
    path.write_bytes((whole + dumps([2, 3]))[:-cut])
    lines = Lines(path)
    assert [row for _, row in lines.read_all()] == [[1], "ä"]
    assert path.read_bytes() == whole
    lines.append(dumps([4]))
    lines.close()
    assert path.read_bytes() == whole + dumps([4])


@pytest.mark.parametrize(
    "bad", [b"{\n", b"\n", b"\xff\n", b"[" * 100_000 + b"\n", b"1 2\n"]
)
def test_a_malformed_line_is_refused_with_its_place(tmp_path, bad):
    path = tmp_path / "a.jsonl"
    path.write_bytes(dumps([1]) + bad + dumps([2]))
    before = path.read_bytes()
    with pytest.raises(ValueError, match=r"a\.jsonl:2: malformed line"):
        list(Lines(path).read_all())
    assert path.read_bytes() == before


def test_a_full_disk_leaves_whole_lines(tmp_path, monkeypatch):
    """The device takes three bytes of the line, then has no room."""
    path = tmp_path / "a.jsonl"
    lines = Lines(path)
    lines.append(dumps([1]))
    write = os.write

    def full(fd, data):
        if len(data) < 7:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(fd, data[:3])

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(OSError, match=r"cannot write .*a\.jsonl: No space"):
        lines.append(dumps([2, 3]))
    monkeypatch.undo()
    assert path.read_bytes() == dumps([1])
    lines.append(dumps([4]))
    assert [row for _, row in lines.read_all()] == [[1], [4]]
    lines.close()


def test_a_long_line_takes_linear_time(tmp_path):
    """Its parts were joined one by one: 50 MB took a minute of copies."""
    lines = Lines(tmp_path / "a.jsonl")
    lines.append(dumps("x" * 50_000_000))
    begin = time.process_time()
    assert len(lines.read(0)) == 50_000_003
    assert time.process_time() - begin < 2
    lines.close()


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-32-be"])
def test_other_encodings_are_named(tmp_path, encoding):
    path = tmp_path / "a.jsonl"
    path.write_bytes('{"a": 1}\n'.encode(encoding))
    with pytest.raises(ValueError, match=r"a\.jsonl is UTF-16 or UTF-32"):
        list(rows(path, log=False))


def test_what_people_write_may_have_marks_and_empty_lines(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"\xef\xbb\xbf[1]\r\n\n\xef\xbb\xbf[2]")
    assert [row for _, _, row in rows(path, log=False)] == [[1], [2]]
    path.write_bytes(b"[1]\n\n" + b"9" * 5000)
    with pytest.raises(ValueError, match=r"a\.jsonl:3: .*Exceeds the limit"):
        list(rows(path, log=False))
