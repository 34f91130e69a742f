"""One engine on the devices of several processes.

Processes that share a mesh must call the same compiled functions in the same
order. So the first one samples as if it were alone, and announces before each
chunk of steps which requests came and which were dropped since the last one;
the others repeat that. All else that an engine does follows from it and from
the sampled tokens, which all devices know.
"""

import json
from collections.abc import Callable, Sequence
from typing import Any

from dynscaling_jax.inference.engine import Change, Engine
from dynscaling_jax.types import Message, Query, Request


def lead(engine: Engine, send: Callable[[bytes], object]) -> None:
    """Announces to the followers all that this engine is given.

    send hands a message, never an empty one, to every follower. It may wait
    until all have received it.
    """
    engine.announce = lambda changes: send(json.dumps(changes).encode())


def follow(engine: Engine, receive: Callable[[], bytes]) -> None:
    """Repeats what the leader does, until an empty message comes.

    The engine is made as the leader's: of the same model, on the same mesh.
    receive waits for the leader's next message.

    Raises:
        ValueError: what the leader's engine raises as well.
    """
    while message := receive():
        engine.follow(changes_of(message))


def changes_of(message: bytes) -> list[Change]:
    """Parses a message of the leader."""
    return [
        Change([*map(_request, added)], dropped)
        for added, dropped in json.loads(message)
    ]


def _request(row: Sequence[Any]) -> Request:
    (name, question), messages, index, number, parents, *others = row
    query = Query(name, _messages(question))
    turns = _messages(messages)
    return Request(query, turns, index, number, tuple(parents), *others)


def _messages(rows: Sequence[Sequence[str]]) -> tuple[Message, ...]:
    return tuple(Message(*row) for row in rows)
