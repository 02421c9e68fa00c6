"""Our tables: made when they are missing, checked before they are trusted."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from typing import Any, Final, LiteralString

import psycopg
from psycopg import sql

from durable.errors import AccessDenied, SchemaMismatch
from durable.stores._postgres.requirements import hidden_rows
from durable.stores._postgres.sql.loader import load_migrations, load_statements, qualify
from durable.stores._postgres.sql.names import Names

_LOCK_SPACE: Final = 0x64757261  # "dura": our place among the application's advisory locks

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
        "noticed": "boolean",
    },
    "locks": {
        "workflow_id": "text",
        "epoch": "bigint",
        "owner_token": "text",
        "owner": "text",
        "expires_at": "timestamp with time zone",
        "route": "text",
        "priority": "smallint",
        "due_at": "timestamp with time zone",
    },
    "workers": {
        "id": "text",
        "routes": "text[]",
        "owner": "text",
        "idle": "boolean",
        "leaving": "boolean",
        "seen_at": "timestamp with time zone",
    },
    "queues": {
        "name": "text",
        "concurrency": "integer",
        "partition_concurrency": "integer",
        "rate": "integer",
        "per": "double precision",
        "burst": "integer",
        "next_at": "timestamp with time zone",
        "paused": "boolean",
    },
    "partitions": {"slot": "text", "line": "text", "turn": "timestamp with time zone"},
    "schedules": {
        "id": "text",
        "cron": "text",
        "zone": "text",
        "every": "double precision",
        "missed": "text",
        "overlap": "text",
        "start": "json",
        "revision": "integer",
        "paused": "boolean",
        "due_at": "timestamp with time zone",
        "last_at": "timestamp with time zone",
        "last_id": "text",
    },
}

_KEYS: Final = (
    ("snapshots", ("id",), "a run could have two headers"),
    ("steps", ("workflow_id", "seq"), "a record could be written twice"),
    ("signals", ("workflow_id", "nonce"), "a signal could be sent twice"),
    ("queues", ("name",), "a queue could have two limits"),
    ("partitions", ("slot", "line"), "a partition could have two turns"),
    ("locks", ("workflow_id",), "a run could have two owners"),
    ("locks", ("workflow_id", "owner_token"), "a stale owner could write"),
    ("schedules", ("id",), "a moment could begin two runs"),
)


def prepare(connection: psycopg.Connection[Any], names: Names, *, create: bool = True) -> list[str]:
    """Bring our tables up to this version and check them, or raise `SchemaMismatch` and change nothing.

    What is returned are doubts: why an acknowledged step may be lost all the same.

    Any number of processes may do this at once: they take turns under an advisory lock, which ends with its transaction.
    With `create=False` they are only checked. Raises `AccessDenied`, with the GRANT that helps, where the role may not.
    """
    newest = max(load_migrations(names))
    version = _read_version(connection, names)
    if version < newest and not create:
        have = (
            f"it knows {version} of our {newest} migrations" if version else "it does not exist, and nor may the others"
        )
        raise SchemaMismatch(names.quoted["migrations"], have, f"{_LET}. Or let the store: auto_create_table=True.")
    if version < newest:
        try:
            version = _migrate(connection, names)
        except psycopg.errors.InsufficientPrivilege as problem:
            raise _explain_denial(connection, names, problem) from None
    if version > newest:
        raise SchemaMismatch(
            names.quoted["migrations"],
            f"it was migrated by a newer version of durable than this one, which knows {newest} migrations",
            "Upgrade durable here; old and new versions must not write the same runs.",
        )
    _verify(connection, names)
    _check_rights(connection, names)
    return _durability_warnings(connection, names)


def _durability_warnings(connection: psycopg.Connection[Any], names: Names) -> list[str]:
    """Warnings of what the tables may lose; `SchemaMismatch` where they may hide rows."""
    tables = [names.quoted[table] for table in _COLUMNS]
    looks = connection.execute(load_statements(names)["tables"], {"tables": tables}, prepare=False).fetchall()
    if any(is_hidden for *_, is_hidden in looks):
        raise hidden_rows()
    return [f"the table {name} is UNLOGGED: a crash of the server empties it" for name, is_lost, _ in looks if is_lost]


def build_schema_sql(names: Names, *, role: str | None = None, since: int = 0) -> str:
    """What `prepare` does after the migration `since`, as a script for psql; then rights for `role`."""
    known, parts = load_statements(names), ["BEGIN;"]
    if names.schema is not None:
        parts.append(f"CREATE SCHEMA IF NOT EXISTS {_quote(names.schema)};")
    parts.append(known["create_migrations"].decode().replace("%%", "%") + ";")
    for number, migration in load_migrations(names).items():
        if number > since:
            parts += [
                migration.decode().strip(),
                f"INSERT INTO {names.quoted['migrations']} (version) VALUES ({number});",  # noqa: S608 -- quoted
            ]
    if role is not None:
        if names.schema is not None:
            parts.append(f"GRANT USAGE ON SCHEMA {_quote(names.schema)} TO {_quote(role)};")
        parts += [f"{grant}{_quote(role)};" for grant in [*_grants(names, _TO_RUN), deletion_grant(names)]]
    return "\n\n".join([*parts, "COMMIT;"]) + "\n"


def _quote(name: str) -> str:
    return sql.Identifier(name).as_string(None)


def _explain_denial(connection: psycopg.Connection[Any], names: Names, problem: psycopg.Error) -> AccessDenied:
    """The error that names the GRANT which the role lacks to create our tables."""
    role, schema, database, has_schema = (
        connection.execute(_ROLE, {"schema": names.schema}, prepare=False).fetchone() or _UNKNOWN
    )
    if schema is not None and has_schema:
        grant = f"GRANT USAGE, CREATE ON SCHEMA {_quote(schema)} TO {_quote(role)};"
    else:
        grant = f"GRANT CREATE ON DATABASE {_quote(database)} TO {_quote(role)};"
    told = problem.diag.message_primary or "permission denied"
    return AccessDenied(f"the database {database!r}", told, f"To let it: {grant} {_LET}")


def _check_rights(connection: psycopg.Connection[Any], names: Names) -> None:
    lacking = [
        (table, rights)
        for table, rights in _TO_RUN.items()
        if not _fetch_one(connection, _MAY, {"table": names.quoted[table], "rights": rights})
    ]
    if lacking:
        role, _, database, _ = connection.execute(_ROLE, {"schema": names.schema}, prepare=False).fetchone() or _UNKNOWN
        grants = " ".join(f"{grant}{_quote(role)};" for grant in _grants(names, dict(lacking)))
        raise AccessDenied(f"the database {database!r}", "the role lacks rights on our tables", f"To let it: {grants}")


def _grants(names: Names, rights: Mapping[str, str]) -> list[str]:
    return [f"GRANT {wanted} ON {names.quoted[table]} TO " for table, wanted in rights.items()]


def deletion_grant(names: Names) -> str:
    """The beginning of the GRANT that saving over runs and deleting them takes."""
    return f"GRANT DELETE ON {', '.join(names.quoted[table] for table in _COLUMNS)} TO "


# What a role needs to run workflows, once the tables are there.
_TO_RUN: Final = {
    "snapshots": "SELECT, INSERT, UPDATE",
    "steps": "SELECT, INSERT",
    "signals": "SELECT, INSERT, UPDATE",
    "locks": "SELECT, INSERT, UPDATE",
    "workers": "SELECT, INSERT, UPDATE, DELETE",
    "queues": "SELECT, INSERT, UPDATE",
    "partitions": "SELECT, INSERT, UPDATE",
    "schedules": "SELECT, INSERT, UPDATE, DELETE",
    "migrations": "SELECT",
}
_UNKNOWN: Final = ("?", None, "?", False)
_LET: Final = "durable migrate makes what is missing; a script for a role that may is printed by: durable schema"
_ROLE: Final = qualify("""
SELECT current_user, COALESCE(%(schema)s, current_schema()), current_database(),
       EXISTS (SELECT FROM pg_namespace WHERE nspname = COALESCE(%(schema)s, current_schema()))
""")
_MAY: Final = qualify("""
SELECT bool_and(has_table_privilege(%(table)s, trim(asked.right)))
  FROM unnest(string_to_array(%(rights)s, ',')) AS asked ("right")
""")


def _read_version(connection: psycopg.Connection[Any], names: Names) -> int:
    known = load_statements(names)
    try:
        exists = _fetch_one(connection, known["migrations_exist"], names.quoted)
    except psycopg.errors.InsufficientPrivilege as problem:  # not even to look into the schema
        raise _explain_denial(connection, names, problem) from None
    if not exists:
        return 0
    try:
        version = _fetch_one(connection, known["version"], {}) or 0
    except psycopg.errors.InsufficientPrivilege:
        _check_rights(connection, names)
        raise
    except (psycopg.errors.UndefinedColumn, psycopg.errors.WrongObjectType):
        version = None
    if not isinstance(version, int):
        raise SchemaMismatch(names.quoted["migrations"], "it does not hold the numbers of our migrations")
    return version


def _migrate(connection: psycopg.Connection[Any], names: Names) -> int:
    known = load_statements(names)
    tables = zlib.crc32(names.quoted["snapshots"].encode()) - 2**31
    connection.execute("BEGIN ISOLATION LEVEL READ COMMITTED")
    try:
        connection.execute("SELECT pg_catalog.pg_advisory_xact_lock(%s, %s)", (_LOCK_SPACE, tables))
        if names.schema is not None and not _fetch_one(connection, _SCHEMA_EXISTS, {"schema": names.schema}):
            connection.execute(sql.SQL("CREATE SCHEMA {}").format(sql.Identifier(names.schema)))
        connection.execute(known["create_migrations"], {})
        applied = _read_version(connection, names)
        for number, migration in load_migrations(names).items():
            if number > applied:
                _apply(connection, names, migration)
                connection.execute(known["record_migration"], {"version": number})
        _verify(connection, names)
        connection.execute("COMMIT")
        return max(applied, *load_migrations(names))
    except BaseException:
        if not connection.broken:
            connection.execute("ROLLBACK")
        raise


_SCHEMA_EXISTS: Final = "SELECT EXISTS (SELECT FROM pg_namespace WHERE nspname = %(schema)s)"


def _apply(connection: psycopg.Connection[Any], names: Names, migration: bytes) -> None:
    try:
        connection.execute(migration, prepare=False)  # several commands
    except (
        psycopg.errors.DuplicateTable,
        psycopg.errors.DuplicateObject,
        psycopg.errors.DuplicateFunction,
    ) as problem:
        taken = problem.diag.message_primary or "a table of that name exists"
        raise SchemaMismatch(names.quoted["snapshots"], f"one of the tables beside it is not ours: {taken}") from None
    except (psycopg.errors.UndefinedColumn, psycopg.errors.UndefinedFunction) as problem:
        lacks = problem.diag.message_primary or "a column is missing, or of another type"
        raise SchemaMismatch(names.quoted["snapshots"], f"it is something else: {lacks}") from None
    except psycopg.errors.WrongObjectType:
        raise SchemaMismatch(names.quoted["snapshots"], "it is something else: not a table") from None


def _verify(connection: psycopg.Connection[Any], names: Names) -> None:
    known = load_statements(names)
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


def _fetch_one(connection: psycopg.Connection[Any], query: LiteralString | bytes, parameters: Any = None) -> Any:
    row = connection.execute(query, parameters, prepare=False).fetchone()  # once in a process's life
    return None if row is None else row[0]
