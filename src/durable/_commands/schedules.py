"""`durable schedules`: what begins runs by the clock, listed, paused, run now, filled up and deleted."""

from __future__ import annotations

from typing import Any, Final

import click

from durable._commands.asking import confirm
from durable._commands.shared import NO_SUCH_RUN, command, fail, given_options

ACTIONS: Final = ("list", "pause", "resume", "run", "backfill", "delete")


@command("schedules", short_help="what begins runs by the clock: list, pause, resume, run, backfill, delete")
@click.argument("action", type=click.Choice(ACTIONS), default="list")
@click.argument("name", required=False)
@click.option("--since", metavar="AGE", help="Of backfill: from this moment on, or since 2h, 3d.")
@click.option("--until", metavar="AGE", help="Of backfill: up to this moment; by default up to now.")
def schedules_command(action: str, name: str | None, since: str | None, until: str | None) -> int:
    """List the schedules, or do something with the one called NAME.

    pause starts nothing until resume, which goes on with the next moment from then. run starts one run more at once. backfill
    starts the runs of the moments from --since to --until that are not there. delete forgets the schedule, and not its runs; a
    worker that has it puts it back when it starts.

    Exit status: 3 where there is no such schedule.
    """
    if action == "list":
        if name is not None or since is not None or until is not None:
            raise click.UsageError("list takes no NAME, --since or --until")
        return _list()
    if name is None:
        raise click.UsageError(f"which schedule? durable schedules {action} NAME")
    if action != "backfill" and (since is not None or until is not None):
        raise click.UsageError("--since and --until are of backfill")
    if action == "backfill" and since is None:
        raise click.UsageError(f"from when on? durable schedules backfill {name} --since 3h")
    return _act(action, name, since, until)


def _list() -> int:
    from durable._commands.finding import open_store  # noqa: PLC0415 -- help needs no store
    from durable._commands.output import Output, printable  # noqa: PLC0415

    given = given_options()
    out = Output(given)
    with open_store(given) as store:
        now, lines = store.clock.now(), store.schedules()
    if out.is_json:
        for line in lines:
            out.document(plain_schedule(line))
        return 0
    rows = [
        [
            printable(line.name),
            out.style("paused", "yellow")
            if line.paused
            else "due"
            if line.due_at is None or line.due_at <= now
            else "waits",
            printable(f"{line.timetable} {line.zone}" if line.scheduled.cron else line.timetable),
            out.when(line.due_at, now),
            out.when(line.last_at, now),
            printable(f"{line.queue}: {line.workflow}"),
            f"missed {line.missed}, overlap {line.overlap}",
        ]
        for line in lines
    ]
    if rows or not out.is_tty:
        heads = ["SCHEDULE", "STATE", "TIMETABLE", "NEXT", "LAST", "STARTS", "POLICY"]
        out.table(heads, rows, shrinks=[6, 5, 0, 2])
    else:
        out.note(
            "No schedule is stored here. A worker that has some, Worker(…, schedules=[…]), puts them here when it starts."
        )
    return 0


def _act(action: str, name: str, since: str | None, until: str | None) -> int:
    from durable._commands.acting import acting  # noqa: PLC0415
    from durable.errors import ScheduleNotFound  # noqa: PLC0415
    from durable.operate.filters import parse_moment  # noqa: PLC0415

    with acting(given_options()) as (actions, out):
        now, told = actions.store.clock.now(), dict[str, Any](schedule=name, action=action, done=True)
        try:
            if action in ("pause", "resume"):
                actions.pause_schedule(name, paused=action == "pause")
                out.say(told, f"{name} is {'paused' if action == 'pause' else 'resumed'}")
            elif action == "run":
                run = actions.run_schedule(name)
                out.say(told | {"runs": [run]}, f"started {run}")
            elif action == "delete":
                confirm(f"delete the schedule {name}", 1)
                actions.delete_schedule(name)
                out.say(told, f"{name} is deleted")
            else:
                first = parse_moment(since or "", now=now, what="--since")
                last = now if until is None else parse_moment(until, now=now, what="--until")
                runs = actions.backfill_schedule(name, first, last)
                count = f"{len(runs):,} {'moment' if len(runs) == 1 else 'moments'}"
                out.say(
                    told | {"runs": runs}, f"{count} of {name} {'has its run' if len(runs) == 1 else 'have their runs'}"
                )
        except ScheduleNotFound as problem:
            fail(str(problem), NO_SUCH_RUN)
    return 0


def plain_schedule(line: Any) -> dict[str, Any]:
    """A schedule as JSON has it."""
    return {
        "name": line.name,
        "timetable": line.timetable,
        "zone": line.zone,
        "workflow": line.workflow,
        "queue": line.queue,
        "missed": line.missed,
        "overlap": line.overlap,
        "paused": line.paused,
        "dueAt": None if line.due_at is None else line.due_at.isoformat(),
        "lastAt": None if line.last_at is None else line.last_at.isoformat(),
        "lastRun": line.last_id,
    }
