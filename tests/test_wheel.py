"""The package as it is published, away from the repository."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
SOURCE = ("dynscaling_jax", "README.md", "LICENSE")
CODE = """
import jax, dynscaling_jax as ds
print(ds.__file__)
engine = ds.Engine(ds.load_model("reasoner"), max_new_tokens=128)
question = ds.load_task("shares", limit=1).problems[0]
result = ds.scale(
    [question.query],
    ds.with_answers(engine, "number"),
    ds.integrated(explore=2),
    ds.parse_policy("opportunity_cost"),
    ds.majority(),
    ds.Budget(samples=6),
    jax.random.key(0),
)
print(*result.answers)
"""


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
    said = python(elsewhere, "-c", CODE, PYTHONPATH=str(installed))
    where, answers = said.splitlines()
    assert Path(where).is_relative_to(installed)
    assert answers.isdigit()  # what the reasoner makes of it
