"""Several hosts, side by side: a host that accepts and says nothing does not keep a caller from the one that takes writes.

libpq tries one after the other, and gives each its whole patience. Here the first has a moment for itself, then the next is
tried as well; who has said no is asked again as long as another one is silent, since a standby may have become the primary
meanwhile. The host that was good last comes first.
"""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from queue import Empty, SimpleQueue
from typing import Any, Final, NamedTuple, TypeAlias

import psycopg

Connection: TypeAlias = psycopg.Connection[Any]

HEAD_START: Final = 0.25  # seconds, before the next host is tried as well
_AGAIN: Final = 0.5  # seconds, before a host is asked again that has said no
_DEFAULT_PORT: Final = "5432"


class Host(NamedTuple):
    """One of them: its name, as libpq checks it, its address, where that is known, and its port."""

    host: str
    hostaddr: str
    port: str

    @property
    def parameters(self) -> dict[str, str]:
        """For libpq."""
        return {name: value for name, value in self._asdict().items() if value}


def list_hosts(parts: Mapping[str, Any]) -> list[Host]:
    """Every host that a URL's parts name, and of each name every address; names that nobody knows are left for libpq."""
    names, addresses, ports = (str(parts.get(part) or "").split(",") for part in ("host", "hostaddr", "port"))
    count = max(len(names), len(addresses))
    if {len(names), len(addresses), len(ports)} - {1, count}:
        return [Host("", "", "")]  # libpq says what is wrong with them
    lists = (values * count if len(values) == 1 else values for values in (names, addresses, ports))
    return [
        Host(name, address, port)
        for name, given, port in zip(*lists, strict=True)
        for address in ([given] if given or name.startswith(("/", "@")) or not name else _look_up(name, port))
    ]


def connect_first(
    order: Sequence[Host], connect: Callable[[Host], Connection], seconds: float
) -> tuple[Host, Connection]:
    """The first connection that comes about, and to which host. Raises `NoHost`.

    Each is tried once at least, and none is begun when so many seconds have passed; each knows by itself when to give up.
    """
    answers: SimpleQueue[tuple[Host, Connection | None, psycopg.Error | None]] = SimpleQueue()
    over, state = threading.Event(), threading.Lock()

    def attempt(host: Host) -> None:
        connection, problem = None, None
        try:
            connection = connect(host)
        except psycopg.Error as error:
            problem = error
        except Exception as error:  # of a pool's own making
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
            if not pending:  # those that are left need not wait for anybody
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
