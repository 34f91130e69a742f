"""The state of training on disk: Orbax, the newest two steps."""

import logging
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp

from dynscaling_jax.training.step import State


class Checkpoints:
    """Saves states in the background, and finds the last whole one.

    with Checkpoints(directory) as checkpoints:
        state = checkpoints.restore(fresh, sharding)
    """

    def __init__(self, directory: Path):
        self._directory = directory
        self._manager = ocp.CheckpointManager(
            directory.absolute(),
            options=ocp.CheckpointManagerOptions(max_to_keep=2, create=True),
        )

    def save(self, state: State) -> None:
        """Begins to write a state; the arrays may be used up at once."""
        # Orbax writes while training goes on, which uses up its arrays
        kept = jax.tree.map(jnp.copy, state)
        self._manager.save(int(state.step), args=ocp.args.StandardSave(kept))

    def restore(self, fresh: Callable[[], State], sharding: Any) -> State:
        """Reads the newest whole state, or makes a fresh one.

        It is put where `sharding` says. Newer ones that were cut are told of
        and removed.

        Raises:
            ValueError: none can be read, or they are of another model or
                optimizer.
        """
        steps = sorted(self._manager.all_steps(), reverse=True)
        if not steps:
            return jax.device_put(fresh(), sharding)
        target = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
            jax.eval_shape(fresh),
        )
        faults: dict[int, Exception] = {}
        for step in steps:
            try:
                restored: Any = self._manager.restore(
                    step, args=ocp.args.StandardRestore(target)
                )
            except Exception as error:  # Orbax raises no kind of its own
                faults[step] = error
                continue
            for cut in faults:
                logging.warning(
                    "%s: cannot be read and is removed; training goes on from "
                    "step %d",
                    self._directory / str(cut),
                    step,
                )
                self._manager.delete(cut)
            return restored
        newest, fault = next(iter(faults.items()))
        raise ValueError(
            f"{self._directory / str(newest)} cannot be read, nor is there an "
            f"older state that can: {str(fault)[:200]}; remove "
            f"{self._directory} to begin anew"
        )

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._manager.wait_until_finished()
        self._manager.close()
