"""Both stores, with runs of every kind in them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from durable.stores import memory
from harness.pages import play
from harness.support import Database


@pytest.fixture(params=["memory", "postgres"])
def played(request: pytest.FixtureRequest) -> Iterator[Any]:
    """A store in which something has happened."""
    if request.param == "memory":
        store: Any = memory()
    else:
        database: Database = request.getfixturevalue("database")
        store = database.store()
    play(store)
    yield store
    store.close()


@pytest.fixture
def shop() -> Iterator[Any]:
    """The same in memory."""
    store = memory()
    play(store)
    yield store
    store.close()
