"""A real PostgreSQL for every test: a database per test worker, a schema per test."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import make_conninfo

from durable.stores._postgres.server import Server
from stages import EngineStage, Stage, memory_stage, postgres_stage
from support import Database

_ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def server_url() -> Iterator[str]:
    """The server: $DATABASE_URL's, or an embedded one that all test workers share."""
    if url := os.environ.get("DATABASE_URL"):
        yield url
        return
    server = Server(_ROOT / ".durable-tests")
    yield server.url
    server.close()


@pytest.fixture(scope="session")
def database_url(server_url: str, worker_id: str) -> Iterator[str]:
    """This test worker's own database."""
    name = sql.Identifier(f"durable_test_{worker_id}_{os.getpid()}")  # other sessions may share the server
    with psycopg.connect(server_url, autocommit=True) as connection:
        connection.execute(sql.SQL("CREATE DATABASE {} TEMPLATE template0 ENCODING 'UTF8'").format(name))
    yield make_conninfo(server_url, dbname=f"durable_test_{worker_id}_{os.getpid()}")
    with psycopg.connect(server_url, autocommit=True) as connection:
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
