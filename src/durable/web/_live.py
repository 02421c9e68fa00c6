"""What has changed, told to open pages: one question a second for all of them, and only while one is open."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from typing import Any, Final
from urllib.parse import quote

from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from durable.errors import DurableError
from durable.stores.reading import Filter, RunLine, names_of_error, names_of_step
from durable.web import _links
from durable.web._answers import Answers
from durable.web._pages import listed, mark_of
from durable.web._reads import Reads
from durable.web._setup import Setup

MOST: Final = 50  # streams
LONGEST: Final = 600.0  # seconds, after which a stream ends: its visitor is asked again who it is
_QUIET: Final = 15.0  # seconds, after which a comment is sent
_LINES: Final = 1_000  # lines in one question


class _Stream(StreamingResponse):
    """A response that is ended in good order also when its server stops: else the server tells of a failure."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        except asyncio.CancelledError:
            await send({"type": "http.response.body", "body": b"", "more_body": False})


class Live:
    """The streams of a process, and what they all look at."""

    def __init__(self, setup: Setup, reads: Reads, answers: Answers) -> None:
        self._setup = setup
        self._reads = reads
        self._answers = answers
        self._shown: dict[object, frozenset[str]] = {}  # of each stream, the ids that its page shows
        self._lines: Mapping[str, RunLine] = {}
        self._newest: Sequence[RunLine] = ()
        self._asked = float("-inf")
        self._lock: asyncio.Lock | None = None

    @property
    def streams(self) -> int:
        """How many there are."""
        return len(self._shown)

    async def stream(self, request: Request) -> Response:
        """Server-sent events for the page whose query this is: `rows`, `new` and `changed`."""
        if len(self._shown) >= MOST:
            return Response(status_code=204)  # which ends an EventSource for good
        run_id = request.query_params.get("id")
        search = _links.read_search(request.query_params)
        try:
            if run_id is not None:
                line = await self._reads.line(run_id)
                first: Sequence[RunLine] = [] if line is None else [line]
                wanted = Filter()
            else:
                wanted = search.filter(self._reads.now())
                first = (await self._reads.lines(wanted, _links.PAGE + 1, search.after))[: _links.PAGE]
        except DurableError:
            return Response(status_code=204)
        if run_id is not None and not first:
            return Response(status_code=204)
        events = self._run(request, first[0]) if run_id is not None else self._list(request, first, search, wanted)
        headers = {"x-accel-buffering": "no"}
        return _Stream(self._told(events, first), media_type="text/event-stream", headers=headers)

    async def _told(self, events: AsyncIterator[str], first: Iterable[RunLine]) -> AsyncIterator[str]:
        me = object()
        self._shown[me] = frozenset(line.id for line in first)
        spoken = ends = time.monotonic()
        ends += LONGEST
        try:
            yield "retry: 3000\n\n"
            while (now := time.monotonic()) < ends:
                await self._look()
                said = await anext(events)
                if said or now - spoken > _QUIET:
                    spoken = now
                    yield said or ": still here\n\n"
                await asyncio.sleep(self._setup.refresh)
        finally:
            del self._shown[me]

    async def _list(
        self, request: Request, first: Sequence[RunLine], search: _links.Search, wanted: Filter
    ) -> AsyncIterator[str]:
        """The rows that have changed, and how many runs have come that belong on top."""
        marks = {line.id: mark_of(line) for line in first}
        newest = max((line.updated_at for line in first), default=None)
        told, root = 0, str(request.scope.get("root_path", ""))
        while True:
            now = self._reads.now()
            rows: list[dict[str, str]] = []
            for run_id, mark in marks.items():
                line = self._lines.get(run_id)
                if line is not None and mark_of(line) != mark:
                    marks[run_id] = mark_of(line)
                    html = self._answers.part(
                        "row.html",
                        row=listed(line, now),
                        root=root,
                        search=search,
                        may_write=self._answers.may_write(request),
                    )
                    rows.append({"id": quote(run_id, safe=""), "html": html})
            said = _event("rows", rows) if rows else ""
            if search.after is None and not wanted.metadata:
                fresh = [
                    line
                    for line in self._newest
                    if line.id not in marks and (newest is None or line.updated_at > newest) and _belongs(line, wanted)
                ]
                if len(fresh) != told:
                    told = len(fresh)
                    said += _event("new", {"count": told, "more": told == len(self._newest)})
            yield said

    async def _run(self, request: Request, line: RunLine) -> AsyncIterator[str]:
        """That the run has changed: the page fetches itself then."""
        shown = request.query_params.get("seen", "")
        while True:
            now = self._lines.get(line.id)
            mark = shown if now is None else mark_of(now)
            said = _event("changed", {}) if mark != shown else ""
            shown = mark
            yield said

    async def _look(self) -> None:
        """Ask the store, unless that was done just now: for the first that comes, and all the others."""
        if self._lock is None:
            self._lock = asyncio.Lock()
        async with self._lock:
            if time.monotonic() - self._asked < self._setup.refresh * 0.9:
                return
            ids = sorted(frozenset[str]().union(*self._shown.values()))
            try:
                found: dict[str, RunLine] = {}
                for at in range(0, len(ids), _LINES):
                    part = tuple(ids[at : at + _LINES])
                    found |= {line.id: line for line in await self._reads.lines(Filter(ids=part), _LINES)}
                self._newest = await self._reads.lines(Filter(), _links.PAGE)
                self._lines = found
            except DurableError:
                pass  # the database cannot be asked now; the pages show what they know
            self._asked = time.monotonic()


def _belongs(line: RunLine, wanted: Filter) -> bool:
    """Whether a run is one of those that a filter means, as far as its line says."""
    return (
        line.id.startswith(wanted.prefix)
        and (not wanted.ids or line.id in wanted.ids)
        and (not wanted.parents or (line.parent != "" and line.parent in wanted.parents))
        and (not wanted.workflows or line.workflow in wanted.workflows)
        and (not wanted.statuses or line.status in wanted.statuses)
        and (not wanted.queues or line.queue in wanted.queues)
        and (not wanted.errors or bool({*names_of_error(line.error)} & {*wanted.errors}))
        and (not wanted.steps or bool({*names_of_step(line.error_step)} & {*wanted.steps}))
        and (wanted.since is None or line.updated_at >= wanted.since)
        and (wanted.before is None or line.updated_at < wanted.before)
    )


def _event(name: str, data: Any) -> str:
    return f"event: {name}\ndata: {json.dumps(data)}\n\n"
