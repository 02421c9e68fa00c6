"""One run, looked at: its line, its header, its journal and its timeline."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from msgspec import Struct

from durable.errors import UnreadableRecord
from durable.operate.standing import state_of
from durable.operate.timeline import Timeline, draw
from durable.records import Header, Record
from durable.snapshots import journal_of
from durable.stores.protocol import ReadableStore
from durable.stores.reading import LINES, RunLine


class RunView(Struct, frozen=True):
    """A run as it was found, read in several questions: what is written meanwhile may be in some of them."""

    line: RunLine
    #: None where it cannot be read.
    header: Header | None
    records: Sequence[Record]
    timeline: Timeline
    #: Why the header cannot be read; empty where it can.
    problem: str = ""


def view_run(store: ReadableStore, line: RunLine, *, now: datetime) -> RunView:
    """All that is stored of a run. Raises the store's errors."""
    header, problem = None, ""
    try:
        header = store.header(line.id)
    except UnreadableRecord as unreadable:
        problem = str(unreadable)
    records: Sequence[Record] = read_journal(store, line.id)
    if not records and header is not None:
        records = _saved(store, line.id)
    execution = None if header is None else header.execution
    timeline = draw(records, execution, state_of(line, now=now), now=now, run_id=line.id)
    return RunView(line, header, records, timeline, problem)


def read_journal(store: ReadableStore, id: str, *, after: int | None = None) -> list[Record]:
    """The whole journal, in as many questions as it takes; or what came after a record."""
    records: list[Record] = []
    while True:
        page = store.journal(id, after=after)
        records += page
        if len(page) < LINES:
            return records
        after = page[-1].seq


def _saved(store: Any, id: str) -> Sequence[Record]:
    """The records of a run that was saved as a document."""
    try:
        snapshot = store.load(id)
    except UnreadableRecord:
        return ()
    return () if snapshot is None else journal_of(snapshot)[1]
