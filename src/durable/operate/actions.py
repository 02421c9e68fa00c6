"""What changes runs from outside, for command line and page: each says what it did, and writes a line that says who did it."""

from __future__ import annotations

import asyncio
import getpass
import os
import socket
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, Literal, NamedTuple, TypeAlias, TypeVar

import structlog

from durable._runtime.control import cancel, cancel_async, retry, retry_async, signal
from durable._runtime.plan import MISSING
from durable._runtime.run_handles import fork, fork_async
from durable._runtime.schedule_handles import schedule
from durable.errors import ConcurrentExecution, DurableError, HistoryError, InvalidArgument, RunNotFound
from durable.stores.protocol import ReadableStore
from durable.stores.reading import Filter, RunLine

T = TypeVar("T")

Bulk: TypeAlias = Literal["retry", "cancel", "fork", "delete"]

_log: Final = structlog.get_logger("durable.audit")
_AT_ONCE: Final = 1_000  # runs in one transaction, or as many as are sent together
_SIDE_BY_SIDE: Final = 64  # of these


@dataclass(eq=False, repr=False)
class AlreadyEnded(HistoryError):
    """A run that is to be stopped has ended, with `status`."""

    run_id: str
    status: str

    def __str__(self) -> str:
        return f"run {self.run_id!r} has ended: it is {self.status}"


class Outcome(NamedTuple):
    """What became of one run of many."""

    run_id: str
    #: Why it was refused; None where it was done.
    problem: DurableError | None = None


class Actions:
    """The actions on a store, by one person. `via` says by which tool: "cli" or "web"."""

    def __init__(self, store: ReadableStore, *, who: str | None = None, via: str = "cli", log: Any = None) -> None:
        self.store = store
        self.who = who or this_person()
        self.via = via
        self._log = log or _log

    def cancel(self, id: str, *, force: bool = False, reason: str | None = None) -> bool:
        """See `durable.cancel`. False, and nothing was changed, where it had ended."""
        given: Any = {"force": force, "reason": reason}
        return self._audited("cancel", id, lambda: cancel(self.store, id, **given), **given)

    def signal(
        self, id: str, name: str, payload: Any = None, *, dedup: str | None = None, create_later: bool = False
    ) -> bool:
        """See `durable.signal`, but where there is no such run, and none is to be created later, `RunNotFound` is raised."""

        def sent() -> bool:
            found = signal(self.store, id, name, payload, dedup=dedup, create_later=create_later)
            if not found and not create_later:
                raise RunNotFound(id)
            return found

        return self._audited("signal", id, sent, signal=name, dedup=dedup, create_later=create_later)

    def retry(
        self, id: str, *, from_step: str | None = None, even_effects: bool = False, dry_run: bool = False
    ) -> list[str]:
        """See `durable.retry`; what is only tried writes no line."""
        given: Any = {"from_step": from_step, "even_effects": even_effects}
        if dry_run:
            return retry(self.store, id, dry_run=True, **given)
        return self._audited("retry", id, lambda: retry(self.store, id, **given), **given)

    def fork(
        self,
        id: str,
        *,
        from_step: str | None = None,
        input: Any = MISSING,
        new_id: str | None = None,
        even_effects: bool = False,
    ) -> str:
        """See `durable.fork`; the new run's id."""

        def forked() -> str:
            made = fork(self.store, id, from_step=from_step, input=input, new_id=new_id, even_effects=even_effects)
            return made.id

        return self._audited("fork", id, forked, from_step=from_step, new_id=new_id)

    def delete(self, id: str, *, force: bool = False) -> None:
        """See `PostgresStore.delete`; `RunNotFound` where there is none."""
        if not self.store.runs(Filter(ids=(id,)), limit=1):
            raise RunNotFound(id)
        self._audited("delete", id, lambda: self.store.delete(id, force=force), force=force)

    def purge(
        self, *, older_than: float, status: Any = "completed", progress: Callable[[int], object] | None = None
    ) -> int:
        """See `PostgresStore.purge`; one line for all that it deletes."""

        def purged() -> int:
            return self.store.purge(older_than=older_than, status=status, progress=progress)

        return self._audited("purge", "*", purged, older_than=older_than, status=status)

    def pause_schedule(self, name: str, *, paused: bool) -> None:
        """See `ScheduleHandle.pause` and `resume`."""
        handle = schedule(self.store, name)
        self._audited(
            "pause schedule" if paused else "resume schedule", name, handle.pause if paused else handle.resume
        )

    def run_schedule(self, name: str) -> str:
        """See `ScheduleHandle.run_now`; the run's id."""
        return self._audited("run schedule", name, lambda: schedule(self.store, name).run_now().id)

    def backfill_schedule(self, name: str, since: datetime, until: datetime) -> list[str]:
        """See `ScheduleHandle.backfill`; the ids of the runs."""

        def filled() -> list[str]:
            return [run.id for run in schedule(self.store, name).backfill(since, until)]

        return self._audited("backfill schedule", name, filled, since=since.isoformat(), until=until.isoformat())

    def delete_schedule(self, name: str) -> None:
        """See `ScheduleHandle.delete`."""
        self._audited("delete schedule", name, schedule(self.store, name).delete)

    def restore(self, run: Any, *, replace: bool = False) -> None:
        """See `PostgresStore.restore`."""
        self._audited("import", run.id, lambda: self.store.restore(run, replace=replace), replace=replace)

    def pause(self, queue: str, *, paused: bool) -> None:
        """See `durable.pause`, and `durable.unpause` where it is not to be `paused`."""
        action = "pause" if paused else "resume"
        self._audited(action, "*", lambda: self.store.pause_queue(queue, paused=paused), queue=queue)

    def start(self, workflow: str, begin: Callable[[], T], run_id: str | None) -> T:
        """See `durable.start`, which `begin` calls."""
        return self._audited("start", run_id or "", begin, workflow=workflow)

    def bulk(
        self,
        action: Bulk,
        wanted: Filter,
        *,
        from_step: str | None = None,
        even_effects: bool = False,
        new_id: str = "{id}-fork",
        force: bool = False,
        reason: str | None = None,
        dry_run: bool = False,
    ) -> Iterator[list[Outcome]]:
        """Do it to each run of a filter, a thousand at a time; what became of these.

        It goes from the newest to the oldest: what it has changed is not met again. Interrupted, it has done what it said, and
        may be called again: what it did is no longer meant by the filter, or refused because it is done. A `dry_run` changes
        nothing.
        """
        terms: Any = {"from_step": from_step, "even_effects": even_effects}

        async def act(run_id: str) -> object:
            if action == "cancel":
                return await cancel_async(self.store, run_id, force=force, reason=reason)
            if action == "retry":
                return await retry_async(self.store, run_id, **terms)
            return await fork_async(self.store, run_id, new_id=new_id.replace("{id}", run_id), **terms)

        last: RunLine | None = None
        while True:
            lines = self.store.runs(wanted, limit=_AT_ONCE, after=last)
            if not lines:
                return
            last = lines[-1]
            ids = [line.id for line in lines]
            if dry_run:
                yield [Outcome(run_id) for run_id in ids]
            elif action == "delete":
                yield self._delete(ids)
            else:
                yield asyncio.run(self._together(action, ids, act))
            if len(lines) < _AT_ONCE:
                return

    def _delete(self, ids: Sequence[str]) -> list[Outcome]:
        gone = set(self.store.delete_many(ids))
        outcomes: list[Outcome] = []
        for run_id in ids:
            self._write("done" if run_id in gone else "refused", "delete", run_id, {})
            problem = ConcurrentExecution(run_id, "a worker, or a call", advice="Cancel it first.")
            outcomes.append(Outcome(run_id, None if run_id in gone else problem))
        return outcomes

    async def _together(
        self, action: str, ids: Sequence[str], act: Callable[[str], Awaitable[object]]
    ) -> list[Outcome]:
        """Side by side: what they write shares its commits."""
        room = asyncio.Semaphore(_SIDE_BY_SIDE)

        async def one(run_id: str) -> Outcome:
            async with room:
                try:
                    await act(run_id)
                except DurableError as problem:
                    self._write("refused", action, run_id, {"error": type(problem).__name__})
                    return Outcome(run_id, problem)
                self._write("done", action, run_id, {})
                return Outcome(run_id)

        return list(await asyncio.gather(*map(one, ids)))

    def _audited(self, action: str, run_id: str, act: Callable[[], T], **told: Any) -> T:
        """What `act` returns, with a line that it was done, or refused."""
        said = {name: value for name, value in told.items() if value not in (None, False)}
        try:
            done = act()
        except InvalidArgument:  # nothing was asked of the run
            raise
        except DurableError as problem:
            self._write("refused", action, run_id, said | {"error": type(problem).__name__})
            raise
        self._write("done", action, run_id, said)
        return done

    def _write(self, outcome: str, action: str, run_id: str, told: dict[str, Any]) -> None:
        self._log.info("action", action=action, run_id=run_id, who=self.who, via=self.via, outcome=outcome, **told)


def this_person() -> str:
    """Who works here: the account and the machine."""
    try:
        account = getpass.getuser()
    except (OSError, KeyError):  # without a name in a container
        account = str(os.getuid())
    return f"{account}@{socket.gethostname()}"
