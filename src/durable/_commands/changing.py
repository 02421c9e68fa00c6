"""`durable signal`, `cancel`, `retry`, `fork`, `delete` and `purge`."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final

import click

from durable._commands.asking import confirm, tell_outcomes
from durable._commands.completing import complete_id
from durable._commands.listing import read_query, show_count
from durable._commands.shared import command, given_options, seconds

_dry_run: Final = click.option("--dry-run", is_flag=True, help="Change nothing; only say what would be done.")
_where: Final = click.option("--where", metavar="QUERY", help="The runs that a query finds, as for durable list.")
_from_step: Final = click.option(
    "--from-step", metavar="KEY", help="This step, and all that started after it was recorded, run again."
)
_even_effects: Final = click.option(
    "--even-effects", is_flag=True, help="Also where transactions and at-most-once steps would happen once more."
)


@command("signal", short_help="send a message to a run")
@click.argument("id", shell_complete=complete_id)
@click.argument("name")
@click.argument("payload", required=False)
@click.option("--dedup", metavar="TEXT", help="Of what is sent with the same name and TEXT, the run gets the first.")
@click.option("--create-later", is_flag=True, help="Keep it also for a run that is not there yet.")
def signal_command(id: str, name: str, payload: str | None, dedup: str | None, create_later: bool) -> int:
    """Send the signal NAME to the run ID, with PAYLOAD: JSON, @FILE, or - for standard input.

    Exit status: 3 where there is no such run; nothing was sent then, unless --create-later says that the run is to come.
    """
    given = given_options()
    value = None if payload is None else read_json(payload, what="the payload")
    from durable._commands.acting import acting  # noqa: PLC0415 -- help needs no store

    with acting(given) as (actions, out):
        is_there = actions.signal(id, name, value, dedup=dedup, create_later=create_later)
        said = f"sent {name} to {id}" if is_there else f"kept {name} for {id}, which is not there yet"
        out.say({"id": id, "signal": name, "done": True, "isThere": is_there}, said)
    return 0


@command("cancel", short_help="stop runs, wherever they are executed")
@click.argument("ids", nargs=-1, metavar="[ID]...", shell_complete=complete_id)
@_where
@click.option("--force", is_flag=True, help="Take the run from its owner at once; nothing is undone.")
@click.option("--reason", metavar="TEXT", help="Why; it is kept with the run, and written into the audit line.")
@_dry_run
def cancel_command(ids: tuple[str, ...], where: str | None, force: bool, reason: str | None, dry_run: bool) -> int:
    """Cancel the runs ID, or those that a query finds. What is recorded is kept; durable retry takes them up again.

    The owner of a run hears of it within two seconds, undoes what was done and has an undo, and ends the run. A second
    cancel, or --force, takes the run from it.
    """
    from durable._commands.acting import acting  # noqa: PLC0415

    given = given_options()
    with acting(given) as (actions, out):
        if where is not None:
            wanted = _wanted(actions, where, ids, only=("queued", "running", "interrupted"))
            _confirm_bulk(actions, wanted, "cancel", dry_run=dry_run)
            found = _flat(actions.bulk("cancel", wanted, force=force, reason=reason, dry_run=dry_run))
            return tell_outcomes(found, out, "cancelled", dry_run=dry_run)
        _some(ids)
        if len(ids) > 1 and not dry_run:
            confirm(f"cancel {len(ids)} runs", len(ids))
        outcomes = _each(ids, lambda run_id: _cancel(actions, run_id, reason, force=force, dry_run=dry_run))
        return tell_outcomes(outcomes, out, "cancelled", dry_run=dry_run)


@command("retry", short_help="let runs that have failed, or were left, be taken up again")
@click.argument("ids", nargs=-1, metavar="[ID]...", shell_complete=complete_id)
@_where
@_from_step
@_even_effects
@_dry_run
def retry_command(
    ids: tuple[str, ...], where: str | None, from_step: str | None, even_effects: bool, dry_run: bool
) -> int:
    """Take the runs ID, or those that a query finds, up again: what failed runs once more, what was recorded does not.

    A run that was started is due for a worker at once; one of durable.run is left for the next call of its id.
    """
    from durable._commands.acting import acting  # noqa: PLC0415

    given = given_options()
    terms: dict[str, Any] = {"from_step": from_step, "even_effects": even_effects}
    with acting(given) as (actions, out):
        if where is not None:
            wanted = _wanted(actions, where, ids, only=("failed", "interrupted", "cancelled"))
            _confirm_bulk(actions, wanted, "retry", dry_run=dry_run)
            found = _flat(actions.bulk("retry", wanted, dry_run=dry_run, **terms))
            return tell_outcomes(found, out, "retried", dry_run=dry_run)
        _some(ids)
        if len(ids) == 1:
            keys = actions.retry(ids[0], dry_run=dry_run, **terms)
            told = "would run" if dry_run else "run"
            said = f"{', '.join(keys)} {told} again" if keys else "it goes on where it stopped"
            out.say({"id": ids[0], "done": not dry_run, "setAside": keys}, f"retry {ids[0]}: {said}")
            return 0
        if not dry_run:
            confirm(f"retry {len(ids)} runs", len(ids))
        outcomes = _each(ids, lambda run_id: actions.retry(run_id, dry_run=dry_run, **terms))
        return tell_outcomes(outcomes, out, "retried", dry_run=dry_run)


@command("fork", short_help="another run, of what one has recorded up to a step")
@click.argument("id", required=False, shell_complete=complete_id)
@_where
@_from_step
@click.option("--new-id", metavar="ID", help="The new run's id; with --where a pattern, like {id}-again ({id}-fork).")
@click.option("--input", "input_text", metavar="JSON", help="Another input: JSON, @FILE, or - for standard input.")
@_even_effects
@_dry_run
def fork_command(
    id: str | None,
    where: str | None,
    from_step: str | None,
    new_id: str | None,
    input_text: str | None,
    even_effects: bool,
    dry_run: bool,
) -> int:
    """Make another run of what the run ID has recorded up to a step; the run itself stays as it is."""
    from durable._commands.acting import acting  # noqa: PLC0415

    given = given_options()
    terms: dict[str, Any] = {"from_step": from_step, "even_effects": even_effects}
    with acting(given) as (actions, out):
        if where is not None:
            if input_text is not None:
                raise click.UsageError("--input is for one run, and not for --where")
            pattern = new_id or "{id}-fork"
            if "{id}" not in pattern:
                raise click.UsageError("with --where, --new-id is a pattern with {id} in it")
            wanted = _wanted(actions, where, () if id is None else (id,))
            _confirm_bulk(actions, wanted, "fork", dry_run=dry_run)
            return tell_outcomes(
                _flat(actions.bulk("fork", wanted, new_id=pattern, dry_run=dry_run, **terms)),
                out,
                "forked",
                dry_run=dry_run,
            )
        if id is None:
            raise click.UsageError("which run? Give an ID, or --where QUERY")
        more: dict[str, Any] = {} if input_text is None else {"input": read_json(input_text, what="the input")}
        if dry_run:
            keys = actions.retry(id, dry_run=True, **terms) if from_step is None else _cut(actions, id, from_step)
            out.say({"id": id, "done": False, "setAside": keys}, f"{', '.join(keys) or 'nothing'} would run again")
            return 0
        made = actions.fork(id, new_id=new_id, **terms, **more)
        out.say({"id": made, "forkOf": id, "done": True}, made)
    return 0


@command("delete", short_help="forget runs, with all that is recorded of them")
@click.argument("ids", nargs=-1, metavar="[ID]...", shell_complete=complete_id)
@_where
@click.option("--force", is_flag=True, help="Also a run that is being executed: its owner can write nothing more.")
@_dry_run
def delete_command(ids: tuple[str, ...], where: str | None, force: bool, dry_run: bool) -> int:
    """Delete the runs ID, or those that a query finds: header, journal and signals. It cannot be undone."""
    from durable._commands.acting import acting  # noqa: PLC0415

    given = given_options()
    with acting(given) as (actions, out):
        if where is not None:
            if force:
                raise click.UsageError("--force is for runs that are named one by one")
            wanted = _wanted(actions, where, ids)
            _confirm_bulk(actions, wanted, "delete", dry_run=dry_run)
            found = _flat(actions.bulk("delete", wanted, dry_run=dry_run))
            return tell_outcomes(found, out, "deleted", dry_run=dry_run)
        _some(ids)
        if not dry_run:
            what = f"run {ids[0]}" if len(ids) == 1 else f"{len(ids)} runs"
            confirm(f"delete {what}, with all that is recorded of it", len(ids))
        outcomes = _each(ids, lambda run_id: _look(actions, run_id) if dry_run else actions.delete(run_id, force=force))
        return tell_outcomes(outcomes, out, "deleted", dry_run=dry_run)


@command("purge", short_help="delete what ended long ago")
@click.option(
    "--older-than",
    type=seconds(),
    required=True,
    metavar="AGE",
    help="Ended, or left, longer ago than this: 30d, 12h.",
)
@click.option(
    "--status",
    type=click.Choice(["completed", "failed", "cancelled", "interrupted", "all"]),
    default="completed",
    show_default=True,
    help="Of which runs.",
)
@_dry_run
def purge_command(older_than: float, status: str, dry_run: bool) -> int:
    """Delete the runs that ended long ago, a hundred in a transaction. None that is queued, or being executed."""
    from durable._commands.acting import acting  # noqa: PLC0415
    from durable.operate.standing import show_seconds  # noqa: PLC0415
    from durable.stores.reading import Filter  # noqa: PLC0415

    given = given_options()
    with acting(given) as (actions, out):
        from datetime import timedelta  # noqa: PLC0415

        before = actions.store.clock.now() - timedelta(seconds=older_than)
        statuses: Any = ("completed", "failed", "cancelled", "interrupted") if status == "all" else (status,)
        count = actions.store.count_runs(Filter(statuses=statuses, before=before))
        if dry_run:
            out.say({"count": min(count, 10_000), "done": False}, f"{show_count(count)} runs would be deleted")
            return 0
        confirm(
            f"delete {show_count(count)} {'' if status == 'all' else status + ' '}runs older than {show_seconds(older_than)}",
            count,
        )

        def tell(so_far: int) -> None:
            if sys.stderr.isatty() and not given.quiet:
                sys.stderr.write(f"\r{so_far:,} deleted …")

        deleted = actions.purge(older_than=older_than, status=None if status == "all" else status, progress=tell)
        if sys.stderr.isatty() and not given.quiet:
            sys.stderr.write("\r")
        out.say({"count": deleted, "done": True}, f"{deleted:,} {'run' if deleted == 1 else 'runs'} deleted")
    return 0


def read_json(text: str, *, what: str) -> Any:
    """The value that an argument says: JSON, `@FILE`, or `-` for standard input. Raises `InvalidArgument`."""
    import json  # noqa: PLC0415
    from pathlib import Path  # noqa: PLC0415

    from durable.errors import InvalidArgument  # noqa: PLC0415

    try:
        if text == "-":
            text = sys.stdin.read()
        elif text.startswith("@"):
            text = Path(text[1:]).read_text("utf-8")
    except (OSError, ValueError) as problem:  # the latter of what is no UTF-8, and of a name that no file can have
        raise InvalidArgument(f"{what} cannot be read: {problem}") from None
    try:
        return json.loads(text, parse_constant=_refuse)
    except RecursionError:
        raise InvalidArgument(f"{what} is nested too deep to be stored") from None
    except ValueError:
        raise InvalidArgument(f"{what} is no JSON: a text is written in quotes, like '\"yes\"'") from None


def _refuse(constant: str) -> Any:
    raise ValueError(constant)


def _some(ids: Sequence[str]) -> None:
    if not ids:
        raise click.UsageError("which runs? Give IDs, or --where QUERY")


def _wanted(actions: Any, where: str, ids: Sequence[str], *, only: tuple[str, ...] = ()) -> Any:
    """The filter of a bulk action, which says something: nothing is done to all runs by an empty one."""
    from msgspec import structs  # noqa: PLC0415

    from durable.stores.reading import Filter  # noqa: PLC0415

    if ids:
        raise click.UsageError("give IDs, or --where QUERY, and not both")
    wanted = read_query(where, actions.store.clock.now())
    if wanted == Filter():
        raise click.UsageError("--where says nothing: name a status, a workflow, or what ids begin with")
    return structs.replace(wanted, statuses=only) if only and not wanted.statuses else wanted


def _confirm_bulk(actions: Any, wanted: Any, action: str, *, dry_run: bool) -> None:
    if not dry_run:
        count = actions.store.count_runs(wanted)
        if count:
            confirm(f"{action} {show_count(count)} {'run' if count == 1 else 'runs'}", count)


def _flat(batches: Any) -> Iterator[Any]:
    for batch in batches:
        yield from batch


def _each(ids: Sequence[str], act: Callable[[str], object]) -> Iterator[Any]:
    from durable.errors import DurableError  # noqa: PLC0415
    from durable.operate.actions import Outcome  # noqa: PLC0415

    for run_id in ids:
        try:
            act(run_id)
        except DurableError as problem:
            yield Outcome(run_id, problem)
        else:
            yield Outcome(run_id)


def _look(actions: Any, id: str) -> str:
    from durable.errors import RunNotFound  # noqa: PLC0415

    status = actions.store.status(id)
    if status is None:
        raise RunNotFound(id)
    return str(status)


def _cancel(actions: Any, id: str, reason: str | None, *, force: bool, dry_run: bool) -> None:
    from durable.operate.actions import AlreadyEnded  # noqa: PLC0415

    status = _look(actions, id)
    is_over = status in ("completed", "failed", "cancelled")
    if is_over or not (dry_run or actions.cancel(id, force=force, reason=reason)):
        raise AlreadyEnded(id, status)


def _cut(actions: Any, id: str, from_step: str) -> list[str]:
    from durable._engine.retry_cut import cut  # noqa: PLC0415
    from durable.operate.view import read_journal  # noqa: PLC0415

    return list(cut(read_journal(actions.store, id), from_step, run_id=id).keys)
