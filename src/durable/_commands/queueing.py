"""`durable queues`, `pause` and `resume`."""

from __future__ import annotations

from typing import Any

import click

from durable._commands.shared import command, given_options


@command("queues", short_help="the queues, their limits, and what waits in them")
def queues_command() -> int:
    """List the queues that have limits, are paused, or have runs that are due or executed. Counted as far as 10,000 of each."""
    from durable._commands.finding import open_store  # noqa: PLC0415 -- help needs no store
    from durable._commands.output import Output  # noqa: PLC0415

    given = given_options()
    out = Output(given)
    with open_store(given) as store:
        queues = store.queues()
    rows: list[list[str]] = []
    for line in queues:
        limits, rate = line.queue, line.queue.rate
        if out.is_json:
            told: dict[str, Any] = {
                "queue": limits.name,
                "paused": line.paused,
                "held": line.held,
                "due": line.due,
                "partitions": line.partitions,
                "concurrency": limits.concurrency,
                "partitionConcurrency": limits.partition_concurrency,
                "rate": None if rate is None else {"limit": rate.limit, "per": rate.seconds, "burst": rate.burst},
            }
            out.document(told)
        of_all = "" if limits.concurrency is None else f" of {limits.concurrency}"
        each = "" if limits.partition_concurrency is None else str(limits.partition_concurrency)
        spread = "" if rate is None else f"{rate.limit} in {rate.seconds:g} s, {rate.burst}"
        state = out.style("paused", "yellow") if line.paused else "open"
        rows.append([limits.name, state, f"{line.held}{of_all}", str(line.due), str(line.partitions), each, spread])
    if out.is_json:
        return 0
    if rows or not out.is_tty:
        out.table(["QUEUE", "STATE", "HELD", "DUE", "PARTITIONS", "OF EACH", "RATE, BURST"], rows, shrinks=[0])
    else:
        out.note("No queue has limits, and nothing is due.")
    return 0


@command("pause", short_help="begin none of a queue's runs")
@click.argument("queue")
def pause_command(queue: str) -> int:
    """Begin none of the runs in QUEUE from now on. What is executed goes on, and what waits keeps its place."""
    return _set(queue, paused=True)


@command("resume", short_help="begin the runs of a paused queue again")
@click.argument("queue")
def resume_command(queue: str) -> int:
    """Begin the runs in QUEUE again, where they were left."""
    return _set(queue, paused=False)


def _set(queue: str, *, paused: bool) -> int:
    from durable._commands.acting import acting  # noqa: PLC0415 -- help needs no store

    with acting(given_options()) as (actions, out):
        actions.pause(queue, paused=paused)
        said = f"paused {queue}" if paused else f"{queue} is begun again"
        out.say({"queue": queue, "paused": paused, "done": True}, said)
    return 0
