"""A real PostgreSQL for every test: a database per test worker, a schema per test. What takes longest is begun first."""

from __future__ import annotations

import faulthandler
import gc
import math
import os
import secrets
from collections.abc import Generator, Iterator, Sequence
from pathlib import Path
from typing import Final

import psycopg
import pytest
from _pytest.faulthandler import fault_handler_stderr_fd_key
from psycopg import sql
from psycopg.conninfo import make_conninfo

from durable.stores import memory
from durable.stores._embedded.server import Server
from durable.stores.protocol import QueueingStore
from harness.machine import shared_home
from harness.stages import EngineStage, Stage, memory_stage, postgres_stage
from harness.support import Database, end_looking

_ROOT = Path(__file__).resolve().parent.parent
_ENGINE: Final = _ROOT / "tests" / "engine"
_DEAF: Final = 30.0  # seconds after a test's limit, from which on its process has not heard the signal and is ended
_SKIPS_FORBIDDEN: Final = (
    "DURABLE_NO_SKIPS"  # in the environment: a skipped test fails the session, as .ci/run wants it
)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_collection() -> Generator[None, object, object]:
    """No garbage is looked for while modules and tests are collected, which stay: it took each worker a second."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.enable()


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Deal what takes long to the test workers, longest first; the rest stays in its order, beside its neighbours.

    `--dist worksteal` gives each worker as many neighbours as the next, and lets one that is done take from the end of
    another's: so each worker begins with its share of what is long, and what is short evens out the end.
    """
    cost = {item: max((float(mark.args[0]) for mark in item.iter_markers("long")), default=0.0) for item in items}
    # What is pure comes first of all: a mistake in the engine makes everything else fail.
    cost |= {item: math.inf for item in items if item.path.parent == _ENGINE}
    workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    longest = sorted((item for item in items if cost[item]), key=lambda item: -cost[item])
    items[:] = _dealt(longest, [item for item in items if not cost[item]], workers)


def _dealt(longest: Sequence[pytest.Item], rest: Sequence[pytest.Item], workers: int) -> list[pytest.Item]:
    """For each worker a share of both; xdist cuts the list into parts of these very sizes."""
    order: list[pytest.Item] = []
    left, taken = len(longest) + len(rest), 0
    for number in range(workers):
        size = left // (workers - number)
        left -= size
        share = longest[number::workers][:size]
        filling = size - len(share)
        order += [*share, *rest[taken : taken + filling]]
        taken += filling
    return order


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """End the process of a test that does not hear that its time is over; its threads' stacks are printed."""
    option, config = item.config.getoption, item.config
    limit = float(option("timeout") or os.environ.get("PYTEST_TIMEOUT") or config.getini("timeout"))
    if limit and not option("usepdb"):
        stderr = config.stash[fault_handler_stderr_fd_key]
        faulthandler.dump_traceback_later(limit + _DEAF, exit=True, file=stderr)
    try:
        return (yield)
    finally:
        faulthandler.cancel_dump_traceback_later()


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """Where nothing may be skipped, a session in which something was has failed."""
    end_looking()
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if os.environ.get(_SKIPS_FORBIDDEN) and reporter is not None and reporter.stats.get("skipped"):
        session.exitstatus = session.exitstatus or pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say why such a session has failed."""
    if os.environ.get(_SKIPS_FORBIDDEN) and (skipped := len(terminalreporter.stats.get("skipped", ()))):
        terminalreporter.write_line(f"{skipped} skipped, and ${_SKIPS_FORBIDDEN} forbids it", red=True)


@pytest.fixture(scope="session")
def server_url() -> Iterator[str]:
    """The server: $DATABASE_URL's, or an embedded one that all test workers share."""
    if url := os.environ.get("DATABASE_URL"):
        yield url
        return
    with shared_home() as home:
        server = Server(home)
        yield server.url
        server.close()


@pytest.fixture(scope="session")
def database_url(server_url: str, worker_id: str) -> Iterator[str]:
    """This test worker's own database."""
    name = sql.Identifier(f"durable_test_{worker_id}_{os.getpid()}")  # other sessions may share the server
    with psycopg.connect(server_url, autocommit=True) as connection:
        connection.execute(sql.SQL("CREATE DATABASE {} TEMPLATE template0 ENCODING 'UTF8'").format(name))
    url = make_conninfo(server_url, dbname=f"durable_test_{worker_id}_{os.getpid()}")
    yield url
    end_looking()
    with psycopg.connect(server_url, autocommit=True) as connection:
        # Threads that a test has struck down may have left sessions behind.
        ends = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s"
        connection.execute(ends, [f"durable_test_{worker_id}_{os.getpid()}"])
        connection.execute(sql.SQL("DROP DATABASE {}").format(name))


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    """This test's own schema in it."""
    database = Database(database_url, f"t_{secrets.token_hex(6)}")
    yield database
    database.drop()


@pytest.fixture(params=["engine", "memory sync", "memory async", "postgres sync", "postgres async"])
def stage(request: pytest.FixtureRequest) -> Iterator[Stage]:
    """One of the five ways."""
    kind, _, colour = request.param.partition(" ")
    if kind == "engine":
        yield EngineStage()
    elif kind == "memory":
        memory = memory_stage(is_async=colour == "async")
        yield memory
        memory._store.close()
    else:
        yield postgres_stage(request.getfixturevalue("database"), is_async=colour == "async")


@pytest.fixture(params=["memory", "postgres"])
def store(request: pytest.FixtureRequest) -> Iterator[QueueingStore]:
    """Either of our stores, where a test module has no `store` of its own."""
    if request.param == "memory":
        with memory() as made:
            yield made
    else:
        with request.getfixturevalue("database").store() as made:
            yield made
