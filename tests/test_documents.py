"""What the documents say can be done: every launch command, of a docstring too,
is read by its own flags and, where it is not a bench or several processes, run
with less to do; so are make's recipes read; every link leads somewhere.
test_examples.py runs the snippet of README."""

import ast
import collections
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "third_party/README.md",
    ROOT / "dynscaling_jax/bundled/reasoner/README.md",
    *sorted((ROOT / "docs").glob("*.md")),
    *sorted((ROOT / "docs/lab").glob("*.md")),
]
CODE = [
    *sorted((ROOT / "configs").glob("*.py")),
    *sorted((ROOT / "launch").glob("*.py")),
    *sorted((ROOT / "projects").rglob("*.py")),
    *sorted((ROOT / "benchmarks").glob("*.py")),
]
# Reads each command as the command itself would, and runs it if it is told to.
READER = """
import importlib, json, sys
from absl import flags
name, run = sys.argv[1], sys.argv[2:]
module = importlib.import_module(name)
for words in json.loads(sys.stdin.read()):
    try:
        for own in [f for f in flags.FLAGS if f.startswith("config.")]:
            delattr(flags.FLAGS, own)
        sys.argv = [name, *words]  # where config fields are looked for
        flags.FLAGS.unparse_flags()
        rest = flags.FLAGS([name, *words])[1:]
        if "config" in flags.FLAGS:
            flags.FLAGS["config"].value.to_dict()
        assert not rest, f"what is {rest} for?"
        if run:
            module.main([name])
    except (
        flags.Error, AttributeError, AssertionError, OSError, SystemExit
    ) as error:
        sys.exit(f"{' '.join(words)}: {error}")
"""


def commands():
    """(module, words) of each launch command of a page or a docstring."""
    texts = [page.read_text() for page in PAGES]
    texts += [ast.get_docstring(ast.parse(f.read_text())) or "" for f in CODE]
    found = collections.defaultdict(list)
    for text in texts:
        text = text.replace("\\\n", " ")
        for module, rest in re.findall(
            r"python -m ((?:launch|benchmarks|projects)[.\w]+)((?: +[^\n`]*)?)",
            text,
        ):
            words = shlex.split(rest, comments=True)
            if {"...", "--help", "--config=YOURS"} & set(words):
                continue
            if words not in found[module]:
                found[module].append(words)
    return found


COMMANDS = commands()
# test_bench.py, test_stragglers.py and test_processes.py run these; and what
# stands for more of the same
SKIPPED = (
    "--compile",
    "benchmarks.speed",
    "benchmarks.stragglers",
    "--processes=",
    ",...",
)
# What makes the commands before others that need what they leave behind.
STAGES = (
    ("projects.reasoner.examples", ""),
    ("launch.train", "runs/tuned"),
    ("launch.compare", ""),
    ("launch.run", ""),
    ("launch.chain_examples", ""),
    ("launch.train", ""),
    ("launch.convert", "--model=MODEL"),
    ("launch.convert", ""),
    ("launch.report", ""),
    ("launch.replay", ""),
    ("launch.plan", ""),
)
# of a command that has a text in it: flags that it gets
LESS = {
    "projects.reasoner.examples": "--problems=24",
    "launch.train": "--config.steps=2 --config.warmup=1 --config.batch=2 "
    "--config.parts=1",
    "smollm2-135m-instruct": "--config.model=reasoner",
    "launch.compare": "--seeds=1 --config.task.limit=3",
    "launch.replay": "--replicates=20",
    "configs/reasoner.py": "--config.task.limit=3",
    "configs/smollm2": "--config.task.limit=2 "
    "--config.budget.samples_per_query=2.0 --config.engine.slots=8",
    "configs/smollm2_gsm8k.py": "--config.engine.max_new_tokens=4",
    "configs/smollm2_arithmetic.py": "--config.engine.max_new_tokens=4",
    "hf://": "--config.model=reasoner --config.mesh=",  # nothing is fetched
    "openai://": "--config.model=reasoner",
    "launch.run --config=configs/smollm2_gsm8k.py": "--config.task.name=jsonl "
    "--config.task.path=questions.jsonl",
}


# (question, target) of the files that commands name
BBH = {
    "boolean_expressions": ("not True or False is", "False"),
    "date_understanding": ("Which day?\nOptions:\n(A) 1\n(B) 2", "(B)"),
}


def test_the_commands_are_found():
    assert {"launch.run", "launch.replay", "launch.plan"} <= COMMANDS.keys()
    assert sum(map(len, COMMANDS.values())) > 40


def read(module, given, cwd=ROOT, run=()):
    return subprocess.run(
        [sys.executable, "-c", READER, module, *run],
        cwd=cwd,
        input=json.dumps(given),
        capture_output=True,
        text=True,
        check=False,
        timeout=400,
    )


@pytest.mark.parametrize("module", sorted(COMMANDS))
def test_commands_have_the_flags_that_they_are_given(module):
    done = read(module, COMMANDS[module])
    assert done.returncode == 0, done.stderr


def test_recipes_of_make_have_flags_that_are_there(tmp_path):
    """Each as make hands it to the interpreter, which notes it here."""
    noted = tmp_path / "noted"
    python = tmp_path / "python"
    python.write_text(
        f"#!{sys.executable}\nimport json, sys\n"
        f"print(json.dumps(sys.argv[2:]), file=open({str(noted)!r}, 'a'))\n"
    )
    python.chmod(0o755)
    recipes = ("demo", "gains", "smollm2", "reasoner")
    made = subprocess.run(
        ["make", "-o", "setup", f"BIN={tmp_path}", "GSM8K=test.jsonl"]
        + [*recipes],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert made.returncode == 0, made.stderr
    given = collections.defaultdict(list)
    for module, *words in map(json.loads, noted.read_text().splitlines()):
        given[module].append(words)
    assert len(given["projects.reasoner.examples"]) == 4 and len(given) == 4
    for module, own in given.items():
        done = read(module, own)
        assert done.returncode == 0, done.stderr


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Where the commands find what they name."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    for name in ("configs", "projects"):
        (tmp_path / name).symlink_to(ROOT / name)
    (tmp_path / "MODEL").symlink_to(ROOT / "dynscaling_jax/bundled/reasoner")
    bank = [
        {
            "query_id": f"q/{q}",
            "reference": "1",
            "answers": [str(1 + (i * i + q) % (q + 1)) for i in range(40)],
            "new_tokens": [9] * 40,
        }
        for q in range(8)
    ]
    asked = [{"question": f"{i} + 2?", "answer": str(i + 2)} for i in range(4)]
    said = {"prompt": [{"role": "user", "content": "2?"}], "completion": "4."}
    for name, rows in {
        **dict.fromkeys(("BANK", "A", "B"), bank),
        "questions": asked,
        **dict.fromkeys(("mine", "others"), [said] * 4),
    }.items():
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (tmp_path / f"{name}.jsonl").write_text(text)
    for name in ("bbh", "svamp"):
        (tmp_path / name).mkdir()
    for subtask, (text, target) in BBH.items():
        texts = [f"{n}: {text}" for n in range(4)]
        examples = [{"input": text, "target": target} for text in texts]
        file = tmp_path / f"bbh/{subtask}.json"
        file.write_text(json.dumps({"examples": examples}))
    rows = [
        {"ID": f"s-{n}", "Body": f"Ann has {n} nuts", "Answer": n + 1.0}
        | {"Question": "How many are they with one more?"}
        for n in range(4)
    ]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (tmp_path / "svamp/test.jsonl").write_text(text)
    return tmp_path


def test_commands_run(folder):
    left = {
        (module, *words)
        for module, given in COMMANDS.items()
        for words in given
        if words and not any(e in " ".join([module, *words]) for e in SKIPPED)
    }
    assert len(left) > 30
    used = set()
    for module, part in STAGES:
        stage = sorted(
            c for c in left if c[0] == module and part in " ".join(c)
        )
        left -= {*stage}
        todo = [less(command, used) for command in stage]
        done = read(module, todo, folder, ["run"])
        assert done.returncode == 0, done.stderr[-3000:]
        if module == "launch.compare":  # as make demo leaves it
            shutil.copytree(folder / "runs/methods", folder / "runs/demo")
        if module == "launch.run":  # what the report lays side by side
            shutil.copytree(folder / "runs/a", folder / "runs/b")
    assert not left


def less(command, used):
    """The words of a command, with less to do, and a place of its own where
    another writes to the same."""
    text = " ".join(command)
    # what is said of pages does not hold for groups, in which a CPU decodes
    words = [w for w in command[1:] if not w.startswith("--config.engine.live")]
    for part, more in LESS.items():
        if part in text:
            words += more.split()
    for place in re.findall(r"--(?:workdir|out)=\S+", text):
        if place in used:
            words.append(f"{place}-{len(used)}")
        used.add(words[-1] if place in used else place)
    return words


def test_lines_of_json_can_be_read():
    read = [
        json.loads(line)
        for page in PAGES
        for line in re.findall(r"^ *(\{\".*\})$", page.read_text(), re.M)
    ]
    assert {*read[0]} == {"question", "answer"} and len(read) >= 4


@pytest.mark.parametrize(
    "page", sorted((ROOT / "docs").glob("how_to_*.md")), ids=lambda p: p.stem
)
def test_python_of_the_guides_runs_and_prints_what_they_say(page, tmp_path):
    text = page.read_text()
    code = re.findall(r"^```python\n(.*?)^```", text, re.M | re.S)
    printed = re.findall(
        r"prints[^\n]*\n\n```(?:text)?\n(.*?)^```", text, re.M | re.S
    )
    assert len(code) == len(printed) > 0
    (tmp_path / "tests").symlink_to(ROOT / "tests")  # a run that one reads
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(code)],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "".join(printed)


def test_snippets_of_the_guide_to_families_are_of_the_source():
    bare = lambda text: re.sub(r"#.*|[\s,]", "", text)
    files = (
        *(ROOT / "dynscaling_jax/models").glob("*.py"),
        *(ROOT / "dynscaling_jax/checkpoints").glob("*.py"),
    )
    source = bare("\n".join(file.read_text() for file in files))
    guide = (ROOT / "docs/how_to_family.md").read_text()
    fences = re.findall(r"^ *```(\w*)\n(.*?)^ *```$", guide, re.M | re.S)
    count = 0
    for block in (text for language, text in fences if not language):
        # an entry begins where a line is not indented and closes nothing
        for entry in re.split(r"\n(?=[^\s)}\]])", textwrap.dedent(block)):
            if not entry.startswith(".venv"):
                assert bare(entry) in source, entry
                count += 1
    assert count >= 5


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    for link in re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text()):
        if "://" not in link:
            assert (page.parent / link).exists(), link


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_files_of_the_source_that_are_named_are_there(page):
    """Files moved, and the guides sent readers to where they had been."""
    files = [
        f"/{path.relative_to(ROOT).as_posix()}"
        for part in ("dynscaling_jax", "launch", "tests", "benchmarks")
        for path in (ROOT / part, *(ROOT / part).rglob("*"))
    ]
    named = re.findall(
        r"(?<![\w/.])(\w+(?:/\w+)*/\w+\.py|dynscaling_jax/\w+)(?![\w/*])",
        page.read_text(),
    )
    own = ("configs/", "projects/")  # those of the reader's too
    for name in named:
        if not name.startswith(own):
            assert any(file.endswith(f"/{name}") for file in files), name


def test_make_has_the_targets_that_are_named():
    makefile = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"^(\w+):", makefile, re.MULTILINE))
    for page in PAGES:
        named = re.findall(r"(?:^|`)make ([a-z]\w*)", page.read_text(), re.M)
        assert set(named) <= targets, page
