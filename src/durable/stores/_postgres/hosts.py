"""Several hosts, side by side: a host that accepts and stays silent does not keep a caller from the one that takes writes.

libpq tries one after the other, and waits the whole timeout for each. Here the first host has a moment for itself, then the
next is tried as well. A host that has refused is asked again for as long as another one is silent, since a standby may have
become the primary meanwhile. The host that gave the last connection comes first.
"""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from queue import Empty, SimpleQueue
from typing import Any, Final, NamedTuple

import psycopg

from durable.stores._postgres.session import Connection

HEAD_START: Final = 0.25  # seconds, before the next host is tried as well
_AGAIN: Final = 0.5  # seconds, before a host that has refused is asked again
_DEFAULT_PORT: Final = "5432"


class Host(NamedTuple):
    """A host: its name, as libpq checks it, its address, where that is known, and its port."""

    host: str
    hostaddr: str
    port: str

    @property
    def parameters(self) -> dict[str, str]:
        """The parameters for libpq."""
        return {name: value for name, value in self._asdict().items() if value}


def list_hosts(parts: Mapping[str, Any]) -> list[Host]:
    """The hosts that a URL's parameters name, with every address of each; names that cannot be resolved are left to libpq."""
    names, addresses, ports = (str(parts.get(part) or "").split(",") for part in ("host", "hostaddr", "port"))
    count = max(len(names), len(addresses))
    if {len(names), len(addresses), len(ports)} - {1, count}:
        return [Host("", "", "")]  # libpq is to say what is wrong with them
    lists = (values * count if len(values) == 1 else values for values in (names, addresses, ports))
    return [
        Host(name, address, port)
        for name, given, port in zip(*lists, strict=True)
        for address in ([given] if given or name.startswith(("/", "@")) or not name else _look_up(name, port))
    ]


def connect_first(
    order: Sequence[Host], connect: Callable[[Host], Connection], seconds: float
) -> tuple[Host, Connection]:
    """Connect to the hosts in this order; the first connection that is made, and its host. Raises `NoHost`.

    Each is tried at least once, and none is asked again after so many seconds; each attempt has a timeout of its own.
    """
    answers: SimpleQueue[tuple[Host, Connection | None, psycopg.Error | None]] = SimpleQueue()
    over, state = threading.Event(), threading.Lock()

    def attempt(host: Host) -> None:
        connection, problem = None, None
        try:
            connection = connect(host)
        except psycopg.Error as error:
            problem = error
        except Exception as error:  # of the pool's own code
            problem = psycopg.OperationalError(f"{type(error).__name__} while connecting")
        with state:
            if not over.is_set():
                answers.put((host, connection, problem))
                return
        _close(connection)

    began = time.monotonic()
    due = {host: began + number * HEAD_START for number, host in enumerate(order)}
    problems: dict[Host, psycopg.Error] = {}
    pending: set[Host] = set()
    try:
        while pending or due:
            now = time.monotonic()
            if not pending:  # the next one need not wait for its turn
                if len(problems) == len(order):
                    break
                due[next(iter(due))] = now
            for host in [host for host, moment in due.items() if moment <= now]:
                del due[host]
                pending.add(host)
                try:
                    threading.Thread(target=attempt, args=(host,), name="durable-connecting", daemon=True).start()
                except (RuntimeError, MemoryError) as error:
                    answers.put((host, None, psycopg.OperationalError(f"no thread can be started for it ({error})")))
            try:
                host, connection, problem = answers.get(timeout=max(0.0, min(due.values()) - now) if due else None)
            except Empty:
                continue
            if connection is not None:
                return host, connection
            assert problem is not None  # noqa: S101 -- one or the other
            pending.discard(host)
            problems[host] = problem
            if pending and time.monotonic() < began + seconds:
                due[host] = time.monotonic() + _AGAIN
    finally:
        with state:
            over.set()
        while not answers.empty():
            _close(answers.get()[1])
    raise NoHost(problems)


def _close(late: Connection | None) -> None:
    if late is not None:
        with suppress(psycopg.Error):
            late.close()


class NoHost(psycopg.OperationalError):
    """None of several hosts gave a connection; `problems` has what each of them said."""

    def __init__(self, problems: Mapping[Host, psycopg.Error]) -> None:
        texts = (f"{host.host or host.hostaddr}: {str(problem).strip()}" for host, problem in problems.items())
        super().__init__("; ".join(" ".join(text.split()) for text in texts))
        self.problems = list(problems.values())


def _look_up(name: str, port: str) -> list[str]:
    try:
        found = socket.getaddrinfo(name, port or _DEFAULT_PORT, proto=socket.IPPROTO_TCP, type=socket.SOCK_STREAM)
    except OSError:
        return [""]
    return list(dict.fromkeys(str(address[0]) for *_, address in found)) or [""]
