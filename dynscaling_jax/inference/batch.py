"""What an engine gives the batches that decode its work, and what they tell.

grouped.batch serves one CPU device; paged.batch accelerators and meshes.
"""

from collections.abc import Callable, Container, Iterable, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
from jax.sharding import Mesh
from jaxtyping import Bool, Int32, UInt32

from dynscaling_jax.checkpoints.model import Model
from dynscaling_jax.inference import sampling
from dynscaling_jax.inference.sampling import ScoredToken, Settings
from dynscaling_jax.inference.slot import Numbered, Prompt, Slot
from dynscaling_jax.inference.thoughts import Cap
from dynscaling_jax.types import Sample

CHUNK = 16  # steps of decoding between two polls of the host, at most


class Setup(NamedTuple):
    """What all batches of an engine share."""

    model: Model
    mesh: Mesh | None
    settings: Settings
    seed: np.uint32
    stops: np.ndarray  # ids that end a sample, padded with -1
    max_new_tokens: int
    finished: Callable[[Slot], Sample | None]
    cap: Cap | None = None  # on thoughts


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

    @property
    def lengths(self) -> dict[int, int]:
        """The tokens so far of each sample that has a slot, by number."""
        ...

    def step(self) -> tuple[list[tuple[int, Sample]], Steps]:
        """Takes a chunk of steps.

        Returns:
            What is finished by then, as (number, sample), and the steps.
        """
        ...


def lengths(slots: Iterable[Slot | None]) -> dict[int, int]:
    """The tokens so far of what slots generate, by number of request."""
    return {slot.number: slot.count for slot in slots if slot}


def forget(slots: list[Slot | None], gone: Container[int]) -> None:
    """Makes the slots of these requests idle."""
    for i, slot in enumerate(slots):
        if slot and slot.number in gone:
            slots[i] = None


def begun(
    starts: Iterable[Any], count: int
) -> tuple[
    Bool[np.ndarray, " S"], UInt32[np.ndarray, "S 3"], Int32[np.ndarray, " S"]
]:
    """Lays out which slots begin samples: fresh, name, limit of slots.begin.

    Args:
        starts: of a Turn.
        count: S.
    """
    fresh = np.zeros(count, bool)
    name = np.zeros((count, 3), np.uint32)
    limit = np.zeros(count, np.int32)
    for start in starts:
        request = start.request.request
        fresh[start.slot], limit[start.slot] = True, start.limit
        words = sampling.query_words(request.query.id)
        name[start.slot] = (*words, request.index)
    return fresh, name, limit


def append(
    slots: Sequence[Slot | None],
    tokens: ScoredToken,
    active: Bool[np.ndarray, "C S"],
) -> Steps:
    """Gives slots the tokens [C, S] of the steps that they were active in."""
    for i, slot in enumerate(slots):
        if slot:
            slot.append(tokens, i, int(active[:, i].sum()))
    return Steps(int(active.any(1).sum()) * len(slots), int(active.sum()))


def harvest(
    slots: list[Slot | None], setup: Setup
) -> tuple[list[int], list[int], list[tuple[int, Sample]]]:
    """Makes slots idle whose samples are finished; looks at thoughts.

    Returns:
        The tokens that each slot had, the slots that are idle now, and their
        samples as (number, sample).
    """
    counts = [slot.count if slot else 0 for slot in slots]
    ended, done = [], []
    for i, slot in enumerate(slots):
        sample = setup.finished(slot) if slot else None
        if slot and sample:
            slots[i] = None
            ended.append(i)
            done.append((slot.number, sample))
        elif slot and setup.cap:
            setup.cap.look(slot)
    return counts, ended, done
