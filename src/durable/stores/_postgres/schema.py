"""Our tables: made when they are missing, checked before they are trusted."""

from __future__ import annotations

import zlib
from typing import Any, Final, LiteralString

import psycopg
from psycopg import sql

from durable.errors import SchemaMismatch
from durable.stores._postgres.statements import Names, migrations, statements

_LOCK_SPACE: Final = 0x64757261  # "dura": ours among the advisory locks of the application

_COLUMNS: Final = {
    "snapshots": {"id": "text", "snapshot": "jsonb", "updated_at": "timestamp with time zone"},
    "steps": {
        "workflow_id": "text",
        "seq": "integer",
        "key": "text",
        "kind": "text",
        "nonce": "bigint",
        "epoch": "bigint",
        "record": "json",
        "created_at": "timestamp with time zone",
    },
    "signals": {
        "number": "bigint",
        "workflow_id": "text",
        "name": "text",
        "payload": "json",
        "nonce": "bigint",
    },
    "locks": {
        "workflow_id": "text",
        "epoch": "bigint",
        "owner_token": "text",
        "owner": "text",
        "expires_at": "timestamp with time zone",
    },
}

_KEYS: Final = (
    ("snapshots", ("id",), "a run could have two headers"),
    ("steps", ("workflow_id", "seq"), "a record could be written twice"),
    ("signals", ("workflow_id", "nonce"), "a signal could be sent twice"),
    ("locks", ("workflow_id",), "a run could have two owners"),
    ("locks", ("workflow_id", "owner_token"), "a stale owner could write"),
)


def prepare(connection: psycopg.Connection[Any], names: Names) -> None:
    """Bring our tables up to this version and check them, or raise `SchemaMismatch` and change nothing.

    Any number of processes may do this at once: they take turns under an advisory lock, which ends with its transaction.
    """
    newest = max(migrations(names))
    version = _version(connection, names)
    if version < newest:
        version = _migrate(connection, names)
    if version > newest:
        raise SchemaMismatch(
            names.quoted["migrations"],
            f"it was migrated by a newer version of durable than this one, which knows {newest} migrations",
            "Upgrade durable here; old and new versions must not write the same runs.",
        )
    _verify(connection, names)


def _version(connection: psycopg.Connection[Any], names: Names) -> int:
    known = statements(names)
    if not _one(connection, known["migrations_exist"], names.quoted):
        return 0
    try:
        version = _one(connection, known["version"]) or 0
    except (psycopg.errors.UndefinedColumn, psycopg.errors.WrongObjectType):
        version = None
    if not isinstance(version, int):
        raise SchemaMismatch(names.quoted["migrations"], "it does not hold the numbers of our migrations")
    return version


def _migrate(connection: psycopg.Connection[Any], names: Names) -> int:
    known = statements(names)
    tables = zlib.crc32(names.quoted["snapshots"].encode()) - 2**31
    connection.execute("BEGIN ISOLATION LEVEL READ COMMITTED")
    try:
        connection.execute("SELECT pg_advisory_xact_lock(%s, %s)", (_LOCK_SPACE, tables))
        if names.schema is not None and not _one(connection, _SCHEMA_EXISTS, {"schema": names.schema}):
            connection.execute(sql.SQL("CREATE SCHEMA {}").format(sql.Identifier(names.schema)))
        connection.execute(known["create_migrations"])
        applied = _version(connection, names)
        for number, script in migrations(names).items():
            if number > applied:
                _apply(connection, names, script)
                connection.execute(known["record_migration"], {"version": number})
        _verify(connection, names)
        connection.execute("COMMIT")
        return max(applied, *migrations(names))
    except BaseException:
        if not connection.broken:
            connection.execute("ROLLBACK")
        raise


_SCHEMA_EXISTS: Final = "SELECT EXISTS (SELECT FROM pg_namespace WHERE nspname = %(schema)s)"


def _apply(connection: psycopg.Connection[Any], names: Names, script: bytes) -> None:
    try:
        connection.execute(script, prepare=False)  # several commands
    except (psycopg.errors.DuplicateTable, psycopg.errors.DuplicateObject) as problem:
        taken = problem.diag.message_primary or "a table of that name exists"
        raise SchemaMismatch(names.quoted["snapshots"], f"one of the tables beside it is not ours: {taken}") from None
    except psycopg.errors.UndefinedColumn as problem:
        lacks = problem.diag.message_primary or "a column is missing"
        raise SchemaMismatch(names.quoted["snapshots"], f"it is something else: {lacks}") from None
    except psycopg.errors.WrongObjectType:
        raise SchemaMismatch(names.quoted["snapshots"], "it is something else: not a table") from None


def _verify(connection: psycopg.Connection[Any], names: Names) -> None:
    known = statements(names)
    found: dict[str, dict[str, str]] = {}
    tables = [names.quoted[table] for table in _COLUMNS]
    for table, column, type_ in connection.execute(known["columns"], {"tables": tables}, prepare=False):
        found.setdefault(table, {})[column] = type_
    for table, columns in _COLUMNS.items():
        name = names.quoted[table]
        if name not in found:
            raise SchemaMismatch(name, "it does not exist", "Let a role with CREATE rights start durable once.")
        for column, type_ in columns.items():
            if found[name].get(column) != type_:
                is_ = f"is of type {found[name][column]}" if column in found[name] else "is missing"
                raise SchemaMismatch(name, f"its column {column!r} ({type_}) {is_}")
    rows = connection.execute(known["keys"], {"tables": tables}, prepare=False)
    keys = {(name, frozenset(columns)) for name, columns in rows}
    for table, key, purpose in _KEYS:
        name, listed = names.quoted[table], ", ".join(key)
        if (name, frozenset(key)) not in keys:
            restore = f"Restore it: ALTER TABLE {name} ADD UNIQUE ({listed})."
            other = "" if table == "locks" else f" Or, if the table is not ours: {SchemaMismatch.advice}"
            problem = f"the unique index over ({listed}) is missing, without which {purpose}"
            raise SchemaMismatch(name, problem, restore + other)


def _one(connection: psycopg.Connection[Any], query: LiteralString | bytes, parameters: Any = None) -> Any:
    row = connection.execute(query, parameters, prepare=False).fetchone()  # once in a process's life
    return None if row is None else row[0]
