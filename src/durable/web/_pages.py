"""The pages that are looked at: overview, runs, a run, queues, workers."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from typing import Any, Final
from urllib.parse import quote

from msgspec import structs
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

from durable.errors import InvalidArgument
from durable.operate.doctor import judge_health
from durable.operate.plain import plain_error, plain_line, plain_record, plain_timeline, plain_values
from durable.operate.standing import name_error, show_about, stand, state_of
from durable.stores.reading import Filter, Health, RunLine, WorkerLine
from durable.web import _links
from durable.web._answers import Answers
from durable.web._offers import offers
from durable.web._reads import HOUR, Overview, Reads, Seen
from durable.web._run_parts import events_of, facts_of, panel_of, value_of
from durable.web._setup import Setup
from durable.web._shapes import chart, columns
from durable.web._texts import show_value

_MINUTES: Final = 60
_HOURS: Final = 24
_SHOWN_BY: Final = {
    "waiting": "queued",
    "interrupted": "interrupted",
}  # of a warning, the tab that has what it is about
_CAUSES: Final = 6
_FAILED: Final = 8
_OWNED: Final = 1_000
_VIEWS: Final = ("timeline", "events", "json")


class Pages:
    """What answers GET."""

    def __init__(self, setup: Setup, reads: Reads, answers: Answers) -> None:
        self._setup = setup
        self._reads = reads
        self._answers = answers

    async def overview(self, request: Request) -> Response:
        """How many runs there are, what the last hour was like, and what needs a look."""
        counts = await self._reads.counts(_links.Search())
        told = await self._reads.overview()
        failed = await self._reads.lines(Filter(statuses=("failed",)), _FAILED)
        now = self._reads.now()
        return self._answers.page(
            request,
            "overview.html",
            tab="Overview",
            counts=[(one, counts[one]) for one in _links.TABS],
            stats=told.stats,
            failed=[listed(line, now) for line in failed],
            now=now,
            **_last_hour(told),
            **_last_day(told.health),
        )

    async def runs(self, request: Request) -> Response:
        """The runs that a search finds, 50 at a time."""
        search = _links.read_search(request.query_params)
        now, problem, lines = self._reads.now(), search.problem, list[RunLine]()
        if not problem:
            try:
                found = await self._reads.lines(search.filter(now), _links.PAGE + 1, search.after)
                lines = list(found)
            except InvalidArgument as mistake:
                problem = str(mistake)
        counts = dict.fromkeys(("", *_links.TABS)) if problem else await self._reads.counts(search)
        rows = [listed(line, now) for line in lines[: _links.PAGE]]
        return self._answers.page(
            request,
            "runs.html",
            status=400 if problem else 200,
            tab="Runs",
            search=search,
            problem=problem,
            rows=shared(rows),
            counts=[(one, counts[one]) for one in ("", *_links.TABS)],
            ages=_links.AGES,
            older=search.older(lines[_links.PAGE - 1]) if len(lines) > _links.PAGE else "",
            done=_done(request),
            now=now,
        )

    async def run(self, request: Request) -> Response:
        """One run."""
        query = request.query_params
        view = query.get("view", "timeline")
        seen = await self._reads.run(query.get("id", ""))
        if seen is None:
            return _nothing(self._answers, request)
        if view not in _VIEWS:
            view = "timeline"
        line, records = seen.view.line, seen.view.records
        state = state_of(line, now=seen.now)
        drawn = chart(
            seen.view.timeline,
            only=query.get("only", ""),
            name=query.get("name", ""),
            first=_number(query.get("first")),
        )
        told: dict[str, Any] = {}
        if view == "json":
            told["whole"] = show_value(self._whole(seen))
        elif view == "events":
            told["events"] = events_of(seen, self._setup.redact)
        return self._answers.page(
            request,
            "run.html",
            tab="Runs",
            view=view,
            line=line,
            state=state,
            standing=stand(line, now=seen.now),
            facts=facts_of(seen),
            chart=drawn,
            panel=panel_of(seen, query.get("step", ""), self._setup.redact),
            values=[(name, show_value(value)) for name, value in self._values(seen)],
            offers=offers(
                state,
                may_write=self._answers.may_write(request),
                read_only=self._setup.read_only,
                has_records=bool(records),
            ),
            failure=_failure(seen, self._setup),
            signals=sorted({signal.name for signal in seen.signals} | waited(seen)),
            trace=_trace(self._setup.trace_url, seen),
            timeline=seen.view.timeline,
            problem=seen.view.problem,
            only=query.get("only", ""),
            name=query.get("name", ""),
            mark=mark_of(line),
            done=_done(request),
            now=seen.now,
            **told,
        )

    async def value(self, request: Request) -> Response:
        """A value by itself, to be downloaded: never shown as a page."""
        query = request.query_params
        seen = await self._reads.run(query.get("id", ""))
        if seen is None:
            return _nothing(self._answers, request)
        what, key = query.get("what", ""), query.get("step", "")
        if what == "json":
            value: Any = self._whole(seen)
        elif what == "step":
            value = value_of(seen, key, self._setup.redact)
        else:
            value = dict(self._values(seen)).get(what)
        text = json.dumps(value, ensure_ascii=False, indent=2)
        name = quote("-".join(filter(None, (seen.view.line.id, what, key)))[:120], safe="")
        return PlainTextResponse(
            text.encode("utf-8", "backslashreplace"),
            headers={"content-disposition": f"attachment; filename*=UTF-8''{name}.json.txt"},
        )

    async def queues(self, request: Request) -> Response:
        """The queues: their limits, and what waits in them."""
        lines = await self._reads.ask(self._setup.store.queues)
        done = request.query_params.get("done", "")
        return self._answers.page(
            request, "queues.html", tab="Queues", lines=lines, done=done if done in ("pause", "resume") else ""
        )

    async def workers(self, request: Request) -> Response:
        """The processes that execute runs now."""
        lines = await self._reads.lines(Filter(statuses=("running",)), _OWNED)
        told = await self._reads.overview()
        now = self._reads.now()
        owned: dict[str, list[RunLine]] = {}
        for line in sorted(lines, key=lambda line: line.updated_at):
            owned.setdefault(line.owner, []).append(line)
        workers: dict[str, list[WorkerLine]] = {}
        for worker in await self._reads.ask(self._setup.store.workers):
            workers.setdefault(worker.owner, []).append(worker)
        return self._answers.page(
            request,
            "workers.html",
            tab="Workers",
            processes=[
                (owner, workers.get(owner, []), [listed(line, now) for line in owned.get(owner, [])])
                for owner in sorted({*owned, *workers})
            ],
            capped=len(lines) == _OWNED,
            stats=told.stats,
            now=now,
        )

    def _values(self, seen: Seen) -> list[tuple[str, Any]]:
        told = plain_values(_without_steps(seen), redact=self._setup.redact)
        has = {record.kind for record in seen.view.records}
        shown = [("input", told["input"])] if "input" in has else []
        shown += [("result", told["result"])] if "result" in has else []
        return [*shown, *([("metadata", told["metadata"])] if told["metadata"] else [])]

    def _whole(self, seen: Seen) -> Any:
        redact = self._setup.redact
        return {
            **plain_line(seen.view.line, now=seen.now),
            "metadata": dict(self._values(seen)).get("metadata"),
            "timeline": plain_timeline(seen.view.timeline, redact=redact),
            "records": [plain_record(record, redact=redact, values=True) for record in seen.view.records],
        }


def listed(line: RunLine, now: Any) -> dict[str, Any]:
    """A line of a list, as its template wants it."""
    standing = stand(line, now=now)
    return {
        "line": line,
        "state": standing.state,
        "where": standing.where,
        "took": standing.took,
        "share": 0.0,
        "now": now,
    }


def shared(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """With how much of the longest each took, in percent."""
    longest = max((row["took"] or 0.0 for row in rows), default=0.0)
    for row in rows:
        row["share"] = round(100 * (row["took"] or 0.0) / longest, 1) if longest else 0.0
    return rows


def mark_of(line: RunLine) -> str:
    """Tells whether a run has changed: what a form carries along, and what open pages wait for."""
    due = "" if line.due_at is None else line.due_at.isoformat()
    return f"{line.status} {line.updated_at.timestamp():.6f} {line.records} {line.executions} {due}"


def waited(seen: Seen) -> set[str]:
    """The names of the signals that a run seems to wait for."""
    return {row.name for row in seen.view.timeline.rows if row.state == "waiting" and row.error is None}


def _without_steps(seen: Seen) -> Any:
    kept = [record for record in seen.view.records if record.kind in ("input", "result")]
    return structs.replace(seen.view, records=kept)


def _failure(seen: Seen, setup: Setup) -> dict[str, Any] | None:
    failure, line = seen.view.timeline.failure, seen.view.line
    if line.status != "failed":
        return None
    message, step = "", line.error_step
    if failure is not None:
        message = plain_error(failure.error, redact=setup.redact, where="failure", messages=True)["message"]
        step = failure.step or step
    row = next((one for one in seen.view.timeline.rows if one.key == step), None)
    return {
        "type": name_error(failure.error.type if failure is not None else line.error) or "failed",
        "message": str(message),
        "step": step,
        "attempts": 0 if row is None else row.attempts,
        "undecided": list(failure.undecided) if failure is not None and line.needs_decision else [],
    }


def _trace(template: str | None, seen: Seen) -> str:
    """The link to a run's trace; empty where it cannot be made."""
    if template is None:
        return ""
    link = template.replace("{id}", quote(seen.view.line.id, safe=""))
    if "{trace}" in link:
        header = seen.view.header
        parent = str((header.metadata if header is not None else {}).get("traceparent", "")).split("-")
        if len(parent) < 3 or not parent[1].isalnum() or not parent[1].isascii():  # noqa: PLR2004 -- version, trace, span, flags
            return ""
        link = link.replace("{trace}", parent[1])
    return link


def _last_hour(told: Overview) -> dict[str, Any]:
    ended = [line for line in told.hour if line.status in ("completed", "failed")]
    since = max(told.since, told.hour[-1].updated_at) if len(told.hour) == HOUR else told.since
    done, failed = [0] * _MINUTES, [0] * _MINUTES
    for line in ended:
        minute = min(_MINUTES - 1, max(0, int((line.updated_at - told.since).total_seconds() // 60)))
        done[minute] += 1
        failed[minute] += line.status == "failed"
    took = sorted((line.updated_at - line.started_at).total_seconds() for line in ended if line.started_at is not None)
    causes = Counter((line.error, line.error_step) for line in ended if line.status == "failed")
    return {
        "ended": len(ended),
        "ended_failed": sum(failed),
        "minutes": columns(done, failed),
        "p50": _quantile(took, 0.5),
        "p95": _quantile(took, 0.95),
        "causes": [(error, step, count) for (error, step), count in causes.most_common(_CAUSES)],
        "hour_since": since,
        "is_capped": len(told.hour) == HOUR,
    }


def _last_day(health: Health | None) -> dict[str, Any]:
    """What ended by the hour, the oldest first, and what is to be said of the store; empty where it is not known yet."""
    if health is None:
        return {"day": None, "warnings": [], "since": {}, "shown_by": _SHOWN_BY}
    done, failed = [0] * _HOURS, [0] * _HOURS
    for hour in health.ended:
        if hour.hours_ago < _HOURS:
            done[-1 - hour.hours_ago], failed[-1 - hour.hours_ago] = hour.completed + hour.failed, hour.failed
    waits = (("queued", "one is due for", health.due_for), ("interrupted", "the oldest for", health.stuck_for))
    return {
        "day": {
            "marks": columns(done, failed),
            "ended": sum(done),
            "failed": sum(failed),
            "since": health.counted_since,
        },
        "warnings": judge_health(health),
        "since": {status: f"{said} {show_about(seconds)}" for status, said, seconds in waits if seconds is not None},
        "shown_by": _SHOWN_BY,
    }


def _quantile(values: Sequence[float], part: float) -> float | None:
    return values[min(len(values) - 1, int(part * len(values)))] if values else None


def _done(request: Request) -> tuple[str, int, int] | None:
    """What an action before this page has done, as its redirect says it."""
    done = request.query_params.get("done", "")
    if done not in ("retry", "cancel", "signal", "fork", "delete"):
        return None
    return done, _number(request.query_params.get("n")), _number(request.query_params.get("refused"))


def _number(text: str | None) -> int:
    return int(text) if text is not None and text.isascii() and text.isdecimal() and len(text) < 9 else 0  # noqa: PLR2004


def _nothing(answers: Answers, request: Request) -> Response:
    return answers.problem(
        request,
        404,
        "No such run",
        "No run of this id is stored here: it was deleted, or never was.",
        back=("runs", "All runs"),
    )
