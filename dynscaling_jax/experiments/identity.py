"""Fingerprints of what a config only names: model files and questions."""

import fnmatch
import hashlib

from dynscaling_jax.checkpoints.model import HUB_FILES, resolve
from dynscaling_jax.checkpoints.tensors import PARAMS
from dynscaling_jax.experiments.workdir import fingerprint
from dynscaling_jax.lines import dumps
from dynscaling_jax.tasks import Task


def of_model(address: str) -> dict[str, str]:
    """Fingerprints each file of a local model, and names the hub's revision.

    98 MB take 0.2 s; of large files workdir.fingerprint reads parts.
    """
    home = resolve(address)
    if not home.is_dir():
        return {home.name: fingerprint(home)}
    found = {
        file.name: fingerprint(file)
        for file in sorted(home.iterdir())
        if any(fnmatch.fnmatch(file.name, one) for one in (*HUB_FILES, PARAMS))
    }
    if address.startswith("hf://"):
        found["revision"] = home.name
    return found


def of_questions(task: Task) -> dict[str, str]:
    """Fingerprints what is asked, and what is right."""
    return {"the questions": hashlib.sha256(dumps(task.problems)).hexdigest()}
