"""What reaches a terminal, and what happens where there is none."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from dynscaling_jax.experiments.terminal import plain

ROOT = Path(__file__).parents[2]
STUB = r"""
import logging, os, sys
from launch.arguments import Command, resumable, start

def work():
    logging.warning("a server says \x1b]0;title\x07")
    for number in range(int(os.environ["LINES_OF_IT"])):
        print(number, "\x1b[31mred\x9b \ud800 é")
    if "FAIL" in os.environ:
        raise ValueError("a file says \x1b[2J\nand more")
    return "done"

def main(_):
    resumable(Command("stub", (), ""), work)
    open("finished", "w").close()

start(main, Command("stub", (), ""))
"""


def test_control_characters_are_shown():
    assert plain("a\x1b[2Jb\rc\x9b\u202e\td\né 漢") == (
        r"a\x1b[2Jb\rc\x9b\u202e" "\td\né 漢"
    )
    assert plain("1%\r2%", keep="\r") == "1%\r2%"


def shell(command, **environment):
    return subprocess.run(
        ["bash", "-c", command.replace("STUB", f"{sys.executable} stub.py")],
        capture_output=True,
        text=True,
        cwd=environment.pop("cwd"),
        env=os.environ | {"PYTHONPATH": str(ROOT)} | environment,
        check=False,
        timeout=60,
    )


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    directory = tmp_path_factory.mktemp("terminal")
    (directory / "stub.py").write_text(STUB)
    return directory


@pytest.mark.parametrize(
    ("command", "environment", "status", "out", "err"),
    [
        ("STUB", {}, 0, "0 \\x1b[31mred\\x9b \\ud800 é", "says \\x1b]0;title"),
        ("STUB", {"FAIL": "1"}, 1, "2 \\x1b", "file says \\x1b[2J and more\n"),
        (
            "STUB",
            {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
            0, "red\\x9b \\ud800 \\xe9", "",
        ),
        ("STUB | head -1; exit $PIPESTATUS", {}, 0, "0 ", ""),
        ("STUB 2>&-", {}, 0, "done", ""),
        ("STUB >&-", {}, 0, "", ""),
        ("STUB <&- >&- 2>&-", {}, 0, "", ""),
        ("STUB >/dev/full", {}, 1, "", "stub: cannot print: No space left"),
        ("STUB 2>/dev/full", {}, 0, "done", ""),
    ],
)  # fmt: skip
def test_a_finished_run_ends_as_such(
    home, command, environment, status, out, err
):
    """A closed pipe or stderr, a full disk or the C locale made a traceback of
    it, and what a file or a server says moved the cursor."""
    lines = "5000" if "head" in command else "3"
    done = shell(command, cwd=home, LINES_OF_IT=lines, **environment)
    assert done.returncode == status, done.stderr
    assert out in done.stdout and err in done.stderr
    assert "Traceback" not in done.stderr and "Exception" not in done.stderr
    assert not {"\x1b", "\x9b", "\x07"} & set(done.stdout + done.stderr)
    assert ("FAIL" in environment) != (home / "finished").exists()
    (home / "finished").unlink(missing_ok=True)


def test_a_closed_stderr_is_no_file_of_the_run(home):
    """The next file that was opened got its number, and what XLA says to
    stderr went into the log."""
    (home / "other.py").write_text(
        "import os\n"
        "from dynscaling_jax.experiments.terminal import prepare\n"
        "prepare()\n"
        "with open('log', 'w') as file:\n"
        "    os.write(2, b'from C')\n"
        "    os.system('echo from a child >&2')\n"
    )
    shell(f"{sys.executable} other.py 2>&-", cwd=home)
    assert (home / "log").read_text() == ""
