"""The state of training on disk: Orbax, the newest two steps."""

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
        """The newest state, put where `sharding` says; a fresh one where
        there is none.

        Raises:
            ValueError: it is of another model or optimizer.
        """
        newest = self._manager.latest_step()
        if newest is None:
            return jax.device_put(fresh(), sharding)
        target = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
            jax.eval_shape(fresh),
        )
        restored: Any = self._manager.restore(
            newest, args=ocp.args.StandardRestore(target)
        )
        return restored

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
