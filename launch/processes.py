"""Processes that draw one run together: who they are, and how they meet.

Each is a JAX of its own, with the devices of its host; what they exchange is
a few kilobytes a sample at the end of a round, over TCP, by way of the first.
A process that ends takes the others with it, within seconds: they read from
one another all the time, and a connection that closes is noticed.
"""

import contextlib
import json
import os
import queue
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from multiprocessing.connection import Connection
from typing import Any

from jax.errors import JaxRuntimeError

from dynscaling_jax.records.shared import ALONE, Processes, nothing

WAIT = 300.0  # seconds for all to come
AGAIN = 10.0  # seconds between two interrupts
INTERRUPTS = 3  # further ones; where none is answered, the process is ended
NOTICE = 2.0  # seconds from a failed computation to the end of its cause
LOST = (
    "another process has ended, and so does this one; start all of them "
    "again: they go on from here"
)


class Lost(RuntimeError):
    """Another process has ended."""


@contextlib.contextmanager
def meet(
    coordinator: str,
    count: int,
    number: int,
    alike: Mapping[str, Any] | None = None,
) -> Iterator[Processes]:
    """This process among `count`, once all are there.

    Args:
        coordinator: "HOST:PORT", where the first listens. What comes from
            there is believed: the network must be one that is trusted.
        alike: what all must have in common, JSON.

    Raises:
        ValueError: an address or a number that cannot be; two processes of
            one number; one that is not like the first.
        OSError: the others cannot be reached, or did not come in time.
        Lost: another process ended meanwhile.
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
    if not host or not port.isdigit():
        raise ValueError(
            f"--coordinator={coordinator!r}: expected HOST:PORT of the first "
            "process, the same in all"
        )
    address = host, int(port)
    links = _call(address, number) if number else _listen(address, count)
    peers = [_Peer(link) for link in links]

    def exchange(own: bytes, meanwhile: Callable[[], bool]) -> list[bytes]:
        """The first gathers what all bring, and hands it on."""
        if number:
            peers[0].send([own])
            return [peers[0].receive(meanwhile) for _ in range(count)]
        parts = [own, *(peer.receive(meanwhile) for peer in peers)]
        for peer in peers:
            peer.send(parts)
        return parts

    def part() -> None:
        """Nobody leaves while another still needs it."""
        for peer in peers:
            peer.parting = True
        with contextlib.suppress(Lost):
            exchange(b"", nothing)

    try:
        for peer in peers:
            peer.watch()
        brought = exchange(json.dumps(alike or {}).encode(), nothing)
        if fault := difference(brought):
            part()
            raise ValueError(fault)
        yield Processes(number, count, exchange)
        part()
    except (KeyboardInterrupt, JaxRuntimeError) as error:
        for peer in peers:
            peer.noticed.set()
        told = isinstance(error, KeyboardInterrupt)
        if _any_lost(peers, 0 if told else NOTICE):
            raise Lost(LOST) from None
        raise
    finally:
        for peer in peers:
            peer.noticed.set()
        for link in links:
            _close(link)


def difference(brought: Sequence[bytes]) -> str:
    """The first field, of mappings in mappings, in which a process is not as
    the first; empty where all are alike."""
    first, *others = [dict(_leaves(json.loads(part))) for part in brought]
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


class _Peer:
    """A connection that is read from all the time, so that its end is
    noticed at once, and the main thread interrupted in what it draws."""

    def __init__(self, link: Connection):
        self.parting = False
        self.lost = threading.Event()
        self.noticed = threading.Event()
        self._link = link
        self._arrived: queue.Queue[bytes | None] = queue.Queue()

    def watch(self) -> None:
        threading.Thread(target=self._read, daemon=True).start()

    def send(self, parts: Sequence[bytes]) -> None:
        try:
            for part in parts:
                self._link.send_bytes(part)
        except OSError:
            raise Lost(LOST) from None

    def receive(self, meanwhile: Callable[[], bool]) -> bytes:
        while self._arrived.empty() and meanwhile():
            pass
        part = self._arrived.get()
        if part is None:
            raise Lost(LOST)
        return part

    def _read(self) -> None:
        with contextlib.suppress(EOFError, OSError, TypeError):  # closed
            while True:
                self._arrived.put(self._link.recv_bytes())
        self._arrived.put(None)
        if self.parting:
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


def _any_lost(peers: Sequence[_Peer], seconds: float) -> bool:
    """Whether one has ended, or does so soon."""
    until = time.monotonic() + seconds
    return any(p.lost.wait(max(0, until - time.monotonic())) for p in peers)


def _listen(address: tuple[str, int], count: int) -> list[Connection]:
    """Connections to the others, in the order of their numbers."""
    links: dict[int, Connection] = {}
    if count > 1:
        _tell(f"process 0 waits for {count - 1} more at {_place(address)}")
    with socket.create_server(address) as server:
        server.settimeout(WAIT)
        while len(links) < count - 1:
            try:
                link = _connection(server.accept()[0])
            except TimeoutError:
                missing = sorted(set(range(1, count)) - links.keys())
                raise OSError(
                    f"processes {missing} did not come within {WAIT:.0f} s"
                ) from None
            number = int.from_bytes(link.recv_bytes(8), "little")
            if number in links or not 0 < number < count:
                raise ValueError(
                    f"a process came as number {number} of {count}, which is "
                    "taken or not there; give each its own --process"
                )
            links[number] = link
    return [links[number] for number in range(1, count)]


def _call(address: tuple[str, int], number: int) -> list[Connection]:
    """The connection to the first, which may still be starting."""
    begin = time.monotonic()
    told = False
    while True:
        try:
            link = _connection(socket.create_connection(address, timeout=5))
            break
        except OSError as error:
            if time.monotonic() - begin > WAIT:
                raise OSError(
                    "the first process does not listen at "
                    f"{_place(address)} ({error.strerror or error})"
                ) from None
            if not told:
                _tell(f"process {number} waits for 0 at {_place(address)}")
            told = True
            time.sleep(0.2)
    link.send_bytes(number.to_bytes(8, "little"))
    return [link]


def _place(address: tuple[str, int]) -> str:
    return "{}:{}".format(*address)


def _tell(text: str) -> None:
    """For a person who wonders why nothing happens."""
    print(text, file=sys.stderr, flush=True)


def _close(link: Connection) -> None:
    """Ends a connection at once; close() alone waits for the thread that
    reads from it."""
    with (
        contextlib.suppress(OSError),
        socket.socket(fileno=os.dup(link.fileno())) as own,
    ):
        own.shutdown(socket.SHUT_RDWR)
    link.close()


def _connection(link: socket.socket) -> Connection:
    """Messages over a socket, which notices a host that is gone."""
    link.setblocking(True)
    link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    link.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in (("IDLE", 10), ("INTVL", 5), ("CNT", 4)):
        if hasattr(socket, f"TCP_KEEP{option}"):
            name = getattr(socket, f"TCP_KEEP{option}")
            link.setsockopt(socket.IPPROTO_TCP, name, value)
    return Connection(link.detach())
