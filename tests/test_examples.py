"""Every notebook runs, cell after cell."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def code(notebook):
    cells = json.loads((ROOT / "examples" / notebook).read_text())["cells"]
    return "\n".join(
        "".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"
    )


@pytest.mark.parametrize(
    "notebook", sorted(p.name for p in (ROOT / "examples").glob("*.ipynb"))
)
def test_runs(notebook, tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", code(notebook)],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()


def test_the_snippet_of_the_readme_is_the_first():
    readme = (ROOT / "README.md").read_text()
    snippet = readme.partition("```python\n")[2].partition("```")[0]
    assert snippet.split() == code("own_questions.ipynb").split()
