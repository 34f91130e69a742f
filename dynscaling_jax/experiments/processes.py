"""Processes that sample one run together: who they are, and how they meet.

Each is a JAX of its own, with the devices of its host; what they exchange is
a few kilobytes a sample at the end of a round, over TCP, by way of the first.
A process that ends takes the others with it, at once: they read from one
another all the time, and a connection that closes is noticed.

Not by jax.distributed, as experiments.lockstep must: it makes the devices
global, and its service ends all processes by SIGABRT (JAX 0.7.1 to 0.12) where
the first is killed or one is started twice. Nor by multihost_utils: its waits
are collectives, without a time-out.
"""

import contextlib
import os
import queue
import signal
import socket
import struct
import sys
import threading
import time
from collections.abc import (
    Callable,
    Collection,
    Iterator,
    Mapping,
    Sequence,
)
from multiprocessing.connection import wait as until_ready
from typing import Any

from jax.errors import JaxRuntimeError

from dynscaling_jax.experiments.shared import ALONE, Processes, nothing
from dynscaling_jax.lines import dumps, loads

WAIT = 3600  # seconds; the slowest share of a round may take that much longer
AGAIN = 10.0  # seconds between two interrupts
INTERRUPTS = 3  # further ones; where none is answered, the process is ended
NOTICE = 2.0  # seconds from a failed computation to the end of its cause
ANSWER = 30.0  # seconds from a greeting to its answer
STRANGERS = 64  # connections without a greeting; one more ends the oldest
GREETING = struct.Struct("<16sII")  # MARK, which process, of how many
MARK = b"dynscaling_jax 1"
SIZE = struct.Struct("<Q")  # of what follows it
AGAIN_ALL = "start all of them again: they go on from here"
LOST = f"another process has ended, and so does this one; {AGAIN_ALL}"


class Lost(RuntimeError):
    """Another process has ended, or was waited for too long."""


@contextlib.contextmanager
def meet(
    coordinator: str,
    count: int,
    number: int,
    alike: Mapping[str, Any] | None = None,
    wait: float = WAIT,
) -> Iterator[Processes]:
    """This process among `count`, once all are there.

    Args:
        coordinator: "HOST:PORT", where the first listens until all are there.
            Who greets as a process does is believed: the network must be one
            that is trusted. Other connections are left alone.
        count: how many they are.
        number: which of them this is.
        alike: what all must have in common, JSON.
        wait: seconds after which this process gives up that waits for another.

    Raises:
        ValueError: an address or a number that cannot be; two processes of
            one number; one that is not like the first.
        OSError: the others cannot be reached, or did not come in time.
        Lost: another process ended meanwhile, or was waited for too long.
    """
    if count == 1 and not coordinator:
        yield ALONE
        return
    if count < 1 or not 0 <= number < count:
        raise ValueError(
            f"--process={number} of --processes={count}: expected a number "
            "from 0 on, below that of all"
        )
    host, _, port = coordinator.rpartition(":")
    if not host or not port.isdigit() or int(port) >= 1 << 16:
        raise ValueError(
            f"--coordinator={coordinator!r}: expected HOST:PORT of the first "
            "process, the same in all"
        )
    address = host, int(port)
    if number:
        links = {0: _call(address, number, count, wait)}
    else:
        links = _listen(address, count, wait)
    end = _End()
    peers = {
        other: _Peer(other, link, wait, end) for other, link in links.items()
    }

    def exchange(mine: bytes, meanwhile: Callable[[], bool]) -> list[bytes]:
        """The first hands on what each brings, in the order of the numbers."""
        if number:
            peers[0].send(mine)
            return [peers[0].receive(meanwhile, of) for of in range(count)]
        parts = []
        for of in range(count):
            parts.append(peers[of].receive(meanwhile, of) if of else mine)
            for peer in peers.values():
                peer.send(parts[-1])
        return parts

    def part() -> None:
        """Nobody leaves while another still needs it."""
        end.parting = True
        with contextlib.suppress(Lost):
            exchange(b"", nothing)

    def leave() -> None:
        end.noticed.set()
        for peer in peers.values():
            peer.close()

    # The interrupt of a lost peer may come anywhere, and also while an error
    # of this process is on its way: the inner block ends when none can come
    # any more, so that the outer one meets each.
    try:
        try:
            for peer in peers.values():
                peer.watch()
            brought = exchange(dumps(alike or {}), nothing)
            if fault := difference(brought):
                part()
                raise ValueError(fault)
            yield Processes(number, count, exchange)
            part()
        except JaxRuntimeError:
            end.lost.wait(NOTICE)  # its cause may be known a little later
            raise
        finally:
            leave()
    except (KeyboardInterrupt, JaxRuntimeError):
        if end.lost.is_set():
            raise Lost(LOST) from None
        raise
    finally:
        leave()


def difference(brought: Sequence[bytes]) -> str:
    """Names the first field in which a process is not as the first.

    Of mappings in mappings; empty where all are alike.
    """
    first, *others = [dict(_leaves(loads(part))) for part in brought]
    for number, fields in enumerate(others, 1):
        for name in [*first, *fields]:
            if first.get(name) != fields.get(name):
                return (
                    f"process {number} has {name}={fields.get(name)!r}, "
                    f"process 0 {first.get(name)!r}; start all by the same "
                    "command, with the same versions"
                )
    return ""


def _leaves(fields: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    if not isinstance(fields, dict):
        yield name, fields
        return
    for key, value in fields.items():
        yield from _leaves(value, f"{name}.{key}" if name else key)


class _End:
    """What all connections of a process know of its end."""

    def __init__(self) -> None:
        self.parting = False
        self.lost = threading.Event()  # a peer, before this process left
        self.noticed = threading.Event()  # or left for a reason of its own
        self._first = threading.Lock()  # who interrupts; never released

    def of_peer(self) -> None:
        """Interrupts the main thread, once for all peers."""
        if self.parting or self.noticed.is_set():
            return
        if not self._first.acquire(blocking=False):
            return
        self.lost.set()
        # again, where one came in a callback, whose exceptions are lost
        for wait in (0.0, *[AGAIN] * INTERRUPTS):
            if self.noticed.wait(wait):
                return
            os.kill(os.getpid(), signal.SIGINT)
        # a computation waits for what the other's devices do not send
        os.write(2, f"{LOST}\n".encode())
        os._exit(1)


class _Peer:
    """A connection that is read from all the time.

    So its end is noticed at once, and the main thread interrupted.
    """

    def __init__(
        self, number: int, link: socket.socket, wait: float, end: _End
    ):
        self._number = number
        self._link = link
        self._wait = wait
        self._end = end
        self._arrived: queue.Queue[bytes | None] = queue.Queue()
        self._reader = threading.Thread(target=self._read, daemon=True)

    def watch(self) -> None:
        self._reader.start()

    def send(self, part: bytes) -> None:
        try:
            self._link.sendall(SIZE.pack(len(part)) + part)
        except BlockingIOError:  # SO_SNDTIMEO
            raise self._late(self._number) from None
        except OSError:
            raise Lost(LOST) from None

    def receive(self, meanwhile: Callable[[], bool], of: int) -> bytes:
        """Takes the next part, which is of that process."""
        while self._arrived.empty() and meanwhile():
            pass
        try:
            part = self._arrived.get(timeout=self._wait)
        except queue.Empty:
            raise self._late(of) from None
        if part is None:
            raise Lost(LOST)
        return part

    def close(self) -> None:
        """Shuts down first: closing alone waits for the thread that reads."""
        with contextlib.suppress(OSError):
            self._link.shutdown(socket.SHUT_RDWR)
        self._link.close()
        if self._reader.is_alive():  # it may be about to interrupt
            self._reader.join()

    def _late(self, of: int) -> Lost:
        return Lost(
            f"process {of} was waited for in vain, {self._wait:.0f} s; see "
            f"what it does, or let all --wait longer; {AGAIN_ALL}"
        )

    def _read(self) -> None:
        with (
            contextlib.suppress(OSError, struct.error),  # its end
            self._link.makefile("rb") as file,
        ):
            while True:
                (size,) = SIZE.unpack(file.read(SIZE.size))
                part = file.read(size)
                if len(part) < size:
                    break
                self._arrived.put(part)
        self._arrived.put(None)
        self._end.of_peer()


def _listen(
    address: tuple[str, int], count: int, wait: float
) -> dict[int, socket.socket]:
    """Connections to the others, by their numbers, once all have greeted.

    What does not greet, as a scan of ports or a browser, delays nobody.
    """
    if count > 1:
        _tell(f"process 0 waits for {count - 1} more at {_place(address)}")
    until = time.monotonic() + wait
    links: dict[int, socket.socket] = {}
    strangers: list[socket.socket] = []
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(socket.create_server(address))
        stack.callback(lambda: [link.close() for link in strangers])
        while missing := set(range(1, count)) - links.keys():
            left = max(0, until - time.monotonic())
            ready = until_ready([server, *strangers], left)
            if not left:
                raise OSError(
                    f"processes {sorted(missing)} did not come within "
                    f"{wait:.0f} s"
                )
            for link in [link for link in strangers if link in ready]:
                strangers.remove(link)
                number = _greeted(link, missing, count)
                if number is None:
                    link.close()
                else:
                    links[number] = _kept(link, wait)
            if server in ready:
                strangers.append(_stranger(server.accept()[0]))
            if len(strangers) > STRANGERS:
                strangers.pop(0).close()
    return links


def _greeted(
    link: socket.socket, missing: Collection[int], count: int
) -> int | None:
    """Which process this is; none where it is something else.

    Raises:
        ValueError: a process that is not waited for.
    """
    try:
        greeting = link.recv(GREETING.size)
    except OSError:
        return None
    if len(greeting) < GREETING.size or not greeting.startswith(MARK):
        return None
    _, number, of = GREETING.unpack(greeting)
    fits = of == count and number in missing
    with contextlib.suppress(OSError):  # its end is noticed later
        # what is no number of a process is a refusal, and no echo
        link.sendall(GREETING.pack(MARK, 0 if fits else count, count))
    if not fits:
        raise ValueError(_unfit(number, of))
    return number


def _call(
    address: tuple[str, int], number: int, count: int, wait: float
) -> socket.socket:
    """The connection to the first, which may still be starting."""
    until = time.monotonic() + wait
    greeting = GREETING.pack(MARK, number, count)
    announced = False
    while True:
        with contextlib.ExitStack() as stack:
            try:
                link = socket.create_connection(address, min(ANSWER, wait))
                stack.enter_context(_stranger(link))
                link.sendall(greeting)
                answer = link.recv(GREETING.size)
                why = "another program listens there"
            except OSError as error:
                answer, why = b"", error.strerror or error
            if answer == GREETING.pack(MARK, 0, count):
                stack.pop_all()
                return _kept(link, wait)
        if answer.startswith(MARK) and answer != greeting:
            raise ValueError(_unfit(number, count))
        if time.monotonic() > until:
            raise OSError(
                f"process 0 did not answer at {_place(address)} within "
                f"{wait:.0f} s ({why})"
            )
        if not announced:
            _tell(f"process {number} waits for 0 at {_place(address)}")
        announced = True
        time.sleep(0.2)


def _unfit(number: int, count: int) -> str:
    return (
        f"a process came as --process={number} of --processes={count}, which "
        "is taken or not there; give each its own number, and all the same of "
        "all"
    )


def _place(address: tuple[str, int]) -> str:
    return "{}:{}".format(*address)


def _tell(text: str) -> None:
    """For a person who wonders why nothing happens."""
    print(text, file=sys.stderr, flush=True)


def _stranger(link: socket.socket) -> socket.socket:
    """A connection that is read from when a whole greeting has come."""
    link.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, GREETING.size)
    return link


def _kept(link: socket.socket, wait: float) -> socket.socket:
    """A connection that notices a lost host, and one that reads no more."""
    link.settimeout(None)
    link.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, 1)
    link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    link.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in (("IDLE", 10), ("INTVL", 5), ("CNT", 4)):
        if hasattr(socket, f"TCP_KEEP{option}"):
            name = getattr(socket, f"TCP_KEEP{option}")
            link.setsockopt(socket.IPPROTO_TCP, name, value)
    seconds = struct.pack("ll", int(wait), 0)  # a timeval
    link.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, seconds)
    return link
