"""Whole experiments replayed on a bank, without a model.

The policies and votes are those of the live loop; recorded samples stand in
for a model.

A replicate puts the samples of each question in an order of its own, then
plays the rounds of `scaling.loop` with a lax.scan.
Replicates are vmapped, a chunk at a time, so that memory does not grow with
their number; all policies see the same orders.

Letters: Q questions, N samples of each, T rounds, M marks (rounds after
which the vote is taken), C replicates of a chunk, R replicates.
"""

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dynscaling_jax.analysis.bank import Bank
from dynscaling_jax.scaling.votes import Vote
from dynscaling_jax.types import Candidates, Policy


class Replicate(NamedTuple):
    """The samples of one replicate in the order in which they would come."""

    answer_QN: jax.Array  # int32, numbered as first seen
    weight_QN: jax.Array  # float32, log-probabilities or zeros
    tokens_QN: jax.Array  # int32
    reference_Q: (
        jax.Array
    )  # int32, in the same numbers; -2 if no sample gives it


PolicyOrMaker = Policy | Callable[[Replicate], Policy]
"""A policy; or, for one that may know the replicate, what makes it of one."""


class Curve(NamedTuple):
    """What one policy did, at M marks.

    accuracy_RM is the share of questions that the vote gets right, spent in
    samples_RM and tokens_RM, per question; right_QM is the share of
    replicates that get a question right. steps_RM is the end of the run in
    decode steps, where its schedule has no rounds.
    """

    accuracy_RM: np.ndarray
    samples_RM: np.ndarray
    tokens_RM: np.ndarray
    right_QM: np.ndarray
    steps_RM: np.ndarray | None = None


class Rounds(NamedTuple):
    """Samples asked for in each round, and whether the vote is taken after."""

    size_T: np.ndarray  # int32
    mark_T: np.ndarray  # bool


def rounds_to(
    budgets: Sequence[int], size: int, first: int | None = None
) -> Rounds:
    """Lists the rounds of a run of budgets[-1] samples, marked at every budget.

    As in the live loop: first samples, then size at a time, and what is left
    of the budget at the end. Budgets are samples of all questions together,
    rising.

    Raises:
      ValueError: a budget that is no whole number of such rounds, but the
        last; it needs a run of its own.
    """
    ends = [first or size]
    while ends[-1] < budgets[-1]:
        ends.append(ends[-1] + size)
    ends[-1] = budgets[-1]
    missing = set(budgets) - set(ends)
    if missing:
        raise ValueError(
            f"budgets {sorted(missing)} end within a round of {size} samples;"
            " replay each of them by itself, or change the rounds."
        )
    return Rounds(
        np.diff(ends, prepend=0).astype(np.int32), np.isin(ends, budgets)
    )


def shuffle(bank: Bank, key: jax.Array) -> Replicate:
    """Puts the samples of each question in a random order."""
    queries, slots = bank.answer_QN.shape
    order_QN = permutations(key, queries, slots)
    weight_QN = np.zeros((queries, slots), np.float32)
    if bank.logprob_QN is not None:  # 0 where unreadable, as in the live loop
        weight_QN = np.where(bank.answer_QN >= 0, bank.logprob_QN, weight_QN)

    def in_order(array_QN: np.ndarray) -> jax.Array:
        return jnp.take_along_axis(jnp.asarray(array_QN), order_QN, axis=1)

    answer_QN, reference_Q = jax.vmap(as_first_seen)(
        in_order(bank.answer_QN), jnp.asarray(bank.reference_Q)
    )
    return Replicate(
        answer_QN, in_order(weight_QN), in_order(bank.tokens_QN), reference_Q
    )


def permutations(key: jax.Array, queries: int, slots: int) -> jax.Array:
    """Draws a permutation of the slots for each query, int32 [Q, N].

    The slot stands in the low bits of a random word and the words are sorted,
    which XLA's CPU backend does five times faster than an argsort. Words of
    equal high bits, 25 of them at 80 slots, are left in order: one pair in
    2^25.
    """
    low = jnp.uint32((1 << (slots - 1).bit_length()) - 1)
    bits_QN = jax.random.bits(key, (queries, slots), jnp.uint32)
    slot_QN = jax.lax.broadcasted_iota(jnp.uint32, (queries, slots), 1)
    words_QN = jnp.sort((bits_QN & ~low) | slot_QN, axis=1)
    return (words_QN & low).astype(jnp.int32)


def as_first_seen(
    answer_N: jax.Array, reference: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Numbers the answers of one question in the order first seen."""
    slots = answer_N.shape[0]
    slot_N = jnp.arange(slots, dtype=jnp.int32)
    at_N = jnp.where(answer_N >= 0, answer_N, slots)
    first_A = jnp.full(slots + 1, slots, jnp.int32).at[at_N].min(slot_N)
    new_N = (first_A[at_N] == slot_N) & (answer_N >= 0)
    number_N = jnp.cumsum(new_N, dtype=jnp.int32) - 1
    number_A = number_N.at[first_A].get(mode="fill", fill_value=-1)
    readable_N = jnp.where(answer_N >= 0, number_A[at_N], -1)
    return readable_N, jnp.where(reference >= 0, number_A[reference], -2)


def play_replicate(
    player: PolicyOrMaker,
    vote: Vote,
    rounds: Rounds,
    replicate: Replicate,
    key: jax.Array,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Plays one policy on one replicate, as the live loop does.

    Returns (right_MQ bool, count_MQ int32, tokens_M float32).
    """
    policy = player if isinstance(player, Policy) else player(replicate)
    queries, slots = replicate.answer_QN.shape
    slot_1N = jnp.arange(slots, dtype=jnp.int32)[None, :]
    upto_QN = jnp.cumsum(replicate.tokens_QN.astype(jnp.float32), axis=1)

    def candidates(count_Q: jax.Array) -> Candidates:
        there_QN = slot_1N < count_Q[:, None]
        return Candidates(
            jnp.where(there_QN, replicate.answer_QN, -1),
            jnp.where(there_QN, replicate.weight_QN, 0.0),
            jnp.where(there_QN, replicate.tokens_QN, 0),
            count_Q,
        )

    def round_(count_Q, step):
        number, size = step
        grants_Q = jnp.asarray(
            policy.allocate(
                jax.random.fold_in(key, number), candidates(count_Q), size
            )
        )
        if (grants_Q.shape, grants_Q.dtype) != (count_Q.shape, count_Q.dtype):
            raise ValueError(
                f"the policy's grants are {grants_Q.dtype}{grants_Q.shape}; "
                f"expected int32{count_Q.shape}"
            )
        count_Q += grants_Q
        return count_Q, count_Q

    def vote_after(count_Q: jax.Array):
        right_Q = vote.decide(candidates(count_Q)) == replicate.reference_Q
        spent_Q = jnp.where(
            count_Q > 0,
            jnp.take_along_axis(
                upto_QN, jnp.maximum(count_Q - 1, 0)[:, None], axis=1
            )[:, 0],
            0.0,
        )
        return right_Q, count_Q, jnp.sum(spent_Q)

    start = jnp.zeros(queries, jnp.int32)
    steps = (
        jnp.arange(len(rounds.size_T), dtype=jnp.int32),
        jnp.asarray(rounds.size_T),
    )
    _, count_TQ = jax.lax.scan(round_, start, steps)
    return jax.lax.map(vote_after, count_TQ[np.flatnonzero(rounds.mark_T)])


def replay_policies(
    bank: Bank,
    players: Mapping[str, PolicyOrMaker],
    vote: Vote,
    rounds: Rounds,
    *,
    replicates: int,
    seed: int = 0,
    chunk: int = 25,
    progress: Callable[[int], object] = lambda done: None,
) -> dict[str, Curve]:
    """Plays every policy on the same replicates; memory holds one chunk.

    progress is called with the replicates of one policy that were just done.

    Raises:
      ValueError: the budget is over what the bank holds, a policy or the vote
        reads what it has not, or a policy grants what it may not.
    """
    check(bank, players, vote)
    budget, held = int(rounds.size_T.sum()), bank.answer_QN.size
    if budget > held:
        raise ValueError(
            f"{bank.name}: a budget of {budget} samples is over the {held} "
            f"that the bank holds, {bank.answer_QN.shape[1]} a question."
        )
    parts_C = chunks(bank, replicates, seed, chunk)
    first = next(parts_C)

    def compiled(player: PolicyOrMaker) -> Callable:
        play_one = partial(play_replicate, player, vote, rounds)
        return jax.jit(jax.vmap(play_one)).lower(*first[:2]).compile()

    with ThreadPoolExecutor() as pool:  # side by side
        play_chunk = dict(
            zip(players, pool.map(compiled, players.values()), strict=True)
        )
    parts: dict[str, list[list[np.ndarray]]] = {name: [] for name in players}
    for replicate, key_C, kept in itertools.chain([first], parts_C):
        for name, play in play_chunk.items():
            right_CMQ, count_CMQ, tokens_CM = (
                np.asarray(array)[:kept] for array in play(replicate, key_C)
            )
            _check_counts(name, count_CMQ, rounds, bank.answer_QN.shape[1])
            parts[name].append(
                [
                    right_CMQ.mean(axis=2),
                    count_CMQ.mean(axis=2),
                    tokens_CM / len(bank.ids),
                    right_CMQ.sum(axis=0, keepdims=True),
                ]
            )
            progress(kept)
    curves = {}
    for name, of_chunks in parts.items():
        accuracy_RM, samples_RM, tokens_RM, right_KMQ = map(
            np.concatenate, zip(*of_chunks, strict=True)
        )
        right_QM = right_KMQ.sum(axis=0).T / replicates
        curves[name] = Curve(accuracy_RM, samples_RM, tokens_RM, right_QM)
    return curves


def check(bank: Bank, players: Mapping[str, PolicyOrMaker], vote: Vote) -> None:
    """Checks that policies and vote read nothing that the bank lacks.

    Raises:
      ValueError: one of them does.
    """
    if not isinstance(vote, Vote):
        raise ValueError(
            f"the vote is {vote!r}; expected a Vote, such as votes.majority()."
        )
    if vote.weigh is not None:
        raise ValueError(
            "this vote reads texts or asks a model, which a bank has not; "
            "expected one such as majority."
        )
    readers = {
        name: player.reads
        for name, player in players.items()
        if isinstance(player, Policy)
    }
    for name, weight in (readers | {"the vote": vote.reads}).items():
        if weight not in (None, "logprob"):
            raise ValueError(f"{name} reads {weight!r}; a bank has no such.")
        if weight == "logprob" and bank.logprob_QN is None:
            raise ValueError(
                f"{name} needs log-probabilities; {bank.name} has none."
            )


def _check_counts(
    name: str, count_CMQ: np.ndarray, rounds: Rounds, slots: int
) -> None:
    """Checks what a policy has drawn at each mark, as the live loop does.

    Raises:
      ValueError: more than the rounds gave or than a question holds, or less
        than at an earlier mark.
    """
    if (count_CMQ > slots).any():
        raise ValueError(
            f"{name} grants {count_CMQ.max()} samples to a question, of which "
            f"the bank holds {slots}"
        )
    given_M = np.cumsum(rounds.size_T)[rounds.mark_T]
    spent_CM = count_CMQ.sum(axis=2)
    if (spent_CM > given_M).any():
        mark = int((spent_CM > given_M).any(axis=0).argmax())
        raise ValueError(
            f"{name} grants {spent_CM[:, mark].max()} samples of "
            f"{given_M[mark]}"
        )
    if (np.diff(count_CMQ, axis=1, prepend=0) < 0).any():
        raise ValueError(f"{name} grants a negative number of samples")


def chunks(
    bank: Bank, replicates: int, seed: int, chunk: int
) -> Iterator[tuple[Replicate, jax.Array, int]]:
    """Yields replicates, keys to play with, and how many to keep.

    Every chunk is full, so that it compiles once; of the last only what is
    wanted is kept.
    """
    key = jax.random.key(seed)
    shuffle_all = jax.jit(jax.vmap(partial(shuffle, bank)))
    for start in range(0, replicates, chunk):
        keys_C2 = jax.vmap(
            lambda number: jax.random.split(jax.random.fold_in(key, number))
        )(jnp.arange(start, start + chunk))
        kept = min(chunk, replicates - start)
        yield shuffle_all(keys_C2[:, 0]), keys_C2[:, 1], kept
