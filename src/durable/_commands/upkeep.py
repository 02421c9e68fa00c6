"""`durable workers`, `migrate`, `schema`, `doctor` and `completion`."""

from __future__ import annotations

import sys
from typing import Any

import click

from durable._commands.shared import BAD_NEWS, command, given_options


@command("workers", short_help="the workers that are at work")
def workers_command() -> int:
    """List the workers that were heard of in the last hour, and what is due that none of them executes."""
    from durable._commands.finding import open_store  # noqa: PLC0415 -- help needs no store
    from durable._commands.output import Output  # noqa: PLC0415

    given = given_options()
    out = Output(given)
    with open_store(given) as store:
        now = store.clock.now()
        workers, unserved = store.workers(), store.stats().unserved
    rows: list[list[str]] = []
    for worker in workers:
        silent = (now - worker.seen_at).total_seconds()
        state = "leaving" if worker.leaving else "silent" if silent > 60 else "idle" if worker.idle else "at work"  # noqa: PLR2004
        routes = [route for route in worker.routes if not route.startswith(": ")]
        if out.is_json:
            told = {**worker._asdict(), "routes": list(routes), "state": state, "seenAt": worker.seen_at}
            del told["seen_at"]
            out.document(told)
        color = {"silent": "yellow", "leaving": "magenta"}.get(state)
        rows.append(
            [worker.owner, out.style(state, color), str(worker.held), out.when(worker.seen_at, now), ", ".join(routes)]
        )
    if out.is_json:
        return 0
    if rows or not out.is_tty:
        out.table(["PROCESS", "STATE", "RUNS", "HEARD OF", "EXECUTES"], rows, shrinks=[4])
    elif out.is_tty:
        out.note("No worker was heard of in the last hour. durable worker MODULE:WORKER is one.")
    for route in unserved:
        out.note(f"! {route}: something is due, and no worker that was heard of in the last minute executes it")
    return 0


@command("migrate", short_help="make the tables, or bring them up to this version")
@click.option("--dry-run", is_flag=True, help="Change nothing; print the SQL that would be executed.")
def migrate_command(dry_run: bool) -> int:
    """Make the store's tables where they are missing, and apply the migrations that are new. It may be called again."""
    from durable._commands.finding import find_names, open_store  # noqa: PLC0415
    from durable._commands.output import Output  # noqa: PLC0415
    from durable.operate.doctor import read_version  # noqa: PLC0415
    from durable.stores import schema_sql  # noqa: PLC0415

    given = given_options()
    out = Output(given)
    url, names = find_names(given)
    before, newest = read_version(url, names)
    if dry_run:
        if before >= newest:
            out.note(f"the tables have version {before}: nothing is to be done")
        else:
            sys.stdout.write(schema_sql(**names, since=before))
        return 0
    with open_store(given, create=True) as store:
        store.runs(limit=1)
    said = f"version {newest}" if before == newest else f"from version {before} to {newest}"
    out.say({"from": before, "to": newest, "done": before != newest}, said)
    return 0


@command("schema", short_help="the SQL that makes the tables, for a role that may")
@click.option("--since", type=int, default=0, metavar="N", help="Leave out the migrations up to this number.")
@click.option("--role", metavar="NAME", help="Who is to run workflows afterwards, with no right to create anything.")
@click.option(
    "--lock", metavar="NAME", help="The leases' table, if its name is not to follow from the documented one's."
)
def schema_command(since: int, role: str | None, lock: str | None) -> int:
    """Print the SQL that makes the store's tables. No database is asked."""
    from durable.stores import schema_sql  # noqa: PLC0415

    given = given_options()
    names: dict[str, Any] = {name: value for name in ("table", "schema") if (value := getattr(given, name)) is not None}
    sys.stdout.write(schema_sql(**names, lock=lock, role=role, since=since))
    return 0


@command("doctor", short_help="look for what is wrong with the database, or the way to it")
@click.option("--strict", is_flag=True, help="Exit with 1 for a warning, too.")
def doctor_command(strict: bool) -> int:
    """Look at the database as durable needs it: settings, tables, rights, clocks, and what waits in vain. Nothing is changed.

    Exit status: 0 if all is well, or there are only warnings; 1 for an error.
    """
    from durable._commands.finding import find_names, find_place  # noqa: PLC0415
    from durable._commands.output import Output, pad  # noqa: PLC0415
    from durable.operate.doctor import examine  # noqa: PLC0415

    given = given_options()
    out = Output(given)
    place = find_place(given)
    url, names = find_names(given)
    prefix = given.prefix or str(place.settings.get("prefix") or "")
    errors = warnings = 0
    for check in examine(url, names, source=place.source, prefix=prefix):
        errors += check.level == "error"
        warnings += check.level == "warning"
        if out.is_json:
            out.document(check._asdict())
        elif out.is_tty:
            mark, color = {"fine": ("✓", None), "warning": ("!", "yellow"), "error": ("✕", "red")}[check.level]
            out.line(f"{out.style(mark, color)} {pad(check.name, 14)} {check.said}")
        else:
            out.line(f"{check.level}\t{check.name}\t{check.said}")
    status = BAD_NEWS if errors or (strict and warnings) else 0
    if out.is_tty and not out.is_json:
        out.note(_summary(errors, warnings, status, strict=strict))
    return status


@command("completion", short_help="let the shell complete commands, options and ids")
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion_command(shell: str) -> int:
    """Print the script that lets SHELL complete. For bash, put into ~/.bashrc:  eval "$(durable completion bash)"."""
    from click.shell_completion import get_completion_class  # noqa: PLC0415

    root = click.get_current_context().find_root().command
    made = get_completion_class(shell)
    if made is None:
        raise click.UsageError(f"no completion for {shell}")
    sys.stdout.write(made(root, {}, "durable", "_DURABLE_COMPLETE").source())
    return 0


def _summary(errors: int, warnings: int, status: int, *, strict: bool) -> str:
    found = ((errors, "error"), (warnings, "warning"))
    counted = ", ".join(f"{count} {word}{'' if count == 1 else 's'}" for count, word in found if count)
    more = " (1 with --strict)" if warnings and not errors and not strict else ""
    return f"{counted or 'All is well'}. Exit {status}{more}"
