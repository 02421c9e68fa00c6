"""What pages ask of the store: on threads of their own, beside the event loop, and counts no oftener than they change."""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta
from typing import Any, Final, NamedTuple, TypeVar

from durable.errors import DurableError, InvalidArgument
from durable.operate.view import RunView, view_run
from durable.stores.listing import Stats
from durable.stores.protocol import ReadableStore
from durable.stores.reading import COUNTED, Filter, Health, RunLine, SentSignal
from durable.web._links import TABS, Search

_T = TypeVar("_T")
_P = TypeVar("_P")

_THREADS: Final = 4
_KEPT: Final = 2.0  # seconds, of counts
_PATIENCE: Final = 0.3  # seconds for which a page waits for counts: it comes without them then
_SEARCHES: Final = 32  # whose counts are kept
HOUR: Final = 1_000  # lines of the last hour that are looked at


class Seen(NamedTuple):
    """A run, and the signals that were sent to it and not received."""

    view: RunView
    signals: Sequence[SentSignal]
    now: datetime


class Overview(NamedTuple):
    """What an overview is made of."""

    hour: Sequence[RunLine]
    since: datetime
    stats: Stats | None
    health: Health | None


class _Kept(NamedTuple):
    at: float
    value: Any


class Reads:
    """The questions. Each is asked on a thread, and raises the store's errors."""

    def __init__(self, store: ReadableStore) -> None:
        self.store = store
        self.threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="durable-web")
        self._kept: OrderedDict[str, _Kept] = OrderedDict()
        self._asking: dict[str, asyncio.Task[Any]] = {}

    def now(self) -> datetime:
        """The moment, by the store's clock."""
        store: Any = self.store
        moment: datetime = store.clock.now()
        return moment

    async def ask(self, fn: Callable[..., _T], *args: Any) -> _T:
        """What `fn(*args)` returns, called on a thread."""
        return await asyncio.get_running_loop().run_in_executor(self.threads, fn, *args)

    async def lines(self, filter: Filter, limit: int, after: Any = None) -> Sequence[RunLine]:
        """A page of a list."""
        return await self.ask(lambda: self.store.runs(filter, limit=limit, after=after))

    async def line(self, id: str) -> RunLine | None:
        """A run's line; None where there is none."""
        try:
            found = await self.lines(Filter(ids=(id,)), 1)
        except InvalidArgument:  # no such text can be an id
            return None
        return found[0] if found else None

    async def run(self, id: str) -> Seen | None:
        """All that is stored of a run; None where there is none."""
        line = await self.line(id)
        return None if line is None else await self.ask(self._seen, line)

    def _seen(self, line: RunLine) -> Seen:
        now = self.now()
        named = [signal for signal in self.store.signals(line.id) if signal.name]
        return Seen(view_run(self.store, line, now=now), named, now)

    async def counts(self, search: Search) -> Mapping[str, int | None]:
        """How many runs of a search each tab has: capped, -1 where that takes too long, None where it is not known yet."""
        whole = search._replace(status="", after=None)
        counted = await self.kept(f"counts {whole.address()}", _KEPT, lambda: self._counted(whole), _PATIENCE)
        return counted or dict.fromkeys(("", *TABS))

    def _counted(self, search: Search) -> Mapping[str, int]:
        now, counted = self.now(), dict[str, int]()
        for status in TABS:
            try:
                counted[status] = self.store.count_runs(search.filter(now, status=status), limit=COUNTED)
            except InvalidArgument:
                counted[status] = -1
        known = [count for count in counted.values() if count >= 0]
        return {"": min(sum(known), COUNTED) if len(known) == len(counted) else -1} | counted

    async def overview(self) -> Overview:
        """The last hour's lines; what the store holds, and how it stands, where that is known at once."""
        hour, since = await self.kept("hour", 10.0, self._hour)
        stats, health = await asyncio.gather(
            self.kept("stats", 15.0, self.store.stats, _PATIENCE),
            self.kept("health", 15.0, self.store.health, _PATIENCE),
        )
        return Overview(hour, since, stats, health)

    def _hour(self) -> tuple[Sequence[RunLine], datetime]:
        since = self.now() - timedelta(hours=1)
        return self.store.runs(Filter(since=since), limit=HOUR), since

    async def kept(self, name: str, seconds: float, fn: Callable[[], _P], patience: float | None = None) -> Any:
        """What `fn` returned last, no older than `seconds` when it was asked; else what it returns now.

        With a `patience`, what is older, or None, where it does not return within that: the next page has it.
        """
        kept = self._kept.get(name)
        if kept is not None and time.monotonic() - kept.at < seconds:
            return kept.value
        task = self._asking.get(name)
        if task is None or task.get_loop() is not asyncio.get_running_loop():
            task = asyncio.get_running_loop().create_task(self._fetch(name, fn))
            self._asking[name] = task
        await asyncio.wait({task}, timeout=patience)
        if task.done():
            return task.result()
        return None if kept is None else kept.value

    async def _fetch(self, name: str, fn: Callable[[], _P]) -> _P | None:
        try:
            value = await self.ask(fn)
            self._kept[name] = _Kept(time.monotonic(), value)
            self._kept.move_to_end(name)
            while len(self._kept) > _SEARCHES:
                self._kept.popitem(last=False)
            return value
        except DurableError:
            if name == "hour":
                raise
            return None
        finally:
            self._asking.pop(name, None)
