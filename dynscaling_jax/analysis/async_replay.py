"""Replays the schedule without rounds on a bank, in decode steps.

W samples are under way at once, each for as many steps as it has tokens.
Whenever one ends, one more is granted: what `scaling.arrivals` does with a
model. The samples of a replicate come in the order of analysis.replay.

Letters: Q questions, N samples of each, W samples under way, M marks (budgets
at which a run ends), C replicates of a chunk, R replicates.
"""

import itertools
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dynscaling_jax.analysis.bank import Bank
from dynscaling_jax.analysis.replay import (
    Curve,
    PolicyOrMaker,
    Replicate,
    check,
    chunks,
)
from dynscaling_jax.scaling.allocation import best, free_slots, under_way
from dynscaling_jax.types import Cancel, Candidates, Flights, Policy, Vote

NEVER = np.int32(2**31 - 1)


class Terms(NamedTuple):
    """What all runs of a replay have in common."""

    concurrent: int  # W
    first: int = 1  # samples of each question that are granted in turn
    poll_steps: int = 16  # decode steps
    cancel: Cancel | None = None


class _State(NamedTuple):
    """A run at a moment; an idle place has query -1."""

    now: jax.Array  # decode steps
    granted: jax.Array  # samples
    declined: jax.Array  # whether the policy has nothing to grant now
    tokens: jax.Array  # of samples that ended
    candidates: Candidates  # in the order in which they ended
    number_QA: jax.Array  # of answers as first seen here, -1 for not yet
    seen_Q: jax.Array  # answers that have a number
    score_Q: jax.Array  # of each query, where the policy has scores
    query_W: jax.Array
    index_W: jax.Array  # of the sample in its question
    grant_W: jax.Array  # its number among all granted
    start_W: jax.Array  # decode steps
    tokens_W: jax.Array  # that it will have
    end_W: jax.Array


class _Game(NamedTuple):
    """One policy on one replicate."""

    policy: Policy
    terms: Terms
    replicate: Replicate
    key: jax.Array

    def start(self) -> _State:
        """Nothing is granted yet."""
        queries, slots = self.replicate.answer_QN.shape
        zeros_Q = jnp.zeros(queries, jnp.int32)
        idle_W = jnp.full(self.terms.concurrent, -1, jnp.int32)
        nothing = Candidates(
            jnp.full((queries, slots), -1, jnp.int32),
            jnp.zeros((queries, slots), jnp.float32),
            jnp.zeros((queries, slots), jnp.int32),
            zeros_Q,
            zeros_Q,
        )
        score_Q = jnp.zeros(queries, jnp.float32)
        if self.policy.score:
            score_Q = self.policy.score(nothing, zeros_Q)
        zero = jnp.int32(0)
        return _State(
            zero,
            zero,
            jnp.bool_(False),
            zero,
            nothing,
            jnp.full((queries, slots), -1, jnp.int32),
            zeros_Q,
            score_Q,
            idle_W,
            idle_W,
            idle_W,
            idle_W,
            idle_W,
            idle_W,
        )

    def active(self, state: _State, limit: jax.Array) -> jax.Array:
        """Whether a run of so many samples may still be granted one."""
        over = state.declined & ~jnp.any(state.query_W >= 0)
        return (state.granted < limit) & ~over

    def event(self, state: _State, limit: jax.Array) -> _State:
        """Ends the next sample where no place is left, and grants one.

        What ends in one step ends before anything is granted there.
        """
        active = self.active(state, limit)
        full = jnp.all(state.query_W >= 0)
        waits = full | state.declined | _due(state)
        state = self._end(state, active & waits)
        return self._grant(state, active & ~_due(state))

    def drain(self, state: _State) -> _State:
        """Ends the next sample; nothing more is granted."""
        state = self._end(state, jnp.any(state.query_W >= 0))
        return self.cancelled(state)

    def cancelled(self, state: _State) -> _State:
        """Cancels what is not worth waiting for once nothing is granted."""
        cancel = self.terms.cancel
        if cancel is None or cancel.last is None:
            return state
        flights = Flights(
            state.query_W,
            jnp.where(state.query_W >= 0, _took(state), 0),
        )
        gone_W = cancel.last(state.candidates, flights)
        return self._without(state, gone_W & ~_due(state))

    def _end(self, state: _State, does: jax.Array) -> _State:
        """The sample that ends first ends, and its place is idle.

        Of two that end in one step, the one that was granted earlier is first.
        """
        queries, _ = state.candidates.answer_QN.shape
        end_W = jnp.where(state.query_W >= 0, state.end_W, NEVER)
        now = jnp.min(end_W)
        at = jnp.argmin(jnp.where(end_W == now, state.grant_W, NEVER))
        q = jnp.where(does, state.query_W[at], queries)  # out of range: nowhere
        index = state.index_W[at]
        replicate, candidates = self.replicate, state.candidates
        answer = replicate.answer_QN[q, index]
        known = state.number_QA[q, answer]
        new = (answer >= 0) & (known < 0)
        number = jnp.where(new, state.seen_Q[q], known)
        tokens = replicate.tokens_QN[q, index]
        n = candidates.count_Q[q]
        set_at = partial(_set, q=q, n=n)
        candidates = Candidates(
            set_at(candidates.answer_QN, jnp.where(answer >= 0, number, -1)),
            set_at(candidates.weight_QN, replicate.weight_QN[q, index]),
            set_at(candidates.tokens_QN, tokens),
            _add(candidates.count_Q, q, 1),
            _add(under_way(candidates), q, -1),
        )
        state = state._replace(
            now=jnp.where(does, now, state.now),
            declined=state.declined & ~does,
            tokens=state.tokens + jnp.where(does, tokens, 0),
            candidates=candidates,
            number_QA=state.number_QA.at[
                jnp.where(new, q, queries), answer
            ].set(number, mode="drop"),
            seen_Q=_add(state.seen_Q, q, new.astype(jnp.int32)),
            query_W=state.query_W.at[
                jnp.where(does, at, self.terms.concurrent)
            ].set(-1, mode="drop"),
        )
        if self.terms.cancel:
            decided = self.terms.cancel.decided(_only(candidates, q))[0]
            state = self._without(state, decided & (state.query_W == q))
        return self._rescored(state, q)

    def _without(self, state: _State, gone_W: jax.Array) -> _State:
        """Cancels samples: what they took is paid for, they have no vote."""
        queries, _ = state.candidates.answer_QN.shape
        gone_W &= state.query_W >= 0
        tokens_W = _took(state)
        q_W = jnp.where(gone_W, state.query_W, queries)
        # of a question's cancelled samples the one granted first comes first
        query_W, grant_W = state.query_W, state.grant_W
        same_WW = query_W[:, None] == query_W[None, :]
        before_WW = same_WW & (grant_W[None, :] < grant_W[:, None])
        candidates = state.candidates
        n_W = candidates.count_Q[q_W] + (before_WW & gone_W[None, :]).sum(1)
        candidates = candidates._replace(
            tokens_QN=_set(candidates.tokens_QN, tokens_W, q_W, n_W),
            count_Q=_add(candidates.count_Q, q_W, 1),
            pending_Q=_add(under_way(candidates), q_W, -1),
        )
        return state._replace(
            tokens=state.tokens + jnp.sum(jnp.where(gone_W, tokens_W, 0)),
            candidates=candidates,
            query_W=jnp.where(gone_W, -1, query_W),
        )

    def _grant(self, state: _State, may: jax.Array) -> _State:
        """Grants one sample to the first idle place, if there is one."""
        candidates = state.candidates
        queries, _ = candidates.answer_QN.shape
        idle_W = state.query_W < 0
        key = jax.random.fold_in(self.key, state.granted)
        if self.policy.score:
            chosen = best(key, state.score_Q, free_slots(candidates))
        else:
            grants_Q = self.policy.allocate(key, candidates, jnp.int32(1))
            some = jnp.any(grants_Q > 0)
            chosen = jnp.where(some, jnp.argmax(grants_Q), -1)
        in_turn = state.granted < self.terms.first * queries
        chosen = jnp.where(in_turn, state.granted % queries, chosen)
        may &= jnp.any(idle_W)
        does = may & (chosen >= 0)
        q = jnp.where(does, chosen, queries).astype(jnp.int32)
        at = jnp.where(does, jnp.argmax(idle_W), self.terms.concurrent)
        index = candidates.count_Q[q] + under_way(candidates)[q]
        tokens = self.replicate.tokens_QN[q, index]
        polls = jnp.maximum(1, -(-tokens // self.terms.poll_steps))

        def put(array_W: jax.Array, value: jax.Array) -> jax.Array:
            return array_W.at[at].set(value, mode="drop")

        state = state._replace(
            granted=state.granted + does.astype(jnp.int32),
            declined=state.declined | (may & ~does),
            candidates=candidates._replace(
                pending_Q=_add(under_way(candidates), q, 1)
            ),
            query_W=put(state.query_W, q),
            index_W=put(state.index_W, index),
            grant_W=put(state.grant_W, state.granted),
            start_W=put(state.start_W, state.now),
            tokens_W=put(state.tokens_W, tokens),
            end_W=put(state.end_W, state.now + polls * self.terms.poll_steps),
        )
        return self._rescored(state, q)

    def _rescored(self, state: _State, q: jax.Array) -> _State:
        """Computes the score of the one question that changed."""
        if not self.policy.score:
            return state
        one = _only(state.candidates, q)
        score = self.policy.score(one, under_way(one))[0]
        score_Q = state.score_Q.at[q].set(score, mode="drop")
        return state._replace(score_Q=score_Q)


def _due(state: _State) -> jax.Array:
    """Whether a sample under way ends in the present step."""
    return jnp.any((state.query_W >= 0) & (state.end_W <= state.now))


def _took(state: _State) -> jax.Array:
    """The tokens that each sample under way has by now."""
    return jnp.minimum(state.now - state.start_W, state.tokens_W)


def _only(candidates: Candidates, q: jax.Array) -> Candidates:
    """The candidates of one question."""
    return jax.tree.map(
        lambda array: jax.lax.dynamic_slice_in_dim(array, q, 1), candidates
    )


def _set(array_QN: jax.Array, value: jax.Array, q: jax.Array, n: jax.Array):
    return array_QN.at[q, n].set(value, mode="drop")


def _add(array_Q: jax.Array, q: jax.Array, value: jax.Array | int):
    return array_Q.at[q].add(value, mode="drop")


class _Ended(NamedTuple):
    """Runs at their ends, one for each mark."""

    right_CMQ: jax.Array
    count_CMQ: jax.Array  # samples, cancelled ones too
    tokens_CM: jax.Array
    steps_CM: jax.Array


def play_chunk(
    player: PolicyOrMaker,
    vote: Vote,
    terms: Terms,
    budget_M: jax.Array,
    replicate: Replicate,
    key: jax.Array,
) -> _Ended:
    """Plays one policy on C replicates, with each of the budgets.

    What is granted before a budget ends does not depend on it, so that all
    runs are one, which goes on from where it was before each of them ended.

    Args:
        player: the policy, or what makes one of a replicate.
        vote: has the last word.
        terms: of the runs.
        budget_M: samples of all questions together, rising.
        replicate: of each, [C, ...].
        key: of each, [C].
    """

    def game(replicate: Replicate, key: jax.Array) -> _Game:
        policy = player if isinstance(player, Policy) else player(replicate)
        return _Game(policy, terms, replicate, key)

    def each(play: Callable) -> Callable:
        return lambda states, *rest: jax.vmap(
            lambda replicate, key, state: play(
                game(replicate, key), state, *rest
            )
        )(replicate, key, states)

    def decided(game: _Game, state: _State):
        reference_Q = game.replicate.reference_Q
        number_Q = jnp.take_along_axis(
            state.number_QA, jnp.maximum(reference_Q, 0)[:, None], axis=1
        )[:, 0]
        there_Q = (reference_Q >= 0) & (number_Q >= 0)
        answer_Q = vote.decide(state.candidates._replace(pending_Q=None))
        return there_Q & (answer_Q == number_Q)

    def segment(states: _State, budget: jax.Array):
        states = jax.lax.while_loop(
            lambda states: jnp.any(each(_Game.active)(states, budget)),
            lambda states: each(_Game.event)(states, budget),
            states,
        )
        ended = jax.lax.while_loop(
            lambda states: jnp.any(states.query_W >= 0),
            each(_Game.drain),
            each(_Game.cancelled)(states),
        )
        right_CQ = each(decided)(ended)
        return states, (
            right_CQ,
            ended.candidates.count_Q,
            ended.tokens,
            ended.now,
        )

    start = jax.vmap(lambda *of: game(*of).start())(replicate, key)
    _, of_marks = jax.lax.scan(segment, start, budget_M)
    return _Ended(*(jnp.swapaxes(array, 0, 1) for array in of_marks))


def replay_async(
    bank: Bank,
    players: Mapping[str, PolicyOrMaker],
    vote: Vote,
    budgets: Sequence[int],
    terms: Mapping[str, Terms],
    *,
    replicates: int,
    seed: int = 0,
    chunk: int = 25,
    progress: Callable[[int], object] = lambda done: None,
) -> dict[str, Curve]:
    """Plays every policy on the same replicates, a chunk on each core.

    Args:
        bank: the recorded samples and their lengths.
        players: policies by name.
        vote: one that reads no texts.
        budgets: samples of all questions together, rising; one run each.
        terms: of each player.
        replicates: orders of the samples.
        seed: of the orders and of ties.
        chunk: replicates in memory at once, for each core.
        progress: is called with the replicates of one policy that were just
            done.

    Raises:
        ValueError: the budget is over what the bank holds, or a policy, a
            rule of cancelling or the vote reads what it has not.
    """
    check(bank, players, vote)
    budget_M = np.asarray(budgets, np.int32)
    if budget_M[-1] > bank.answer_QN.size:
        raise ValueError(
            f"{bank.name}: a budget of {budget_M[-1]} samples is over the "
            f"{bank.answer_QN.size} that the bank holds, "
            f"{bank.answer_QN.shape[1]} a question."
        )
    if bank.tokens_QN.sum(dtype=np.int64) >= NEVER:
        raise ValueError(
            f"{bank.name}: its samples have 2^31 tokens or more together; "
            "keep fewer of each question with --depth"
        )
    for name, one in terms.items():
        if one.cancel and one.cancel.reads not in (None, "logprob"):
            raise ValueError(
                f"{name} cancels by {one.cancel.reads!r}; a bank has no such."
            )
    parts = chunks(bank, replicates, seed, chunk)
    first = next(parts)

    def compiled(name: str) -> Callable:
        marks = jnp.asarray(budget_M)
        play = partial(play_chunk, players[name], vote, terms[name], marks)
        return jax.jit(play).lower(*first[:2]).compile()

    def played(work: tuple) -> dict[str, list[np.ndarray]]:
        replicate, key_C, kept = work
        found = {}
        for name, play in plays.items():
            right_CMQ, count_CMQ, tokens_CM, steps_CM = (
                np.asarray(array)[:kept] for array in play(replicate, key_C)
            )
            found[name] = [
                right_CMQ.mean(axis=2),
                count_CMQ.mean(axis=2),
                tokens_CM / len(bank.ids),
                right_CMQ.sum(axis=0, keepdims=True),
                steps_CM.astype(np.float64),
            ]
            progress(kept)
        return found

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        plays = dict(zip(players, pool.map(compiled, players), strict=True))
        work = itertools.chain([first], parts)
        done = [*_ahead(pool, played, work, os.cpu_count() or 1)]
    curves = {}
    for name in players:
        accuracy_RM, samples_RM, tokens_RM, right_KMQ, steps_RM = map(
            np.concatenate, zip(*(found[name] for found in done), strict=True)
        )
        right_QM = right_KMQ.sum(axis=0).T / replicates
        curves[name] = Curve(
            accuracy_RM, samples_RM, tokens_RM, right_QM, steps_RM
        )
    return curves


def _ahead(
    pool: ThreadPoolExecutor, do: Callable, work: Iterator, most: int
) -> Iterator:
    """Does the work in order, so many pieces at once."""
    running = [pool.submit(do, one) for one in itertools.islice(work, most)]
    while running:
        yield running.pop(0).result()
        running += [pool.submit(do, one) for one in itertools.islice(work, 1)]
