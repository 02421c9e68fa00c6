"""What well-known libraries hand out: stored truly, or refused with the way out, before the body where its annotation tells."""

from __future__ import annotations

import collections
import datetime as dt
import io
import sqlite3
from collections.abc import Callable
from typing import Any

import httpx
import msgspec
import numpy as np
import pandas as pd
import pydantic
import pydantic.v1
import pytest
import requests
import sqlalchemy
from sqlalchemy import orm

import durable
from durable.codecs import JsonCodec
from durable.stores import memory
from harness.support import Database

CODEC = JsonCodec()


def through(value: Any) -> Any:
    """As a replay hands it out."""
    return CODEC.decode(CODEC.encode(value, what="it"), run_id="r", where="here")


def row(text: str = "SELECT 1 AS id, 'a' AS name, 1.5 AS price, NULL AS note") -> Any:
    """What SQLAlchemy answers."""
    with sqlalchemy.create_engine("sqlite://").connect() as connection:
        return connection.execute(sqlalchemy.text(text)).one()


class Site(pydantic.BaseModel):
    url: pydantic.HttpUrl
    database: pydantic.PostgresDsn


class Patch(msgspec.Struct):
    """What an update leaves as it is is not in it."""

    name: str | msgspec.UnsetType = msgspec.UNSET


STORED: dict[str, Any] = {
    "httpx, a URL": httpx.URL("https://u:p@münchen.de/ä b?x=%20&y=+#é"),
    "httpx, a relative URL": httpx.URL("/a?b=1"),
    "httpx, headers": httpx.Headers([("X-A", "1"), ("Set-Cookie", "a"), ("set-cookie", "b")]),
    "httpx, headers that are no ASCII": httpx.Headers([(b"x-a", "é".encode()), (b"X-B", b"\xe9")]),
    "httpx, headers in an encoding": httpx.Headers([("x", "ж")], encoding="koi8-r"),
    "httpx, a query": httpx.QueryParams([("a", "1"), ("a", "2"), ("b", "")]),
    "requests, headers": requests.structures.CaseInsensitiveDict({"X-A": "1", "x-b": "2"}),
    "pydantic, a URL": pydantic.HttpUrl("http://X/y?z"),
    "pydantic, any URL": pydantic.AnyUrl("ftp://x"),
    "pydantic, a DSN of several hosts": pydantic.PostgresDsn("postgres://u:p@h,i:5433/d"),
    "pydantic, a model with them": Site(url="http://x", database="postgres://u:p@h/d"),  # type: ignore[arg-type]
    "SQLAlchemy, a row": row(),
    "SQLAlchemy, a name twice": row("SELECT 1 AS id, 2 AS id"),
    "SQLAlchemy, no name": row("SELECT 1, 'x'"),
    "SQLAlchemy, a mapping": row()._mapping,
    "SQLAlchemy, a tag for a name": row('SELECT 1 AS "$type"'),
    "pandas, a moment": pd.Timestamp("2031-05-01 12:00"),
    "pandas, to the nanosecond in a zone": pd.Timestamp("2031-05-01 00:00:00.123456789", tz="Europe/Berlin"),
    "pandas, the hour that comes twice": pd.Timestamp(dt.datetime(2031, 10, 26, 2, 30, fold=1), tz="Europe/Berlin"),
    "pandas, seconds": pd.Timestamp("9999-12-31").as_unit("s"),
    "pandas, at an offset": pd.Timestamp("2031-05-01T12:00:00+05:30"),
    "pandas, a duration": pd.Timedelta("-1 days +00:00:00.000000001"),
    "pandas, a long one": pd.Timedelta(np.timedelta64(10**12, "s")),
    "numpy, a day": np.datetime64("2031-05-01"),
    "numpy, a nanosecond": np.datetime64("2031-05-01T00:00:00.123456789"),
    "numpy, a duration": np.timedelta64(-3, "ms"),
    "numpy, a plain one": np.timedelta64(3),
}


@pytest.mark.parametrize("name", STORED)
def test_it_comes_back(name: str) -> None:
    """Equal, of the same type, looking the same, alone and deep within."""
    value = STORED[name]
    for given in (value, [value], {"a": (value,)}):
        back = through(given)
        assert back == given
        assert type(back) is type(given)
        assert repr(back) == repr(given)
        assert CODEC.fingerprint(back, what="it") == CODEC.fingerprint(given, what="it")


def test_what_is_missing_is_itself() -> None:
    """One object each, which may be equal to nothing."""
    for missing in (pd.NaT, pd.NA, msgspec.UNSET):
        assert through(missing) is missing
    assert through(Patch()) == Patch()
    assert np.isnat(through(np.datetime64("NaT", "ns")))
    assert np.isnat(through(np.timedelta64("NaT", "s")))


def test_units_and_resolution_are_kept() -> None:
    """Which `==` does not ask about."""
    for unit in ("s", "ms", "us", "ns"):
        assert through(pd.Timestamp("2031-05-01").as_unit(unit)).unit == unit
        assert through(pd.Timedelta("1s").as_unit(unit)).unit == unit
        assert through(np.datetime64("2031-05-01", unit)).dtype == np.dtype(f"M8[{unit}]")


def test_a_row_is_one_by_name_by_number_and_as_a_mapping(database: Database) -> None:
    """Live and replayed, promised or not; in the table it is an object that SQL can look into."""

    def all_of_it() -> list[sqlalchemy.Row[Any]]:
        return [row(), row()]

    def workflow(step: durable.Step, _: None) -> Any:
        first: Any = step("read", all_of_it)[0]
        assert (first.id, first[1], first._mapping["price"], first.note) == (1, "a", 1.5, None)
        assert first._fields == ("id", "name", "price", "note")
        return first

    assert durable.run(None, workflow, id="r", store=database.store()) == row()
    assert durable.result(database.store(), "r") == row()
    told = database.execute("SELECT record->'value'->0->'value'->>'name' FROM durable_steps WHERE key = 'read'")
    assert told == [("a",)]


class Charge:
    """As the clients of several services make theirs: it knows the key of its account, and has a way out of itself."""

    def to_dict(self) -> dict[str, int]:
        return {"amount": 1}


class Old(pydantic.v1.BaseModel):
    x: int = 0


class MappedBase(orm.DeclarativeBase): ...


class User(MappedBase):
    __tablename__ = "users"
    id: orm.Mapped[int] = orm.mapped_column(primary_key=True)


class Account(orm.MappedAsDataclass, MappedBase):
    __tablename__ = "accounts"
    id: orm.Mapped[int] = orm.mapped_column(primary_key=True)


def sqlite_row() -> Any:
    """One of the standard library's."""
    connection = sqlite3.connect(":memory:")
    connection.row_factory = sqlite3.Row
    return connection.execute("SELECT 1 AS a").fetchone()


REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "httpx, an answer": (lambda: httpx.Response(200, json={}), "its JSON, text or content"),
    "requests, an answer": (requests.Response, "its JSON, text or content"),
    "httpx, cookies": (httpx.Cookies, r"dict\(...\) of it"),
    "a client's object": (Charge, r"what its .to_dict\(\) gives"),
    "a model of pydantic 1": (Old, r"what its .dict\(\) gives"),
    "an object of the mapper": (lambda: User(id=1), "belongs to its session"),
    "one that is a data class": (lambda: Account(id=1), "belongs to its session"),
    "sqlite3, a row": (sqlite_row, r"dict\(...\) of it"),
    "what is read from": (io.BytesIO, r"such as .read\(\) gives"),
    "a frame": (lambda: pd.DataFrame({"a": [1]}), "Convert it first"),
    "a period": (lambda: pd.Period("2031"), "Convert it first"),
}


@pytest.mark.parametrize("name", REFUSED)
@pytest.mark.parametrize("is_promised", [True, False])
def test_what_cannot_be_kept_is_refused_with_the_way_out(name: str, is_promised: bool) -> None:
    """Before the body where it says what it returns."""
    make, told = REFUSED[name]
    called: list[str] = []

    def body() -> Any:
        called.append("body")
        return make()

    if is_promised:
        body.__annotations__["return"] = type(make())
    with memory() as store, pytest.raises(durable.UnstorableValue, match=told):
        durable.run(None, lambda step, _: step("a", body), id="r", store=store)
    assert called == ([] if is_promised else ["body"])


def test_a_row_made_for_one_cursor_has_its_own_way_out() -> None:
    """As psycopg's `namedtuple_row`: its class is nowhere to be found again."""
    Found: Any = collections.namedtuple("Found", "a")  # noqa: PYI024
    with pytest.raises(durable.UnstorableValue, match=r"_asdict\(\)"):
        CODEC.encode(Found(1), what="it")


def test_a_mapped_object_within_a_row_is_named() -> None:
    """With the path to it."""
    engine = sqlalchemy.create_engine("sqlite://")
    MappedBase.metadata.create_all(engine)
    with orm.Session(engine) as session:
        session.add(User(id=1))
        found = session.execute(sqlalchemy.select(User)).one()
        with pytest.raises(durable.UnstorableValue, match=r"\$\.value\.User"):
            CODEC.encode(found, what="it")
