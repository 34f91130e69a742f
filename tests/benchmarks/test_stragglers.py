"""The command prints what two pages show."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = ("allocation.md", "lab/allocation.md")


def launch(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "benchmarks.stragglers", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=200,
    )


def tables(text):
    """{(table, what the line plays): {hosts: cell}}"""
    found, head, count = {}, None, 0
    for line in text.splitlines():
        if not line.startswith("|"):
            head = None
            continue
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if head is None:
            head, count = cells, count + 1
        elif not line.startswith("| -"):
            named = [i for i, name in enumerate(head) if name[0].isdigit()]
            key = (count, *cells[: named[0]])
            found[key] = {head[i]: cells[i] for i in named}
    return found


def test_the_pages_show_what_it_prints():
    """Of the numbers of hosts that are quick to play."""
    done = launch("--hosts=1,4,16")
    assert (done.returncode, done.stderr) == (0, "")
    printed = tables(done.stdout)
    pages = (ROOT / "docs" / name for name in PAGES)
    texts = (p.read_text().partition("\n## Many hosts")[2] for p in pages)
    parts = (text.partition("\n## ")[0] for text in texts)
    shown = tables("\n".join(parts))
    assert len(shown) == 27 and shown.keys() == printed.keys()
    for key, cells in printed.items():
        assert cells.items() <= shown[key].items(), key


@pytest.mark.parametrize("hosts", ["", "0", "4,x"])
def test_what_is_no_number_of_hosts(hosts):
    done = launch(f"--hosts={hosts}")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == (
        "benchmarks.stragglers: --hosts must be whole numbers from 1 on, got "
        f"{hosts!r}\n"
    )
