"""`durable watch` and `durable wait`: until runs have ended."""

from __future__ import annotations

import sys
from typing import Any, Final, Self

import click

from durable._commands.completing import complete_id
from durable._commands.listing import find_line, join_query, read_query
from durable._commands.shared import BAD_NEWS, NO_SUCH_RUN, TIMED_OUT, command, fail, given_options, seconds

_OVER: Final = ("completed", "failed", "cancelled")
_MOST: Final = 1000  # runs of a query that are watched


@command("wait", short_help="wait for a run's end, and print its result")
@click.argument("id", shell_complete=complete_id)
def wait_command(id: str) -> int:
    """Wait until the run ID has ended, and print its result, as JSON; --timeout says how long at most.

    Exit status: 0 if it is completed, 1 if it has failed or was cancelled, 124 when the time is over.
    """
    return wait_for(id)


def wait_for(id: str) -> int:
    """Wait for a run's end, and print its result; the exit status."""
    from durable._commands.finding import open_store  # noqa: PLC0415 -- help needs no store
    from durable._runtime.run_handles import wait_for_end  # noqa: PLC0415
    from durable._runtime.sync_bridge import Coroutines, at_once, call_now  # noqa: PLC0415

    given = given_options()
    with open_store(given) as store:
        runs, time = Coroutines(store, call_now), Coroutines(store.clock, call_now)
        snapshot = at_once(wait_for_end, runs, id, store.clock.elapsed, time.sleep, given.timeout)
    return tell_end(id, snapshot)


@command("watch", short_help="follow runs until they have ended")
@click.argument("query", nargs=-1, required=True, metavar="ID|QUERY", shell_complete=complete_id)
@click.option(
    "--interval",
    type=seconds(0.1),
    default=1.0,
    show_default=True,
    metavar="SECONDS",
    help="Between two looks, at least 0.1.",
)
def watch_command(query: tuple[str, ...], interval: float) -> int:
    """Follow the run ID, or those that a QUERY finds, until they have ended.

    On a terminal the picture stays in its place; elsewhere each record, or each run that moved, is a line.

    Exit status as for durable wait.
    """
    from durable._commands.finding import open_store  # noqa: PLC0415
    from durable._commands.output import Output  # noqa: PLC0415
    from durable.operate.filters import parse_query  # noqa: PLC0415
    from durable.stores.reading import Filter  # noqa: PLC0415

    given = given_options()
    out = Output(given)
    text = join_query(query)
    with open_store(given) as store:
        clock = store.clock
        until = None if given.timeout is None else clock.elapsed() + given.timeout
        wanted = parse_query(text, now=clock.now())
        is_one = len(query) == 1 and bool(store.runs(Filter(ids=(query[0],)), limit=1))
        if not is_one and wanted == Filter(prefix=wanted.prefix):
            fail(f"no run {query[0]!r} is stored here", NO_SUCH_RUN)
        looks: Any = _OneRun(store, query[0], out) if is_one else _Runs(store, text, out)
        with _Screen(out) as screen:
            while True:
                screen.show(looks.look())
                if looks.is_over:
                    break
                if until is not None and clock.elapsed() >= until:
                    fail(f"{text} has not ended in time", TIMED_OUT)
                clock.sleep(interval if until is None else min(interval, max(0.0, until - clock.elapsed())))
        return int(looks.status)


class _Screen:
    """A picture that stays in its place, on a terminal; elsewhere nothing, since the lines are written as they come."""

    def __init__(self, out: Any) -> None:
        self._live: Any = None
        self._is_live = out.is_tty and not out.is_json

    def __enter__(self) -> Self:
        if self._is_live:
            from rich.console import Console  # noqa: PLC0415 -- only where it draws
            from rich.live import Live  # noqa: PLC0415

            self._live = Live(console=Console(highlight=False), auto_refresh=False, vertical_overflow="visible")
            self._live.__enter__()
        return self

    def __exit__(self, *problem: object) -> None:
        if self._live is not None:
            self._live.__exit__(*problem)

    def show(self, lines: list[str]) -> None:
        """Draw these lines in the place of those before."""
        if self._live is not None:
            from rich.text import Text  # noqa: PLC0415

            self._live.update(Text.from_ansi("\n".join(lines)), refresh=True)


class _OneRun:
    """One run that is followed."""

    def __init__(self, store: Any, id: str, out: Any) -> None:
        self._store = store
        self._id = id
        self._out = out
        self._after: int | None = None
        self.is_over = False
        self.status = 0

    def look(self) -> list[str]:
        """The picture; elsewhere than on a terminal what is new is written."""
        from durable._commands.finding import load_redaction  # noqa: PLC0415
        from durable._commands.showing import picture  # noqa: PLC0415
        from durable.operate.view import view_run  # noqa: PLC0415

        line = find_line(self._store, self._id)
        self.is_over = line.status in _OVER
        self.status = BAD_NEWS if line.status in ("failed", "cancelled") else 0
        now = self._store.clock.now()
        if self._out.is_tty and not self._out.is_json:
            return picture(view_run(self._store, line, now=now), self._out, load_redaction(), now)
        self._tell_new(line, now)
        return []

    def _tell_new(self, line: Any, now: Any) -> None:
        from durable.operate.plain import plain_line, plain_record  # noqa: PLC0415
        from durable.operate.redact import redact_by_name  # noqa: PLC0415
        from durable.operate.view import read_journal  # noqa: PLC0415

        out = self._out
        for record in read_journal(self._store, self._id, after=self._after):
            self._after = record.seq
            if out.is_json:
                out.document(plain_record(record, redact=redact_by_name, values=False, messages=False))
            else:
                at = "" if record.at is None else record.at.isoformat()
                out.line(f"{at}\t{record.kind}\t{record.key}")
        if self.is_over:
            if out.is_json:
                out.document(plain_line(line, now=now))
            else:
                out.line(f"{line.updated_at.isoformat()}\t{line.status}\t{line.id}")
        sys.stdout.flush()


class _Runs:
    """The runs of a query that are followed."""

    def __init__(self, store: Any, text: str, out: Any) -> None:
        self._store = store
        self._text = text
        self._out = out
        self._seen: dict[str, Any] = {}
        self.is_over = False
        self.status = 0

    def look(self) -> list[str]:
        """The picture; elsewhere than on a terminal each run that moved is written."""
        from durable._commands.listing import rows_of  # noqa: PLC0415
        from durable.operate.plain import plain_line  # noqa: PLC0415
        from durable.operate.standing import stand  # noqa: PLC0415
        from durable.stores.reading import Filter  # noqa: PLC0415

        store, out = self._store, self._out
        now = store.clock.now()
        found = {line.id: line for line in store.runs(read_query(self._text, now), limit=_MOST)}
        gone = [
            name for name in self._seen if name not in found
        ]  # it may have left the query: failed, of status:running
        for first in range(0, len(gone), _MOST):
            some = store.runs(Filter(ids=tuple(gone[first : first + _MOST])), limit=_MOST)
            found |= {line.id: line for line in some}
        moved = [line for line in found.values() if self._seen.get(line.id) != line]
        self._seen |= found
        self.is_over = all(line.status in _OVER for line in found.values())
        self.status = BAD_NEWS if any(line.status in ("failed", "cancelled") for line in found.values()) else 0
        if out.is_tty and not out.is_json:
            lines = list(found.values())
            counts: dict[str, int] = {}
            for line in lines:
                state = stand(line, now=now).state
                counts[state] = counts.get(state, 0) + 1
            summary = "  ".join(f"{out.show_state(state)} {count}" for state, count in counts.items())
            return [summary, *rows_of(lines[:40], out, now)]
        for line in moved:
            if out.is_json:
                out.document(plain_line(line, now=now))
            else:
                standing = stand(line, now=now)
                out.line(f"{line.updated_at.isoformat()}\t{standing.state}\t{line.id}\t{standing.where}")
        sys.stdout.flush()
        return []


def tell_end(id: str, snapshot: Any) -> int:
    """Print the result of a run that has ended; the exit status. Ends the command with 1 where it has none."""
    from durable.operate.standing import name_error  # noqa: PLC0415

    status = snapshot.execution.status
    if status != "completed":
        error = snapshot.execution.error
        why = f" ({name_error(error.type)}{' in ' + error.step if error.step else ''})" if error is not None else ""
        fail(f"run {id!r} {'has failed' if status == 'failed' else 'was cancelled'}{why}", BAD_NEWS)
    sys.stdout.write(bytes(snapshot.result).decode() + "\n")  # as it is recorded, to the byte
    return 0
