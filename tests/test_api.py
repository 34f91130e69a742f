"""What `import dynscaling_jax as ds` offers."""

import subprocess
import sys

import dynscaling_jax as ds

NAMES = [name for name in dir(ds) if not name.startswith("_")]


def test_the_import_takes_nothing_along():
    """It is to stay under 0.1 s: JAX alone takes ten times that."""
    code = "import sys, dynscaling_jax; sys.exit('jax' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_every_name_is_there():
    assert {"Budget", "Engine", "load_model", "scale", "replay"} <= {*NAMES}
    for name in NAMES:
        assert getattr(ds, name) is not None, name
