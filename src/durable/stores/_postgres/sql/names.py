"""The names of a store's tables, as they stand in its SQL."""

from __future__ import annotations

import re
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Final

from psycopg import sql

from durable.errors import InvalidArgument

DEDUP_SUFFIX: Final = "dedup_idx"
_MAX_IDENTIFIER_BYTES: Final = 63  # PostgreSQL silently truncates longer ones, so that two names could become one

_MARKS: Final = ("$_durable_", "@_durable_")  # of texts within a migration, which a name must not end


@dataclass(frozen=True)
class Names:
    """The names of our tables, which follow from the documented one's: `durable_steps` …, or `orders_steps` for `orders`."""

    table: str = "durable_snapshots"
    schema: str | None = None
    lock: str | None = None

    def __post_init__(self) -> None:
        _check_identifier("table", self.table)
        _check_identifier("table", f"{self._stem}_migrations")
        if self.schema is not None:
            _check_identifier("schema", self.schema)
        if self.lock is not None:
            _check_identifier("lock", self.lock)
        if len(set(self._tables.values())) < len(self._tables):
            raise InvalidArgument(f"the lock table {self.lock!r} has the name of another table of the store's own")

    @cached_property
    def quoted(self) -> Mapping[str, str]:
        """What `{snapshots}`, `{steps}` … stand for: quoted, and qualified where a schema is given."""
        qualified = {name: sql.Identifier(*filter(None, (self.schema, table))) for name, table in self._tables.items()}
        parts = {
            "snapshots_index": sql.Identifier(_index_name(self.table, "updated_at_idx")),
            "status_index": sql.Identifier(_index_name(self.table, "status_idx")),
            "workflow_index": sql.Identifier(_index_name(self.table, "workflow_idx")),
            "dedup_index": sql.Identifier(_index_name(self.table, DEDUP_SUFFIX)),
            "parent_index": sql.Identifier(_index_name(self.table, "parent_idx")),
            "unnoticed_index": sql.Identifier(_index_name(self._tables["signals"], "unnoticed_idx")),
            "line_index": sql.Identifier(_index_name(self._tables["locks"], "line_idx")),
            "held_index": sql.Identifier(_index_name(self._tables["locks"], "held_idx")),
            "turn_index": sql.Identifier(_index_name(self._tables["partitions"], "turn_idx")),
            "due_index": sql.Identifier(_index_name(self._tables["locks"], "due_idx")),
            "start_function": sql.Identifier(f"{self._stem}_start"),
            "signal_function": sql.Identifier(f"{self._stem}_signal"),
        }
        known = {name: value.as_string(None) for name, value in {**qualified, **parts}.items()}
        # As text values, for statements that look a table up by its name.
        texts = {f"{name}_text": _literal(known[name]) for name in qualified}
        return known | texts | {"start_function_text": _literal(f"{self._stem}_start")}

    def fill(self, text: str) -> str:
        """The SQL with the names in place of `{snapshots}` and its like, for psycopg: a `%` in a name is doubled."""
        return re.sub(r"\{(\w+)\}", lambda match: self._fill(match).replace("%", "%%"), text)

    def fill_script(self, text: str) -> str:
        """The same for a script, which has no placeholders."""
        return re.sub(r"\{(\w+)\}", self._fill, text)

    def _fill(self, match: re.Match[str]) -> str:
        return self.quoted.get(match[1], match[0])

    @cached_property
    def _tables(self) -> Mapping[str, str]:
        beside = {
            name: f"{self._stem}_{name}"
            for name in (
                "steps",
                "locks",
                "signals",
                "workers",
                "schedules",
                "queues",
                "partitions",
                "runs",
                "migrations",
            )
        }
        return {"snapshots": self.table, **beside, "locks": self.lock or beside["locks"]}

    @property
    def _stem(self) -> str:
        return "durable" if self.table == "durable_snapshots" else self.table


def _literal(text: str) -> str:
    """The text as an SQL literal: not by psycopg's dumpers, which may be the application's, and under any string settings."""
    doubled = text.replace("'", "''")
    return "E'{}'".format(doubled.replace("\\", "\\\\")) if "\\" in doubled else f"'{doubled}'"


def _check_identifier(what: str, name: object) -> None:
    if not isinstance(name, str) or not name or "\0" in name:
        raise InvalidArgument(f"{what} must be a name, not {name!r}")
    if any(mark in name for mark in _MARKS):
        raise InvalidArgument(f"the {what} name {name!r} contains a mark of our own SQL")
    if len(name.encode("utf-8", "surrogatepass")) > _MAX_IDENTIFIER_BYTES:
        limit = f"PostgreSQL's limit of {_MAX_IDENTIFIER_BYTES} bytes"
        raise InvalidArgument(f"the {what} name {name[:80]!r} is over {limit}: it would be cut off there")


def _index_name(table: str, suffix: str) -> str:
    """An index's name as PostgreSQL makes it, but long names that begin alike stay different."""
    room = _MAX_IDENTIFIER_BYTES - len(suffix) - 1
    if len(table.encode()) > room:
        digest = f"_{zlib.crc32(table.encode()):08x}"
        table = table.encode()[: room - len(digest)].decode(errors="ignore") + digest
    return f"{table}_{suffix}"
