"""Where a command runs: what its results may depend on, and compiled code."""

import contextlib
import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

import jax


def versions() -> dict[str, str]:
    """Gives the versions of the packages that a result may depend on."""
    names = ("dynscaling-jax", "jax", "jaxlib", "numpy", "tokenizers")
    found = {}
    for name in names:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def about() -> dict[str, Any]:
    """Tells what a result may depend on beside its config."""
    here, commit = str(Path(__file__).parent), ""
    with contextlib.suppress(OSError):  # a machine without git
        commit = subprocess.run(
            ["git", "-C", here, "rev-parse", "HEAD"],
            capture_output=True,
            text=True,
            check=False,  # an installed copy has no repository
        ).stdout.strip()
    device = jax.devices()[0]
    return {
        "versions": versions(),
        "python": platform.python_version(),
        "commit": commit or None,
        "device": f"{device.platform}: {device.device_kind}",
        "devices": jax.device_count(),
    }


def use_compilation_cache() -> None:
    """Keeps compiled code for later processes.

    JAX_COMPILATION_CACHE_DIR says where.
    """
    if not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        with contextlib.suppress(RuntimeError):  # a user without a home
            home = Path.home() / ".cache" / "dynscaling_jax" / "xla"
            jax.config.update("jax_compilation_cache_dir", str(home))
    # the engine has many programs, each soon compiled; together, half a minute
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
