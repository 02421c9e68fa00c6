"""Several hosts in the URL, and leases that could not be given back: FAULTS 38, 60, 183."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg_pool import ConnectionPool

import durable
from durable.errors import AccessDenied, DurableError, StoreUnavailable
from durable.stores import PostgresStore, postgres
from durable.stores._postgres import hosts
from durable.stores._postgres.hosts import Host
from harness.ownership_children import wait_until
from harness.proxy import Link, Moment, Proxy
from harness.support import Database


@contextmanager
def silent(count: int = 1) -> Iterator[list[int]]:
    """The ports of servers that are stopped: the kernel accepts for them, and they say nothing."""
    with ExitStack() as stack:
        yield [stack.enter_context(socket.create_server(("127.0.0.1", 0))).getsockname()[1] for _ in range(count)]


def among(database: Database, ports: list[int], **options: Any) -> str:
    """A URL of several hosts on this machine."""
    return make_conninfo(
        database.url,
        host=",".join("127.0.0.1" for _ in ports),
        port=",".join(map(str, ports)),
        sslmode="disable",
        gssencmode="disable",
        **options,
    )


def port_of(proxy: Proxy) -> int:
    return int(str(conninfo_to_dict(proxy.url)["port"]))


@durable.workflow(name="one")
def one(step: durable.Step, _: None) -> int:
    return step("one", lambda: 1)


def closed() -> int:
    """A port at which nobody listens."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port: int = listening.getsockname()[1]
        return port


# -- side by side ---------------------------------------------------------------------------------------------------------


class Race:
    """Connections that come about when the test says so."""

    def __init__(self, *names: str) -> None:
        self.hosts = [Host(name, "", "") for name in names]
        self.begun: list[str] = []
        self.closed: list[str] = []
        self._answers = {name: threading.Event() for name in names}
        self._fates: dict[str, list[Exception | None]] = {name: [] for name in names}

    def answer(self, name: str, *fates: Exception | None) -> None:
        """From now on; with these, one an attempt, the last for all that follow."""
        self._fates[name] = list(fates)
        self._answers[name].set()

    def connect(self, host: Host) -> Any:
        self.begun.append(host.host)
        self._answers[host.host].wait(10)
        fates = self._fates[host.host]
        fate = fates.pop(0) if len(fates) > 1 else fates[0]
        if fate is not None:
            raise fate
        return Made(self, host.host)


class Made:
    """A connection, of which only the end is of interest."""

    def __init__(self, race: Race, name: str) -> None:
        self.name = name
        self._race = race

    def close(self) -> None:
        self._race.closed.append(self.name)


def no(text: str) -> psycopg.OperationalError:
    return psycopg.OperationalError(text)


def test_a_silent_host_keeps_nobody_from_the_next() -> None:
    race = Race("silent", "good")
    race.answer("good", None)
    host, connection = hosts.connect_first(race.hosts, race.connect, 2.0)
    assert (host.host, connection.name) == ("good", "good")  # type: ignore[attr-defined]
    race.answer("silent", None)
    wait_until(lambda: race.closed == ["silent"], "the one that came too late to be closed")


def test_the_first_is_alone_when_it_answers() -> None:
    race = Race("good", "other")
    race.answer("good", None)
    race.answer("other", None)
    assert hosts.connect_first(race.hosts, race.connect, 2.0)[0].host == "good"
    assert race.begun == ["good"]


def test_whoever_said_no_is_asked_again_while_another_is_silent() -> None:
    """A standby that becomes the primary meanwhile."""
    race = Race("silent", "standby")
    race.answer("standby", no("session is read-only"), no("session is read-only"), None)
    assert hosts.connect_first(race.hosts, race.connect, 5.0)[0].host == "standby"
    assert race.begun == ["silent", "standby", "standby", "standby"]
    race.answer("silent", no("late"))


def test_all_say_no() -> None:
    """Each is asked once, without waiting, and the error has what each has said."""
    race = Race("a", "b", "c")
    for name in ("a", "b", "c"):
        race.answer(name, no(f"connection failed: {name} says no"))
    with pytest.raises(psycopg.OperationalError, match=r"a: .*a says no; b: .*b says no; c: .*c says no"):
        hosts.connect_first(race.hosts, race.connect, 2.0)
    assert race.begun == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("parts", "expected"),
    [
        ({}, [("", "", "")]),
        ({"host": "/tmp"}, [("/tmp", "", "")]),
        ({"host": "127.0.0.1,127.0.0.2", "port": "1,2"}, [("127.0.0.1", "127.0.0.1", "1"), ("127.0.0.2", "127.0.0.2", "2")]),
        ({"host": "/a,/b", "port": "7"}, [("/a", "", "7"), ("/b", "", "7")]),
        ({"host": "x,y", "hostaddr": "127.0.0.1,127.0.0.2"}, [("x", "127.0.0.1", ""), ("y", "127.0.0.2", "")]),
        ({"hostaddr": "127.0.0.1,::1"}, [("", "127.0.0.1", ""), ("", "::1", "")]),
        ({"host": "a,b,c", "port": "1,2"}, [("", "", "")]),
        ({"host": "no-such-host.invalid,127.0.0.1"}, [("no-such-host.invalid", "", ""), ("127.0.0.1", "127.0.0.1", "")]),
    ],
)  # fmt: skip
def test_the_hosts_of_a_url(parts: dict[str, str], expected: list[tuple[str, str, str]]) -> None:
    assert [tuple(host) for host in hosts.list_hosts(parts)] == expected


# -- a store ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", ["silent first", "silent last", "closed first", "two silent", "pool"])
def test_a_stopped_host_costs_no_patience(database: Database, order: str) -> None:
    """A run begins, and ends, well before a single host's patience of ten seconds is over; the good host is then first."""
    with Proxy(database.url) as proxy, silent(2) as ports, ExitStack() as stack:
        good = port_of(proxy)
        chosen = {
            "silent last": [good, ports[0]],
            "closed first": [closed(), good],
            "two silent": [*ports, good],
        }.get(order, [ports[0], good])
        url = among(database, chosen)
        if order == "pool":
            pool = stack.enter_context(ConnectionPool(make_conninfo(url, connect_timeout=2), min_size=1, open=True))
            store = stack.enter_context(postgres(pool=pool, schema=database.schema))
        else:
            store = database.store(url)
        connections = store._held.resources.connections
        first = connections.connect(store.clock.elapsed() + 5.0)
        assert first.info.port == good
        assert durable.run(None, one, id="run", store=store) == 1
        assert connections._good is not None
        assert connections._good.port == str(good)
        first.close()


def test_hosts_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """As libpq takes them: where the URL names none; and of several the one that takes writes."""
    monkeypatch.setenv("PGHOST", "a,b")
    monkeypatch.setenv("PGPORT", "1,2")
    with postgres("dbname=x") as store:
        parts = store._held.resources.connections._parts
    assert (parts["host"], parts["port"], parts["target_session_attrs"]) == ("a,b", "1,2", "read-write")
    with postgres("host=c dbname=x") as store:
        assert store._held.resources.connections._parts["host"] == "c"


def test_what_every_host_refuses_is_said_at_once(database: Database) -> None:
    """With one that may yet come it is not final."""
    with Proxy(database.url) as proxy, silent() as ports:
        good = port_of(proxy)
        store = database.store(among(database, [good, good], dbname="no_such_database"))
        with pytest.raises(AccessDenied, match="no_such_database"):
            durable.run(None, one, id="run", store=store)
        store = database.store(among(database, [good, *ports], dbname="no_such_database"))
        with pytest.raises(StoreUnavailable, match="no_such_database"):
            durable.run(None, one, id="run", store=store)


# -- leases -------------------------------------------------------------------------------------------------------------


@contextmanager
def unreachable(proxy: Proxy) -> Iterator[None]:
    """Every connection is cut, and none is let through."""
    connect = proxy._connect

    def refuse() -> Any:
        raise ConnectionRefusedError

    proxy._connect = refuse  # type: ignore[method-assign]
    for link in proxy._links:
        link.cut()
    try:
        yield
    finally:
        proxy._connect = connect  # type: ignore[method-assign]


def lease_of(database: Database) -> str | None:
    ((token,),) = database.execute("SELECT owner_token FROM durable_locks WHERE workflow_id = 'run'")
    return token  # type: ignore[no-any-return]


def left_with_its_lease(store: PostgresStore, proxy: Proxy, stack: ExitStack, colour: str) -> None:
    """A run whose lease cannot be given back, since the database has gone in the midst of it."""

    @durable.workflow(name="one")
    def workflow(step: durable.Step, _: None) -> int:
        stack.enter_context(unreachable(proxy))
        raise KeyboardInterrupt

    @durable.workflow(name="one")
    async def workflow_async(step: durable.AsyncStep, _: None) -> int:
        stack.enter_context(unreachable(proxy))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        if colour == "sync":
            durable.run(None, workflow, id="run", store=store)
        else:
            asyncio.run(durable.run(None, workflow_async, id="run", store=store))


@pytest.mark.parametrize("colour", ["sync", "async"])
def test_an_own_lease_is_taken_at_once(database: Database, colour: str) -> None:
    """No process is kept out by itself, and no owner is called dead who is alive."""
    with Proxy(database.url) as proxy, ExitStack() as stack:
        store = database.store(proxy.url)
        left_with_its_lease(store, proxy, stack, colour)
        assert lease_of(database) is not None
        store._held.resources._small._closing.set()  # nothing is given back any more
        events: list[Any] = []
        stack.close()
        assert durable.run(None, one, id="run", store=store, on_event=events.append) == 1
        assert not [event for event in events if "dead" in repr(event).lower()]


@pytest.mark.parametrize("colour", ["sync", "async"])
def test_an_own_lease_is_given_back_when_the_database_answers(database: Database, colour: str) -> None:
    """So that others need not wait for its end either."""
    with Proxy(database.url) as proxy, ExitStack() as stack:
        store = database.store(proxy.url)
        left_with_its_lease(store, proxy, stack, colour)
        stack.close()
        wait_until(lambda: lease_of(database) is None, "the lease to be given back")
        with database.store(take_over_dead=False) as other:
            assert durable.run(None, one, id="run", store=other) == 1


def test_a_claim_of_which_nothing_was_heard_keeps_nobody_out(database: Database) -> None:
    """The database has granted it, and the reply never came."""
    with Proxy(database.url) as proxy, ExitStack() as stack:
        durable.run(None, one, id="tables", store=database.store())
        store = database.store(proxy.url)

        def cut(_: Link) -> None:
            stack.enter_context(unreachable(proxy))

        proxy.trap(Moment.ANSWERED, "may_create", cut)
        with pytest.raises(DurableError):
            durable.run(None, one, id="run", store=store, lease=2.0)
        database.execute("UPDATE durable_locks SET expires_at = now() + interval '1 hour' WHERE workflow_id = 'run'")
        stack.close()
        assert lease_of(database) is not None
        assert durable.run(None, one, id="run", store=store) == 1
