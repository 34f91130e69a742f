import contextlib
import itertools
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import pytest

from dynscaling_jax.experiments.log import (
    Log,
    checksum,
    read_samples,
    recorded,
    refuse_changed,
    row_of,
    sample_of,
)
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
    Request,
    Sample,
    Schedule,
)

# Made once, so that what they hold is compiled once.
METHOD = integrated(explore=2, k=2), POLICIES["ucb"](), majority()
CONFIG = {"seed": 0, "budget": {"samples": 8}}
QUERIES = [Query(f"q{i}", (Message("user", f"{i}?"),)) for i in range(5)]


def request(query=0, index=0, round=0, parents=()):
    return Request(
        QUERIES[query], QUERIES[query].messages, index, round, parents
    )


def reply(r: Request) -> Sample:
    drawn = random.Random(f"{r.query.id}/{r.index}/{r.messages}")
    answer = drawn.choice(["1", "2", None])
    return Sample(
        r.query.id, r.index, r.round, r.parents, f"text {answer}\u2028\ud800",
        answer, "stop", 5, 0, drawn.randint(1, 30), drawn.random(),
        drawn.random(), None, {"tail": 0.1},
    )  # fmt: skip


def stub(drawn=None, shuffle=None, fail_after=None):
    """A model that may answer in another order, or fail on the way."""

    def sample_fn(requests):
        requests = list(requests)
        if shuffle is not None:
            random.Random(shuffle).shuffle(requests)
        for n, r in enumerate(requests):
            if n == fail_after:
                raise KeyboardInterrupt
            if drawn is not None:
                drawn.append((r.query.id, r.index))
            yield reply(r)

    return sample_fn


def files(workdir: Path) -> dict[str, bytes]:
    names = ("samples.jsonl", "pending.jsonl", "rounds.jsonl")
    return {name: (workdir / name).read_bytes() for name in names}


def test_what_a_later_version_adds_is_read_over_and_kept(tmp_path):
    """A row with a field that nobody knew was called damaged, and ended every
    start. It stays in the file, also where it waits for its turn."""
    requests = [request(q) for q in range(3)]
    with Log(tmp_path, CONFIG) as log:
        list(recorded(stub(), log)(requests[:1]))
    one, later = (
        json.dumps(row_of(reply(r)) | {"energy": 7}) + "\n"
        for r in (requests[0], requests[2])
    )
    (tmp_path / "samples.jsonl").write_text(one)
    (tmp_path / "pending.jsonl").write_text(later)
    with Log(tmp_path, CONFIG) as log:
        assert list(recorded(stub(), log)(requests)) == [
            *map(reply, (requests[0], requests[2], requests[1]))
        ]
    lines = (tmp_path / "samples.jsonl").read_text().splitlines(True)
    assert lines[0] == one and lines[2] == later


def test_a_directory_of_a_later_version_is_refused(tmp_path):
    with Log(tmp_path, CONFIG) as log:
        list(recorded(stub(), log)([request()]))
    file = tmp_path / "config.json"
    for schema in (2, -1, 10**400, "1", None):
        row = json.loads(file.read_text()) | {"schema": schema}
        file.write_text(json.dumps(row))
        for use in (
            lambda: Log(tmp_path, CONFIG),
            lambda: list(read_samples(tmp_path / "samples.jsonl")),
        ):
            with pytest.raises(ValueError, match=r"schema .* is not known"):
                use()


@pytest.mark.parametrize(
    "change",
    [{"new_tokens": 10**400}, {"prompt_tokens": 2**31}, {"flops": 10**400}]
    + [{"logprob": 10**400}, {"confidence": 1e300}, {"signals": {"a": 10**99}}],
)
def test_numbers_that_nothing_can_calculate_with_fail_one_sample(
    tmp_path, change
):
    """A server said 400 digits of tokens: the row was logged, and every start
    from then on ended with an OverflowError."""
    sound = reply(request())
    with Log(tmp_path, CONFIG) as log:
        model = lambda requests: iter([sound._replace(**change)])
        (got,) = recorded(model, log)([request()])
    (name,) = change
    assert got.finish_reason == f"error: {name} is too large a number"
    assert (got.answer, got.new_tokens, got.text) == (None, 0, sound.text)
    file = tmp_path / "samples.jsonl"
    assert [got] == list(read_samples(file))
    # a log that holds one already can be gone on with, and keeps its bytes
    row = json.dumps(sound._asdict() | change) + "\n"
    file.write_text(row)
    with Log(tmp_path, CONFIG) as log:
        assert list(recorded(stub(), log)([request()])) == [got]
    assert file.read_text() == row


def test_a_sample_comes_back_as_it_was():
    sample = reply(request(1, 2, 3, (0, 1)))
    assert sample_of(json.loads(json.dumps(row_of(sample)))) == sample


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"index": -1}, "index=-1 is not a whole number"),
        ({"index": True}, "index=True"),
        ({"parents": [0, "1"]}, "parents"),
        ({"text": None}, "text=None is not a text"),
        ({"answer": 7}, "answer=7 is not a text or null"),
        ({"flops": float("nan")}, "flops=nan is not a finite number"),
        ({"logprob": float("-inf")}, "logprob=-inf"),
        ({"signals": {"tail": None}}, "signals"),
        ({"signals": []}, "signals"),
        (
            {"index": 10**400},
            r"index=1000.* \(401 long\) is not a whole number",
        ),
        ({"parents": [2**31]}, "parents"),
    ],
)
def test_rows_that_are_no_samples_are_refused(change, message):
    row = row_of(reply(request())) | {"parents": []}
    with pytest.raises(ValueError, match=message):
        sample_of(row | change)


@pytest.mark.parametrize("name", Sample._fields)
def test_every_field_is_checked(name):
    """One without a check would be left out of the log."""
    row = row_of(reply(request())) | {"parents": []}
    with pytest.raises(ValueError, match=name):
        sample_of(row | {name: {"no": "such"}})


def test_only_what_is_missing_is_drawn(tmp_path):
    drawn = []
    with Log(tmp_path, CONFIG) as log:
        sample_fn = recorded(stub(drawn), log)
        first = list(sample_fn([request(0), request(1)]))
        again = list(sample_fn([request(1), request(0), request(2)]))
        assert [s.query_id for s in again] == ["q1", "q0", "q2"]
        assert first[0] in again and first[1] in again
        assert len(log) == 3
    assert drawn == [("q0", 0), ("q1", 0), ("q2", 0)]
    rows = list(read_samples(tmp_path / "samples.jsonl"))
    assert rows == [reply(request(i)) for i in range(3)]


def test_rows_stand_in_the_order_of_the_requests(tmp_path):
    requests = [request(q, i) for q in range(5) for i in range(3)]
    for shuffle in range(4):
        workdir = tmp_path / str(shuffle)
        with Log(workdir, CONFIG) as log:
            got = list(recorded(stub(shuffle=shuffle), log)(requests))
            assert files(workdir)["pending.jsonl"] == b""
        assert len(got) == 15
        assert list(read_samples(workdir / "samples.jsonl")) == [
            reply(r) for r in requests
        ]


def drive(workdir: Path, sample_fn, stale: int = 0) -> tuple:
    """A whole run with rounds, chains and a bandit, on a log."""
    with Log(workdir, CONFIG) as log:
        size = 10 / len(QUERIES)
        schedule = Schedule(size, size, stale, capacity=16)
        result = run_rounds(
            QUERIES,
            FunctionSampler(recorded(sample_fn, log)),
            Method(*METHOD, schedule),
            Budget(samples=40),
            jax.random.key(0),
            on_round=lambda r: log.step(
                {"round": r.number, "grants": r.grants_Q.tolist()}
            ),
        )
    return result.answers, result.samples


@pytest.mark.parametrize("stale", [0, 1])
def test_a_run_that_fails_anywhere_goes_on_to_the_same_bytes(tmp_path, stale):
    """Within and between rounds, at every point, with samples that come in
    another order each time; and nothing that was written is drawn again."""
    expected = drive(tmp_path / "calm", stub(), stale)
    calm = files(tmp_path / "calm")
    assert len(calm["samples.jsonl"].splitlines()) == 40
    for fail_after in (0, 1, 3, 7, 9):
        workdir, drawn, starts = tmp_path / str(fail_after), [], 0
        while True:
            starts += 1
            # fails in every round that it cannot finish from the log
            sample_fn = stub(drawn, shuffle=starts, fail_after=fail_after + 1)
            try:
                outcome = drive(workdir, sample_fn, stale)
                break
            except KeyboardInterrupt:
                continue
        assert outcome == expected
        assert files(workdir) == calm
        assert len(drawn) == len(set(drawn)) == 40
        assert starts > 1 or fail_after == 9


def test_a_torn_row_anywhere_is_drawn_again(tmp_path):
    """kill -9 in the middle of a write, for a cut at every byte of the last
    row and between the files."""
    requests = [request(q) for q in range(5)]
    with Log(tmp_path / "calm", CONFIG) as log:
        list(recorded(stub(), log)(requests))
    calm = files(tmp_path / "calm")
    rows = calm["samples.jsonl"].splitlines(keepends=True)
    for cut in range(0, len(rows[2]), 17):
        workdir = tmp_path / f"cut{cut}"
        with Log(workdir, CONFIG):
            pass
        # two rows in place, part of the third; the fifth came before its turn
        # with part of the fourth after it; the second was moved already
        torn = b"".join(rows[:2]) + rows[2][:cut]
        (workdir / "samples.jsonl").write_bytes(torn)
        waiting = rows[1] + rows[4] + rows[3][:cut]
        (workdir / "pending.jsonl").write_bytes(waiting)
        drawn = []
        with Log(workdir, CONFIG) as log:
            assert len(log) == 3
            list(recorded(stub(drawn), log)(requests))
        assert drawn == [("q2", 0), ("q3", 0)]
        assert files(workdir) == calm


def test_a_run_that_ends_early_keeps_what_waits(tmp_path):
    """A cap on seconds leaves a round unfinished: its rows settle when the
    log is closed, and not when it crashes."""
    requests = [request(q) for q in range(5)]
    for crash in (False, True):
        workdir = tmp_path / str(crash)
        try:
            with Log(workdir, CONFIG) as log:
                samples = recorded(stub(shuffle=3), log)(requests)
                kept = [next(samples) for _ in range(2)]
                samples.close()
                if crash:
                    raise KeyboardInterrupt
        except KeyboardInterrupt:
            pass
        rows = list(read_samples(workdir / "samples.jsonl"))
        waiting = list(read_samples(workdir / "pending.jsonl"))
        assert sorted(s.query_id for s in rows + waiting) == sorted(
            s.query_id for s in kept
        )
        assert bool(waiting) is crash


def test_the_second_run_on_a_workdir_is_refused(tmp_path):
    with Log(tmp_path, CONFIG):
        with pytest.raises(RuntimeError, match="in use by another run"):
            Log(tmp_path, CONFIG)
        code = (
            "import sys; from dynscaling_jax.experiments.log import Log\n"
            f"try: Log(sys.argv[1], {CONFIG})\n"
            "except RuntimeError as error: print(error)"
        )
        out = subprocess.run(
            [sys.executable, "-c", code, str(tmp_path)],
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        assert "in use by another run" in out.stdout
    with Log(tmp_path, CONFIG):
        pass  # free again


def test_a_workdir_of_another_config_is_refused(tmp_path):
    with Log(tmp_path, CONFIG, about={"version": "1"}) as log:
        list(recorded(stub(), log)([request()]))
    before = files(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config == {
        "schema": 1,
        "kind": "run",
        "config": CONFIG,
        "identity": {},
        "about": {"version": "1"},
    }
    other = {"seed": 0, "budget": {"samples": 16}, "model": "m"}
    with pytest.raises(ValueError) as error:
        Log(tmp_path, other)
    assert "budget.samples was 8, is 16" in str(error.value)
    assert "model was not set, is 'm'" in str(error.value)
    assert files(tmp_path) == before
    # what it was made with may change: a newer version can go on
    with Log(tmp_path, CONFIG, about={"version": "2"}):
        pass


@pytest.mark.parametrize("content", ["", "[]", "{}", "\0", "[" * 9999])
def test_a_config_that_is_none_is_refused(tmp_path, content):
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(ValueError, match="no config of a run"):
        Log(tmp_path, CONFIG)


def test_a_refused_start_does_not_claim_the_directory(tmp_path):
    """It left its config behind, and the mended command was refused for it.
    From the first sample on, of any process, the directory is its."""
    with Log(tmp_path, {"seed": 1}):
        pass  # refused before it drew
    with Log(tmp_path, CONFIG):
        pass
    home = tmp_path / "process-1"
    with Log(home, CONFIG) as log:
        list(recorded(stub(), log)([request()]))
    with pytest.raises(ValueError, match="seed was 0, is 1"):
        Log(tmp_path, {"seed": 1})


def test_a_log_that_another_program_cuts_ends_the_run(tmp_path):
    """It waited for the end of a line that was gone, for ever."""
    with Log(tmp_path, CONFIG) as log:
        draw = recorded(stub(), log)
        list(draw([request()]))
        os.truncate(tmp_path / "samples.jsonl", 5)
        with pytest.raises(RuntimeError, match="another program changed"):
            log.read(("q0", 0))
        with pytest.raises(RuntimeError, match="5 bytes in place of"):
            list(draw([request(1)]))


def test_a_finished_log_is_known_by_its_checksum(tmp_path):
    with Log(tmp_path, CONFIG) as log:
        list(recorded(stub(), log)([request(q) for q in range(3)]))
    summary, file = tmp_path / "summary.json", tmp_path / "samples.jsonl"
    refuse_changed(tmp_path)
    summary.write_text(json.dumps({"log": checksum(tmp_path)}))
    whole = file.read_bytes()
    for content, fault in [
        (whole, False),
        (whole + whole, False),  # a run that went on
        (whole.replace(b"text 1", b"text 2"), True),
        (whole[:-9], True),
    ]:
        file.write_bytes(content)
        with (
            pytest.raises(ValueError, match="changed since")
            if fault
            else (contextlib.nullcontext())
        ):
            refuse_changed(tmp_path)


def test_samples_without_a_config_are_refused(tmp_path):
    (tmp_path / "samples.jsonl").write_text("{}\n")
    with pytest.raises(ValueError, match=r"no config\.json"):
        Log(tmp_path, CONFIG)


def test_a_damaged_log_is_refused_and_left_alone(tmp_path):
    with Log(tmp_path, CONFIG) as log:
        list(recorded(stub(), log)([request(q) for q in range(3)]))
    path = tmp_path / "samples.jsonl"
    rows = path.read_bytes().splitlines(keepends=True)
    for content, message in [
        (rows[0] + b"{oops\n" + rows[2], r"samples\.jsonl:2: malformed"),
        (rows[0] + b"[1]\n" + rows[2], r"samples\.jsonl:2: malformed"),
        (rows[0] + rows[1] + rows[0], "sample 0 of query 'q0' stands there"),
    ]:
        path.write_bytes(content)
        with pytest.raises(ValueError, match=message):
            Log(tmp_path, CONFIG)
        assert path.read_bytes() == content
    path.write_bytes(b"".join(rows))  # and the lock is free after a refusal
    with Log(tmp_path, CONFIG) as log:
        assert len(log) == 3


def test_samples_that_are_not_of_their_request_are_refused(tmp_path):
    def other(requests):
        yield reply(request(4, 4))

    def twice(requests):
        yield reply(requests[0])
        yield reply(requests[0])

    with Log(tmp_path, CONFIG) as log:
        with pytest.raises(ValueError, match="not asked for, or twice"):
            list(recorded(other, log)([request()]))
        with pytest.raises(ValueError, match="not asked for, or twice"):
            list(recorded(twice, log)([request()]))
        assert len(log) == 1
        with pytest.raises(ValueError, match="goes on only as it began"):
            list(recorded(stub(), log)([request(0, 0, 1, (3,))]))


def test_rounds_are_checked_and_not_doubled(tmp_path):
    rounds = [{"round": i, "grants": [i, 1], "u": 0.1 * i} for i in range(3)]
    with Log(tmp_path, CONFIG) as log:
        for row in rounds[:2]:
            log.step(row)
    with Log(tmp_path, CONFIG) as log:
        for row in rounds:
            log.step(row)
    lines = (tmp_path / "rounds.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == rounds
    with Log(tmp_path, CONFIG) as log:
        log.step(rounds[0])
        with pytest.raises(ValueError, match=r"rounds\.jsonl:2: this went"):
            log.step(rounds[2])


SCRIPT = """
import sys, time
sys.path.insert(0, sys.argv[2])
import test_log

def slow(requests):
    for sample in test_log.stub(shuffle=time.time_ns())(requests):
        time.sleep(0.01)
        print("drew", flush=True)
        yield sample

test_log.drive(test_log.Path(sys.argv[1]), slow)
"""


def test_kill_minus_nine_at_random_moments(tmp_path):
    """Killed in a process of its own, after a few samples or a random while,
    and started again until it ends: the bytes of an undisturbed run."""
    drive(tmp_path / "calm", stub())
    here = str(Path(__file__).parent)
    root = str(Path(__file__).parents[2])
    command = [sys.executable, "-c", SCRIPT, str(tmp_path / "run"), here]
    environment = {**os.environ, "PYTHONPATH": root}
    draws, ended, kills = random.Random(0), False, 0
    while not ended:
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, text=True, env=environment
        )
        assert process.stdout is not None
        wanted = draws.randint(12, 24)
        seen = sum(1 for _ in itertools.islice(process.stdout, wanted))
        if seen == wanted:
            time.sleep(draws.random() * 0.01)
            process.send_signal(signal.SIGKILL)
            kills += 1
        process.stdout.close()
        ended = process.wait() == 0
    assert kills >= 2
    assert files(tmp_path / "run") == files(tmp_path / "calm")


def test_a_full_disk_is_one_message_and_the_run_goes_on_later(tmp_path):
    """A real limit on the size of files, in a process of its own."""
    drive(tmp_path / "calm", stub())
    here, root = Path(__file__).parent, Path(__file__).parents[2]
    code = (
        "import resource, signal, sys\n"
        "sys.path.insert(0, sys.argv[2])\n"
        "import test_log\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (4000, 4000))\n"
        "try: test_log.drive(test_log.Path(sys.argv[1]), test_log.stub())\n"
        "except OSError as error: print(error)\n"
    )
    workdir = tmp_path / "run"
    out = subprocess.run(
        [sys.executable, "-c", code, str(workdir), str(here)],
        capture_output=True, text=True, check=True,
        env={
            **os.environ,
            "PYTHONPATH": str(root),
            # or it holds entries cut at 4000 bytes, which later tests read
            "JAX_ENABLE_COMPILATION_CACHE": "false",
        },
    )  # fmt: skip
    assert "cannot write" in out.stdout and "make room" in out.stdout
    content = (workdir / "samples.jsonl").read_bytes()
    assert 0 < len(content) <= 4000 and content.endswith(b"\n")
    drive(workdir, stub())
    assert files(workdir) == files(tmp_path / "calm")
