"""`durable list` and `durable stats`."""

from __future__ import annotations

import shlex
from datetime import datetime
from typing import Any, Final

import click

from durable._commands.completing import complete_id
from durable._commands.shared import NO_SUCH_RUN, command, fail, given_options

# Of each column its head, and whether it is shown by default.
COLUMNS: Final = {
    "status": ("STATUS", True),
    "run": ("RUN", True),
    "workflow": ("WORKFLOW", True),
    "where": ("WHERE IT STANDS", True),
    "started": ("STARTED", True),
    "took": ("TOOK", True),
    "queue": ("QUEUE", False),
    "parent": ("PARENT", False),
    "updated": ("UPDATED", False),
    "due": ("DUE", False),
    "priority": ("PRIORITY", False),
    "version": ("VERSION", False),
    "owner": ("OWNER", False),
    "executions": ("EXECUTIONS", False),
    "records": ("RECORDS", False),
}

_NARROW: Final = 90  # columns of a terminal, below which there are fewer of the table


@command("list", short_help="the runs that a query finds")
@click.argument("query", nargs=-1)
@click.option("--status", metavar="WORD", help="Where they stand; the same as status:WORD.")
@click.option("--workflow", metavar="NAME", help="The same as workflow:NAME.")
@click.option("--since", metavar="AGE", help="Changed since: 2h, 3d, or a moment; the same as since:AGE.")
@click.option("--limit", type=click.IntRange(1, 1000), default=50, show_default=True, help="How many runs.")
@click.option(
    "--after", metavar="ID", shell_complete=complete_id, help="Begin after this run: the last one of the page before."
)
@click.option("--columns", metavar="A,B", help=f"Which columns: {', '.join(COLUMNS)}.")
@click.option("--count", is_flag=True, help="Only how many there are, as far as 10,001.")
def list_command(
    query: tuple[str, ...],
    status: str | None,
    workflow: str | None,
    since: str | None,
    limit: int,
    after: str | None,
    columns: str | None,
    count: bool,
) -> int:
    """List runs, the newest first.

    QUERY narrows them: status:failed,interrupted  workflow:checkout  error:OSError  step:charge  queue:orders
    parent:ID  meta.KEY:value  since:2h  before:2026-11-29T10:00  id:EXACT; a word alone is what ids begin with. Of
    several values of one kind any may hold.
    """
    from durable._commands.finding import open_store  # noqa: PLC0415 -- help needs no store
    from durable._commands.output import Output  # noqa: PLC0415
    from durable.operate.plain import plain_line  # noqa: PLC0415

    given = given_options()
    out = Output(given)
    text = join_query(query, status=status, workflow=workflow, since=since)
    shown = _columns(columns, out)
    with open_store(given) as store:
        now = store.clock.now()
        wanted = read_query(text, now)
        if count:
            found = store.count_runs(wanted)
            if out.is_json:
                out.document({"count": min(found, 10_000), "isCapped": found > 10_000})  # noqa: PLR2004 -- as the store counts
            else:
                out.line(show_count(found))
            return 0
        last = None if after is None else find_line(store, after)
        lines = store.runs(wanted, limit=limit, after=last)
    if out.is_json:
        for line in lines:
            out.document(plain_line(line, now=now))
        return 0
    heads, rows = [COLUMNS[name][0] for name in shown], [_row(line, shown, out, now) for line in lines]
    if rows or not out.is_tty:
        out.table(heads, rows, shrinks=[shown.index(name) for name in ("where", "run", "workflow") if name in shown])
    if out.is_tty:
        out.note(_footer(lines, limit, text))
    return 0


@command("stats", short_help="how many runs there are, and how much room they take")
def stats_command() -> int:
    """Count the runs by where they stand, the records, and the bytes on disk."""
    from durable._commands.finding import open_store  # noqa: PLC0415
    from durable._commands.output import Output  # noqa: PLC0415
    from durable.operate.plain import plain_stats  # noqa: PLC0415

    given = given_options()
    out = Output(given)
    with open_store(given) as store:
        stats = store.stats()
    if out.is_json:
        out.document(plain_stats(stats))
        return 0
    rows = [
        (_state(out, state), f"{getattr(stats, state):,}") for state in _COUNTED if getattr(stats, state) or out.is_tty
    ]
    if stats.unreadable:
        rows.append((_state(out, "unreadable"), f"{stats.unreadable:,}"))
    about = "about " if stats.is_estimate else ""
    rows += [
        ("runs", f"{stats.runs:,}"),
        ("records", f"{about}{stats.records:,}"),
        ("on disk", show_bytes(stats.bytes)),
    ]
    if stats.orphaned:
        rows.append(("orphaned", f"{stats.orphaned:,} journals without a header: durable purge takes them"))
    rows += [("unserved", f"{route}: no worker was at work in the last minute") for route in stats.unserved]
    out.table(["WHAT", "HOW MANY"], rows)
    return 0


_COUNTED: Final = ("queued", "running", "interrupted", "failed", "cancelled", "completed")


def _state(out: Any, state: str) -> str:
    return str(out.show_state(state)) if out.is_tty else state


def join_query(query: tuple[str, ...], **options: str | None) -> str:
    """The words of a query and the options that stand for some, as one text."""
    return " ".join([*query, *(f"{name}:{value}" for name, value in options.items() if value is not None)])


def read_query(text: str, now: datetime) -> Any:
    """The filter that a query means."""
    from durable.operate.filters import parse_query  # noqa: PLC0415

    return parse_query(text, now=now)


def rows_of(lines: Any, out: Any, now: datetime) -> list[str]:
    """The lines of a table of runs."""
    columns = _columns(None, out)
    heads, rows = [COLUMNS[name][0] for name in columns], [_row(line, columns, out, now) for line in lines]
    told: list[str] = out.format_table(
        heads, rows, shrinks=[columns.index(one) for one in ("where", "run", "workflow")]
    )
    return told


def find_line(store: Any, id: str) -> Any:
    """The line of a run; ends the command where there is none."""
    from durable.stores.reading import Filter  # noqa: PLC0415

    lines = store.runs(Filter(ids=(id,)), limit=1)
    if not lines:
        fail(f"no run {id!r} is stored here", NO_SUCH_RUN)
    return lines[0]


def show_count(count: int) -> str:
    """A count that ends somewhere."""
    return "10k+" if count > 10_000 else f"{count:,}"  # noqa: PLR2004 -- as the store counts


def show_bytes(size: int) -> str:
    """A size for people."""
    amount = float(size)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if amount < 1024:  # noqa: PLR2004 -- the next unit
            return f"{amount:.0f} {unit}" if unit == "B" else f"{amount:.1f} {unit}"
        amount /= 1024
    return f"{amount:.1f} TiB"


def _columns(given: str | None, out: Any) -> list[str]:
    if given is None:
        left_out = ("took",) if out.is_tty and out.width < _NARROW else ()
        return [name for name, (_, is_default) in COLUMNS.items() if is_default and name not in left_out]
    names = [name.strip().lower() for name in given.split(",")]
    for name in names:
        if name not in COLUMNS:
            raise click.UsageError(f"there is no column {name!r}: {', '.join(COLUMNS)}")
    return names


def _row(line: Any, columns: list[str], out: Any, now: datetime) -> list[str]:
    from durable._commands.output import printable  # noqa: PLC0415
    from durable.operate.standing import show_seconds, stand  # noqa: PLC0415
    from durable.stores.reading import NEVER  # noqa: PLC0415

    standing = stand(line, now=now)
    state = _state(out, standing.state)
    nothing = "–" if out.is_tty else ""
    took = nothing if standing.took is None else show_seconds(standing.took) if out.is_tty else f"{standing.took:.3f}"
    cells = {
        "status": state,
        "run": printable(line.id),
        "workflow": printable(line.workflow),
        "where": printable(standing.where),
        "started": out.when(line.started_at, now),
        "took": took,
        "queue": printable(line.queue or nothing),
        "parent": printable(line.parent or nothing),
        "updated": out.when(line.updated_at, now),
        "due": "when it is woken" if line.due_at == NEVER else out.when(line.due_at, now),
        "priority": nothing if line.priority is None else str(line.priority),
        "version": nothing if line.version is None else str(line.version),
        "owner": line.owner or nothing,
        "executions": str(line.executions),
        "records": str(line.records),
    }
    return [cells[name] for name in columns]


def _footer(lines: Any, limit: int, text: str) -> str:
    count = f"{len(lines)} {'run' if len(lines) == 1 else 'runs'}."
    if len(lines) < limit:
        return count
    return f"{count} Older: durable list {text + ' ' if text else ''}--after {shlex.quote(lines[-1].id)}"
