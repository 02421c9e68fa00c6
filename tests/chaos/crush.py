"""Every way to the database in use at one moment, before anything counts.

A store opens a connection when all that it has are in use, and keeps it: how many it has is how many ways were ever in use at
once, which chance may decide minutes later. When all of them have been, one connection more is one too many.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Final

import psycopg

import durable
from chaos.programs import BIG
from chaos.traffic import pay_in
from durable.stores import PostgresStore

_LEASE: Final = 60.0  # seconds: no renewal waits among the others, and a look at who is cancelled takes no lock
_PATIENCE: Final = 30.0  # seconds until all have come
_AGAIN: Final = 0.01  # seconds between two looks at who waits
_WAITING: Final = b"SELECT count(*) FROM pg_locks WHERE relation = 'durable_locks'::regclass AND NOT granted"


class _Door:
    """The deps: shut when all who are to wait for it have come."""

    def __init__(self) -> None:
        self._come = threading.Semaphore(0)
        self._shut = threading.Event()

    def wait(self, value: Any = None) -> Any:
        """Until it is shut."""
        self._come.release()
        assert self._shut.wait(_PATIENCE), "the door stays open"
        return value

    def await_all(self, number: int) -> None:
        """Until so many have come."""
        for _ in range(number):
            assert self._come.acquire(timeout=_PATIENCE), "somebody has not come"

    def shut(self) -> None:
        """Let them go on."""
        self._shut.set()


def crush(store: PostgresStore, url: str, transactions: int) -> None:
    """A checkpoint small and large, a claim with and without a long input, a purge, and these transactions, all held up by one
    lock until each of them waits for it."""
    door = _Door()

    def run(name: str, workflow: Callable[[Any, _Door, Any], None], given: Any) -> None:
        durable.run(door, workflow, id=f"crush-{name}", store=store, input=given, lease=_LEASE)

    run("old", _coming, "")  # for the purge, which locks nothing where there is nothing
    with ThreadPoolExecutor(5 + transactions) as pool, psycopg.connect(url) as holder:
        waiting: list[Future[Any]] = [pool.submit(run, "small", _writing, 1), pool.submit(run, "large", _writing, BIG)]
        waiting += [pool.submit(run, f"transaction-{n}", _paying, n) for n in range(transactions)]
        try:
            door.await_all(len(waiting))
            holder.execute("LOCK TABLE durable_locks IN EXCLUSIVE MODE")
            waiting += [pool.submit(run, "claim", _coming, ""), pool.submit(run, "input", _coming, "x" * BIG)]
            waiting.append(pool.submit(store.purge, older_than=0, status="completed"))
            door.shut()
            _await_all(holder, len(waiting))
        finally:
            door.shut()
            holder.rollback()
        for each in waiting:
            each.result()


def _await_all(holder: psycopg.Connection[Any], number: int) -> None:
    """Until so many wait for the lock."""
    until, waiting = time.monotonic() + _PATIENCE, 0
    while waiting < number:
        assert time.monotonic() < until, f"{waiting} of {number} ways are in use at once"
        time.sleep(_AGAIN)
        (waiting,) = holder.execute(_WAITING).fetchone() or (0,)


def _writing(step: Any, door: _Door, size: int) -> None:
    step("write", door.wait, "x" * size, key="write")


def _paying(step: Any, door: _Door, drawer: int) -> None:
    door.wait()
    step.transaction("pay in", pay_in, drawer, 0, key="pay-in")


def _coming(step: Any, door: _Door, given: str) -> None:
    pass
