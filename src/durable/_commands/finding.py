"""Where the store is: the option, the environment, or the nearest `pyproject.toml`."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any, NamedTuple

from durable._commands.settings import read_settings
from durable._commands.shared import Given
from durable.errors import InvalidArgument
from durable.operate.redact import Redact, load_redact, redact_by_name
from durable.stores import PostgresStore, embedded, postgres


class Place(NamedTuple):
    """Where the store is."""

    #: Its URL; None of an embedded server.
    url: str | None
    #: Where that stands.
    source: str
    #: The table in `pyproject.toml`.
    settings: dict[str, Any]


def find_place(given: Given) -> Place:
    """The first place that says where: `--url`, $DURABLE_URL, $DATABASE_URL, `[tool.durable]`. Raises `InvalidArgument`."""
    settings, file = read_settings()
    if given.url is not None:
        return Place(given.url, "--url", settings)
    for variable in ("DURABLE_URL", "DATABASE_URL"):
        if os.environ.get(variable):
            return Place(os.environ[variable], f"${variable}", settings)
    if (url := settings.get("url")) is not None:
        if _has_password(str(url)):
            raise InvalidArgument(
                f"the url in {file} has a password in it, which would be in version control: leave it out there, and give it "
                f"by ~/.pgpass, $PGPASSWORD, or url-env"
            )
        return Place(str(url), f"{file}", settings)
    if (named := settings.get("url-env")) is not None:
        if not os.environ.get(str(named)):
            raise InvalidArgument(f"{file} says url-env = {named!r}, and ${named} is not set")
        return Place(os.environ[str(named)], f"${named}, as {file} says", settings)
    if settings.get("embedded"):
        return Place(None, f"{file}", settings)
    if os.environ.get("PGSERVICE") or os.environ.get("PGHOST"):
        return Place("", "libpq's environment", settings)
    raise InvalidArgument(
        "no database was named: pass --url postgresql://user@host/dbname, set $DURABLE_URL or $DATABASE_URL, or write "
        '[tool.durable] url = "…" into pyproject.toml (embedded = true where the program uses embedded())'
    )


def open_store(given: Given, *, create: bool = False) -> PostgresStore:
    """The store; nothing is asked of it yet. Tables are made only where `create` says so: a look changes nothing."""
    place = find_place(given)
    names: dict[str, Any] = {
        key: value
        for key in ("table", "schema", "prefix")
        if (value := getattr(given, key) or place.settings.get(key)) is not None
    }
    if place.url is None:
        names.pop("prefix", None)
        path = place.settings["embedded"]
        return embedded(".durable" if path is True else str(path), **names)
    if isinstance(place.settings.get("lock"), str):
        names["lock"] = place.settings["lock"]
    return postgres(place.url, auto_create_table=create, **names)


def find_names(given: Given) -> tuple[str, dict[str, Any]]:
    """The URL, and the names of the tables as `postgres` takes them. An embedded server is started."""
    place = find_place(given)
    names: dict[str, Any] = {
        key: value
        for key in ("table", "schema")
        if (value := getattr(given, key) or place.settings.get(key)) is not None
    }
    if isinstance(place.settings.get("lock"), str):
        names["lock"] = place.settings["lock"]
    if place.url is None:
        raise InvalidArgument("an embedded server is made and looked after by durable itself: this is for one of yours")
    return place.url, names


def load_redaction() -> Redact:
    """How values are shown: as `[tool.durable] redact = "MODULE:NAME"` says, else without what a name says is secret."""
    settings, _ = read_settings()
    target = settings.get("redact")
    if target is None:
        return redact_by_name
    if (here := str(Path.cwd())) not in sys.path:
        sys.path.insert(0, here)
    return load_redact(str(target))


def _has_password(url: str) -> bool:
    from psycopg import ProgrammingError  # noqa: PLC0415 -- for a URL in a file
    from psycopg.conninfo import conninfo_to_dict  # noqa: PLC0415

    try:
        return bool(conninfo_to_dict(url).get("password"))
    except ProgrammingError:
        return ":" in url.partition("@")[0].partition("//")[2]
