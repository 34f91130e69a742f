import json

import pytest

from dynscaling_jax.tasks.sources import HubFile, download, read_rows


def write(folder, name, content):
    path = folder / name
    if isinstance(content, str):
        content = content.encode()
    path.write_bytes(content)
    return path


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.jsonl", '{"q": "x", "n": 1}\n\n{"q": "y", "n": 2}\n'),
        ("a.jsonl", '\ufeff{"q": "x", "n": 1}\r\n{"q": "y", "n": 2}'),
        ("a.json", '[{"q": "x", "n": 1}, {"q": "y", "n": 2}]'),
        (
            "a.json",
            '{"canary": "c", "examples": [{"q": "x", "n": 1},'
            ' {"q": "y", "n": 2}]}',
        ),
    ],
)
def test_json(tmp_path, name, content):
    rows = read_rows(write(tmp_path, name, content))
    assert [row.values for row in rows] == [
        {"q": "x", "n": 1},
        {"q": "y", "n": 2},
    ]
    assert name in rows[1].place


def test_a_line_ends_at_a_newline_only(tmp_path):
    """JSON strings may hold U+2028 and U+0085 raw. str.splitlines cuts there
    and made two malformed lines of one good question."""
    question = "one\u2028two\u0085three"
    line = json.dumps({"q": question}, ensure_ascii=False)
    (row,) = read_rows(write(tmp_path, "a.jsonl", line))
    assert row.values == {"q": question}


def test_csv(tmp_path):
    content = 'Question,Answer\r\n"two\nlines, one field",7\r\nplain,8\r\n'
    rows = read_rows(write(tmp_path, "a.csv", content))
    assert rows[0].values == {
        "Question": "two\nlines, one field",
        "Answer": "7",
    }
    assert rows[1].place.endswith("a.csv:4")


def test_parquet(tmp_path):
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    path = tmp_path / "a.parquet"
    table = pa.table({"q": ["x", "y"], "c": [["a", "b"], ["c", "d"]]})
    parquet.write_table(table, path)
    rows = read_rows(path)
    assert rows[1].values == {"q": "y", "c": ["c", "d"]}
    with pytest.raises(ValueError, match="b.parquet: not valid Parquet"):
        read_rows(write(tmp_path, "b.parquet", "PAR1 but no more"))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", '{"q": 1}\n{"q": \n', r"a\.jsonl:2: not valid JSON"),
        ("a.jsonl", b'{"q": "\xff"}', r"a\.jsonl:1: not valid JSON"),
        ("a.jsonl", "[" * 100_000, r"a\.jsonl:1: not valid JSON"),
        ("a.jsonl", "{}\n[1]", r"a\.jsonl:2: expected an object .* got list"),
        ("a.jsonl", "\n\n", r"a\.jsonl holds no rows"),
        ("a.json", '{"rows": []}', r'a\.json: .* an object with "examples"'),
        ("a.json", "[1]", r"a\.json, row 0: expected an object"),
        ("a.json", "[]", "holds no rows"),
        ("a.csv", "q,a\n1\n", r"a\.csv:2: expected 2 columns"),
        ("a.csv", "q,a\n1,2,3\n", r"a\.csv:2: expected 2 columns"),
        ("a.csv", 'q,a\n1,"2', r"a\.csv: after line 1: not valid CSV"),
        ("a.csv", b"q,a\n\xff,2\n", "not valid CSV"),
        # spreadsheets save so; it was said to be no valid JSON
        ("a.jsonl", '{"q": 1}'.encode("utf-16"), r"a\.jsonl is UTF-16"),
        ("a.json", '[{"q": 1}]'.encode("utf-16-le"), r"a\.json is UTF-16"),
        ("a.csv", "q,a\n1,2\n".encode("utf-16"), r"a\.csv is UTF-16"),
        ("a.txt", "q", r"cannot read \.txt; known: \.jsonl, \.json"),
    ],
)
def test_what_is_wrong_is_named_with_its_place(
    tmp_path, name, content, message
):
    with pytest.raises(ValueError, match=message):
        read_rows(write(tmp_path, name, content))


def test_a_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match="no file at"):
        read_rows(tmp_path / "a.jsonl")


HUB = HubFile("org/data", "main/{split}.jsonl", "abc123")


@pytest.mark.parametrize(("revision", "commit"), [("", "abc123"), ("f", "f")])
def test_the_hub_is_asked_for_one_file_at_one_commit(
    monkeypatch, revision, commit
):
    asked = []

    def fake(*args, **kwargs):
        asked.append((args, kwargs))
        return "/cache/test.jsonl"

    monkeypatch.setattr("huggingface_hub.hf_hub_download", fake)
    assert str(download(HUB, "test", revision)) == "/cache/test.jsonl"
    assert asked == [
        (
            ("org/data", "main/test.jsonl"),
            {"repo_type": "dataset", "revision": commit},
        )
    ]


@pytest.mark.parametrize("kind", ["network", "missing"])
def test_a_failing_hub_is_one_clear_message(monkeypatch, kind):
    from huggingface_hub.errors import LocalEntryNotFoundError

    failure = (
        LocalEntryNotFoundError("no connection\nand a long story")
        if kind == "missing"
        else ConnectionError("refused")
    )

    def fake(*_, **__):
        raise failure

    monkeypatch.setattr("huggingface_hub.hf_hub_download", fake)
    with pytest.raises(OSError, match=r"main/test\.jsonl of .* org/data"):
        download(HUB, "test", "")
