"""What an engine gives the batches that decode its work, and what they tell.

grouped.batch serves one CPU device; paged.batch accelerators and meshes.
"""

from collections.abc import Callable, Container, Iterable
from typing import NamedTuple, Protocol

import numpy as np
from jax.sharding import Mesh

from dynscaling_jax.checkpoints.model import Model
from dynscaling_jax.inference.sampling import Settings
from dynscaling_jax.inference.slot import Numbered, Prompt, Slot
from dynscaling_jax.types import Sample


class Setup(NamedTuple):
    """What all batches of an engine share."""

    model: Model
    mesh: Mesh | None
    settings: Settings
    seed: np.uint32
    stops: np.ndarray  # ids that end a sample, padded with -1
    max_new_tokens: int
    finished: Callable[[Slot], Sample | None]


class Steps(NamedTuple):
    """Slot-steps: all that were computed, and those of active slots."""

    all: int = 0
    active: int = 0


class Batch(Protocol):
    """Sequence slots, and the requests that wait for one."""

    @property
    def busy(self) -> bool:
        """Whether any sample is unfinished."""
        ...

    @property
    def left(self) -> int:
        """How many samples are unfinished."""
        ...

    def add(self, work: Iterable[tuple[Prompt, Numbered]]) -> None:
        """Queues requests, all or none."""
        ...

    def drop(self, gone: Container[int]) -> None:
        """Cancels requests of these numbers; their slots become idle."""
        ...

    def step(self) -> tuple[list[tuple[int, Sample]], Steps]:
        """Takes a chunk of steps.

        Returns:
            What is finished by then, as (number, sample), and the steps.
        """
        ...
