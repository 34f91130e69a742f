"""Runs without rounds: files, kills and processes; models are stubs."""

import random
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

import dynscaling_jax as ds
from dynscaling_jax.experiments.log import read_samples
from dynscaling_jax.experiments.run import event_row
from dynscaling_jax.experiments.shared import Processes
from dynscaling_jax.lines import loads
from dynscaling_jax.tasks import Problem, Task
from tests.arriving import Model, queries, reply

FILES = ("samples.jsonl", "events.jsonl", "pending.jsonl", "answers.json")
METHOD = ds.Method(
    ds.strategies.integrated(explore=2),
    ds.policies.opportunity_cost(),
    ds.votes.majority(),
    ds.Schedule(first_round=2, concurrent=5),
    "made-up",
    ds.cancelling.tail(part=0.25),
)
BUDGET = ds.Budget(samples=24)


def answer(request):
    """Numbers and lengths that the request alone decides."""
    drawn = random.Random(f"{request.query.id}/{request.index}")
    text = f"So the answer is {drawn.choice([7, 7, 8, 9])}."
    new = drawn.randint(1, 40)
    return reply(request, None, new, text=text, logprob=-drawn.random())


def task():
    return Task("made-up", "number", tuple(Problem(q, "7") for q in queries(4)))


def sampler(slots=5, seed=0, kill=None):
    """Of so many slots; it is interrupted at the step `kill`."""
    model = Model(slots, seed, answer)
    steps = iter(range(10**6))

    def step():
        if next(steps) == kill:
            raise KeyboardInterrupt
        model.step()

    made = model.sampler
    return ds.FunctionSampler(
        made.sample, name="stub", watch=made.watch._replace(step=step)
    )


def run(workdir, sampler, method=METHOD, **rest):
    return ds.run(task(), sampler, method, BUDGET, workdir, **rest)


def contents(workdir):
    return {name: (workdir / name).read_bytes() for name in FILES}


@pytest.fixture(scope="module")
def calm(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("calm")
    done = run(workdir, sampler())
    return done, contents(workdir)


def test_what_a_run_writes(calm):
    done, files = calm
    rows = [*map(loads, files["events.jsonl"].splitlines())]
    assert rows == [*map(event_row, done.result.events)]
    assert rows[0] == {
        "event": "grant", "step": 0, "grant": 0, "query": "q0", "index": 0,
        "parents": [],
    }  # fmt: skip
    ended = [row for row in rows if row["event"] != "grant"]
    samples = [*read_samples(done.workdir / "samples.jsonl")]
    assert [(s.query_id, s.index) for s in samples] == [
        (row["query"], row["index"]) for row in ended
    ]
    assert len(samples) == 24
    assert not files["pending.jsonl"]
    gone = sum(row["event"] == "cancel" for row in rows)
    assert done.summary["cancelled"] == gone > 0
    assert done.summary["steps"] == rows[-1]["step"]
    assert any(s.parents for s in samples)
    assert f"{done.summary['steps']} steps" in str(done)
    assert (done.workdir / "report.html").stat().st_size > 10_000


@pytest.mark.parametrize("seed", range(6))
def test_killed_at_any_moment_it_goes_on_to_the_same_bytes(
    tmp_path, calm, seed
):
    """At random steps, with other numbers of slots each time; what a kill
    leaves within a write is cut too."""
    moments = random.Random(seed)
    for _ in range(20):
        slots, kill = moments.randint(1, 8), moments.randint(0, 12)
        try:
            run(tmp_path, sampler(slots, moments.random(), kill))
            break
        except KeyboardInterrupt:
            for name in ("samples.jsonl", "events.jsonl", "pending.jsonl"):
                file = tmp_path / name
                text = file.read_bytes()
                if text and moments.random() < 0.3:
                    file.write_bytes(text[: -moments.randint(1, 30)])
    else:
        run(tmp_path, sampler(moments.randint(1, 8)))
    assert contents(tmp_path) == calm[1]


class Table:
    """Where threads that stand for processes meet."""

    def __init__(self, count):
        self._barrier = threading.Barrier(count, timeout=30)
        self._parts = [b""] * count

    def processes(self, number):
        def exchange(part, meanwhile):
            self._parts[number] = part
            self._barrier.wait()
            parts = [*self._parts]
            self._barrier.wait()
            return parts

        return Processes(number, len(self._parts), exchange)


def together(workdir, count, kill=None):
    """A run by so many processes; the last is killed, and so all end."""
    table = Table(count)

    def one(number):
        fails = kill if number == count - 1 else None
        try:
            run(
                workdir,
                sampler(2, number, fails),
                processes=table.processes(number),
            )
        except (KeyboardInterrupt, threading.BrokenBarrierError) as error:
            table._barrier.abort()
            return error
        return None

    with ThreadPoolExecutor(count) as pool:
        return [*pool.map(one, range(count))]


def test_several_processes_write_what_one_does(tmp_path, calm):
    assert together(tmp_path, 3) == [None] * 3
    assert contents(tmp_path) == calm[1]
    assert not [*tmp_path.glob("process-*")]


@pytest.mark.parametrize("kill", [0, 2, 5])
def test_other_numbers_of_processes_go_on(tmp_path, calm, kill):
    assert all(together(tmp_path, 3, kill))
    assert [*tmp_path.glob("process-*")]
    assert all(together(tmp_path, 2, kill + 1))
    run(tmp_path, sampler())
    assert contents(tmp_path) == calm[1]


def test_a_run_goes_on_only_as_it_began(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, sampler(kill=8))
    events = tmp_path / "events.jsonl"
    rows = events.read_bytes().splitlines(True)
    events.write_bytes(b"".join([rows[1], rows[0], *rows[2:]]))
    with pytest.raises(ValueError, match="jsonl:1: this went another way"):
        run(tmp_path, sampler())


def test_without_steps_a_run_keeps_its_order(tmp_path):
    """As of an endpoint: the order in which samples arrived is in the log."""

    def untimed(*of):
        made = sampler(*of)
        watch = made.watch._replace(in_steps=False)
        return ds.FunctionSampler(made.sample, name="stub", watch=watch)

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, untimed(3, 1, 6))
    before = (tmp_path / "events.jsonl").read_bytes()
    run(tmp_path, untimed(5, 2))
    after = (tmp_path / "events.jsonl").read_bytes()
    assert after.startswith(before)
    again = contents(tmp_path)
    run(tmp_path, untimed(1, 3))
    assert contents(tmp_path) == again


def test_cancelled_samples_are_no_part_of_banks_and_grades(calm):
    done, _ = calm
    assert done.summary["unparsed"] == 0
    rights = [
        sum(s.answer == "7" for s in of_query)
        / sum(s.finish_reason != "cancelled" for s in of_query)
        for of_query in done.result.samples
    ]
    assert done.summary["pass_at_1"] == pytest.approx(sum(rights) / 4)
    counts = [
        sum(s.finish_reason != "cancelled" for s in of_query)
        for of_query in done.result.samples
    ]
    bank = ds.load_bank(done.workdir, depth=min(counts))
    assert bank.answer_QN.shape == (4, min(counts))
