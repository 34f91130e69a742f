"""The package as it is published, away from the repository."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
SOURCE = ("dynscaling_jax", "launch", "configs", "README.md", "LICENSE")


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
    """With its bundled model, its page and its configs, by the commands that
    the documents show."""
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

    path = {"PYTHONPATH": str(installed)}
    where = "import launch.run, dynscaling_jax as d; print(d.__file__)"
    found = python(elsewhere, "-c", where, **path)
    assert Path(found.strip()).is_relative_to(installed)
    said = python(
        elsewhere,
        *("-m", "launch.run", "--config=configs/reasoner.py"),
        *("--config.task.limit=2", "--config.budget.samples_per_query=2"),
        *("--config.engine.max_new_tokens=16", "--workdir=runs/a"),
        **path,
    )
    assert said.endswith("runs/a/report.html\n")
    assert (elsewhere / "runs/a/report.html").exists()
