"""What a server must be: other databases, old ones and standbys are refused by name; settings that lose are told."""

from __future__ import annotations

import asyncio
import secrets
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import make_conninfo
from psycopg_pool import ConnectionPool

import durable
from durable.stores import postgres
from durable.stores._embedded import server as servers
from durable.stores._embedded.server import Server
from durable.stores._postgres.requirements import durability_warnings, why_unsupported
from harness.ownership_children import wait_until
from harness.pgbouncer import bouncer
from harness.support import Database, needs_pgbouncer


async def async_workflow(step: durable.AsyncStep, _: Any) -> str:
    return await step("one", lambda: "done")


def workflow(step: durable.Step, _: Any) -> str:
    return step("one", lambda: "done")


# -- FAULTS 59: which database it is --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("said", "named"),
    [
        ("CockroachDB CCL v23.1.11 (x86_64-pc-linux-gnu, built 2023/09/27, go1.19.10)", "CockroachDB"),
        ("PostgreSQL 11.2-YB-2.18.0.0-b0 on x86_64-pc-linux-gnu, compiled by clang version 15.0.3", "YugabyteDB"),
        ("PostgreSQL 15.2-YB-2.25.0.0-b0 on x86_64-pc-linux-gnu", "YugabyteDB"),
        ("PostgreSQL 8.0.2 on i686-pc-linux-gnu, compiled by GCC gcc (GCC) 3.4.2, Redshift 1.0.12103", "Redshift"),
        ("PostgreSQL 12.12 (Greenplum Database 7.0.0 build commit:0a7a3566) on x86_64", "Greenplum"),
        ("PostgreSQL 13.14.0-RisingWave-2.1.0 (unknown)", "RisingWave"),
        ("PostgreSQL 11.22 on x86_64-pc-linux-gnu, compiled by gcc (GCC) 6.4.0, 64-bit", "PostgreSQL 11.22"),
        ("PostgreSQL 9.6.24 on x86_64-pc-linux-gnu", "PostgreSQL 9.6.24"),
        ("SomethingElse 3.1", "SomethingElse"),
        (
            "PostgreSQL 16.4 on x86_64-pc-linux-gnu, compiled by emcc (Emscripten gcc/clang-like replacement) 3.1.72, 32-bit",
            "PGlite",
        ),
        (
            "PostgreSQL 18.3 (PGlite 0.5.8) on wasm32-unknown-emscripten, compiled by emcc (Emscripten), 32-bit",
            "PGlite",
        ),
        ("PostgreSQL 18.3 (PGlite 0.5.5) on wasm32-unknown-linux-gnu, compiled by clang, 32-bit", "PGlite"),
        ("", "nothing"),
    ],
)
def test_what_is_not_postgresql_12_or_newer_is_refused_by_name(said: str, named: str) -> None:
    """FAULTS 59, on what the servers say of themselves: there are none of them here."""
    problem = why_unsupported(said)
    assert problem is not None
    assert named in problem


@pytest.mark.parametrize(
    "said",
    [
        "PostgreSQL 12.22 on x86_64-pc-linux-gnu, compiled by gcc (GCC) 6.4.0, 64-bit",
        "PostgreSQL 15.18 (Debian 15.18-0+deb12u1) on x86_64-pc-linux-gnu, compiled by gcc (Debian 12.2.0), 64-bit",
        "PostgreSQL 19beta1 on x86_64-pc-linux-gnu",
        "PostgreSQL 14.2 (EnterpriseDB Advanced Server 14.2.1) on x86_64-pc-linux-gnu",
        "EnterpriseDB 12.1.2 on x86_64-pc-linux-gnu",
    ],
)
def test_postgresql_is_accepted(said: str) -> None:
    """As its packagers call it."""
    assert why_unsupported(said) is None


# -- FAULTS 38: it takes writes -----------------------------------------------------------------------------------------


def test_a_read_only_session_is_refused_at_once(database: Database) -> None:
    """FAULTS 38: by a run, and by whoever only wants to read; tables are there already."""
    database.store().list()
    url = make_conninfo(database.url, options="-cdefault_transaction_read_only=on")
    store = database.store(url)
    for attempt in (lambda: durable.run(None, workflow, id="x", store=store), store.list, lambda: store.load("x")):
        with pytest.raises(durable.UnsuitableServer, match=r"read-only.*default_transaction_read_only"):
            attempt()


def test_a_role_that_became_read_only_is_told_so(database: Database) -> None:
    """FAULTS 38: the first connection was another one; the claim that meets it says what it is, and nothing is stored."""
    store = database.store()
    store.list()
    session = store._held.resources.connections.take(store.clock.elapsed() + 5.0)
    session.connection.execute("SET default_transaction_read_only = on")
    store._held.resources.connections.give_back(session)
    with pytest.raises(durable.UnsuitableServer, match="read-only"):
        durable.run(None, workflow, id="x", store=store)
    session = store._held.resources.connections.take(store.clock.elapsed() + 5.0)
    session.connection.execute("SET default_transaction_read_only = off")
    store._held.resources.connections.give_back(session)
    assert durable.status(store, "x") is None


@pytest.fixture
def standby(tmp_path: Path) -> Iterator[tuple[Server, Server]]:
    """A primary, and a standby that streams from it."""
    primary = Server(tmp_path / "primary")
    with postgres(primary.url) as store:
        durable.run(None, workflow, id="x", store=store)
    base, account = tmp_path / "standby", servers._account()
    base.mkdir()
    data = servers._data_directory(base, account)
    programs = servers._binaries(data)
    command: list[Any] = [programs / "pg_basebackup", "-D", data, "-R", "-X", "stream", "-c", "fast", "-d", primary.url]
    subprocess.run(command, check=True, capture_output=True, env=servers._environment(), cwd="/", **account.options)
    replica = Server(base)
    yield primary, replica
    replica.close()
    primary.close()


def test_a_hot_standby_is_refused_and_passed_over(standby: tuple[Server, Server]) -> None:
    """FAULTS 38: by name, at once, also for who only reads: no run loads a snapshot from a replica. Of both the primary is used."""
    primary, replica = standby
    with psycopg.connect(replica.url) as connection:
        assert connection.execute("SELECT pg_is_in_recovery()").fetchone() == (True,)
    with postgres(replica.url) as store:
        for attempt in (lambda: durable.run(None, workflow, id="x", store=store), lambda: store.load("x")):
            with pytest.raises(durable.UnsuitableServer, match=r"hot standby.*primary"):
                attempt()
    hosts = f"{replica.socket_directory},{primary.socket_directory}"
    with postgres(make_conninfo(primary.url, host=hosts)) as store:
        assert durable.run(None, workflow, id="x", store=store) == "done"


def test_a_later_connection_to_a_standby_is_refused_too(standby: tuple[Server, Server]) -> None:
    """FAULTS 38: after the address has come to mean another server. Its own word on connecting is taken, without a round trip."""
    primary, replica = standby
    with postgres(primary.url) as store:
        assert store.load("x") is not None
        connections = store._held.resources.connections
        connections.take(store.clock.elapsed() + 5.0).connection.close()
        connections._parts["host"] = str(replica.socket_directory)
        with psycopg.connect(replica.url) as connection:
            says_so = connection.info.server_version >= 140000
        if says_so:
            with pytest.raises(durable.UnsuitableServer, match="hot standby"):
                store.load("x")
        with pytest.raises(durable.UnsuitableServer, match=r"hot standby|read-only"):
            durable.run(None, workflow, id="y", store=store)


# -- FAULTS 55: what it acknowledges is on disk ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["fsync", "full_page_writes", "synchronous_commit"])
def test_a_setting_that_loses_is_a_doubt(name: str) -> None:
    """FAULTS 55: each by its name, with what it can cost."""
    sound = {"fsync": "on", "full_page_writes": "on", "synchronous_commit": "on", "synchronous_standby_names": ""}
    assert durability_warnings(sound) == []
    (doubt,) = durability_warnings(sound | {name: "off"})
    assert doubt.startswith(f"{name} is off: ")


def test_waiting_for_no_standby_is_a_doubt_where_there_are_synchronous_ones() -> None:
    """FAULTS 55: a fail-over loses what only the primary had."""
    assert durability_warnings({"synchronous_commit": "local", "synchronous_standby_names": ""}) == []
    (doubt,) = durability_warnings({"synchronous_commit": "local", "synchronous_standby_names": "s1"})
    assert "synchronous_commit is local" in doubt


@pytest.fixture
def careless(database: Database) -> Iterator[str]:
    """The URL of a role that does not wait for the disk."""
    role = f"{database.schema}_careless"
    database.store().list()
    with psycopg.connect(database.url, autocommit=True) as owner:
        name = sql.Identifier(role)
        owner.execute(sql.SQL("CREATE ROLE {} SUPERUSER LOGIN").format(name))
        owner.execute(sql.SQL("ALTER ROLE {} SET synchronous_commit = off").format(name))
        yield make_conninfo(database.url, user=role)
        owner.execute(sql.SQL("DROP OWNED BY {0}; DROP ROLE {0}").format(name))


def _setting(store: Any) -> str:
    """What the store's own sessions have."""
    session = store._held.resources.connections.take(store.clock.elapsed() + 5.0)
    (said,) = session.execute(b"SHOW synchronous_commit").fetchone()
    store._held.resources.connections.give_back(session)
    return str(said)


def test_our_own_sessions_wait_for_the_disk_whatever_the_role_does(
    database: Database, careless: str, caplog: pytest.LogCaptureFixture
) -> None:
    """FAULTS 55: on each connection, and nothing is to be warned of, or refused."""
    with psycopg.connect(careless) as connection:
        assert connection.execute("SHOW synchronous_commit").fetchone() == ("off",)
    with database.store(careless, strict=True) as store:
        assert durable.run(None, workflow, id="x", store=store) == "done"
        assert _setting(store) == "on"
        store._held.resources.connections.take(store.clock.elapsed() + 5.0).connection.close()
        assert _setting(store) == "on"
    assert caplog.text == ""


def test_transactions_wait_for_the_disk_each_time(database: Database, careless: str) -> None:
    """FAULTS 55: also on a connection that was made as new after another body."""
    seen: list[str] = []

    def body(connection: Any) -> int:
        seen.append(connection.execute("SHOW synchronous_commit").fetchone()[0])
        return int(connection.info.backend_pid)

    def twice(step: durable.Step, _: Any) -> list[int]:
        return [step.transaction("book", body) for _ in range(2)]

    with database.store(careless) as store:
        pids = durable.run(None, twice, id="x", store=store)
    assert len(set(pids)) == 1
    assert seen == ["on", "on"]


def test_a_lent_session_is_left_as_it_is_and_told(
    database: Database, careless: str, caplog: pytest.LogCaptureFixture
) -> None:
    """FAULTS 55: it is the user's, so this is warned of at first use, once; strict refuses."""
    with ConnectionPool(careless, min_size=1, open=True) as pool:
        store = postgres(schema=database.schema, pool=pool)
        durable.run(None, workflow, id="x", store=store)
        durable.run(None, workflow, id="y", store=store)
        store.close()
        assert [record.levelname for record in caplog.records] == ["WARNING"]
        assert "synchronous_commit is off" in caplog.text
        assert "strict=True" in caplog.text
        strict = postgres(schema=database.schema, pool=pool, strict=True)
        with pytest.raises(durable.UnsuitableServer, match="synchronous_commit is off"):
            durable.run(None, workflow, id="z", store=strict)
        strict.close()
        assert database.execute("SELECT id FROM durable_snapshots ORDER BY id") == [("x",), ("y",)]


@needs_pgbouncer
def test_behind_a_pooler_it_is_told(database: Database, careless: str, caplog: pytest.LogCaptureFixture) -> None:
    """FAULTS 55: a session there is anybody's."""
    with bouncer(careless) as started, database.store(started.url) as store:
        durable.run(None, workflow, id="x", store=store)
    assert "synchronous_commit is off" in caplog.text


def test_a_server_that_may_tear_its_pages_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """FAULTS 55: full_page_writes off, which is the whole server's; strict refuses it before anything is made there."""
    server = Server(tmp_path)
    with psycopg.connect(server.url, autocommit=True) as connection:
        connection.execute("ALTER SYSTEM SET full_page_writes = off")
        connection.execute("SELECT pg_reload_conf()")
    wait_until(lambda: _shown(server.url, "full_page_writes") == "off", "the setting to be read")
    with (
        postgres(server.url, strict=True) as store,
        pytest.raises(durable.UnsuitableServer, match="full_page_writes is off"),
    ):
        durable.run(None, workflow, id="x", store=store)
    with psycopg.connect(server.url) as connection:
        assert connection.execute("SELECT to_regclass('durable_snapshots')").fetchone() == (None,)
    with postgres(server.url) as store:
        assert durable.run(None, workflow, id="x", store=store) == "done"
    assert "full_page_writes is off" in caplog.text
    server.close()


def _shown(url: str, setting: str) -> str:
    with psycopg.connect(url) as connection:
        (value,) = connection.execute(sql.SQL("SHOW {}").format(sql.Identifier(setting))).fetchone() or ("",)
    return str(value)


def test_durable_is_not_loud_where_all_is_well(database: Database, caplog: pytest.LogCaptureFixture) -> None:
    """No warning at a first use."""
    with database.store(strict=True) as store:
        durable.run(None, workflow, id="x", store=store)
    assert caplog.text == ""


# -- what a database can hold, and who else writes ------------------------------------------------------------------------


@pytest.mark.parametrize("encoding", ["LATIN1", "SQL_ASCII", "EUC_JP"])
def test_a_database_that_cannot_hold_every_text_is_refused(database: Database, encoding: str) -> None:
    """R-F12: before a run is written, and not once a step has returned what it cannot hold. It can be looked at."""
    name = f"encoded_{secrets.token_hex(4)}"
    with psycopg.connect(database.url, autocommit=True) as connection:
        made = "CREATE DATABASE {} TEMPLATE template0 ENCODING {} LC_COLLATE 'C' LC_CTYPE 'C'"
        connection.execute(sql.SQL(made).format(sql.Identifier(name), sql.Literal(encoding)))
        try:
            with postgres(make_conninfo(database.url, dbname=name)) as store:
                for _ in range(2):
                    with pytest.raises(durable.UnsuitableServer, match=f"{encoding}.*UTF8"):
                        durable.run(None, workflow, id="x", store=store)
                with pytest.raises(durable.UnsuitableServer, match=f"{encoding}.*UTF8"):
                    asyncio.run(durable.run(None, async_workflow, id="x", store=store))
                assert (store.status("x"), store.load("x")) == (None, None)
        finally:
            connection.execute(sql.SQL("DROP DATABASE {}").format(sql.Identifier(name)))


@pytest.mark.parametrize("extension", ["spock", "bdr", "pgactive"])
def test_an_extension_that_lets_several_servers_write_is_told(extension: str) -> None:
    assert extension in "".join(durability_warnings({"extensions": f"plpgsql,{extension}"}))
    assert durability_warnings({"extensions": f"plpgsql,{extension}_other"}) == []
