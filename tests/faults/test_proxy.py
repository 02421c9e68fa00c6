"""The instrument itself: what the proxy counts, and when its traps spring."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import psycopg
import pytest

from harness.ownership_children import wait_until
from harness.proxy import Count, Link, Moment, Proxy
from harness.support import Database


@pytest.fixture
def proxy(database: Database) -> Iterator[Proxy]:
    with Proxy(database.url) as proxy:
        yield proxy


@pytest.fixture
def connection(database: Database, proxy: Proxy) -> Iterator[psycopg.Connection[Any]]:
    """A connection through the proxy, with a table to write to."""
    database.execute(f"CREATE SCHEMA {database.schema}")
    database.execute("CREATE TABLE line (number integer)")
    options = f"-c search_path={database.schema}"
    with psycopg.connect(proxy.url, autocommit=True, prepare_threshold=None, options=options) as connection:
        yield connection


def test_counts_what_goes_through(proxy: Proxy, connection: psycopg.Connection[Any]) -> None:
    def counted(*statements: str) -> Count:
        before = proxy.count()
        for statement in statements:
            connection.execute(statement)
        return proxy.count().since(before)

    assert counted("SELECT 1") == Count(1, 1, 0, 1)
    assert counted("INSERT INTO line VALUES (1)") == Count(1, 1, 1, 1)
    assert counted("BEGIN", "INSERT INTO line VALUES (2)", "COMMIT") == Count(3, 3, 1, 3)
    assert counted("BEGIN", "INSERT INTO line VALUES (3)", "ROLLBACK", "SELECT 1") == Count(4, 4, 0, 4)


def test_counts_no_commit_for_what_failed(proxy: Proxy, connection: psycopg.Connection[Any]) -> None:
    before = proxy.count()

    with pytest.raises(psycopg.errors.DivisionByZero):
        connection.execute("INSERT INTO line VALUES (1); SELECT 1 / 0")

    assert proxy.count().since(before) == Count(1, 1, 0, 1)


def test_counts_a_pipeline_as_one_round_trip(proxy: Proxy, connection: psycopg.Connection[Any]) -> None:
    before = proxy.count()

    with connection.pipeline():
        for statement in ("BEGIN", "INSERT INTO line VALUES (1)", "INSERT INTO line VALUES (2)", "COMMIT"):
            connection.execute(statement)

    assert proxy.count().since(before) == Count(1, 1, 1, 4)


@pytest.mark.parametrize(
    ("moment", "committed"), [(Moment.SENT, False), (Moment.ANSWERED, True)], ids=["before COMMIT", "after COMMIT"]
)
@pytest.mark.parametrize("prepare", [False, True])
def test_cuts_a_connection_around_its_commit(
    database: Database,
    proxy: Proxy,
    connection: psycopg.Connection[Any],
    moment: Moment,
    committed: bool,
    prepare: bool,
) -> None:
    connection.execute("BEGIN", prepare=prepare)
    connection.execute("INSERT INTO line VALUES (%s)", (1,), prepare=prepare)
    trap = proxy.trap(moment, "COMMIT", Link.cut)

    with pytest.raises(psycopg.OperationalError) as problem:
        connection.execute("COMMIT", prepare=prepare)

    assert problem.value.sqlstate is None  # the client cannot tell the two apart
    assert trap.sprung.wait(10.0)
    assert database.execute("SELECT count(*) FROM line") == [(int(committed),)]


def test_springs_once_and_lets_pass(proxy: Proxy, connection: psycopg.Connection[Any]) -> None:
    seen: list[str] = []
    traps = [
        proxy.trap(Moment.SENT, "marked", lambda _: seen.append("sent")),
        proxy.trap(Moment.FORWARDED, "marked", lambda _: seen.append("forwarded")),
        proxy.trap(Moment.ANSWERED, "marked", lambda _: seen.append("answered")),
    ]

    for _ in range(2):
        assert connection.execute("SELECT %s", ("marked",)).fetchone() == ("marked",)

    assert all(trap.sprung.wait(10.0) for trap in traps)
    assert seen[0] == "sent"
    assert sorted(seen[1:]) == ["answered", "forwarded"]  # two directions, two threads: either may be first


def test_no_reply_overtakes_a_trap_on_what_was_forwarded(
    database: Database, proxy: Proxy, connection: psycopg.Connection[Any]
) -> None:
    """However slowly it acts: a client that it cuts has learnt nothing."""

    def cut(link: Link) -> None:
        wait_until(lambda: database.execute("SELECT number FROM line") == [(1,)], "the row to be committed")
        link.cut()

    proxy.trap(Moment.FORWARDED, "INSERT", cut)

    with pytest.raises(psycopg.OperationalError):
        connection.execute("INSERT INTO line VALUES (1)")
