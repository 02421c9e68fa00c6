"""What may be wrong with a database, or the way to it, as durable needs it. Nothing is changed there."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator, Mapping
from datetime import UTC
from typing import Any, Final, Literal, NamedTuple, TypeAlias

import psycopg

from durable.clocks import SystemClock
from durable.errors import DurableError, InvalidArgument, SchemaMismatch
from durable.operate.standing import show_about, show_seconds
from durable.stores._postgres import requirements
from durable.stores._postgres.conninfo import address_of, read_url
from durable.stores._postgres.error_messages import explain
from durable.stores._postgres.schema import prepare
from durable.stores._postgres.sql.loader import load_migrations, load_statements, qualify
from durable.stores._postgres.sql.names import Names
from durable.stores._postgres.sql.reading import statement as reading
from durable.stores._postgres.sql.snapshots import statement
from durable.stores._postgres.starts import name_route, render_first
from durable.stores.reading import Health

Level: TypeAlias = Literal["fine", "warning", "error"]

_CONNECTING: Final = 10  # seconds
_ROUNDS: Final = 20  # round trips that are measured
_SKEW: Final = 5.0  # seconds between two clocks, above which times that are shown mislead
_SLOW: Final = 0.05  # seconds of a round trip, above which each step takes long
_OPEN: Final = 600.0  # seconds that a transaction may be open without harm to speak of
_WAITED: Final = 60.0  # seconds that a run may be due before it is said
_CONNECTIONS: Final = 0.9  # of those that the server allows


class Check(NamedTuple):
    """What was looked at, and what is to be said of it."""

    level: Level
    name: str
    said: str


def examine(url: str, names: Mapping[str, Any], *, source: str, prefix: str = "") -> Iterator[Check]:
    """Look at everything; what cannot be looked at without what failed before is left out."""
    try:
        parts = read_url(url or None)
        tables = Names(**names)
    except InvalidArgument as problem:
        yield Check("error", "URL", f"from {source}: {problem}")
        return
    where = address_of(parts)
    yield Check("fine", "URL", f"from {source}, {where}")
    try:
        began = time.monotonic()
        given: dict[str, Any] = {**parts, "connect_timeout": parts.get("connect_timeout", _CONNECTING)}
        connection = psycopg.connect(**given, autocommit=True, prepare_threshold=None)
    except psycopg.Error as problem:
        yield Check("error", "server", str(explain(problem, where)))
        return
    except DurableError as problem:
        yield Check("error", "server", str(problem))
        return
    with connection:
        try:
            yield from _examine(connection, tables, where, prefix, time.monotonic() - began)
        except psycopg.Error as problem:
            yield Check("error", "server", str(explain(problem, where)))


def judge_health(health: Health) -> list[Check]:
    """What is to be said of it: only what is wrong."""
    checks: list[Check] = []
    if health.due_for is not None and health.due_for > _WAITED:
        said = (
            f"what is due longest has waited {show_about(health.due_for)} for a worker: more of them, or more at once"
        )
        checks.append(Check("warning", "waiting", said))
    checks.append(_judge_stuck(health.stuck, health.stuck_for))
    if health.connections is not None:
        checks.append(_judge_room(*health.connections))
    if health.open_transaction is not None:
        checks += _judge_transaction(*health.open_transaction)
    return [check for check in checks if check.level != "fine"]


def read_version(url: str, names: Mapping[str, Any]) -> tuple[int, int]:
    """Up to which migration the tables are, and which is the newest one. Raises the store's errors."""
    parts, tables = read_url(url or None), Names(**names)
    try:
        with psycopg.connect(**{**parts, "connect_timeout": _CONNECTING}, autocommit=True) as connection:  # type: ignore[arg-type]
            return _version(connection, tables), max(load_migrations(tables))
    except psycopg.Error as problem:
        raise explain(problem, address_of(parts)) from None


def _examine(
    connection: psycopg.Connection[Any], names: Names, where: str, prefix: str, connected: float
) -> Iterator[Check]:
    try:
        requirements.check_kind(connection, where)
    except DurableError as problem:
        yield Check("error", "server", str(problem))
        return
    kind = "primary"
    try:
        settings = requirements.read_settings(connection, where)
    except DurableError as problem:
        yield Check("error", "server", str(problem))
        return
    unfit = requirements.why_unfit(settings, where)
    version = connection.info.server_version
    number = f"{version // 10_000}.{version % 10_000}"
    if unfit is not None:
        yield Check("error", "encoding", str(unfit))
    lost = requirements.durability_warnings(settings)
    dangerous = [said for said in lost if said.startswith(("fsync", "full_page"))]
    on = ", ".join(f"{name} {settings[name]}" for name in ("fsync", "full_page_writes") if settings.get(name))
    yield Check("error" if dangerous else "fine", "server", f"PostgreSQL {number}, {kind}, {on}" + _also(dangerous))
    commits = [said for said in lost if said not in dangerous]
    if commits:
        yield Check("warning", "commits", f"{'; '.join(commits)}. {_commit_advice(connection)}")
    else:
        yield Check("fine", "commits", f"synchronous_commit {settings.get('synchronous_commit')}")
    yield from _schema(connection, names)
    yield from _clock(connection)
    direct = _one(connection, "SELECT pg_backend_pid()") == connection.info.backend_pid
    pooled = "a pooler in transaction mode: no prepared statements, and no waking of workers"
    yield Check("fine", "pooler", "none: the connection leads to the server" if direct else pooled)
    yield from _room(connection, names)
    yield from _runs(connection, names, prefix)
    yield from _transactions(connection, names)
    yield _round_trip(connection, connected)


def _schema(connection: psycopg.Connection[Any], names: Names) -> Iterator[Check]:
    newest = max(load_migrations(names))
    try:
        doubts = prepare(connection, names, create=False)
    except SchemaMismatch as problem:
        advice = "durable migrate makes what is missing" if _version(connection, names) < newest else ""
        yield Check("error", "schema", f"{problem}{' ' + advice if advice else ''}")
        return
    except DurableError as problem:
        yield Check("error", "rights", str(problem))
        return
    yield Check("fine", "schema", f"version {newest} of {newest}, unique (workflow_id, owner_token) is there")
    for doubt in doubts:
        yield Check("error", "tables", doubt)
    yield Check("fine", "rights", "SELECT, INSERT and UPDATE where they are needed to run workflows")


def _clock(connection: psycopg.Connection[Any]) -> Iterator[Check]:
    clock = SystemClock()
    sent = clock.now()
    server = _one(connection, "SELECT clock_timestamp()").astimezone(UTC)
    back = clock.now()
    behind = (server - (sent + (back - sent) / 2)).total_seconds()
    word = "behind" if behind > 0 else "ahead of"
    said = f"this machine is {show_seconds(abs(behind))} {word} the server (leases are timed by the server)"
    yield Check("warning" if abs(behind) > _SKEW else "fine", "clock", said)


def _room(connection: psycopg.Connection[Any], names: Names) -> Iterator[Check]:
    yield _judge_room(*_rows(connection, names, "connections")[0])


def _judge_room(used: int, most: int) -> Check:
    said = f"{used} of {most} are taken"
    if used >= most * _CONNECTIONS:
        return Check("warning", "connections", f"{said}: give the pool a limit, or raise max_connections")
    return Check("fine", "connections", said)


def _runs(connection: psycopg.Connection[Any], names: Names, prefix: str) -> Iterator[Check]:
    """What waits in vain: due, and of no worker; or interrupted."""
    if _version(connection, names) < max(load_migrations(names)):
        return
    unserved = statement(names, "unserved", ())
    for (route,) in psycopg.Cursor(connection).execute(unserved, {"first": render_first(prefix)}).fetchall():
        why = "no worker that was at work in the last minute executes it"
        yield Check("warning", "unserved", f"something is due of {name_route(route)}, and {why}")
    yield _judge_stuck(*_rows(connection, names, "stuck", {"prefix": prefix})[0])


def _judge_stuck(count: int, oldest: float | None) -> Check:
    if count:
        runs = "1 run" if count == 1 else f"{'more than 10,000' if count > 10_000 else f'{count:,}'} runs"  # noqa: PLR2004
        said = (
            f"{runs} of durable.run, the oldest for {show_about(oldest or 0.0)}: no process goes on with them by itself"
        )
        return Check("warning", "interrupted", f"{said}; see durable list status:interrupted")
    return Check("fine", "interrupted", "none")


def _transactions(connection: psycopg.Connection[Any], names: Names) -> Iterator[Check]:
    for pid, age in _rows(connection, names, "oldest_transaction"):
        yield from _judge_transaction(pid, age)


def _judge_transaction(pid: int, age: float) -> Iterator[Check]:
    if age > _OPEN:
        said = (
            f"pid {pid} has a transaction of {show_about(age)} open: dead rows of leases pile up. See pg_stat_activity"
        )
        yield Check("warning", "open too long", said)


def _round_trip(connection: psycopg.Connection[Any], connected: float) -> Check:
    times: list[float] = []
    for _ in range(_ROUNDS):
        began = time.perf_counter()
        connection.execute("SELECT 1")
        times.append(time.perf_counter() - began)
    median = statistics.median(times)
    said = f"{median * 1000:.1f} ms, median of {_ROUNDS}; connecting took {show_seconds(connected)}"
    if median > _SLOW:
        return Check("warning", "round trip", f"{said}: each step waits for one")
    return Check("fine", "round trip", said)


def _commit_advice(connection: psycopg.Connection[Any]) -> str:
    role = _one(connection, "SELECT quote_ident(current_user)")
    return f"ALTER ROLE {role} SET synchronous_commit = on"


def _version(connection: psycopg.Connection[Any], names: Names) -> int:
    known = load_statements(names)
    if not _one(connection, known["migrations_exist"], names.quoted):
        return 0
    return int(_one(connection, known["version"]) or 0)


def _rows(connection: psycopg.Connection[Any], names: Names, name: str, values: Any = None) -> list[Any]:
    return psycopg.Cursor(connection).execute(reading(names, name), values or {}, prepare=False).fetchall()


def _one(connection: psycopg.Connection[Any], query: Any, parameters: Any = None) -> Any:
    text = qualify(query) if isinstance(query, str) else query
    row = connection.execute(text, parameters, prepare=False).fetchone()
    return None if row is None else row[0]


def _also(said: list[str]) -> str:
    return f": {'; '.join(said)}" if said else ""
