"""Several real processes draw one run."""

import contextlib
import json
import signal
import socket
import struct
import sys
import time
from pathlib import Path

import pytest

from dynscaling_jax.experiments.processes import difference
from dynscaling_jax.scaling.policies import POLICIES

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def drawn(tmp_path_factory, address, begin, end):
    """What each of 1, 2 and 4 processes says of every policy."""
    out = tmp_path_factory.mktemp("together")

    def together(count):
        where = address()
        files = [out / f"{number}-of-{count}.json" for number in range(count)]
        done = end(
            begin(
                [
                    sys.executable,
                    str(ROOT / "tests/experiments/together.py"),
                    where,
                    str(count),
                    str(number),
                    str(file),
                ]
                for number, file in enumerate(files)
            )
        )
        assert all(code == 0 for *_, code in done), done
        return [json.loads(file.read_text()) for file in files]

    return {count: together(count) for count in (1, 2, 4)}


@pytest.mark.parametrize("stale", [0, 1])
@pytest.mark.parametrize("policy", POLICIES)
def test_any_number_of_processes_gives_the_same_run(drawn, policy, stale):
    (alone,) = drawn[1]
    run = f"{policy}/{stale}"
    assert sum(map(len, alone["results"][run]["samples"])) > 14
    for count in (2, 4):
        for one in drawn[count]:
            assert one["results"][run] == alone["results"][run]


@pytest.mark.parametrize("stale", [0, 1])
@pytest.mark.parametrize("policy", POLICIES)
def test_each_draws_a_share(drawn, policy, stale):
    run = f"{policy}/{stale}"
    for count in (2, 4):
        shares = [one["drew"][run] for one in drawn[count]]
        assert sorted(sum(shares, [])) == drawn[1][0]["drew"][run]
        assert all(shares)


def kept(workdir):
    """Samples that the logs of a run and of its processes hold, by file."""
    files = [*workdir.glob("*.jsonl"), *workdir.glob("process-*/*.jsonl")]
    return {
        str(f.relative_to(workdir)): f.read_bytes().count(b"\n") for f in files
    }


@pytest.mark.parametrize("steps", ["rounds", "events"])
def test_a_killed_process_ends_the_others_and_fewer_go_on(
    launch, tmp_path, address, begin, end, until_drawn, steps
):
    """4 processes, of which one is killed as it draws; 2 end the run, with
    the bytes of one that was never stopped."""
    schedule = {"rounds": "rounds", "events": "async"}[steps]
    flags = [f"--config.budget.schedule={schedule}"]
    share = {"rounds": "samples.jsonl", "events": "pending.jsonl"}[steps]
    alone, stopped = tmp_path / "alone", tmp_path / "stopped"
    (done,) = end(begin(launch(alone, 1, "", *flags)))
    assert done[2] == 0, done
    running = begin(launch(stopped, 4, address(), *flags))
    own = stopped / "process-3" / share
    until_drawn(own, running)
    running[3].send_signal(signal.SIGKILL)
    begun = time.monotonic()
    for _, said, code in end(running[:3], 60):
        # before it Python may tell of an interrupt that came in a callback
        assert code and "another process has ended" in said, said
    assert time.monotonic() - begun < 60
    running[3].communicate()
    before = kept(stopped)
    assert before[f"process-3/{share}"]

    done = end(begin(launch(stopped, 2, address(), *flags)))
    assert [code for *_, code in done] == [0, 0], done
    for name in ("samples.jsonl", f"{steps}.jsonl", "answers.json"):
        assert (stopped / name).read_bytes() == (alone / name).read_bytes()
    assert not list(stopped.glob("process-*"))


PEERS = """
import os, socket, sys, time
from jax.errors import JaxRuntimeError
from launch.arguments import Command, resumable
from dynscaling_jax.experiments.processes import meet

def work():
    where, wait, count, number = sys.argv[1], *map(int, sys.argv[2:])
    with meet(where, count, number, wait=wait) as processes:
        {}

resumable(Command("t", (), ""), work)
"""


@pytest.fixture
def peers(begin, address):
    """Starts processes that do this, some of them or all, and gives up on
    another after so many seconds."""

    def started(*works, wait=100, where="", numbers=None):
        where = where or address()
        count = str(len(works))
        return begin(
            [sys.executable, "-c", PEERS.format(works[number])]
            + [where, str(wait), count, str(number)]
            for number in numbers or range(len(works))
        )

    return started


def listening(place):
    """Waits until something does."""
    host, _, port = place.rpartition(":")
    until = time.monotonic() + 60
    while time.monotonic() < until:
        with contextlib.suppress(OSError):
            return socket.create_connection((host, int(port)))
    raise AssertionError(f"nothing listens at {place}")


STRANGERS = (
    *[b""] * 100,
    b"GET / HTTP/1.1\r\nHost: here\r\n\r\n",
    bytes(range(256)) * 100,
    b"dynscaling_jax 1",  # half a greeting
    b"dynscaling_jax 9" + bytes(8),
)


def test_strangers_delay_nobody(peers, end, address):
    """A scan of ports ended the first process with EOFError; a silent client
    held it for ever."""
    place = address()
    # while they draw nobody listens any more
    work = """
        host, port = where.split(":")
        try:
            socket.create_connection((host, int(port)))
        except ConnectionRefusedError:
            processes.exchange(b"", lambda: False)
    """
    works = [work.strip()] * 2
    first = peers(*works, where=place, numbers=[0])
    with contextlib.ExitStack() as stack:
        for said in STRANGERS:
            link = stack.enter_context(listening(place))
            with contextlib.suppress(OSError):  # it may be ended meanwhile
                link.sendall(said)
        listening(place).close()
        with listening(place) as scan:  # and resets
            linger = struct.pack("ii", 1, 0)
            scan.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        second = peers(*works, where=place, numbers=[1])
        done = end([*first, *second], 60)
    assert [code for *_, code in done] == [0, 0], done


@pytest.mark.parametrize("answer", [b"HTTP/1.1 400 Bad Request\r\n\r\n", None])
def test_who_calls_a_stranger_says_so(peers, end, answer):
    """As of a message of the others its first bytes were a size: the process
    waited for so many gigabytes. None answers nothing."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        place = f"127.0.0.1:{server.getsockname()[1]}"
        running = peers("pass", "pass", where=place, numbers=[1], wait=2)
        server.settimeout(1)
        links = []
        while running[0].poll() is None:
            with contextlib.suppress(TimeoutError):
                links.append(server.accept()[0])
                links[-1].sendall(answer or b"")
    ((_, said, code),) = end(running)
    why = "another program listens there" if answer else "timed out"
    assert code
    assert f"process 0 did not answer at {place} within 2 s ({why})" in said
    for link in links:
        link.close()


@pytest.mark.parametrize("late", [0, 2])
def test_who_waits_gives_up_and_says_for_whom(peers, end, late):
    """It waited for ever, and no one knew for whom."""
    works = ["processes.exchange(b'', lambda: False)"] * 3
    works[late] = "time.sleep(60)"
    done = end(peers(*works, wait=6), 40)
    why = f"process {late} was waited for in vain, 6 s"
    for number, (_, said, code) in enumerate(done):
        assert code
        assert "another process has ended" in said or why in said
        assert number != late or why not in said
    assert any(why in said for _, said, _ in done)


def test_who_is_not_read_by_another_gives_up_too(peers, end):
    first, second = peers(
        "processes.exchange(bytes(10**8), lambda: False)",
        "import signal; os.kill(os.getpid(), signal.SIGSTOP)",
        wait=6,
    )
    ((_, said, code),) = end([first], 40)
    assert code and "process 1 was waited for in vain, 6 s" in said
    second.kill()
    second.communicate()


def test_who_does_not_come_is_named(peers, end):
    ((_, said, code),) = end(peers(*["pass"] * 3, numbers=[0], wait=1))
    assert code and "processes [1, 2] did not come within 1 s" in said


def test_two_of_one_number(peers, end):
    """The second waited for ever for a process that was gone."""
    done = end(peers(*["pass"] * 3, numbers=[0, 1, 1], wait=60), 40)
    assert all(code for *_, code in done), done
    why = "a process came as --process=1 of --processes=3, which is taken"
    assert sum(why in said for _, said, _ in done) == 2, done


def test_a_computation_fails_before_its_cause_is_known(peers, end):
    """What a collective says of a peer that is gone comes before the end of
    the connection, whose interrupt then came upon its handler: the process
    said that it was stopped, as if by hand."""
    running = peers(
        "time.sleep(0.5); raise JaxRuntimeError('gloo: connection closed')",
        "time.sleep(1.2); os._exit(1)",
    )
    ((_, said, code), _) = end(running, 60)
    assert code and "another process has ended" in said, said


def test_a_peer_ends_while_an_error_is_on_its_way(peers, end):
    """Three processes give up after the same seconds. The interrupt of the
    first came while the second left: it said that it was stopped by hand."""
    running = peers(
        """
        import threading
        leave = threading.Event.set
        def slowly(event):
            if threading.current_thread() is threading.main_thread():
                time.sleep(5)
            leave(event)
        threading.Event.set = slowly
        raise ValueError("an error of its own")""",
        "time.sleep(1); os._exit(1)",
    )
    ((_, said, code), _) = end(running, 60)
    assert code and "another process has ended" in said, said


def test_one_that_fails_ends_the_others_before_it_ends_itself(peers, end):
    """It may have much to save: closing a connection that is being read from
    told the others nothing."""
    first, second = peers(
        "import atexit; atexit.register(time.sleep, 60); sys.exit()",
        "time.sleep(60)",
    )
    ((_, said, code),) = end([second], 40)
    assert code and "another process has ended" in said, said
    assert first.poll() is None
    first.kill()
    first.communicate()


def test_how_processes_differ():
    def told(*brought):
        return difference([json.dumps(one).encode() for one in brought])

    same = {"config": {"seed": 0, "task": {"name": "gsm8k"}}}
    other = {"config": {"seed": 0, "task": {"name": "svamp"}}}
    more = {"config": same["config"] | {"more": 1}}
    assert told(same, same, same) == ""
    message = "process 2 has config.task.name='svamp', process 0 'gsm8k'; start"
    assert told(same, same, other).startswith(message)
    assert "process 1 has config.more=1, process 0 None" in told(same, more)
    assert "process 1 has config.more=None, process 0 1" in told(more, same)


def test_all_must_be_started_alike(launch, tmp_path, address, begin, end):
    """Each drew with its own seed, and the samples were of none."""
    commands = launch(tmp_path, 2, address())
    commands[1].append("--config.seed=1")
    both = end(begin(commands))
    for _, said, code in both:
        assert code and "process 1 has config.seed=1, process 0 0" in said
    # one that waits says for whom
    (flag,) = (w for w in commands[0] if w.startswith("--coordinator="))
    place = flag.partition("=")[2]
    assert f"process 0 waits for 1 more at {place}\n" in both[0][1]
    assert not (tmp_path / "config.json").exists()


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--processes=2"], "--coordinator='': expected HOST:PORT"),
        (
            ["--processes=2", "--process=2", "--coordinator=a:1"],
            "--process=2 of --processes=2: expected a number from 0 on",
        ),
        # once taken in silence, and drawn by one process alone
        (["--lockstep"], "--lockstep is for several processes; give"),
        (["--coordinator=a:1"], "--coordinator is for several processes"),
        (["--process=1"], "--process is for several processes; give"),
        (["--wait=9"], "--wait is for several processes; give"),
        (["--wait=0"], "--wait=0: "),
    ],
)
def test_mistakes_are_one_line(launch, tmp_path, begin, end, flags, said):
    command = [*launch(tmp_path)[0][:-3], *flags]
    ((_, error, code),) = end(begin([command]))
    assert code and said in error
    assert len(error.strip().splitlines()) == 1
