"""`durable show`: one run, its timeline, its steps, and why it failed."""

from __future__ import annotations

import json
import shlex
from datetime import datetime
from typing import Any

import click

from durable._commands.completing import complete_id
from durable._commands.listing import find_line
from durable._commands.shared import BAD_NEWS, NO_SUCH_RUN, command, fail, given_options


@command("show", short_help="one run: its timeline, its steps, why it failed")
@click.argument("id", shell_complete=complete_id)
@click.option(
    "--steps/--no-steps", default=True, help="Draw the timeline, a row a step (the default), or leave it out."
)
@click.option("--values", is_flag=True, help="Show input, result, metadata, and what steps returned.")
@click.option("--step", "key", metavar="KEY", help="One step: its value, its attempts, its error with the traceback.")
@click.option("--errors", is_flag=True, help="Each step's error with its traceback.")
@click.option("--raw", is_flag=True, help="The journal, a JSON line for each record.")
@click.option("--all", "all_rows", is_flag=True, help="All steps, however many there are.")
@click.option("--no-messages", is_flag=True, help="No messages of exceptions: they may quote values.")
@click.option("--width", type=click.IntRange(40, 1000), metavar="N", help="Draw in so many columns.")
@click.option("--check", is_flag=True, help="Exit with 1 if the run has failed or was cancelled.")
def show_command(
    id: str,
    steps: bool,
    values: bool,
    key: str | None,
    errors: bool,
    raw: bool,
    all_rows: bool,
    no_messages: bool,
    width: int | None,
    check: bool,
) -> int:
    """Show the run ID. Values are shown only by --values, --step and --raw --values, and what a name says is secret never."""
    from durable._commands.finding import load_redaction, open_store  # noqa: PLC0415 -- help needs no store
    from durable._commands.output import Output  # noqa: PLC0415
    from durable.operate.plain import plain_line, plain_record  # noqa: PLC0415
    from durable.operate.view import view_run  # noqa: PLC0415

    given = given_options()
    out, redact = Output(given), load_redaction()
    with open_store(given) as store:
        now = store.clock.now()
        line = find_line(store, id)
        view = view_run(store, line, now=now)
    telling = _Telling(out, redact, now, messages=not no_messages)
    if raw:
        for record in view.records:
            out.document(plain_record(record, redact=redact, values=values, messages=not no_messages))
    elif key is not None:
        telling.tell_step(view, key)
    elif out.is_json:
        out.document(plain_line(line, now=now) | telling.plain(view, values=values, steps=steps))
    else:
        telling.tell_run(view, steps=steps, values=values, errors=errors, all_rows=all_rows, width=width or out.width)
    return BAD_NEWS if check and line.status in ("failed", "cancelled") else 0


class _Telling:
    """How a run is told."""

    def __init__(self, out: Any, redact: Any, now: datetime, *, messages: bool) -> None:
        self._out = out
        self._redact = redact
        self._now = now
        self._messages = messages

    def plain(self, view: Any, *, values: bool, steps: bool) -> dict[str, Any]:
        """As JSON, beside what its line says."""
        from durable.operate.plain import plain_timeline, plain_values  # noqa: PLC0415

        told: dict[str, Any] = {}
        if steps:
            told["timeline"] = plain_timeline(view.timeline, redact=self._redact, messages=self._messages)
        if values:
            told |= plain_values(view, redact=self._redact)
        return told

    def tell_run(self, view: Any, *, steps: bool, values: bool, errors: bool, all_rows: bool, width: int) -> None:
        """For people: the head, the error, the timeline, and what may be done next."""
        out = self._out
        for text in self.lines(view, steps=steps, all_rows=all_rows, width=width):
            out.line(text)
        if values:
            self._tell_values(view)
        if errors:
            for row in view.timeline.rows:
                if row.error is not None:
                    out.line()
                    out.line(out.style(row.key, bold=True))
                    self._tell_error(row.error, f"step:{row.key}")
        if out.is_tty and (hints := _hints(view)):
            out.note("Next: " + "     ".join(hints))

    def lines(self, view: Any, *, steps: bool, all_rows: bool, width: int) -> list[str]:
        """The head, the error, the timeline."""
        from durable._commands.drawing import draw_lines  # noqa: PLC0415

        lines: list[str] = self._head(view, width)
        if steps and view.timeline.rows:
            lines += ["", *draw_lines(view.timeline, self._out, width=width, all_rows=all_rows)]
        lines += [_show_map(progress) for progress in view.timeline.maps]
        if view.problem:
            lines.append(view.problem)
        if view.timeline.unreadable:
            places = ", ".join(map(str, view.timeline.unreadable[:10]))
            lines.append(f"  {len(view.timeline.unreadable)} records cannot be read by this version (seq {places})")
        return lines

    def tell_step(self, view: Any, key: str) -> None:
        """One step, with its value: it was asked for."""
        from durable._commands.output import printable  # noqa: PLC0415
        from durable.operate.plain import plain_error, plain_step, plain_value  # noqa: PLC0415
        from durable.operate.standing import show_seconds  # noqa: PLC0415

        out = self._out
        row = next((one for one in view.timeline.rows if one.key == key), None)
        if row is None:
            known = ", ".join(repr(one.key) for one in view.timeline.rows[:10]) or "none"
            fail(f"run {view.line.id!r} has no record of a step {key!r}; it has {known}", NO_SUCH_RUN)
        record = next(one for one in view.records if one.seq == row.seq)
        if out.is_json:
            told = plain_step(row, redact=self._redact, messages=self._messages)
            told["value"] = plain_value(record, redact=self._redact, run_id=view.line.id)
            if row.error is not None:
                where = f"step:{row.key}"
                told["error"] = plain_error(
                    row.error, redact=self._redact, where=where, messages=self._messages, full=True
                )
            out.document(told)
            return
        took = f"took {show_seconds(row.seconds)}" if row.bars else ""
        attempts = f"{row.attempts} attempts" if row.attempts > 1 else ""
        by = f"execution {row.epoch}" if row.epoch else ""
        stored = "" if record.at is None else f"stored {out.when(record.at, self._now)}"
        out.line("  ".join(filter(None, [out.show_state(row.state), printable(row.key), took, attempts, by, stored])))
        for bar in row.bars:
            out.line(f"  {show_seconds(bar.begin):>10}  {bar.kind:<9} {show_seconds(bar.end - bar.begin)}")
        if row.error is not None:
            self._tell_error(row.error, f"step:{row.key}")
        elif row.state in ("completed", "set aside"):
            value = plain_value(record, redact=self._redact, run_id=view.line.id)
            out.line(printable_json(value))

    def _head(self, view: Any, width: int) -> list[str]:
        from durable._commands.output import printable  # noqa: PLC0415
        from durable.operate.standing import name_error, show_seconds, stand  # noqa: PLC0415

        out, line, timeline = self._out, view.line, view.timeline
        standing = stand(line, now=self._now)
        version = "" if line.version is None else f" v{line.version}"
        parts = [out.show_state(standing.state), out.style(printable(line.id), bold=True)]
        parts.append(printable(line.workflow) + version if line.workflow else "")
        if line.started_at is not None:
            clock = line.started_at.astimezone() if out.is_tty else line.started_at
            day = "" if clock.date() == self._now.astimezone(clock.tzinfo).date() else f"{clock:%Y-%m-%d} "
            parts.append(f"started {day}{clock:%H:%M:%S}" if out.is_tty else f"started {line.started_at.isoformat()}")
        if standing.took is not None:
            waited = f" ({show_seconds(timeline.waited)} waiting)" if timeline.waited >= 0.01 else ""  # noqa: PLR2004
            going_on = standing.state in ("running", "waiting", "due")
            parts.append(f"{'for' if going_on else 'took'} {show_seconds(standing.took)}{waited}")
        if line.executions > 1:
            parts.append(f"{line.executions} executions")
        lines = ["   ".join(part for part in parts if part)]
        if standing.where and line.status != "failed":
            lines.append(f"  {printable(standing.where)}")
        if line.parent:
            lines.append(f"  child of {printable(line.parent)}")
        if children := sum(bool(row.child) for row in timeline.rows):
            lines.append(
                f"  {children} {'child' if children == 1 else 'children'}: durable list parent:{printable(line.id)}"
            )
        if timeline.failure is not None:
            error, step = timeline.failure.error, timeline.failure.step
            row = next((one for one in timeline.rows if one.key == step), None)
            attempts = f", after {row.attempts} attempts" if row is not None and row.attempts > 1 else ""
            where = f"      in “{printable(step)}”{attempts}" if step else ""
            said = self._message(error, "failure")
            text = name_error(error.type) + (f": {said}" if said else "")
            lines.append("  " + out.style(text, "red") + where)
            if line.needs_decision:
                undecided = ", ".join(printable(key) for key in timeline.failure.undecided)
                lines.append(
                    f"  needs a decision: what was done while it failed ({undecided}) is set aside by durable retry"
                )
        return _wrapped(lines, width)

    def _message(self, error: Any, where: str) -> str:
        from durable._commands.output import printable  # noqa: PLC0415
        from durable.operate.plain import plain_error  # noqa: PLC0415

        if not self._messages:
            return ""
        told = plain_error(error, redact=self._redact, where=where, messages=True)["message"]
        return printable(" ".join(str(told).split()))

    def _tell_error(self, error: Any, where: str) -> None:
        from durable._commands.output import printable  # noqa: PLC0415
        from durable.operate.plain import plain_error  # noqa: PLC0415
        from durable.operate.standing import name_error  # noqa: PLC0415

        told = plain_error(error, redact=self._redact, where=where, messages=self._messages, full=True)
        out = self._out
        traceback = told["traceback"]
        if traceback:
            for text in str(traceback).rstrip().split("\n"):
                out.line(f"  {printable(text)}")
        else:
            said = f": {printable(str(told['message']))}" if told["message"] else ""
            out.line("  " + out.style(name_error(error.type) + said, "red"))

    def _tell_values(self, view: Any) -> None:
        from durable.operate.plain import plain_values  # noqa: PLC0415

        out = self._out
        told = plain_values(view, redact=self._redact)
        for name in ("input", "metadata", "result"):
            if told.get(name) is not None:
                out.line()
                out.line(out.style(name, bold=True))
                out.line(printable_json(told[name]))
        for key, value in told["values"].items():
            out.line()
            out.line(out.style(key, bold=True))
            out.line(printable_json(value))


def picture(view: Any, out: Any, redact: Any, now: datetime) -> list[str]:
    """What is seen of a run that is followed."""
    return _Telling(out, redact, now, messages=True).lines(view, steps=True, all_rows=False, width=out.width)


def printable_json(value: Any) -> str:
    """JSON for people, in which nothing is left that a terminal would obey."""
    from durable._commands.output import printable  # noqa: PLC0415

    text = json.dumps(value, ensure_ascii=False, indent=2)
    return "\n".join(printable(one) for one in text.split("\n"))


def _show_map(progress: Any) -> str:
    parts = [f"{progress.done} done"]
    if progress.failed:
        parts.append(f"{progress.failed} failed")
    if progress.retrying:
        parts.append(f"{progress.retrying} to be tried again")
    return f"  map {progress.name}: {', '.join(parts)}"


def _hints(view: Any) -> list[str]:
    run_id = shlex.quote(view.line.id)
    step = view.timeline.failure.step if view.timeline.failure is not None else ""
    match view.line.status:
        case "failed":
            more = f"--step {shlex.quote(step)}" if step else "--errors"
            return [f"durable retry {run_id}", f"durable show {run_id} {more}"]
        case "queued":
            return ["durable workers"]
        case _:
            return []


def _wrapped(lines: list[str], width: int) -> list[str]:
    """The lines, those that are too wide broken between their parts."""
    from durable._commands.output import width_of  # noqa: PLC0415

    told: list[str] = []
    for line in lines:
        if width_of(line) <= width:
            told.append(line)
            continue
        indent = " " * (len(line) - len(line.lstrip()))
        separator = "   " if "   " in line.strip() else " "
        current = ""
        for part in line.strip().split(separator):
            if not part:
                continue
            joined = f"{current}{separator}{part.strip()}" if current else indent + part
            if width_of(joined) > width and current:
                told.append(current)
                joined = f"{indent}  {part.strip()}"
            current = joined
        told.append(current)
    return told
