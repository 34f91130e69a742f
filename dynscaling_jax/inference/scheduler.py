"""What the schedulers of an engine share, and what they tell it.

`continuous` serves one CPU device, in groups that share a prompt;
`paged.batch` accelerators and meshes.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jax.sharding import Mesh

from dynscaling_jax.checkpoints.model import Model
from dynscaling_jax.inference.cache import Prefix
from dynscaling_jax.inference.sampling import Settings
from dynscaling_jax.inference.slot import Prompt, Slot
from dynscaling_jax.types import Sample


class Setup(NamedTuple):
    """What all schedulers of an engine share."""

    model: Model
    mesh: Mesh | None
    settings: Settings
    seed: np.uint32
    stops: np.ndarray  # as of decode.start
    max_new_tokens: int
    slots_per_group: int
    slot_counts: Callable[[int, int], tuple[int, ...]]  # (bucket, R) -> GR
    bucket: Callable[[int], int]  # the bucket policy: length -> P
    prefix: Callable[[Prompt], Prefix]
    finished: Callable[[Slot], Sample | None]


class Steps(NamedTuple):
    """Slot-steps: all that were computed, and those of active slots."""

    all: int = 0
    active: int = 0
