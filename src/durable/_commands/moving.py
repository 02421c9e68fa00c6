"""`durable export` and `durable import`: runs as lines of JSON."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import click

from durable._commands.asking import confirm
from durable._commands.completing import complete_id
from durable._commands.listing import read_query
from durable._commands.shared import NO_SUCH_RUN, command, fail, given_options


@command("export", short_help="runs as lines of JSON, to be taken elsewhere")
@click.argument("ids", nargs=-1, metavar="[ID]...", shell_complete=complete_id)
@click.option("--where", metavar="QUERY", help="The runs that a query finds, as for durable list.")
@click.option(
    "--output", "-o", type=click.Path(dir_okay=False), metavar="FILE", help="Into this file, and not to stdout."
)
def export_command(ids: tuple[str, ...], where: str | None, output: str | None) -> int:
    """Write the runs ID, or those that a query finds: header, records, signals, a line each, with all VALUES as stored.

    durable import reads them; imported and exported again they are the same, to the byte.
    """
    from durable._commands.finding import open_store  # noqa: PLC0415 -- help needs no store
    from durable._commands.output import Output  # noqa: PLC0415
    from durable.operate.transfer import export_run  # noqa: PLC0415

    given = given_options()
    if bool(ids) == (where is not None):
        raise click.UsageError("which runs? Give IDs, or --where QUERY, and not both")
    count = 0
    with open_store(given) as store, click.open_file(output or "-", "wb") as file:
        for run_id in ids or _found(store, where or ""):
            for line in export_run(store, run_id):
                file.write(line + b"\n")
            count += 1
    if output is not None or sys.stderr.isatty():
        Output(given).note(f"{count} {'run' if count == 1 else 'runs'} exported, with their values")
    if where is not None and not count:
        fail("the query finds no run", NO_SUCH_RUN)
    return 0


@command("import", short_help="put exported runs into this store")
@click.argument("file", type=click.File("rb"))
@click.option("--replace", is_flag=True, help="Also in the place of runs that are there.")
@click.option("--dry-run", is_flag=True, help="Change nothing; only read the file, and say what is in it.")
def import_command(file: Any, replace: bool, dry_run: bool) -> int:
    """Put the runs of FILE (- for standard input), as durable export wrote them, into the store; --prefix precedes ids.

    Each run is one transaction. A run that waited for workers is due for those here.
    """
    from durable._commands.acting import acting  # noqa: PLC0415
    from durable.operate.transfer import read_runs  # noqa: PLC0415

    given = given_options()
    name = getattr(file, "name", "the file")
    with acting(given, create=not dry_run) as (actions, out):
        if dry_run:
            for run in read_runs(file, file=str(name)):
                out.say(
                    {"id": run.id, "records": len(run.records), "done": False}, f"{run.id}: {len(run.records)} records"
                )
            return 0
        runs = list(read_runs(file, file=str(name))) if replace else read_runs(file, file=str(name))
        if replace and isinstance(runs, list):
            there = [run.id for run in runs if actions.store.status(run.id) is not None]
            if there:
                confirm(f"replace {len(there)} {'run' if len(there) == 1 else 'runs'} that are there", len(there))
        count = 0
        for run in runs:
            actions.restore(run, replace=replace)
            count += 1
            if out.is_json:
                out.document({"id": run.id, "records": len(run.records), "done": True})
        if not out.is_json:
            out.line(f"{count} {'run' if count == 1 else 'runs'} imported")
    return 0


def _found(store: Any, where: str) -> Iterator[str]:
    wanted, last = read_query(where, store.clock.now()), None
    while True:
        lines = store.runs(wanted, limit=1000, after=last)
        for line in lines:
            yield line.id
        if len(lines) < 1000:  # noqa: PLR2004 -- a page
            return
        last = lines[-1]
