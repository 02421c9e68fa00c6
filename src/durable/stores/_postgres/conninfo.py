"""Where a database is, and how to connect to it: what a URL, the environment and a user's pool say."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, Final, TypeAlias

import psycopg
import psycopg_pool
from psycopg.conninfo import conninfo_to_dict

from durable.errors import InvalidArgument

Pool: TypeAlias = psycopg_pool.ConnectionPool[Any]

# The kernel notices a connection whose other side is gone: after 5 s of silence it asks, three times in 6 s.
_DEFAULTS: Final = {
    "application_name": "durable",
    "keepalives_idle": "5",
    "keepalives_interval": "2",
    "keepalives_count": "3",
    "tcp_user_timeout": "10000",
}
_ANY_SERVER: Final = ("any", "prefer-standby")


def read_url(url: str | None) -> dict[str, str]:
    """The parameters of a URL or a connection string, with our defaults; `InvalidArgument` when it cannot be read."""
    parts: dict[str, Any] = {}
    try:
        parts = dict(conninfo_to_dict(url or ""))
        # A password with a / or @ that is not percent-encoded ends up in these, and would be shown.
        slipped = any("@" in str(parts.get(part) or "") for part in ("host", "dbname"))
        readable = "\0" not in (url or "") and not slipped and _are_numbers(parts.get("port"))
    except (psycopg.ProgrammingError, UnicodeEncodeError):
        readable = False
    if not readable:  # libpq's message quotes what it could not read, which may be a password
        raise InvalidArgument(
            "the database URL cannot be read: it should look like postgresql://user@host:5432/dbname "
            "(percent-encode special characters in the password: / is %2F, @ is %40)"
        ) from None
    given = _add_environment({key: str(value) for key, value in parts.items() if value is not None})
    several = "," in given.get("host", "") + given.get("hostaddr", "")
    if several and given.get("target_session_attrs", "any") in _ANY_SERVER:
        given["target_session_attrs"] = "read-write"  # a journal read from a standby would be an old one
    return {**_DEFAULTS, **given, "client_encoding": "UTF8"}


def read_pool(pool: Pool) -> dict[str, str]:
    """The parameters that say where a pool connects to."""
    conninfo, kwargs = arguments_of(pool)
    named = ("host", "hostaddr", "port", "service", "connect_timeout")
    parts = {**conninfo_to_dict(conninfo), **{name: kwargs[name] for name in named if name in kwargs}}
    return _add_environment({name: str(value) for name, value in parts.items() if value is not None})


def arguments_of(pool: Pool) -> tuple[str, dict[str, Any]]:
    """The connection string and the keywords that a pool makes its connections of."""
    kwargs = (pool.kwargs() if callable(pool.kwargs) else pool.kwargs) or {}
    return (pool.conninfo() if callable(pool.conninfo) else pool.conninfo), dict(kwargs)


def address_of(parts: Mapping[str, str]) -> str:
    """A database's address for people: no password, no options."""
    hosts = (parts.get("host") or parts.get("hostaddr") or "the local socket").split(",")
    ports = parts.get("port", "").split(",")
    host = ",".join(
        f"{host}:{port}" if port else host
        for host, port in zip(hosts, ports if len(ports) == len(hosts) else ports[:1] * len(hosts), strict=True)
    )
    user = f" as {parts['user']}" if "user" in parts else ""
    return f"{host}/{parts.get('dbname', '')}{user}"


def _add_environment(parts: dict[str, str]) -> dict[str, str]:
    """The parameters, with what libpq would take from the environment of where the database is."""
    if "host" in parts or "hostaddr" in parts or "service" in parts:
        return parts
    known = {name: os.environ.get(f"PG{name.upper()}") for name in ("host", "hostaddr", "port")}
    return {**{name: value for name, value in known.items() if value}, **parts}


def _are_numbers(ports: object) -> bool:
    return ports is None or all(port.isdigit() for port in str(ports).split(",") if port)
