"""What `durable.fork` does: another run, of what one has recorded up to a step."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Sequence
from typing import Any, Final

from durable._common.checks import check_flag, check_name
from durable._engine.retry_cut import aside_record, cut_for_fork
from durable._runtime.plan import MISSING
from durable._runtime.sync_bridge import Coroutines, at_once, call_now
from durable.codecs import codec_of
from durable.errors import InvalidArgument, RunNotFound
from durable.records import Header, Kind, Record, Status
from durable.stores._adapters.kinds import readable_store
from durable.stores.copies import Changes
from durable.stores.reading import LINES

_forking: Final = set[asyncio.Task[str]]()  # an event loop holds its tasks weakly


def fork_run(order: Order) -> str:
    """Make the new run; its id."""
    return at_once(_fork, order, Coroutines(order.store, call_now))


async def fork_run_async(order: Order) -> str:
    """The same for asyncio. Cancelled, it goes on by itself."""
    task = asyncio.ensure_future(_fork(order, order.store.aio))
    _forking.add(task)
    task.add_done_callback(_forking.discard)
    return await asyncio.shield(task)


async def _fork(order: Order, runs: Any) -> str:
    header: Header | None = await runs.header(order.run_id)
    records: list[Record] = []
    while True:
        page: Sequence[Record] = await runs.journal(order.run_id, after=records[-1].seq if records else None)
        records += page
        if len(page) < LINES:
            break
    keep, changes = order.decide(header, records)
    await runs.copy(order.run_id, order.new_id, keep=keep, changes=changes)
    return order.new_id


class Order:
    """One call of `fork`, checked."""

    def __init__(
        self, store: Any, id: str, from_step: str | None, input: Any, new_id: str | None, *, even_effects: bool
    ) -> None:
        self.store = readable_store(store, "durable.fork")
        self.run_id = check_name("a run's id", id)
        self._from_step = None if from_step is None else check_name("from_step", from_step)
        self.new_id = f"{id}-{uuid.uuid4().hex[:12]}" if new_id is None else check_name("new_id", new_id)
        check_name("new_id", self.new_id)
        self._even_effects = check_flag("even_effects", even_effects)
        self._input: tuple[str, str] | None = None
        if input is not MISSING:
            codec = codec_of(store)
            text = codec.encode(input, what="the input").decode()
            self._input = text, codec.fingerprint(input, what="the input")

    def decide(self, header: Header | None, records: Sequence[Record]) -> tuple[list[int], Changes]:
        """Which records are kept, and what is changed."""
        if header is None:
            raise RunNotFound(self.run_id)
        if self._from_step is None and header.execution.status == Status.COMPLETED:
            raise InvalidArgument(f"run {self.run_id!r} is completed: from_step= says from which step its fork goes on")
        kept = [record for record in records if record.kind != Kind.RESULT]
        cut = cut_for_fork(self.run_id, kept, self._from_step, even_effects=self._even_effects)
        changed: list[Record] = []
        metadata: dict[str, Any] = {}
        if self._input is not None:
            text, metadata["inputHash"] = self._input
            if not any(record.kind == Kind.INPUT for record in records):
                raise InvalidArgument(f"run {self.run_id!r} was started without an input, so its fork can have none")
            kept = [record for record in kept if record.kind != Kind.INPUT]
            changed.append(Record(0, Kind.INPUT, Kind.INPUT, text))
        if cut.keys or (kept and kept[-1].kind == Kind.FAILURE):  # as a retry does: from here on it goes on
            changed.append(aside_record(cut, kept or records, self._from_step))
        return [record.seq for record in kept], Changes(tuple(changed), metadata)
