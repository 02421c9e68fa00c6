"""`durable start`: a run that is left to workers."""

from __future__ import annotations

from typing import Any

import click

from durable._commands.changing import read_json
from durable._commands.shared import command, given_options, seconds


@command("start", short_help="start a run, and leave it to workers")
@click.argument("workflow")
@click.option("--id", "run_id", metavar="ID", help="The run's id, by default a random one.")
@click.option("--input", "input_text", metavar="JSON", help="Its input: JSON, @FILE, or - for standard input.")
@click.option("--queue", metavar="NAME", help="The queue (default).")
@click.option("--partition", metavar="TEXT", help="Whose runs it is one of, which take turns with those of others.")
@click.option("--at", metavar="MOMENT", help="Not before this moment, like 2026-12-24T18:00.")
@click.option("--delay", type=seconds(), metavar="AGE", help="Not before so long from now: 90s, 10m, 2h.")
@click.option("--priority", type=click.IntRange(0, 9), default=5, show_default=True, help="0 is taken first.")
@click.option(
    "--dedup", metavar="TEXT", help="While a run of the queue with this text has not ended, that one is the run."
)
@click.option("--meta", multiple=True, metavar="KEY=VALUE", help="Metadata, as text; may be given several times.")
@click.option("--wait", "waits", is_flag=True, help="Wait for its end, as durable wait does.")
@click.option("--here", is_flag=True, help="Execute it in this process, until it ends, and print its result.")
@click.option(
    "--worker",
    metavar="MODULE:WORKER",
    help="With --here: the worker that has the workflow, by default pyproject.toml's; it is stored where that worker looks.",
)
def start_command(
    workflow: str,
    run_id: str | None,
    input_text: str | None,
    queue: str | None,
    partition: str | None,
    at: str | None,
    delay: float | None,
    priority: int,
    dedup: str | None,
    meta: tuple[str, ...],
    waits: bool,
    here: bool,
    worker: str | None,
) -> int:
    """Start a run of WORKFLOW (NAME, or NAME@VERSION): it is stored, for a worker of its queue. Its id is printed.

    With --here it is executed at once, and its result is printed, as by durable wait; when this process dies on the way,
    a worker goes on with the run.
    """
    if here:
        routed = {
            "queue": queue,
            "partition": partition,
            "at": at,
            "delay": delay,
            "dedup": dedup,
            "wait": waits or None,
        }
        return _start_here(workflow, run_id, input_text, worker, routed, _metadata(meta))
    if worker is not None:
        raise click.UsageError("--worker is for --here")
    import durable  # noqa: PLC0415 -- help needs none of it
    from durable._commands.acting import acting  # noqa: PLC0415
    from durable.clocks import SystemClock  # noqa: PLC0415
    from durable.operate.filters import parse_moment  # noqa: PLC0415

    given = given_options()
    terms: dict[str, Any] = {"id": run_id, "priority": priority, "dedup": dedup, "metadata": _metadata(meta) or None}
    terms |= {name: text for name, text in (("queue", queue), ("partition", partition)) if text is not None}
    if at is not None:
        terms["at"] = parse_moment(at, now=SystemClock().now(), what="--at")
    if delay is not None:
        terms["delay"] = delay
    arguments = () if input_text is None else (read_json(input_text, what="the input"),)
    with acting(given) as (actions, out):
        handle = actions.start(
            workflow, lambda: durable.start(workflow, *arguments, store=actions.store, **terms), run_id
        )
        if not waits:
            out.say({"id": handle.id, "done": True}, handle.id)
            return 0
        out.note(handle.id)
    from durable._commands.following import wait_for  # noqa: PLC0415

    return wait_for(handle.id)


def _start_here(
    workflow: str,
    run_id: str | None,
    input_text: str | None,
    worker: str | None,
    routed: dict[str, Any],
    metadata: dict[str, str],
) -> int:
    """Execute it in this process; the exit status."""
    given = given_options()
    for name, value in {
        **routed,
        "url": given.url,
        "table": given.table,
        "schema": given.schema,
        "prefix": given.prefix,
    }.items():
        if value is not None:
            raise click.UsageError(f"--{name} does not go with --here: the run begins now, on the worker's own store")
    import uuid  # noqa: PLC0415 -- help needs none of it

    from durable._commands.following import tell_end  # noqa: PLC0415
    from durable._commands.loading import load_worker  # noqa: PLC0415
    from durable._commands.output import Output  # noqa: PLC0415
    from durable._commands.settings import configured_worker  # noqa: PLC0415
    from durable._runtime.workers import execute_here, store_of  # noqa: PLC0415

    target = worker or configured_worker()
    if target is None:
        raise click.UsageError(
            '--here needs a worker: --worker shop.flows:worker, or [tool.durable] worker = "…" in pyproject.toml'
        )
    options: dict[str, Any] = {"metadata": metadata or None}
    if input_text is not None:
        options["input"] = read_json(input_text, what="the input")
    found, run_id = load_worker(target), run_id or uuid.uuid4().hex
    store = store_of(found)
    Output(given).note(run_id)
    try:
        execute_here(found, workflow, run_id, **options)
    except Exception:
        snapshot = store.load(run_id)
        if snapshot is None or snapshot.execution.status not in ("failed", "cancelled"):
            raise
    else:
        snapshot = store.load(run_id)
    return tell_end(run_id, snapshot)


def _metadata(meta: tuple[str, ...]) -> dict[str, str]:
    told: dict[str, str] = {}
    for text in meta:
        key, equals, value = text.partition("=")
        if not key or not equals:
            raise click.UsageError(f"--meta is KEY=VALUE, not {text!r}")
        told[key] = value
    return told
