"""The SQL of the store, read from the files beside this one, with the tables' names filled in.

Its functions and operators are PostgreSQL's own, and are qualified. By their mere names they would be looked for on the search
path, where another role's function of the same name is preferred if its arguments fit better.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache
from importlib import resources
from typing import Final, LiteralString, cast

from durable._engine.headers import FOREIGN_METADATA
from durable._engine.signals import FIRST_OF_DEDUP
from durable.stores._postgres.sql.names import Names

# As the files here write them: a function's name is small, and its parenthesis follows at once.
# The grammar's own are looked for in that schema anyway: the trimming of text, and `unnest` of several arrays at once.
_GRAMMAR: Final = r"(?:extract|trim|substring|position|overlay)\(|unnest\((?:%\(\w+\)s|[^(),])+,"
_FUNCTION: Final = re.compile(rf"(?<![\w.%])(?!{_GRAMMAR})([a-z_][a-z0-9_]*)\(")
_OPERATOR: Final = re.compile(r"\|\||->>|->")  # those that one operand decides, where the other is a mere literal
_QUOTED: Final = re.compile(r"""('(?:[^']|'')*'|"[^"]*"|--[^\n]*)""")
_HERE: Final = resources.files(__name__.rpartition(".")[0])

_FOREIGN_METADATA: Final = f"'{{{','.join(FOREIGN_METADATA)}}}'::text[]"
# Parts that statements share. `{foreign}` is `headers.is_foreign` of a row's `snapshot`.
_PARTS: Final = {
    "{below_2_62}": str(FIRST_OF_DEDUP - 1),  # a mask, for the nonces of what has no `dedup`
    "{first_of_dedup}": str(FIRST_OF_DEDUP),
    "{foreign}": f"(COALESCE(snapshot->>'workflowName', '') = '' "
    f"OR COALESCE(snapshot->'metadata' ?| {_FOREIGN_METADATA}, false))",
    "{foreign_metadata}": _FOREIGN_METADATA,
    # Of the header's `execution`, `this.of`: the executions before the last, and the last; and both, the latest ten of them.
    "{earlier}": "CASE WHEN jsonb_typeof(this.of->'earlier') = 'array' THEN this.of->'earlier' ELSE '[]' END AS earlier",
    "{last}": "jsonb_build_array(jsonb_build_object('epoch', this.of->'epoch', 'owner', COALESCE(this.of->'owner', '\"\"'), "
    "'began', COALESCE(this.of->'began', '\"\"'))) AS last",
    "{earlier_and_last}": "CASE WHEN jsonb_array_length(old.earlier) < 10 THEN old.earlier || old.last "
    "ELSE (old.earlier || old.last) - 0 END",
}


@cache
def load_statements(names: Names, file: str = "statements.sql") -> Mapping[str, bytes]:
    """The statements of a file by their names."""
    return {name: names.fill(template).encode() for name, template in _templates(file).items()}


@cache
def _templates(file: str) -> Mapping[str, str]:
    """The statements before the tables are named: read and qualified once for all stores of a process."""
    text = (_HERE / file).read_text("utf-8")
    for part, meaning in _PARTS.items():
        text = text.replace(part, meaning)
    parts = re.split(r"^-- name: (\w+)$", text, flags=re.MULTILINE)[1:]
    named = zip(parts[::2], parts[1::2], strict=True)
    return {name: qualify(_without_comments(part)) for name, part in named}


def qualify(text: str) -> LiteralString:
    """Our SQL, with its functions and operators taken from PostgreSQL's own schema, whatever the search path."""
    parts = _QUOTED.split(text)  # every second part is a literal, a quoted name, or a comment
    for number in range(0, len(parts), 2):
        called = _FUNCTION.sub(r"pg_catalog.\1(", parts[number])
        parts[number] = _OPERATOR.sub(lambda found: f" OPERATOR(pg_catalog.{found[0]}) ", called)
    return cast(LiteralString, "".join(parts))  # type: ignore[redundant-cast]  # not to pyright


def load_migrations(names: Names) -> dict[int, bytes]:
    """The migrations by their numbers, in order."""
    return {number: names.fill_script(template).encode() for number, template in _migration_templates().items()}


@cache
def _migration_templates() -> Mapping[int, str]:
    files = sorted((file for file in (_HERE / "migrations").iterdir() if file.name.endswith(".sql")), key=str)
    return {int(file.name[:4]): qualify(file.read_text("utf-8")) for file in files}


def _without_comments(text: str) -> str:
    return re.sub(r"^--.*\n?", "", text, flags=re.MULTILINE).strip()
