"""What can be asked about the runs in memory: a page of them, which are old, how many there are."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from durable.stores._memory.run import Run
from durable.stores.listing import Listed, PageQuery, PurgeQuery, Stats
from durable.stores.reading import matches_text


def find_page(runs: Mapping[str, Run], page: PageQuery, now: float) -> Sequence[Listed]:
    """See `PostgresStore.list`; `now` is the reading."""
    lines = [
        Listed(name, run.updated_at)
        for name, run in runs.items()
        if name.startswith(page.prefix) and page.status in (None, run.stands(now))
    ]
    lines.sort(key=_newest_last, reverse=True)
    after = page.after
    return [line for line in lines if after is None or _newest_last(line) < _newest_last(after)][: page.limit]


def find_old(runs: Mapping[str, Run], before: datetime, wanted: PurgeQuery, now: float) -> list[str]:
    """The runs that a purge takes: none that is executed, or that waits for a worker."""
    old = [
        name
        for name, run in runs.items()
        if run.updated_at <= before  # of a clock that stands still, all that is there is older than 0 s
        and run.due_at is None
        and (stand := run.stands(now)) != "running"
        and wanted.status in (None, stand)
        and (wanted.queue is None or (run.route is not None and run.route.queue == wanted.queue))
        and all(matches_text(_metadata(run).get(key), (text,)) for key, text in wanted.metadata.items())
    ]
    return sorted(old, key=lambda name: (runs[name].updated_at, name))[: wanted.limit]


def _metadata(run: Run) -> Mapping[str, Any]:
    return {} if run.header is None else run.header.metadata


def count(runs: Mapping[str, Run], now: float) -> Stats:
    """See `PostgresStore.stats`."""
    stand = Counter[str](run.stands(now) for run in runs.values())
    texts = [record.text for run in runs.values() for record in run.records.values()]
    return Stats(
        queued=stand["queued"],
        running=stand["running"],
        suspended=stand["suspended"],
        interrupted=stand["interrupted"],
        completed=stand["completed"],
        failed=stand["failed"],
        cancelled=stand["cancelled"],
        unreadable=0,
        records=len(texts),
        bytes=sum(map(len, texts)),
    )


def _newest_last(line: Listed) -> tuple[datetime, str]:
    return line.updated_at, line.id
