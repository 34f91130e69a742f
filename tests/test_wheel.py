"""The package as it is published, away from the repository."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
SOURCE = ("dynscaling_jax", "README.md", "LICENSE")
README = (ROOT / "README.md").read_text()
SNIPPET = README.partition("```python\n")[2].partition("```")[0]


def python(directory, *words, **environ):
    done = subprocess.run(
        [sys.executable, *words],
        cwd=directory,
        env={**os.environ, **environ},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_wheel_works_outside_the_repository(tmp_path):
    """With its bundled model and nothing of the repository beside it."""
    source = tmp_path / "source"
    source.mkdir()
    for name in (*SOURCE, "pyproject.toml"):
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, source / name)
    elsewhere, installed = tmp_path / "elsewhere", tmp_path / "installed"
    elsewhere.mkdir()
    pip = ("-m", "pip", "--quiet", "--disable-pip-version-check")
    build = ("wheel", "--no-deps", "--no-build-isolation", "-w", "dist")
    python(tmp_path, *pip, *build, source)
    (wheel,) = (tmp_path / "dist").glob("*.whl")
    target = ("install", "--no-deps", "--target", installed)
    python(tmp_path, *pip, *target, wheel)
    assert (installed / "dynscaling_jax/py.typed").exists()

    assert {p.name for p in installed.iterdir() if p.is_dir()} == {
        "dynscaling_jax",
        next(installed.glob("*.dist-info")).name,
    }
    code = f"{SNIPPET}\nprint(ds.__file__)"
    printed = python(elsewhere, "-c", code, PYTHONPATH=str(installed))
    answers, *table, where = printed.splitlines()
    assert Path(where).is_relative_to(installed)
    assert answers == "('21', '14')"  # both are right
    for line in ("the vote", "uniform", "ucb(c=0.2)"):
        assert any(row.startswith(line) for row in table), table
    assert (elsewhere / "runs/python/report.html").exists()
