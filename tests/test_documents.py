"""What the documents say can be done: every command is read by its own flags,
every link leads somewhere. test_examples.py runs the snippet of README."""

import ast
import collections
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "third_party/README.md",
    ROOT / "dynscaling_jax/bundled/reasoner/README.md",
    *sorted((ROOT / "docs").glob("*.md")),
]
CODE = [*sorted((ROOT / "configs").glob("*.py"))]
CODE += sorted((ROOT / "launch").glob("*.py"))
# Reads each command as the command itself would, and runs none.
READER = """
import importlib, json, sys
from absl import flags
name = sys.argv[1]
importlib.import_module(name)
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
    except (flags.Error, AttributeError, AssertionError, OSError) as error:
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
            r"python -m (launch\.\w+)((?: +[^\n`]*)?)", text
        ):
            words = shlex.split(rest, comments=True)
            if not {"...", "--help", "--config=YOURS"} & set(words):
                found[module].append(words)
    return found


COMMANDS = commands()


def test_the_commands_are_found():
    assert {"launch.run", "launch.replay", "launch.plan"} <= COMMANDS.keys()
    assert sum(map(len, COMMANDS.values())) > 40


@pytest.mark.parametrize("module", sorted(COMMANDS))
def test_commands_have_the_flags_that_they_are_given(module):
    done = subprocess.run(
        [sys.executable, "-c", READER, module],
        cwd=ROOT,
        input=json.dumps(COMMANDS[module]),
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_lead_somewhere(page):
    for link in re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text()):
        if "://" not in link:
            assert (page.parent / link).exists(), link


def test_make_has_the_targets_that_are_named():
    makefile = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"^(\w+):", makefile, re.MULTILINE))
    for page in PAGES:
        named = re.findall(r"(?:^|`)make ([a-z]\w*)", page.read_text(), re.M)
        assert set(named) <= targets, page
