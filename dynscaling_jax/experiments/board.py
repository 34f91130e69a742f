"""Curves for TensorBoard, where --tensorboard asks for them."""

import contextlib
import functools
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

Draw = Callable[[int, Mapping[str, float]], None]
"""(step, value by name) -> a point of each curve."""


@contextlib.contextmanager
def board(directory: Path, wanted: bool) -> Iterator[Draw]:
    """Writes points into a directory, or nothing at all.

    Raises:
        ValueError: tensorboardX is not installed.
    """
    if not wanted:
        yield lambda step, values: None
        return
    try:
        from tensorboardX import SummaryWriter
    except ImportError:
        raise ValueError(
            "--tensorboard needs tensorboardX: "
            "pip install 'dynscaling-jax[tensorboard]'"
        ) from None

    with contextlib.ExitStack() as stack:
        # no file before there is a point
        opened = functools.cache(
            lambda: stack.enter_context(SummaryWriter(str(directory)))
        )

        def draw(step: int, values: Mapping[str, float]) -> None:
            for name, value in values.items():
                opened().add_scalar(name, value, step)
            opened().flush()

        yield draw
