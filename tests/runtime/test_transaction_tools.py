"""SQLAlchemy and Django's ORM in a `step.transaction`: on its connection, and within its fence."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import django
import psycopg
import pytest
import sqlalchemy
from django.conf import settings
from django.db import connections, models, transaction
from django.db.utils import ConnectionHandler
from psycopg.conninfo import conninfo_to_dict
from sqlalchemy import exc, orm
from sqlalchemy.orm import Mapped, Session, mapped_column, sessionmaker

import durable
from durable.errors import InvalidArgument, TransactionMisused
from durable.stores import PostgresStore
from durable.transactions import django_connection, sqlalchemy_connection, sqlalchemy_session
from harness.support import Database

colours = pytest.mark.parametrize("is_async", [False, True], ids=["blocking", "async"])


class Base(orm.DeclarativeBase):
    pass


class Order(Base):
    __tablename__ = "orders"
    number: Mapped[int] = mapped_column(primary_key=True)
    note: Mapped[Any] = mapped_column(sqlalchemy.JSON, nullable=True)


@pytest.fixture
def store(database: Database) -> Iterator[PostgresStore]:
    with database.store() as made:
        made.stats()  # its schema is there
        database.execute("CREATE TABLE orders (number integer PRIMARY KEY, note jsonb)")
        yield made


def orders(database: Database) -> list[int]:
    return [number for (number,) in database.execute("SELECT number FROM orders ORDER BY number")]


def inside(schema: str, fn: Callable[..., Any], connection: Any, *args: Any) -> Any:
    """The body, where the table is found by its name alone."""
    connection.execute(f"SET LOCAL search_path TO {schema}")
    return fn(connection, *args)


def transacted(
    database: Database, store: Any, fn: Callable[..., Any], *args: Any, is_async: bool = False, id: str = "a"
) -> Any:
    """One run whose one step is this transaction."""
    fn = partial(inside, database.schema, fn)

    @durable.workflow("transacting")
    def workflow(step: durable.Step, deps: Any) -> Any:
        return step.transaction("place", fn, *args)

    @durable.workflow("transacting")
    async def async_workflow(step: durable.AsyncStep, deps: Any) -> Any:
        return await step.transaction("place", fn, *args)

    if is_async:
        return asyncio.run(durable.run(None, async_workflow, id=id, store=store))
    return durable.run(None, workflow, id=id, store=store)


# -- SQLAlchemy


def place(connection: psycopg.Connection[Any], number: int) -> int:
    """An order, by its session."""
    with sqlalchemy_session(connection) as session:
        session.add(Order(number=number, note={"by": "session"}))
    return number


@colours
def test_a_session_is_within_the_transaction(database: Database, store: PostgresStore, is_async: bool) -> None:
    """The first one of a process, too: there SQLAlchemy rolls back what it has begun to look at the server."""
    from durable import transactions  # noqa: PLC0415 -- to forget what it knows

    transactions._known_engine.cache_clear()
    assert transacted(database, store, place, 1, is_async=is_async) == 1
    assert transacted(database, store, place, 2, is_async=is_async, id="b") == 2
    assert transacted(database, store, place, 2, is_async=is_async, id="b") == 2
    assert orders(database) == [1, 2]
    assert database.journal("b")[0][1] == "place"


def test_a_body_that_raises_leaves_nothing(database: Database, store: PostgresStore) -> None:
    def body(connection: Any) -> None:
        place(connection, 1)
        raise ValueError("after it")

    with pytest.raises(ValueError, match="after it"):
        transacted(database, store, body)
    assert orders(database) == []


def test_the_way_of_the_core(database: Database, store: PostgresStore) -> None:
    def body(connection: Any) -> list[int]:
        with sqlalchemy_connection(connection) as core:
            core.execute(sqlalchemy.insert(Order), [{"number": 1}, {"number": 2}])
            with pytest.raises(exc.IntegrityError), core.begin_nested():
                core.execute(sqlalchemy.insert(Order), {"number": 1})
            connection.execute("INSERT INTO orders VALUES (3)")  # the same transaction, by hand
            return list(core.execute(sqlalchemy.select(Order.number).order_by(Order.number)).scalars())

    assert transacted(database, store, body) == [1, 2, 3]
    assert orders(database) == [1, 2, 3]


def test_a_maker_makes_it(database: Database, store: PostgresStore) -> None:
    class Mine(Session):
        pass

    maker = sessionmaker(class_=Mine, expire_on_commit=False)

    def body(connection: Any) -> str:
        with sqlalchemy_session(connection, maker) as session:
            session.add(Order(number=1))
            with session.begin_nested():
                session.add(Order(number=2))
            return type(session).__name__

    assert transacted(database, store, body) == "Mine"
    assert orders(database) == [1, 2]


def ends(how: str) -> Callable[[Any], None]:
    """A body that ends its transaction so."""

    def body(connection: Any) -> None:
        with sqlalchemy_session(connection) as session:
            session.add(Order(number=1))
            session.flush()
            match how:
                case "commit":
                    session.commit()
                case "rollback":
                    session.rollback()
                case "rollback amid an exception":
                    try:
                        raise ValueError
                    except ValueError:
                        session.rollback()
                case "commit as text":
                    session.execute(sqlalchemy.text("COMMIT"))
                case "going on after an error":
                    with pytest.raises(exc.IntegrityError):
                        session.execute(sqlalchemy.text("INSERT INTO orders VALUES (1)"))
                    session.rollback()
                case _:
                    session.connection().commit()

    return body


@pytest.mark.parametrize(
    "how", ["commit", "rollback", "rollback amid an exception", "going on after an error", "the connection's commit"]
)
def test_a_session_that_ends_it_is_refused(database: Database, store: PostgresStore, how: str) -> None:
    with pytest.raises(TransactionMisused):
        transacted(database, store, ends(how))
    assert orders(database) == []
    assert transacted(database, store, place, 7, id="b") == 7  # the connection is as good as before


def test_a_commit_as_text_is_noticed(database: Database, store: PostgresStore) -> None:
    """It cannot be prevented; nothing is recorded with it."""
    with pytest.raises(TransactionMisused, match="ended the transaction"):
        transacted(database, store, ends("commit as text"))
    assert [kind for kind, _, _ in database.journal("a") if kind == "step"] == ["step"]
    assert "TransactionMisused" in str(database.journal("a"))


def test_its_errors_are_the_steps(database: Database, store: PostgresStore) -> None:
    """A failed flush rolls back by itself; what was raised stays what is raised."""
    database.execute("INSERT INTO orders VALUES (1)")
    with pytest.raises((exc.IntegrityError, durable.StepFailed), match="duplicate key"):
        transacted(database, store, place, 1)


def test_a_conflict_has_the_body_called_again(database: Database, store: PostgresStore) -> None:
    tries = itertools.count()

    def body(connection: Any) -> int:
        with sqlalchemy_session(connection) as session:
            session.add(Order(number=1))
            session.flush()
            if not next(tries):
                session.execute(sqlalchemy.text("DO $$ BEGIN RAISE EXCEPTION USING ERRCODE = '40001'; END $$"))
        return next(tries)

    assert transacted(database, store, body) == 2
    assert orders(database) == [1]


def test_what_is_no_bodys_connection_is_refused(database: Database) -> None:
    with psycopg.connect(database.url) as connection, pytest.raises(InvalidArgument, match=r"step\.transaction"):
        place(connection, 1)


def test_it_cannot_be_kept(database: Database, store: PostgresStore) -> None:
    kept: list[Any] = []

    def body(connection: Any) -> None:
        with sqlalchemy_connection(connection) as core:
            kept.append(core.connection.driver_connection)

    transacted(database, store, body)
    with pytest.raises(TransactionMisused, match="after the body had returned"):
        kept[0].execute("SELECT 1")


@colours
def test_a_map_of_sessions(database: Database, store: PostgresStore, is_async: bool) -> None:
    def workflow(step: durable.Step, deps: Any) -> Any:
        return step.map_transactions("place", partial(inside, database.schema, place), range(6), max_concurrency=3)

    async def async_workflow(step: durable.AsyncStep, deps: Any) -> Any:
        return await step.map_transactions(
            "place", partial(inside, database.schema, place), range(6), max_concurrency=3
        )

    for _ in range(2):
        if is_async:
            done = asyncio.run(durable.run(None, async_workflow, id="a", store=store))
        else:
            done = durable.run(None, workflow, id="a", store=store)
        assert done == list(range(6))
    assert orders(database) == list(range(6))


# -- Django


@pytest.fixture
def model(database: Database, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A model of the orders, whose database is this one."""
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
    monkeypatch.setitem(connections.__dict__, "settings", ConnectionHandler({"default": alias}).settings)
    return _model()


def _model() -> Any:
    global DjangoOrder
    if DjangoOrder is None:

        class Order(models.Model):  # type: ignore[misc]  # noqa: DJ008
            number: Any = models.IntegerField(primary_key=True)
            note: Any = models.JSONField(null=True)

            class Meta:
                app_label = "shop"
                db_table = "orders"

        DjangoOrder = Order
    return DjangoOrder


DjangoOrder: Any = None


@colours
def test_djangos_models_are_within_the_transaction(
    database: Database, store: PostgresStore, model: Any, is_async: bool
) -> None:
    def body(connection: Any, number: int) -> list[Any]:
        with django_connection(connection):
            with transaction.atomic():
                model.objects.create(number=number, note={"by": "django"})
            with pytest.raises(django.db.IntegrityError), transaction.atomic():
                model.objects.create(number=number)
            connection.execute("INSERT INTO orders VALUES (%s)", (number + 10,))
            return list(model.objects.order_by("number").values_list("number", "note"))

    assert transacted(database, store, body, 1, is_async=is_async) == [(1, {"by": "django"}), (11, None)]
    assert transacted(database, store, body, 1, is_async=is_async) == [(1, {"by": "django"}), (11, None)]
    assert orders(database) == [1, 11]


def test_djangos_own_connection_comes_back(database: Database, store: PostgresStore, model: Any) -> None:
    before = connections["default"]

    def body(connection: Any) -> None:
        with django_connection(connection):
            assert connections["default"] is not before
            model.objects.create(number=1)
            raise ValueError

    with pytest.raises(ValueError):
        transacted(database, store, body)
    assert connections["default"] is before
    assert orders(database) == []
    before.close()


@pytest.mark.parametrize("how", ["commit", "rollback", "close", "on_commit", "set_autocommit", "an error in a block"])
def test_a_django_body_that_ends_it_is_refused(database: Database, store: PostgresStore, model: Any, how: str) -> None:
    def body(connection: Any) -> None:
        with django_connection(connection) as wrapper:
            model.objects.create(number=1)
            match how:
                case "on_commit":
                    transaction.on_commit(lambda: None)
                case "set_autocommit":
                    transaction.set_autocommit(True)
                case "an error in a block":
                    with pytest.raises(ZeroDivisionError), transaction.atomic(savepoint=False):
                        raise ZeroDivisionError
                case _:
                    getattr(wrapper, how)()

    with pytest.raises(TransactionMisused):
        transacted(database, store, body)
    assert orders(database) == []
