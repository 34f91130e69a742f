"""One engine on the devices of several processes.

Processes that share a mesh must call the same compiled functions in the same
order. So the first draws as if it were alone, and tells the others, before
each chunk of steps, what it was asked for since the last one and what is to be
drawn no more; they do likewise. Whatever else an engine does follows from that
and from the tokens that are drawn, which all devices know.
"""

import json
from collections.abc import Callable, Sequence
from typing import Any

from dynscaling_jax.inference.engine import Change, Engine
from dynscaling_jax.types import Message, Query, Request


def lead(engine: Engine, tell: Callable[[bytes], object]) -> None:
    """Has the followers told of all that this engine is asked for.

    Args:
        tell: hands a message, never an empty one, to every follower; it may
            wait until all have heard it.
    """
    engine.announce = lambda changes: tell(_dumps(changes))


def follow(engine: Engine, hear: Callable[[], bytes]) -> None:
    """Does what the leader does, until an empty message comes.

    Args:
        engine: made as the leader's, of the same model, on the same mesh.
        hear: waits for the next message of the leader.

    Raises:
        ValueError: what the leader's engine raises as well.
    """
    while message := hear():
        engine.follow(_loads(message))


def _dumps(changes: Sequence[Change]) -> bytes:
    return json.dumps(changes).encode()


def _loads(message: bytes) -> list[Change]:
    return [
        Change([*map(_request, asked)], dropped)
        for asked, dropped in json.loads(message)
    ]


def _request(row: Sequence[Any]) -> Request:
    (name, said), messages, index, number, parents, shared = row
    return Request(
        Query(name, _messages(said)),
        _messages(messages),
        index,
        number,
        tuple(parents),
        shared,
    )


def _messages(rows: Sequence[Sequence[str]]) -> tuple[Message, ...]:
    return tuple(Message(*row) for row in rows)
