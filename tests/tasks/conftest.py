import os
from pathlib import Path

import pytest

from dynscaling_jax.tasks import Comparer


@pytest.fixture(scope="session")
def benchmark_data() -> Path:
    """The folder of real benchmark files; not part of the repository."""
    shared = Path(__file__).parents[3] / "shared" / "data"
    folder = Path(os.environ.get("DYNSCALING_DATA", shared))
    if not (folder / "tasks").is_dir():
        pytest.skip(f"no benchmark data at {folder}; set DYNSCALING_DATA")
    return folder


@pytest.fixture(scope="session")
def compare():
    with Comparer() as comparer:
        yield comparer
