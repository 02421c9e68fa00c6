"""Starts and signals in the transactions of Django and SQLAlchemy, as applications have them."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any, cast

import django
import pytest
import sqlalchemy
from django.conf import settings
from django.db import IntegrityError, transaction
from django.db.utils import ConnectionHandler
from psycopg.conninfo import conninfo_to_dict
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import Session

import durable
from durable.errors import AsyncMismatch, UnsuitableConnection
from durable.stores import PostgresStore
from harness.support import Database

WITHIN = 30.0


@durable.workflow(name="bare")
def bare(step: durable.Step, deps: Any) -> str:
    return step.wait_for("go", type=str)


@pytest.fixture
def store(database: Database) -> Iterator[PostgresStore]:
    with database.store() as made:
        made.stats()  # its schema is there
        database.execute("CREATE TABLE orders (number integer PRIMARY KEY)")
        yield made


def orders(database: Database) -> list[int]:
    return [number for (number,) in database.execute("SELECT number FROM orders ORDER BY number")]


# -- Django


@pytest.fixture
def wrapper(database: Database) -> Iterator[Any]:
    """Django's connection, as `django.db.connection` is one."""
    if not settings.configured:
        settings.configure(USE_TZ=True)
        django.setup()
    parts = conninfo_to_dict(database.url)
    options = {
        "options": f"-c search_path={database.schema}",
        "host": parts.pop("host", ""),
        "port": parts.pop("port", ""),
    }
    name = {"NAME": parts.pop("dbname"), "USER": parts.pop("user"), "PASSWORD": parts.pop("password", "")}
    alias = {"ENGINE": "django.db.backends.postgresql", **name, "OPTIONS": options}
    handler = ConnectionHandler({"default": alias})
    original = transaction.get_connection
    patched = pytest.MonkeyPatch()
    patched.setattr(transaction, "get_connection", lambda using=None: handler[using or "default"])
    yield handler["default"]
    handler["default"].close()
    patched.undo()
    assert transaction.get_connection is original


def insert(wrapper: Any, number: int) -> None:
    with wrapper.cursor() as cursor:
        cursor.execute("INSERT INTO orders VALUES (%s)", [number])


def test_djangos_atomic_commits_both(store: PostgresStore, wrapper: Any, database: Database) -> None:
    woken: list[str] = []
    with transaction.atomic():
        insert(wrapper, 7)
        handle = durable.start(bare, id="order-7", store=store, connection=wrapper)
        assert handle.signal("go", "paid", connection=wrapper) is True
        transaction.on_commit(lambda: durable.wake(store))
        transaction.on_commit(lambda: woken.append("woken"))
        assert (orders(database), handle.status()) == ([], None)
    assert (orders(database), handle.status(), woken) == ([7], "queued", ["woken"])
    durable.Worker(store, None, [bare]).run_until_idle()
    assert handle.result() == "paid"


def test_djangos_atomic_rolls_back_both(store: PostgresStore, wrapper: Any, database: Database) -> None:
    with pytest.raises(KeyError), transaction.atomic():
        insert(wrapper, 7)
        durable.start(bare, id="order-7", store=store, connection=wrapper)
        raise KeyError
    assert (orders(database), store.status("order-7")) == ([], None)


def test_djangos_savepoint_takes_its_own_with_it(store: PostgresStore, wrapper: Any, database: Database) -> None:
    with transaction.atomic():
        durable.start(bare, id="order-1", store=store, connection=wrapper)
        with pytest.raises(KeyError), transaction.atomic():
            durable.start(bare, id="order-2", store=store, connection=wrapper)
            raise KeyError
    assert (store.status("order-1"), store.status("order-2")) == ("queued", None)


def test_outside_of_atomic_django_commits_at_once(store: PostgresStore, wrapper: Any) -> None:
    assert durable.start(bare, id="order-7", store=store, connection=wrapper).status() == "queued"


def test_a_failed_atomic_is_refused_and_djangos_errors_are_djangos(store: PostgresStore, wrapper: Any) -> None:
    with transaction.atomic():
        insert(wrapper, 7)
    with pytest.raises(IntegrityError), transaction.atomic():
        try:
            with transaction.atomic(savepoint=False):
                insert(wrapper, 7)
        except IntegrityError:
            with pytest.raises(UnsuitableConnection, match="roll it back first"):
                durable.start(bare, store=store, connection=wrapper)
            raise
    with wrapper.cursor() as cursor:
        cursor.execute("SET default_transaction_read_only = on")
    with pytest.raises(Exception, match="read-only") as raised:
        durable.start(bare, store=store, connection=wrapper)
    assert type(raised.value).__module__ == "django.db.utils"


def test_the_async_form_refuses_djangos_connection(store: PostgresStore, wrapper: Any) -> None:
    with pytest.raises(AsyncMismatch, match=r"durable.start\(…\)"):
        asyncio.run(durable.aio.start(bare, store=store, connection=wrapper))


# -- SQLAlchemy


@pytest.fixture
def url(database: Database) -> sqlalchemy.URL:
    parts = cast("dict[str, Any]", conninfo_to_dict(database.url))
    query = {"host": parts["host"], "options": f"-c search_path={database.schema}"}
    made = sqlalchemy.URL.create("postgresql+psycopg", parts["user"], parts.get("password"), database=parts["dbname"])
    return made.set(port=int(parts["port"])).update_query_dict({name: value for name, value in query.items() if value})


@pytest.fixture
def engine(url: sqlalchemy.URL) -> Iterator[sqlalchemy.Engine]:
    made = sqlalchemy.create_engine(url)
    yield made
    made.dispose()


INSERT = sqlalchemy.text("INSERT INTO orders VALUES (7)")


def test_a_session_commits_both(store: PostgresStore, engine: sqlalchemy.Engine, database: Database) -> None:
    with Session(engine) as session:
        session.execute(INSERT)
        handle = durable.start(bare, id="order-7", store=store, connection=session.connection())
        assert handle.signal("go", "paid", connection=session.connection())
        assert (orders(database), handle.status()) == ([], None)
        session.commit()
    assert (orders(database), handle.status()) == ([7], "queued")
    durable.Worker(store, None, [bare]).run_until_idle()
    assert handle.result() == "paid"


def test_a_session_rolls_back_both(store: PostgresStore, engine: sqlalchemy.Engine, database: Database) -> None:
    with pytest.raises(KeyError), Session(engine) as session, session.begin():
        session.execute(INSERT)
        durable.start(bare, id="order-7", store=store, connection=session.connection())
        raise KeyError
    assert (orders(database), store.status("order-7")) == ([], None)


def test_a_session_that_does_nothing_else_commits(store: PostgresStore, engine: sqlalchemy.Engine) -> None:
    with Session(engine) as session:
        durable.start(bare, id="a", store=store, connection=session.connection())
        session.commit()
    with engine.connect() as connection:
        durable.start(bare, id="b", store=store, connection=connection)
        connection.commit()
        durable.start(bare, id="c", store=store, connection=connection)  # not committed: SQLAlchemy rolls it back
    with engine.begin() as connection:
        durable.start(bare, id="d", store=store, connection=connection)
    raw = engine.raw_connection()
    durable.start(bare, id="e", store=store, connection=raw)
    raw.commit()
    raw.close()
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        durable.start(bare, id="f", store=store, connection=connection)
    assert [store.status(name) for name in "abcdef"] == ["queued", "queued", None, "queued", "queued", "queued"]


def test_a_nested_transaction_takes_its_own_with_it(store: PostgresStore, engine: sqlalchemy.Engine) -> None:
    with Session(engine) as session:
        durable.start(bare, id="a", store=store, connection=session.connection())
        nested = session.begin_nested()
        durable.start(bare, id="b", store=store, connection=session.connection())
        nested.rollback()
        session.commit()
    assert (store.status("a"), store.status("b")) == ("queued", None)


def test_an_async_session_commits_and_rolls_back(store: PostgresStore, url: sqlalchemy.URL, database: Database) -> None:
    async def both() -> None:
        engine = create_async_engine(url)
        async with AsyncSession(engine) as session:
            await session.execute(INSERT)
            given: Any = {"store": store, "connection": await session.connection()}
            await durable.aio.start(bare, id="a", **given)
            assert await durable.aio.signal(given["store"], "a", "go", "hi", connection=given["connection"])
            await session.commit()
        async with AsyncSession(engine) as session:
            await durable.aio.start(bare, id="b", store=store, connection=await session.connection())
            await session.rollback()
        async with engine.connect() as connection:
            await durable.aio.start(bare, id="c", store=store, connection=connection)
            await connection.commit()
            with pytest.raises(UnsuitableConnection, match="AsyncConnection"):
                durable.start(bare, store=store, connection=connection)
        with pytest.raises(UnsuitableConnection, match="closed"):
            await durable.aio.start(bare, store=store, connection=connection)
        await engine.dispose()

    asyncio.run(both())
    assert (orders(database), [store.status(name) for name in "abc"]) == ([7], ["queued", None, "queued"])


def test_what_is_no_connection_of_sqlalchemys_is_told_what_is(store: PostgresStore, engine: sqlalchemy.Engine) -> None:
    with Session(engine) as session, pytest.raises(UnsuitableConnection, match=r"session.connection\(\)"):
        durable.start(bare, store=store, connection=session)
    with pytest.raises(UnsuitableConnection, match="Engine"):
        durable.start(bare, store=store, connection=engine)
    with engine.connect() as connection:
        with pytest.raises(AsyncMismatch):
            asyncio.run(durable.aio.start(bare, store=store, connection=connection))
        connection.close()
        with pytest.raises(UnsuitableConnection, match="closed"):
            durable.start(bare, store=store, connection=connection)
    other = sqlalchemy.create_engine("sqlite://")
    with other.connect() as connection, pytest.raises(UnsuitableConnection, match="another driver"):
        durable.start(bare, store=store, connection=connection)
