"""The pytest plugin of `durable`: fixtures for tests of workflows.

It is a package of its own, so that pytest's start does not import `durable`: the first test that uses a fixture does.

- `durable_store`: an empty store for the test. In memory, or with `--durable-store=embedded` (or a URL) a schema of its
  own in a real PostgreSQL; `durable_store` in the ini file sets it for the whole suite.
- `rehearsal`: a `durable.testing.Rehearsal` on that store. With `--durable-always-replay` (ini: `durable_always_replay`)
  everything is replayed after each step.

The marker `@pytest.mark.durable(store="embedded", always_replay=True)` sets both for one test.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from durable.stores import PostgresStore
    from durable.stores.protocol import QueueingStore
    from durable.testing import Rehearsal

__all__ = ["durable_store", "rehearsal"]

_STORE = "durable_store"
_ALWAYS_REPLAY = "durable_always_replay"
_SERVERS = pytest.StashKey[ExitStack]()
_URL = pytest.StashKey[str]()


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options: where the tests' stores are, and whether everything is replayed."""
    what = "where durable's fixtures store: memory, embedded (a PostgreSQL started here), or the URL of one"
    group = parser.getgroup("durable")
    group.addoption("--durable-store", dest=_STORE, default=None, metavar="STORE", help=what)
    parser.addini(_STORE, what, default="memory")
    what = "execute each workflow again from its journal after each step, in the rehearsal fixture"
    group.addoption("--durable-always-replay", dest=_ALWAYS_REPLAY, action="store_true", default=None, help=what)
    parser.addini(_ALWAYS_REPLAY, what, type="bool", default=False)
    path = "where the embedded PostgreSQL keeps its data, from the root directory"
    parser.addini("durable_path", path, default=".durable-tests")


def pytest_configure(config: pytest.Config) -> None:
    """Register the marker."""
    config.addinivalue_line(
        "markers", "durable(store=..., always_replay=...): durable's fixtures for this test; see --durable-store"
    )


def pytest_unconfigure(config: pytest.Config) -> None:
    """Close the server, which ends with its last user."""
    if (servers := config.stash.get(_SERVERS, None)) is not None:
        servers.close()


@pytest.fixture
def durable_store(request: pytest.FixtureRequest) -> Iterator[QueueingStore]:
    """An empty store for this test: see the plugin's options."""
    where = str(_setting(request, "store", _STORE))
    if where == "memory":
        from durable.stores import memory  # noqa: PLC0415 -- see the module

        with memory() as store:
            yield store
    else:
        with _open_schema(_server_url(request.config, where)) as store:
            yield store


@pytest.fixture
def rehearsal(request: pytest.FixtureRequest, durable_store: QueueingStore) -> Iterator[Rehearsal]:
    """A rehearsal on the test's store. The test fails if a script was never played: its step may be misspelt."""
    from durable.testing import Rehearsal  # noqa: PLC0415 -- see the module

    with Rehearsal(durable_store, always_replay=bool(_setting(request, "always_replay", _ALWAYS_REPLAY))) as rehearsal:
        yield rehearsal
    if unplayed := rehearsal.unplayed():
        called = ", ".join(dict.fromkeys(rehearsal.bodies)) or "none"
        pytest.fail(f"scripted, and never called: {', '.join(unplayed)} (called were: {called})", pytrace=False)


def _setting(request: pytest.FixtureRequest, word: str, option: str) -> Any:
    """The setting of the nearest marker, else of the command line, else of the ini file."""
    for marker in request.node.iter_markers("durable"):
        if marker.args or not marker.kwargs.keys() <= {"store", "always_replay"}:
            raise pytest.UsageError(f"@pytest.mark.durable takes store= and always_replay=, not {marker}")
        if word in marker.kwargs:
            return marker.kwargs[word]
    given = request.config.getoption(option)
    return request.config.getini(option) if given is None else given


def _server_url(config: pytest.Config, where: str) -> str:
    """The URL of the PostgreSQL: the given one, or one that is started for this session."""
    if where != "embedded":
        if "=" not in where and "://" not in where:
            raise pytest.UsageError(f"durable's store is memory, embedded or the URL of a PostgreSQL, not {where!r}")
        return where
    if _URL not in config.stash:
        from durable.stores import embedded  # noqa: PLC0415 -- see the module

        store = embedded(config.rootpath / config.getini("durable_path"))
        config.stash.setdefault(_SERVERS, ExitStack()).callback(store.close)
        config.stash[_URL] = store.url
    return config.stash[_URL]


@contextmanager
def _open_schema(url: str) -> Iterator[PostgresStore]:
    """A store in a schema of its own, which is dropped afterwards."""
    import psycopg  # noqa: PLC0415 -- see the module
    from psycopg import sql  # noqa: PLC0415

    from durable.stores import postgres  # noqa: PLC0415

    schema = f"durable_test_{secrets.token_hex(6)}"
    try:
        with postgres(url, schema=schema) as store:
            yield store
    finally:
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute(sql.SQL("DROP SCHEMA IF EXISTS {} CASCADE").format(sql.Identifier(schema)))
