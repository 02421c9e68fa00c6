"""The SQL of the store, read from `statements.sql` and `migrations/`, with the tables' names filled in.

Its functions and operators are PostgreSQL's own, and are named so. By their mere names they would be looked for on the search
path, where a function of the same name with arguments that fit better is preferred, whoever has made it.
"""

from __future__ import annotations

import itertools
import re
import sys
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache, cached_property
from importlib import resources
from typing import Final, LiteralString, cast

from psycopg import sql

from durable._engine.headers import FOREIGN_METADATA
from durable.errors import InvalidArgument
from durable.records import Record

_MAX_IDENTIFIER_BYTES: Final = 63  # PostgreSQL silently truncates longer ones, so that two names could become one
# As the files here write them: a function's name is small, and its parenthesis follows at once.
# What is the grammar's own is looked for in that schema anyway: the trimming of text, and `unnest` of several arrays at once.
_GRAMMAR: Final = r"(?:extract|trim|substring|position|overlay)\(|unnest\((?:%\(\w+\)s|[^(),])+,"
_FUNCTION: Final = re.compile(rf"(?<![\w.%])(?!{_GRAMMAR})([a-z_][a-z0-9_]*)\(")
_OPERATOR: Final = re.compile(r"\|\||->>|->")  # those that are found by one operand where the other is a mere literal
_QUOTED: Final = re.compile(r"""('(?:[^']|'')*'|"[^"]*"|--[^\n]*)""")
_HERE: Final = resources.files(__name__.rpartition(".")[0]) / "sql"

_FOREIGN_METADATA: Final = f"'{{{','.join(FOREIGN_METADATA)}}}'::text[]"
# What statements have in common. `foreign` is `headers.is_foreign` of a row's `snapshot`.
_PARTS: Final = {
    "{foreign}": f"(COALESCE(snapshot->>'workflowName', '') = '' "
    f"OR COALESCE(snapshot->'metadata' ?| {_FOREIGN_METADATA}, false))",
    "{foreign_metadata}": _FOREIGN_METADATA,
}


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
        indexes = {
            "snapshots_index": sql.Identifier(_index_name(self.table, "updated_at_idx")),
            "status_index": sql.Identifier(_index_name(self.table, "status_idx")),
        }
        known = {name: value.as_string(None) for name, value in {**qualified, **indexes}.items()}
        # As values, for what looks a table up by its name.
        return known | {f"{name}_text": _literal(known[name]) for name in qualified}

    def fill(self, text: str) -> str:
        """The SQL with the names in place of `{snapshots}` and its like, for psycopg: a `%` in a name is no placeholder."""
        return re.sub(r"\{(\w+)\}", lambda match: self._filled(match).replace("%", "%%"), text)

    def script(self, text: str) -> str:
        """The same for a script, which has no placeholders at all."""
        return re.sub(r"\{(\w+)\}", self._filled, text)

    def _filled(self, match: re.Match[str]) -> str:
        return self.quoted.get(match[1], match[0])

    @cached_property
    def _tables(self) -> Mapping[str, str]:
        beside = {name: f"{self._stem}_{name}" for name in ("steps", "locks", "signals", "runs", "migrations")}
        return {"snapshots": self.table, **beside, "locks": self.lock or beside["locks"]}

    @property
    def _stem(self) -> str:
        return "durable" if self.table == "durable_snapshots" else self.table


def _literal(text: str) -> str:
    """As SQL: not by psycopg's dumpers, which may be the application's, and whatever standard_conforming_strings is."""
    doubled = text.replace("'", "''")
    return "E'{}'".format(doubled.replace("\\", "\\\\")) if "\\" in doubled else f"'{doubled}'"


def _check_identifier(what: str, name: object) -> None:
    if not isinstance(name, str) or not name or "\0" in name:
        raise InvalidArgument(f"{what} must be a name, not {name!r}")
    if len(name.encode("utf-8", "surrogatepass")) > _MAX_IDENTIFIER_BYTES:
        limit = f"PostgreSQL's limit of {_MAX_IDENTIFIER_BYTES} bytes"
        raise InvalidArgument(f"the {what} name {name[:80]!r} is over {limit}: it would be cut off there")


def _index_name(table: str, suffix: str) -> str:
    """PostgreSQL's own way of naming one, but two long names that begin alike do not become one."""
    room = _MAX_IDENTIFIER_BYTES - len(suffix) - 1
    if len(table.encode()) > room:
        digest = f"_{zlib.crc32(table.encode()):08x}"
        table = table.encode()[: room - len(digest)].decode(errors="ignore") + digest
    return f"{table}_{suffix}"


@cache
def statements(names: Names, file: str = "statements.sql") -> Mapping[str, bytes]:
    """Each statement of a file by its name."""
    return {name: names.fill(template).encode() for name, template in _templates(file).items()}


@cache
def _templates(file: str) -> Mapping[str, str]:
    """The same before the tables are named: read and qualified once, however many stores a process has."""
    text = (_HERE / file).read_text("utf-8")
    for part, meaning in _PARTS.items():
        text = text.replace(part, meaning)
    parts = re.split(r"^-- name: (\w+)$", text, flags=re.MULTILINE)[1:]
    named = zip(parts[::2], parts[1::2], strict=True)
    return {name: qualified(_without_comments(part)) for name, part in named}


def qualified(text: str) -> LiteralString:
    """SQL of ours, with its functions and operators taken from PostgreSQL's own schema, whatever the search path."""
    parts = _QUOTED.split(text)  # every other one is a literal, a quoted name, or a comment
    for number in range(0, len(parts), 2):
        called = _FUNCTION.sub(r"pg_catalog.\1(", parts[number])
        parts[number] = _OPERATOR.sub(lambda found: f" OPERATOR(pg_catalog.{found[0]}) ", called)
    return cast(LiteralString, "".join(parts))  # type: ignore[redundant-cast]  # not to pyright


def numbered(query: bytes) -> bytes:
    """The statement with the placeholders of the wire, `$1`, `$2` …, in place of psycopg's `%s`."""
    numbers = itertools.count(1)  # a doubled % may stand before an s: in the name of a table
    return re.sub(b"%[%s]", lambda found: b"%" if found[0] == b"%%" else b"$%d" % next(numbers), query)


def migrations(names: Names) -> dict[int, bytes]:
    """Each migration by its number, in order."""
    return {number: names.script(template).encode() for number, template in _migration_templates().items()}


@cache
def _migration_templates() -> Mapping[int, str]:
    files = sorted((file for file in (_HERE / "migrations").iterdir() if file.name.endswith(".sql")), key=str)
    return {int(file.name[:4]): qualified(file.read_text("utf-8")) for file in files}


def _without_comments(text: str) -> str:
    return re.sub(r"^--.*\n?", "", text, flags=re.MULTILINE).strip()


def stored(seq: int, key: str, kind: str, text: str, at: float, epoch: int) -> Record:
    """A record as a journal's row has it; `at` is in seconds since 1970, whose microseconds a float keeps until 2242."""
    # One text for all kinds alike: a text for each record would be a tenth of all that a resumed run holds.
    return Record(seq, key, sys.intern(kind), text, datetime.fromtimestamp(at, UTC), epoch)
