"""Draws with a stub under every policy, together with other processes:
python together.py COORDINATOR COUNT NUMBER OUT."""

import hashlib
import itertools
import json
import sys

import jax

from dynscaling_jax.experiments.processes import meet
from dynscaling_jax.experiments.shared import shared
from dynscaling_jax.sampler import FunctionSampler
from dynscaling_jax.scaling.loop import run_rounds
from dynscaling_jax.scaling.policies import POLICIES
from dynscaling_jax.scaling.strategies import integrated
from dynscaling_jax.scaling.votes import majority
from dynscaling_jax.types import (
    Budget,
    Message,
    Method,
    Query,
    Sample,
    Schedule,
)

QUERIES = [Query(f"q{i}", (Message("user", f"{i}?"),)) for i in range(7)]
drawn_here = []


def stub(requests):
    """Answers of a query are spread as its number says."""
    for r in requests:
        drawn_here.append(f"{r.query.id}/{r.index}")
        seen = f"{r.query.id}/{r.index}/{r.messages}".encode()
        digest = hashlib.sha256(seen).digest()
        answer = str(digest[0] % (1 + int(r.query.id[1:])))
        yield Sample(
            r.query.id,
            r.index,
            r.round,
            r.parents,
            f"The answer is {answer}.",
            answer,
            "stop",
            9,
            0,
            1 + digest[1] % 9,
            flops=1.0,
            logprob=-digest[2] / 255,
            confidence=1 + digest[3] / 255,
            signals={"certainty": digest[4] / 255},
        )


def main(coordinator, count, number, out):
    results, drew = {}, {}
    with meet(coordinator, int(count), int(number)) as processes:
        for (name, policy), stale in itertools.product(
            POLICIES.items(), (0, 1)
        ):
            drawn_here.clear()
            schedule = Schedule(first_round=14 / len(QUERIES), stale=stale)
            result = run_rounds(
                QUERIES,
                FunctionSampler(shared(stub, processes, {})),
                Method(integrated(), policy(), majority(), schedule),
                Budget(samples=42),
                jax.random.key(3),
            )
            name = f"{name}/{stale}"
            results[name] = {
                "answers": result.answers,
                "samples": result.samples,
                "grants": [r.grants_Q.tolist() for r in result.rounds],
                "ledger": result.ledger._replace(seconds=0.0),
            }
            drew[name] = sorted(drawn_here)
    with open(out, "w") as file:
        json.dump({"results": results, "drew": drew}, file)


if __name__ == "__main__":
    main(*sys.argv[1:])
