import csv
import json
import re

import pytest

from dynscaling_jax.tasks import (
    KINDS,
    arithmetic_problem,
    canonical,
    extract,
    load_task,
    shares_problem,
)
from dynscaling_jax.tasks.datasets import EXAMPLES, TEMPLATES, TaskConfig
from dynscaling_jax.types import Message


@pytest.fixture
def gsm8k(tmp_path):
    """Five questions in GSM8K's format: "q0" with the answer 0, and so on."""
    path = tmp_path / "test.jsonl"
    rows = ({"question": f"q{i}", "answer": f"#### {i}"} for i in range(5))
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {"name": "gsm8k", "path": str(path)}


def ids(task):
    return [problem.query.id for problem in task.problems]


def test_ids_do_not_depend_on_the_slice(gsm8k):
    task = load_task(**gsm8k)
    assert (task.name, task.kind) == ("gsm8k", "number")
    assert ids(task) == [f"gsm8k/{i}" for i in range(5)]
    assert [p.reference for p in task.problems] == list("01234")
    part = load_task(**(gsm8k | {"offset": 1, "limit": 2}))
    assert part.problems == task.problems[1:3]


def test_the_prompt(gsm8k):
    settings = {
        "system_prompt": "Be brief.",
        "few_shot": 1,
        "template": r"Q: {question} Use \boxed{}.",
        "limit": 1,
    }
    (problem,) = load_task(**(gsm8k | settings)).problems
    asked, answered = EXAMPLES["number"][0]
    assert problem.query.messages == (
        Message("system", "Be brief."),
        Message("user", rf"Q: {asked} Use \boxed{{}}."),
        Message("assistant", answered),
        Message("user", r"Q: q0 Use \boxed{}."),
    )
    (plain,) = load_task(**(gsm8k | {"limit": 1})).problems
    assert [m.role for m in plain.query.messages] == ["user"]
    assert plain.query.messages[0].content.startswith("q0\n")


@pytest.mark.parametrize("kind", KINDS)
def test_default_prompts(kind):
    """The examples end in the form that is read, and the template names the
    form without holding an answer for a model to repeat."""
    assert TEMPLATES[kind].count("{question}") == 1
    if kind in ("number", "math", "choice"):
        assert extract(TEMPLATES[kind], kind) is None
    for _, answered in EXAMPLES[kind]:
        last = answered.rpartition("\n")[2]
        announced = last.removeprefix("The answer is ").rstrip(".")
        announced = announced.removeprefix(r"\boxed{").removesuffix("}")
        assert last != announced
        assert extract(answered, kind) == canonical(announced, kind)


def test_a_config_dict(gsm8k):
    ml_collections = pytest.importorskip("ml_collections")
    config = ml_collections.ConfigDict(TaskConfig()._asdict() | gsm8k)
    assert load_task(**config) == load_task(**gsm8k)


def gpqa_file(path, rows=8):
    columns = ["Question", "Correct Answer"]
    columns += [f"Incorrect Answer {n}" for n in (1, 2, 3)]
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        for i in range(rows):
            writer.writerow([f"q{i}", f"right{i} ", "w1", "w2", "w3\n"])
    return {"name": "gpqa", "path": str(path)}


def test_gpqa_options_are_shuffled_by_seed_and_question(tmp_path):
    config = gpqa_file(tmp_path / "gpqa.csv", rows=400)
    task = load_task(**config)
    for i, problem in enumerate(task.problems):
        (message,) = problem.query.messages
        assert f"({problem.reference}) right{i}\n" in message.content
    letters = [p.reference for p in task.problems]
    # 100 of each are expected; below 60 has a chance under 1e-6.
    assert all(letters.count(letter) >= 60 for letter in "ABCD")
    part = load_task(**(config | {"offset": 7, "limit": 3}))
    assert part.problems == task.problems[7:10]
    other = load_task(**(config | {"seed": 1}))
    assert [p.reference for p in other.problems] != letters


def test_gpqa_order_is_fixed_for_good(tmp_path):
    """A change of the shuffle would make recorded runs unreadable."""
    task = load_task(**gpqa_file(tmp_path / "gpqa.csv"))
    assert "".join(p.reference for p in task.problems) == "CCAACDBC"


def options(task):
    """Of each question: its options by letter, and the right one."""
    found = []
    for problem in task.problems:
        text = problem.query.messages[-1].content
        by_letter = dict(re.findall(r"^\(([A-Z])\) (.*)$", text, re.M))
        found.append((by_letter, by_letter[problem.reference]))
    return found


def test_options_in_another_order(benchmark_data):
    """As they stand the question is that of the file to the letter; shuffled,
    the same options and the same one right, mostly elsewhere."""
    path = benchmark_data / "tasks/bbh/date_understanding.json"
    config = {"name": "bbh", "path": str(path)}
    task = load_task(**config)
    asked = json.loads(path.read_text())["examples"]
    for problem, example in zip(task.problems, asked, strict=True):
        assert example["input"].strip() in problem.query.messages[-1].content
        assert f"({problem.reference})" == example["target"]
    other = load_task(**(config | {"shuffled": True}))
    for (before, right), (after, still) in zip(
        options(task), options(other), strict=True
    ):
        assert sorted(before.values()) == sorted(after.values())
        assert right == still
    pairs = zip(task.problems, other.problems, strict=True)
    moved = sum(a.reference != b.reference for a, b in pairs)
    assert moved > 125  # of 250; five in six are expected
    again = load_task(**(config | {"shuffled": True, "seed": 1}))
    assert again.problems != other.problems


@pytest.mark.parametrize(
    ("targets", "kind", "references"),
    [
        (["(A)", "(R)"], "choice", ["A", "R"]),
        (["True", "False"], "boolean", ["True", "False"]),
        (["yes", "no"], "boolean", ["True", "False"]),
        (["24", "-1,000"], "number", ["24", "-1000"]),
        (["valid", "invalid"], "text", ["valid", "invalid"]),
    ],
)
def test_bbh_tells_its_kind_by_its_targets(tmp_path, targets, kind, references):
    path = tmp_path / "some_subtask.json"
    examples = [{"input": f"i{t}", "target": t} for t in targets]
    path.write_text(json.dumps({"canary": "c", "examples": examples}))
    task = load_task("bbh", path=str(path))
    assert (task.name, task.kind) == ("bbh/some_subtask", kind)
    assert ids(task)[0] == "bbh/some_subtask/0"
    assert [p.reference for p in task.problems] == references


def jsonl(tmp_path, *rows, **settings):
    path = tmp_path / "own.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    return {"name": "jsonl", "path": str(path)} | settings


def test_jsonl(tmp_path):
    row = {"ask": "Colour?", "gold": "Red.", "key": "k1"}
    fields = {"question": "ask", "answer": "gold", "id": "key"}
    task = load_task(**jsonl(tmp_path, row, fields=fields))
    assert (task.kind, ids(task)) == ("text", ["jsonl/k1"])
    assert task.problems[0].reference == "red"


def test_jsonl_with_choices(tmp_path):
    row = {"question": "q", "answer": 1, "options": ["x", "y"]}
    config = jsonl(tmp_path, row, fields={"choices": "options"})
    task = load_task(**config)
    assert task.kind == "choice"
    assert task.problems[0].reference == "B"
    content = task.problems[0].query.messages[0].content
    assert content.startswith("q\n\n(A) x\n(B) y\n\n")


@pytest.mark.parametrize(
    ("name", "split", "asked", "file", "rows"),
    [
        ("math500", "", "test.jsonl", "x.jsonl", {"problem": "p", "answer": 1}),
        (
            "svamp",
            "train",
            "train.json",
            "x.json",
            {"Body": "b", "Question": "q", "Answer": "1.0"},
        ),
        ("aime", "", "test.jsonl", "x.jsonl", {"problem": "p", "answer": 1}),
        (
            "bbh",
            "navigate",
            "navigate/test-00000-of-00001.parquet",
            "x.jsonl",
            {"input": "i", "target": "1"},
        ),
    ],
)
def test_from_the_hub(monkeypatch, tmp_path, name, split, asked, file, rows):
    path = tmp_path / file
    path.write_text(json.dumps(rows if file == "x.jsonl" else [rows]))
    found = []
    monkeypatch.setattr(
        "huggingface_hub.hf_hub_download",
        lambda repo, file, **_: found.append(file) or str(path),
    )
    task = load_task(name, split=split)
    assert found == [asked]
    subset = {"aime": "/2025", "bbh": "/navigate"}.get(name, "")
    assert ids(task) == [f"{name}{subset}/0"]
    assert task.problems[0].reference == "1"


@pytest.mark.parametrize(
    ("name", "make"),
    [("arithmetic", arithmetic_problem), ("shares", shares_problem)],
)
def test_generated(name, make):
    config = {"name": name, "limit": 6, "steps": 3, "seed": 5}
    task = load_task(**config)
    assert task.kind == "number"
    for i, problem in enumerate(task.problems):
        made = make(5, i, 1 + i % 3)
        assert problem.query.id == f"{name}/{i}"
        assert problem.reference == str(made.answer)
        assert made.question in problem.query.messages[0].content
    more = load_task(**(config | {"limit": 9}))
    assert more.problems[:6] == task.problems
    assert len(load_task(name).problems) == 1_000


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"name": "gsm9k"},
            "unknown task 'gsm9k'; known: arithmetic, shares, gsm8k",
        ),
        ({"limits": 3}, r"unknown field config\.task\.limits; known: name"),
        ({"limit": "3"}, r"config\.task\.limit: expected int, got '3'"),
        ({"limit": True}, r"config\.task\.limit: expected int, got True"),
        ({"limit": -1}, "limit must be at least 0"),
        ({"limit": 6}, r"holds 5 problems; .*limit=6 passes its end"),
        ({"offset": 4, "limit": 2}, "passes its end"),
        ({"offset": 5}, "passes its end"),
        ({"template": "Answer!"}, r"template must hold \{question\}"),
        ({"few_shot": 99}, "there are 4 examples of kind number"),
        ({"kind": "numbers"}, "unknown kind of answer 'numbers'"),
        ({"fields": {"answer": "a"}}, "names the columns of a jsonl task"),
        ({"fields": "answer"}, r"config\.task\.fields: expected dict"),
        ({"revision": "abc"}, "give one of them"),
        ({"name": "jsonl", "path": ""}, "jsonl needs a file"),
        (
            {"name": "arithmetic", "shuffled": True},
            "config.task.shuffled: arithmetic has no options",
        ),
        ({"name": "bbh", "path": ""}, "expected the name of a subtask"),
        ({"name": "aime", "path": "", "split": "1"}, "expected 2024, 2025"),
        ({"name": "math500"}, r"test\.jsonl:1: no column 'problem'"),
        ({"name": "arithmetic"}, "arithmetic is generated"),
        ({"name": "shares"}, "shares is generated"),
        (
            {"name": "arithmetic", "path": "", "steps": 0},
            "steps must be at least 1",
        ),
    ],
)
def test_bad_configurations(gsm8k, changes, message):
    with pytest.raises(ValueError, match=message):
        load_task(**(gsm8k | changes))


def test_a_missing_file(gsm8k):
    with pytest.raises(FileNotFoundError, match="no file at"):
        load_task(**(gsm8k | {"path": "nowhere.jsonl"}))


def test_an_unreadable_reference_is_named_with_its_place(tmp_path):
    row = {"question": "q", "answer": "many"}
    config = jsonl(tmp_path, row, kind="number")
    with pytest.raises(ValueError, match="own.jsonl:1: the answer 'many'"):
        load_task(**config)


def test_a_reference_is_never_cut(tmp_path):
    """ "1,2" of a number task became 1."""
    row = {"question": "q", "answer": "1,2"}
    config = jsonl(tmp_path, row, kind="number")
    with pytest.raises(
        ValueError, match="own.jsonl:1: the answer '1,2'.*as math"
    ):
        load_task(**config)
    task = load_task(**jsonl(tmp_path, row))
    assert (task.kind, task.problems[0].reference) == ("math", "1, 2")


def test_questions_without_options_cannot_be_shuffled(tmp_path):
    config = jsonl(tmp_path, {"question": "q", "answer": "a"}, shuffled=True)
    with pytest.raises(ValueError, match="own.jsonl:1: config.task.shuffled"):
        load_task(**config)


def test_ids_occur_once(tmp_path):
    row = {"question": "q", "answer": "a", "id": "k"}
    with pytest.raises(ValueError, match="own.jsonl:2: the id 'jsonl/k'"):
        load_task(**jsonl(tmp_path, row, row))


FILES = {
    "gsm8k/test.jsonl": ("gsm8k", "number", 1319),
    "math500/test.jsonl": ("math500", "math", 500),
    "svamp/test.jsonl": ("svamp", "number", 1000),
    "bbh/boolean_expressions.json": ("bbh", "boolean", 250),
    "bbh/date_understanding.json": ("bbh", "choice", 250),
    "bbh/multistep_arithmetic_two.json": ("bbh", "number", 250),
    "bbh/object_counting.json": ("bbh", "number", 250),
}


@pytest.mark.parametrize("file", FILES)
def test_real_files(benchmark_data, file):
    """Every reference of the real files reads, and an answer given in any of
    the announced forms is read as that reference."""
    name, kind, size = FILES[file]
    path = str(benchmark_data / "tasks" / file)
    task = load_task(name, path=path)
    assert (task.kind, len(task.problems)) == (kind, size)
    for problem in task.problems:
        reference = problem.reference
        assert canonical(reference, kind) == reference
        assert extract(rf"So \boxed{{{reference}}}.", kind) == reference
        if kind != "math":
            said = f"(I think.) The answer is {reference}."
            assert extract(said, kind) == reference


def test_math500_solutions_lead_to_their_references(benchmark_data):
    """The written solution, box and all, reads as the answer column does."""
    path = benchmark_data / "tasks/math500/test.jsonl"
    lines = path.read_text(encoding="utf-8").strip().split("\n")
    task = load_task("math500", path=str(path))
    for line, problem in zip(lines, task.problems, strict=True):
        solution = json.loads(line)["solution"]
        assert extract(solution, "math") == problem.reference


def test_math500_references_are_told_apart(benchmark_data, compare):
    """References of neighbouring problems that differ as text differ in
    value too: no false match among 499 pairs."""
    path = str(benchmark_data / "tasks/math500/test.jsonl")
    references = [p.reference for p in load_task("math500", path=path).problems]
    pairs = zip(references, references[1:], strict=False)
    wrong = [
        (a, b)
        for a, b in pairs
        if a != b and compare(a, b, "math") != "different"
    ]
    assert wrong == []
