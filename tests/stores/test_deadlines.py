"""Nobody waits for a connection beyond the deadline of what he wants it for: a lease's, mostly."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import psycopg_pool
import pytest
from psycopg.conninfo import make_conninfo

import durable
from durable import AsyncStep, Step
from durable._engine.decisions import Claim
from durable.stores import postgres
from durable.stores.requests import Begin
from harness.ownership_children import PATIENCE, process_of, wait_until
from harness.proxy import Moment, Proxy
from harness.support import Database

LEASE = 0.5  # seconds
MARGIN = 4.0  # seconds; what is not bounded by the lease takes 20
CONNECTING = {"connect_timeout": "20"}


@contextmanager
def in_time() -> Iterator[None]:
    """What is in here ends soon after a lease has."""
    start = time.monotonic()
    yield
    assert time.monotonic() - start < LEASE + MARGIN


def blocking(step: Step, bodies: list[str]) -> str:
    for key in ("one", "two", "three"):
        step("body", bodies.append, key, key=key)
    return "done"


async def awaiting(step: AsyncStep, bodies: list[str]) -> str:
    for key in ("one", "two", "three"):
        await step("body", bodies.append, key, key=key)
    return "done"


@pytest.fixture(params=[blocking, awaiting], ids=["sync", "async"])
def workflow(request: pytest.FixtureRequest) -> Callable[..., Any]:
    chosen: Callable[..., Any] = request.param
    return chosen


def run(store: Any, workflow: Callable[..., Any], deps: Any, **options: Any) -> Any:
    """Run it in its colour, under a short lease."""
    outcome = durable.run(deps, workflow, id="run", store=store, **{"lease": LEASE, **options})
    return asyncio.run(outcome) if asyncio.iscoroutine(outcome) else outcome


class Bodies(list[str]):
    """What ran; `meanwhile` is called in the second body."""

    meanwhile: Callable[[], object] = staticmethod(lambda: None)

    def append(self, key: str) -> None:
        """The body of every step."""
        super().append(key)
        if key == "two":
            self.meanwhile()


@pytest.fixture
def black_hole() -> Iterator[str]:
    """The URL of a server that accepts and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        host, port = listener.getsockname()
        yield make_conninfo("", host=f"{host},{host}", port=f"{port},{port}", dbname="x", user="x", **CONNECTING)


def test_a_claim_ends_with_its_deadline_before_a_server_that_says_nothing(
    black_hole: str, workflow: Callable[..., Any]
) -> None:
    """FAULTS 42, before the first word; two hosts, each of which would be waited for."""
    with in_time(), postgres(black_hole) as store, pytest.raises(durable.StoreUnavailable, match=r"within 0\.\d s"):
        run(store, workflow, Bodies())


def test_a_lent_pool_that_cannot_connect_is_given_up_in_time(black_hole: str, workflow: Callable[..., Any]) -> None:
    """FAULTS 42, 51: by a connection beside the pool, which is the first."""
    pool = psycopg_pool.ConnectionPool(black_hole, min_size=0, max_size=1, open=True)
    with in_time(), postgres(pool=pool) as store, pytest.raises(durable.StoreUnavailable):
        run(store, workflow, Bodies())
    pool.close(timeout=0)


def only_one(database: Database, **options: Any) -> psycopg_pool.ConnectionPool[Any]:
    """A pool of one connection."""
    return psycopg_pool.ConnectionPool(database.url, min_size=1, max_size=1, open=True, **options)


def test_a_pool_that_is_all_in_use_is_given_up_in_time(database: Database, workflow: Callable[..., Any]) -> None:
    """FAULTS 51: who only asks to begin has no lease that would be renewed meanwhile."""
    with only_one(database) as pool, postgres(pool=pool, schema=database.schema) as store:
        run(store, workflow, Bodies(), lease=30.0)
        with pool.connection(), in_time(), pytest.raises(durable.StoreUnavailable, match="no connection came free"):
            durable.run(None, lambda step, _: None, id="another", store=store, lease=LEASE)


def test_a_pool_that_takes_no_more_waiters_has_not_been_asked(database: Database) -> None:
    """FAULTS 51: nothing was sent, so nothing is unknown."""
    with only_one(database, max_waiting=1) as pool, postgres(pool=pool, schema=database.schema) as store:
        run(store, blocking, Bodies(), lease=30.0)
        with pool.connection():
            queued = threading.Thread(target=lambda: pool.putconn(pool.getconn(timeout=PATIENCE)))
            queued.start()
            wait_until(lambda: pool.get_stats().get("requests_waiting"), "somebody to wait")
            with pytest.raises(durable.StoreUnavailable):
                durable.run(None, lambda step, _: None, id="another", store=store)
        queued.join()


@contextmanager
def mute(proxy: Proxy) -> Iterator[Callable[[], None]]:
    """Once the function is called: the connections die, and new ones are accepted, and nothing is said."""
    over, connect = threading.Event(), proxy._connect

    def hold() -> Any:
        over.wait(PATIENCE)
        raise ConnectionAbortedError

    def fall_silent() -> None:
        proxy._connect = hold  # type: ignore[method-assign]
        for link in proxy._links:
            link.cut()

    try:
        yield fall_silent
    finally:
        proxy._connect = connect  # type: ignore[method-assign]
        over.set()


def test_a_run_ends_with_its_lease_before_a_server_that_says_nothing(
    database: Database, workflow: Callable[..., Any]
) -> None:
    """FAULTS 27, 42: its connections die in the second body, and no other one comes about; heartbeat and writer both give up."""
    with Proxy(make_conninfo(database.url, **CONNECTING)) as proxy:
        store, bodies = database.store(proxy.url), Bodies()
        ends = (durable.OutcomeUnknown, durable.StoreUnavailable, durable.LeaseLost)
        store.stats()  # connected: on a busy machine that may take as long as the lease
        with mute(proxy) as bodies.meanwhile, in_time(), pytest.raises(ends):
            run(store, workflow, bodies)
        assert bodies == ["one", "two"]
        bodies.meanwhile = lambda: None
        assert run(store, workflow, bodies, on_conflict="wait", lease=30.0) == "done"
        assert bodies == ["one", "two", "two", "three"]
        with in_time():
            store.close()


def test_a_server_that_falls_silent_at_first_use_is_given_up_in_time(
    database: Database, workflow: Callable[..., Any]
) -> None:
    """FAULTS 42: while it is being found out what it is; then it is asked again."""
    over = threading.Event()
    with Proxy(database.url) as proxy:
        store, bodies = database.store(proxy.url), Bodies()
        proxy.trap(Moment.SENT, "pg_backend_pid", lambda _: over.wait(PATIENCE))
        with in_time(), pytest.raises(durable.StoreUnavailable):
            run(store, workflow, bodies)
        over.set()
        assert run(store, workflow, bodies, lease=30.0) == "done"
        assert bodies == ["one", "two", "three"]


def test_a_first_connection_that_falls_silent_does_not_stand_in_the_way_for_ever(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """FAULTS 42: nobody waits for it any more, and others wait for their turn behind it; the watchdog ends it."""
    monkeypatch.setattr("durable.stores._postgres.connections._MAX_PREPARING", 1.0)
    over = threading.Event()
    with Proxy(database.url) as proxy:
        store = database.store(proxy.url)
        try:
            trap = proxy.trap(Moment.SENT, "pg_backend_pid", lambda _: over.wait(PATIENCE))
            with pytest.raises(durable.StoreUnavailable):
                run(store, blocking, Bodies(), lease=30.0)
            assert not trap.sprung.is_set(), "the silence ended before it was given up"
            assert run(store, blocking, Bodies(), lease=30.0) == "done"
        finally:
            over.set()


def test_a_connection_that_comes_too_late_is_there_for_the_next(database: Database) -> None:
    """However slowly connections are made, and however short the leases, in the end there is one."""
    go = threading.Event()
    with Proxy(database.url) as proxy:
        connect = proxy._connect

        def slowly() -> Any:
            assert go.wait(PATIENCE)
            return connect()

        proxy._connect = slowly  # type: ignore[method-assign]
        store = database.store(proxy.url)
        with pytest.raises(durable.StoreUnavailable):
            run(store, blocking, Bodies())
        go.set()
        wait_until(lambda: process_of(store).connections._late, "it to come")
        assert len(proxy._links) == 1
        store.perform(Begin(Claim(run_id="next", workflow="next", version=1, seconds=30.0), lambda: False))
        assert len(proxy._links) == 1, "another one was made"
