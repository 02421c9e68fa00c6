"""The SQL of the store, read from `statements.sql` and `migrations/`, with the tables' names filled in."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from importlib import resources
from typing import Final

from psycopg import sql

from durable.errors import InvalidArgument

_MAX_IDENTIFIER_BYTES: Final = 63  # PostgreSQL silently truncates longer ones, so that two names could become one
_HERE: Final = resources.files("durable.stores._postgres")


@dataclass(frozen=True)
class Names:
    """The names of our tables, which follow from the documented one's: `durable_steps` …, or `orders_steps` for `orders`."""

    table: str = "durable_snapshots"
    schema: str | None = None

    def __post_init__(self) -> None:
        _check_identifier("table", self.table)
        _check_identifier("table", f"{self._stem}_migrations")
        if self.schema is not None:
            _check_identifier("schema", self.schema)

    @cached_property
    def quoted(self) -> Mapping[str, str]:
        """What `{snapshots}`, `{steps}` … stand for: quoted, and qualified where a schema is given."""
        tables = {"snapshots": self.table} | {
            name: f"{self._stem}_{name}" for name in ("steps", "locks", "signals", "migrations")
        }
        qualified = {name: sql.Identifier(*filter(None, (self.schema, table))) for name, table in tables.items()}
        index = sql.Identifier(f"{self.table[: _MAX_IDENTIFIER_BYTES - 15]}_updated_at_idx")
        return {name: value.as_string(None) for name, value in {**qualified, "snapshots_index": index}.items()}

    def fill(self, text: str) -> str:
        """The SQL with the names in place of `{snapshots}` and its like, for psycopg: a `%` in a name is no placeholder."""
        return re.sub(r"\{(\w+)\}", lambda match: self.quoted[match[1]].replace("%", "%%"), text)

    @property
    def _stem(self) -> str:
        return "durable" if self.table == "durable_snapshots" else self.table


def _check_identifier(what: str, name: object) -> None:
    if not isinstance(name, str) or not name or "\0" in name:
        raise InvalidArgument(f"{what} must be a name, not {name!r}")
    if len(name.encode("utf-8", "surrogatepass")) > _MAX_IDENTIFIER_BYTES:
        limit = f"PostgreSQL's limit of {_MAX_IDENTIFIER_BYTES} bytes"
        raise InvalidArgument(f"the {what} name {name[:80]!r} is over {limit}: it would be cut off there")


def statements(names: Names) -> dict[str, bytes]:
    """Each statement of `statements.sql` by its name."""
    text = (_HERE / "statements.sql").read_text("utf-8")
    parts = re.split(r"^-- name: (\w+)$", text, flags=re.MULTILINE)[1:]
    named = zip(parts[::2], parts[1::2], strict=True)
    return {name: names.fill(_without_comments(part)).encode() for name, part in named}


def migrations(names: Names) -> dict[int, bytes]:
    """Each migration by its number, in order."""
    files = sorted((file for file in (_HERE / "migrations").iterdir() if file.name.endswith(".sql")), key=str)
    return {int(file.name[:4]): names.fill(file.read_text("utf-8")).encode() for file in files}


def _without_comments(text: str) -> str:
    return re.sub(r"^--.*\n?", "", text, flags=re.MULTILINE).strip()
