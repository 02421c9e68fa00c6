"""What a server must be before runs are entrusted to it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import psycopg
from psycopg.rows import tuple_row

from durable.errors import SchemaMismatch, UnsuitableServer

MIN_VERSION: Final = 12  # PostgreSQL's major version

# Databases that speak PostgreSQL's protocol and have other locks, isolation and clocks: the fence relies on PostgreSQL's.
_OTHERS: Final = {
    "cockroachdb": "CockroachDB",
    "-yb-": "YugabyteDB",
    "redshift": "Amazon Redshift",
    "greenplum": "Greenplum",
    "cratedb": "CrateDB",
    "risingwave": "RisingWave",
    "materialize": "Materialize",
    "questdb": "QuestDB",
    "opengauss": "openGauss",
    "gaussdb": "GaussDB",
    # One process with one session at a time: it does not keep apart what several connections hold.
    "pglite": "PGlite",
    "emscripten": "PGlite",
    "wasm32": "PGlite",
}
_READ_SETTINGS: Final = """
SELECT pg_catalog.pg_is_in_recovery(), pg_catalog.current_setting('transaction_read_only'),
       ARRAY(SELECT pg_catalog.current_setting(name, true) FROM pg_catalog.unnest(%(names)s::text[]) AS asked (name)),
       ARRAY(SELECT extname::text FROM pg_catalog.pg_extension)
"""
_ENCODING: Final = "UTF8"
_ANOTHER_DATABASE: Final = "Name a database in UTF8: CREATE DATABASE ... TEMPLATE template0 ENCODING 'UTF8'."
# Extensions that let several servers take writes: each has its own locks, and so its own owners of runs.
_WRITERS: Final = ("spock", "bdr", "pgactive")
ANOTHER_SERVER: Final = (
    "Name the primary in the URL; of several hosts (postgresql://a,b/db) the one is used that takes writes."
)
_WRITABLE: Final = "default_transaction_read_only must be off for the role that runs workflows."
# Settings that acknowledge what is not yet safe on disk, and what turning them off can cost.
_LOSSES: Final = {
    "fsync": "after a crash of its machine the whole database may be damaged",
    "full_page_writes": "a crash of its machine in the midst of a write may damage pages of the database",
    "synchronous_commit": "a crash of the server loses the last steps that were acknowledged",
}


def check_kind(connection: psycopg.Connection[Any], where: str) -> None:
    """Raise `UnsuitableServer` for what is not PostgreSQL, or is too old."""
    with connection.cursor(row_factory=tuple_row) as cursor:
        (said,) = cursor.execute("SELECT pg_catalog.version()", prepare=False).fetchone() or ("",)
    if (problem := why_unsupported(str(said))) is not None:
        advice = f"durable needs PostgreSQL {MIN_VERSION} or newer, since its leases stand on how that locks rows."
        raise UnsuitableServer(where, problem, advice)


def why_unsupported(version: str) -> str | None:
    """What is wrong with a server whose `version()` says this; None when nothing is."""
    for sign, name in _OTHERS.items():
        if sign in version.lower():
            return f"it is {name}, which speaks PostgreSQL's protocol and is another database"
    words = version.split()
    if len(words) < 2 or words[0] not in ("PostgreSQL", "EnterpriseDB"):  # noqa: PLR2004 -- a name and a number
        return f"it says that it is {' '.join(words[:2])[:40] or 'nothing'!r}, and not PostgreSQL"
    number = next((word for word in words if word[0].isdigit()), "0")
    major = int("".join(character if character.isdigit() else " " for character in number).split()[0])
    return None if major >= MIN_VERSION else f"it is PostgreSQL {number}"


def read_settings(connection: psycopg.Connection[Any], where: str) -> dict[str, str | None]:
    """Read the settings that bear on what is acknowledged; `UnsuitableServer` when nothing can be written here."""
    names = [*_LOSSES, "synchronous_standby_names", "server_encoding"]
    with connection.cursor(row_factory=tuple_row) as cursor:
        row = cursor.execute(_READ_SETTINGS, {"names": names}, prepare=False).fetchone() or (False, "off", [], [])
    in_recovery, read_only, settings, extensions = row
    refuse_read_only(where, standby=bool(in_recovery), read_only=read_only == "on")
    found: dict[str, str | None] = dict(zip(names, settings, strict=True))
    return {**found, "extensions": ",".join(sorted(extensions))}


def why_unfit(settings: dict[str, str | None], where: str) -> UnsuitableServer | None:
    """Why no run may be kept here, though what is there can be read; removes the setting."""
    if (encoding := settings.pop("server_encoding")) == _ENCODING:
        return None
    problem = f"the database's encoding is {encoding}, which cannot hold every text that a step may return"
    return UnsuitableServer(where, problem, _ANOTHER_DATABASE)


def hidden_rows() -> SchemaMismatch:
    """The error of tables whose rows a policy may hide: a hidden journal would be taken for none."""
    return SchemaMismatch(
        "of the journal, the leases, the signals or the documented runs",
        "row-level security is active there for this role, and may hide rows: a hidden record would be taken for none",
        "Let the role be the tables' owner, or ALTER ROLE … BYPASSRLS, or turn it off there; keep tenants apart by schema=.",
    )


def refuse_read_only(where: str, *, standby: bool, read_only: bool) -> None:
    """Raise `UnsuitableServer` for a standby, or a read-only session: a journal read there would be an old one."""
    if standby:
        raise UnsuitableServer(where, "it is a hot standby, which takes no writes", ANOTHER_SERVER)
    if read_only:
        raise UnsuitableServer(where, "its sessions are read-only", f"{_WRITABLE} {ANOTHER_SERVER}")


def durability_warnings(settings: Mapping[str, str | None]) -> list[str]:
    """Why an acknowledged step may be lost with these settings, one sentence for each reason."""
    found = [f"{name} is off: {cost}" for name, cost in _LOSSES.items() if settings.get(name) == "off"]
    if settings.get("synchronous_standby_names") and settings.get("synchronous_commit") == "local":
        found.append("synchronous_commit is local: a fail-over to the synchronous standby may lose the last steps")
    found += [
        f"the extension {extension} lets several servers take writes: let every process use the same one, since a lease "
        f"that is held on one is not held on another"
        for extension in _WRITERS
        if extension in (settings.get("extensions") or "").split(",")
    ]
    return found
