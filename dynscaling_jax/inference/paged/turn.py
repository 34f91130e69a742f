"""What the scheduler tells the runner: plain data, made on the host.

A mesh has D parts along its data axis. Part d has slots [d * S / D, ...), a
pool of pages and rows of logits of its own; pages and rows are numbered within
a part, slots over all.

A sequence is a prompt and the completion tokens of a slot. The key of its
position p lies in page p // W of its table, at place p % W: with W = 4, a
prompt of 6 tokens and 3 completion tokens with keys

    table      7       2       9
    positions  0 1 2 3 4 5 6 7 8 . . .
               p p p p p p c c c

Full pages of a prompt (7) are shared by all slots that continue it and by
longer prompts that begin with the same tokens. Page 2 was copied when the
slot began, since the slot writes into it.
"""

from typing import NamedTuple

from dynscaling_jax.inference.slot import Numbered, Prompt


class Chunk(NamedTuple):
    """Tokens [start, end) of a prompt, whose keys are computed next."""

    part: int
    prompt: Prompt
    start: int  # tokens that have keys already: whole chunks
    end: int
    pages: tuple[int, ...]  # of positions [0, end)
    row: int  # of the logits behind the last token; used if that is in here


class Start(NamedTuple):
    """A slot that begins a sample."""

    slot: int
    request: Numbered
    prompt: Prompt
    row: int  # of the logits that its first token is sampled from
    limit: int  # completion tokens at most
    copy: tuple[int, int] | None  # (from, to): the last page of the prompt,
    # where that is not full and others start from it later


class Turn(NamedTuple):
    """What the device does next, in this order.

    A slot whose table is empty is inactive, whatever it did before. All
    copies of a turn are read before any is written.
    """

    chunks: tuple[Chunk, ...]  # of prefill: one a part at most
    starts: tuple[Start, ...]
    preempted: tuple[int, ...]  # slots that lost their samples, which are
    # sampled again later; a start may be in the same slot
    steps: int  # of decoding, at most; 0 where no slot goes on
    enough: int  # decoding ends early when no more slots are active
    tables: tuple[tuple[int, ...], ...]  # of each slot; () where inactive.
    # They hold room for `steps` more positions, or up to the slot's limit
    shared: tuple[int, ...]  # of each slot: pages at the head of its table
    # that others, slots or prompts, have too
