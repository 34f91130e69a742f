"""Processes that share one model, which lies on the devices of all of them."""

import atexit
import os
import socket
import sys
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from dynscaling_jax.experiments import configured
from dynscaling_jax.experiments.config import typed
from dynscaling_jax.experiments.environment import use_compilation_cache
from dynscaling_jax.experiments.shared import Processes, nothing
from dynscaling_jax.inference import lockstep, memory, mesh

# JAX aborts the first process so many seconds after another has ended, which
# experiments.processes notices long before: time to save what was drawn.
SILENCE = 600
LEAVING = 20  # seconds that JAX waits for the others at the end


def run(
    config: Any,
    workdir: Path,
    processes: Processes,
    coordinator: str,
    tensorboard: bool = False,
) -> dict[str, Any]:
    """As configured.run_config; the first process samples, the others follow.

    Returns:
        The summary of the run; nothing in processes that follow.

    Raises:
        ValueError: an endpoint in place of a model; a mesh that leaves a
            device out.
    """
    if config.model.startswith("openai://"):
        raise ValueError("--lockstep shares a local model, not an endpoint")

    def hear(message: bytes = b"") -> bytes:
        """What the first process says, which it is itself where it has any."""
        return processes.exchange(message, nothing)[0]

    port = hear(_free_port()).decode()
    jax.config.update("jax_enable_preemption_service", False)  # takes SIGTERM
    jax.distributed.initialize(
        f"{coordinator.rpartition(':')[0]}:{port}",
        processes.count,
        processes.number,
        cluster_detection_method="deactivate",
        heartbeat_timeout_seconds=SILENCE,
        shutdown_timeout_seconds=LEAVING,
    )
    try:
        use_compilation_cache()
        on = _mesh(config.mesh)
        free = str(memory.available()).encode()
        available = min(map(float, processes.exchange(free, nothing)))
        fields = typed(config)
        engine = configured.open_engine(fields, on, available)
        summary = {}
        if processes.number:
            lockstep.follow(engine, hear)
        else:
            lockstep.lead(engine, hear)
            summary = configured.run_config(
                config,
                workdir,
                engine,
                configured.model_identity(fields),
                tensorboard=tensorboard,
            )
            hear()  # nothing more to follow
        jax.distributed.shutdown()  # here, where all are still there
        return summary
    except BaseException:
        # At its exit, before which this comes, JAX would wait for processes
        # that are no more, and then abort.
        atexit.register(_leave_at_once)
        raise


def _leave_at_once() -> None:
    sys.stdout.flush()
    os._exit(1)


def _free_port() -> bytes:
    with socket.socket() as free:
        free.bind(("", 0))
        return str(free.getsockname()[1]).encode()


def _mesh(text: str) -> Mesh:
    """Of the devices of all processes."""
    count = jax.device_count()
    on = mesh.build(text, jax.devices())
    if on is None or on.size < count:
        raise ValueError(
            f"mesh={text} takes {on.size if on else 1} of the {count} devices "
            "that the processes have together; in lockstep all are taken: "
            f"auto, or two sizes whose product is {count}"
        )
    return on
