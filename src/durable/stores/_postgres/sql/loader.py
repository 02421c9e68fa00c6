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


def _held_of(queue: str) -> str:
    """The leases that are held of a queue: their slots begin as its name does, behind which a comma follows."""
    slot = """split_part(route, E'\\n', 2) COLLATE "C\""""
    return (  # of no values
        f"{slot} >= left({queue}, -1) || ',' AND {slot} < left({queue}, -1) || '-' "
        "AND owner_token IS NOT NULL AND due_at IS NOT NULL AND strpos(route, E'\\n') > 0"
    )


def _reopened(given_back: str) -> str:
    """What gives leases back lets their partitions have a turn again, *whatever they seem to have*: it waits for one that takes
    from a partition just now, and has counted these leases. In the order of their keys, as whatever locks several of them. (One
    that is opened meanwhile, for another workflow, it does not see: that is put off for half a minute, see `take_members`.)
    """
    return f"""\
lanes AS MATERIALIZED (
    SELECT lane.slot
      FROM (SELECT DISTINCT slot FROM {given_back} WHERE slot <> '' ORDER BY slot) AS given
     CROSS JOIN LATERAL (SELECT slot FROM {{partitions}} WHERE slot = given.slot ORDER BY line FOR NO KEY UPDATE) AS lane
), freed_lanes AS (
    UPDATE {{partitions}}
       SET turn = LEAST(turn, clock_timestamp())
     WHERE slot = ANY (ARRAY(SELECT slot FROM lanes))
    RETURNING slot
)"""  # noqa: S608 -- a name of ours


# Parts that statements share. `{foreign}` is `headers.is_foreign` of a row's `snapshot`.
_PARTS: Final = {
    "{below_2_62}": str(FIRST_OF_DEDUP - 1),  # a mask, for the nonces of what has no `dedup`
    # Of the runs that a poll has taken: their headers, and the rows of its answer.
    "{header_of_taken}": """\
header AS (
    UPDATE {snapshots} AS run
       SET snapshot = run.snapshot || jsonb_build_object('execution', (
               SELECT jsonb_strip_nulls(jsonb_build_object(
                          'status', 'running',
                          'lastUpdated', now(),
                          'startedAt', COALESCE(NULLIF(old.of->>'startedAt', ''), to_jsonb(now())#>>'{}'),
                          'epoch', taken.epoch,
                          'owner', taken.owner,
                          'began', statement_timestamp(),
                          'crashes', CASE
                              WHEN taken.epoch = 1 THEN NULL
                              WHEN EXISTS (
                                   SELECT FROM {steps}
                                    WHERE workflow_id = taken.workflow_id AND epoch = taken.epoch - 1) THEN NULL
                              WHEN taken.left_by IS NULL
                                   OR pg_postmaster_start_time() > (old.of->>'began')::timestamptz
                                   OR EXISTS (SELECT FROM {workers} WHERE owner = taken.former AND leaving)
                              THEN old.of->'crashes'
                              ELSE to_jsonb(COALESCE((old.of->>'crashes')::integer, 0) + 1) END,
                          'earlier', CASE
                              WHEN old.of->'epoch' IS NULL THEN old.of->'earlier'
                              ELSE {earlier_and_last} END))
                 FROM (SELECT this.of, {earlier}, {last}
                         FROM (SELECT run.snapshot->'execution' AS of) AS this) AS old)),
           updated_at = now()
      FROM taken
     WHERE run.id = ANY (ARRAY(SELECT workflow_id FROM taken)) AND run.id = taken.workflow_id
    RETURNING run.id, run.snapshot::text AS document
)""",
    "{run_taken}": """\
(
       SELECT taken.workflow_id, taken.epoch, taken.owner_token, taken.n, taken.route, header.document,
              input.record, input.at, input.epoch
         FROM taken
         LEFT JOIN header ON header.id = taken.workflow_id
         LEFT JOIN LATERAL (
              SELECT record::text AS record, extract(epoch FROM created_at)::float8 AS at, epoch
                FROM {steps}
               WHERE workflow_id = taken.workflow_id AND seq = 0 AND taken.epoch = 1) AS input ON true) AS run""",
    # Of a lease's row: what it is counted in (empty of one without), and the route that a worker has. JSON has no raw tab.
    "{slot}": "split_part(route, E'\\n', 2)",
    "{line}": "split_part(split_part(route, E'\\n', 1), E'\\t', 1)",
    "{line_of_known}": "split_part(split_part(known.route, E'\\n', 1), E'\\t', 1)",
    # Behind all slots of a route; where the collation does not sort so, from one to the next.
    "{after_known}": "GREATEST(known.route, split_part(split_part(known.route, E'\\n', 1), E'\\t', 1) "
    "|| CASE WHEN known.route ~ '[\\n\\t]' THEN E'\\x7f' ELSE '' END)",
    "{is_plain_known}": "known.route !~ '[\\n\\t]'",
    "{is_limited}": "(paused OR concurrency IS NOT NULL OR partition_concurrency IS NOT NULL OR rate IS NOT NULL)",
    "{is_held_slot}": "owner_token IS NOT NULL AND due_at IS NOT NULL AND strpos(route, E'\\n') > 0",
    "{held_of_queue}": _held_of("asked.queue"),
    "{held_of_name}": _held_of("asked.name"),
    "{reopened_of_held}": _reopened("held"),
    "{reopened_of_ended}": _reopened("ended"),
    "{allowed_since}": "GREATEST(kept.next_at, "
    "statement_timestamp() - (kept.burst - 1) * kept.per / kept.rate * interval '1 s')",
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
