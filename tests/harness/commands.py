"""The command line in this process: on a store whose clock stands still, with a terminal of any width, or with none."""

from __future__ import annotations

import contextlib
import io
import signal
import sys
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Final, NamedTuple

import pytest
from msgspec import UNSET, Raw, json, structs

import durable
from durable._commands import acting, app, finding
from durable._engine.queues import Queue, Rate
from durable._engine.starts import Route
from durable._runtime.schedules import find_ticks, run_of_tick
from durable.clocks import SystemClock
from durable.records import (
    AttemptRecord,
    EarlierExecution,
    ErrorRecord,
    ErrorSummary,
    Execution,
    FailureRecord,
    Header,
    Kind,
    Record,
    Status,
    StepRecord,
    render,
)
from durable.stores import MemoryStore
from durable.stores.copies import StoredRun
from durable.stores.requests import PauseSchedule, Poll, PutSchedules, TickSchedule

START: Final = datetime(2026, 11, 29, 14, 2, 11, tzinfo=UTC)
NOW: Final = START + timedelta(minutes=4, seconds=48)


class StillClock(SystemClock):
    """Shows the time that a test sets."""

    def __init__(self, at: datetime = NOW) -> None:
        self.at = at

    def now(self) -> datetime:
        return self.at


class Said(NamedTuple):
    """What a command has written, and how it ended."""

    status: int
    out: str
    err: str


class _Text(io.TextIOWrapper):
    """A terminal, or a pipe."""

    def __init__(self, *, is_tty: bool, encoding: str = "utf-8") -> None:
        super().__init__(io.BytesIO(), encoding=encoding, write_through=True)
        self._is_tty = is_tty

    def isatty(self) -> bool:
        return self._is_tty

    @property
    def text(self) -> str:
        return self.buffer.getvalue().decode(self.encoding)  # type: ignore[attr-defined, no-any-return]


class CommandLine:
    """`durable …`, on a store."""

    def __init__(self, store: Any) -> None:
        self.store = store
        self.opened: Any = None

    def __call__(
        self,
        *arguments: str,
        width: int | None = None,
        color: bool = False,
        encoding: str = "utf-8",
        typed: str | None = None,
    ) -> Said:
        """Do it; on a terminal of so many columns, or on none. What is `typed` there answers its questions."""
        is_tty = width is not None
        out, err = _Text(is_tty=is_tty, encoding=encoding), _Text(is_tty=is_tty)
        wanted = {"COLUMNS": str(width or 100), "TERM": "xterm", "NO_COLOR": "" if color else "1", "TZ": "UTC"}
        with pytest.MonkeyPatch.context() as patch:
            for name, value in wanted.items():
                patch.setenv(name, value)
            for name in ("FORCE_COLOR", "DATABASE_URL", "DURABLE_URL"):
                patch.delenv(name, raising=False)
            patch.setattr(sys, "stdout", out)
            patch.setattr(sys, "stderr", err)
            typing = _Text(is_tty=is_tty)
            typing.buffer.write((typed or "").encode())
            typing.seek(0)
            patch.setattr(sys, "stdin", typing)
            for module in (finding, acting):
                patch.setattr(module, "open_store", self._open)
            handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
            try:
                status = app.run(arguments)
            finally:  # a worker's, which are for a process of its own
                for number, handler in handlers.items():
                    signal.signal(number, handler)
        return Said(status, out.text, err.text)

    @contextlib.contextmanager
    def _open(self, given: Any, *, create: bool = False) -> Iterator[Any]:
        yield self.store


class Told:
    """A run that is told record by record, at moments in seconds after `START`."""

    def __init__(self, id: str, workflow: str = "checkout", **execution: Any) -> None:
        self.id = id
        self._records: list[Record] = []
        self._header = Header(
            workflow,
            Execution(
                Status.RUNNING,
                started_at=START.isoformat(),
                epoch=1,
                owner="app-2:4121",
                began=START.isoformat(),
                last_updated=START.isoformat(),
            ),
            metadata={"version": 3, "tenant": "t7", "order": 7},
        )
        self._header = structs.replace(self._header, execution=structs.replace(self._header.execution, **execution))
        self.epoch = 1
        self.terms: dict[str, Any] = {}

    def input(self, value: Any) -> Told:
        return self._add(0.0, Kind.INPUT, "input", json.encode(value).decode())

    def step(self, key: str, begin: float, end: float, value: Any = None, **told: Any) -> Told:
        error = told.pop("error", None)
        content = StepRecord(
            told.pop("name", key.partition("[")[0]),
            ok=error is None,
            value=Raw(json.encode(value)) if error is None else UNSET,
            error=error,
            seconds=round(end - begin, 3),
            **told,
        )
        return self._add(end, Kind.STEP, key, render(content))

    def attempt(
        self, key: str, number: int, began: float, at: float, due: float, error: ErrorRecord | None = None
    ) -> Told:
        content = AttemptRecord(key.partition("[")[0], number, moment(began), moment(due), error)
        return self._add(at, Kind.ATTEMPT, key, render(content))

    def sleep(self, key: str, at: float, until: float) -> Told:
        return self.step(key, at, at, [moment(at).isoformat(), moment(until).isoformat()])

    def again(self, at: float, owner: str = "app-3:77") -> Told:
        """Another execution begins."""
        last = self._header.execution
        earlier = (*last.earlier, EarlierExecution(last.epoch, last.owner, last.began))
        self.epoch += 1
        self._header = structs.replace(
            self._header,
            execution=structs.replace(
                last, epoch=self.epoch, owner=owner, began=moment(at).isoformat(), earlier=earlier
            ),
        )
        return self

    def fails(self, at: float, error: ErrorRecord, step: str = "", **told: Any) -> Told:
        self._add(at, Kind.FAILURE, "failure", render(FailureRecord(error, (step,) if step else (), step=step, **told)))
        return self.ends(Status.FAILED, at, error=ErrorSummary(error.type, step))

    def completes(self, at: float, result: Any = None) -> Told:
        self._add(at, Kind.RESULT, "result", json.encode(result).decode())
        return self.ends(Status.COMPLETED, at, completed_at=moment(at).isoformat())

    def ends(self, status: Status, at: float, **told: Any) -> Told:
        execution = structs.replace(self._header.execution, status=status, last_updated=moment(at).isoformat(), **told)
        self._header = structs.replace(self._header, execution=execution)
        return self

    def waits(self, queue: str, due_at: datetime | None, priority: int = 5) -> Told:
        version = self._header.metadata["version"]
        self.terms = {
            "route": Route(queue, self._header.workflow_name, version),
            "priority": priority,
            "due_at": due_at,
        }
        return self

    def into(self, store: MemoryStore, at: float = 0.0) -> None:
        """Store it; it is changed last at this moment."""
        clock: Any = store.clock
        now, clock.at = clock.at, moment(at)
        store.restore(
            StoredRun(
                id=self.id,
                document=json.encode(self._header).decode(),
                records=self._records,
                epoch=self.epoch,
                **self.terms,
            )
        )
        clock.at = now

    def _add(self, at: float, kind: str, key: str, text: str) -> Told:
        self._records.append(Record(len(self._records), key, kind, text, moment(at), self.epoch))
        return self


def moment(seconds: float) -> datetime:
    return START + timedelta(seconds=seconds)


def raised(type_: str, message: str) -> ErrorRecord:
    """An exception as it is recorded."""
    module, _, name = type_.partition(":")
    trace = (
        f'Traceback (most recent call last):\n  File "shop/couriers.py", line 88, in book\n{module}.{name}: {message}\n'
    )
    return ErrorRecord(type_, message, args=Raw(json.encode([message])), traceback=trace)


def checkout(id: str = "checkout-7f3a") -> Told:
    """The run of the specification's picture: it waited, was killed, and failed after three attempts at its last step."""
    late = raised("httpx:ReadTimeout", "no answer within 3.0 s")
    told = Told(id).input({"order": 7, "card": "4111 1111 1111 1111", "items": [{"sku": "tea-04", "n": 2}]})
    told.step("fetch cart", 0.1, 0.58, {"items": 2}).step("reserve stock", 0.65, 3.4, "r-1")
    told.step("quote[ups]", 3.5, 4.91, 12.5)
    told.attempt("quote[gls]", 1, 3.5, 5.2, 6.2, raised("builtins:OSError", "no route"))
    told.step("quote[dhl]", 3.5, 6.1, 9.9).step("quote[gls]", 6.2, 8.02, 11.0, attempt=2)
    told.step("approved", 17.6, 17.6, True, signal=3, started=6)
    told.again(25.3)
    told.step("charge", 25.3, 28.11, {"payment": "p-31c9", "token": "tok_secret"})
    told.step("receipt mail", 28.2, 28.902, "sent").sleep("cool down", 29.0, 34.0)
    told.attempt("book courier", 1, 34.1, 36.2, 38.2, late).attempt("book courier", 2, 34.1, 40.0, 44.5, late)
    return told.step("book courier", 44.5, 47.7, error=late, attempt=3).fails(47.9, late, "book courier")


def fill(store: MemoryStore) -> None:
    """A store with a run of each kind, the newest last."""
    store.write_queue(Queue("orders", concurrency=10, partition_concurrency=2, rate=Rate(600, per=60, burst=20)))
    store.pause_queue("mail")
    os_error = raised("builtins:OSError", "card 4111 refused")
    Told("ok-1", "report").step("collect", 0.0, 0.2, [1]).completes(0.25, "done").into(store, 0.25)
    Told("gone-1", "report").step("collect", 1.0, 1.2, [1]).ends(Status.CANCELLED, 2.0).into(store, 2.0)
    Told("left-1", "report").step("collect", 1.0, 1.2, [1]).into(store, 3.0)
    Told("checkout-7e91").step("charge", 0.1, 2.1, error=os_error).fails(2.1, os_error, "charge").into(store, 4.0)
    checkout().into(store, 47.9)
    queued: dict[str, Any] = {"status": Status.QUEUED, "started_at": "", "epoch": 0, "owner": "", "began": ""}
    Told("order-1", "orders", **queued).input(1).waits("orders", moment(200.0)).into(store, 200.0)
    Told("order-2", "orders", **queued).input(2).waits("orders", NOW + timedelta(minutes=5)).into(store, 201.0)
    Told("order-3", "orders").step("ask", 0.1, 0.2).waits("orders", NOW + timedelta(hours=2)).into(store, 202.0)
    Told("order-4", "orders", crashes=2).step("ask", 0.1, 0.2).waits("orders", moment(203.0), 1).into(store, 203.0)
    Told("order-5", "orders").step("ask", 0.1, 0.2).waits("orders", datetime.max.replace(tzinfo=UTC)).into(store, 204.0)


def fill_schedules(store: MemoryStore) -> None:
    """Three of them: one that has ticked, one that is paused, one that no worker has looked at yet."""
    nightly = durable.Schedule("nightly", "30 2 * * *", "report", zone="Europe/Berlin", overlap="queue")
    beat, new = (
        durable.Schedule("beat", every=10, workflow="check@2"),
        durable.Schedule("new", "@hourly", "report", missed="all"),
    )
    store.perform(PutSchedules([one.encode(store.codec) for one in (nightly, beat, new)]))
    for due in store.perform(Poll([], 0, 30.0, lambda lease: True, schedules=["nightly"])).due:
        ticks = find_ticks(structs.replace(due, due_at=NOW - timedelta(hours=1)))
        run = run_of_tick(due.scheduled, ticks.begun[0], store.codec)
        store.perform(TickSchedule(due, [run], ticks.due_at))
    store.perform(PauseSchedule("beat", True))


def still_store() -> MemoryStore:
    """In memory, at the moment `NOW`."""
    return MemoryStore(clock=StillClock())


def golden_names(arguments: Sequence[str]) -> str:
    """The file that says what a command writes."""
    return "_".join("".join(letter if letter.isalnum() else "-" for letter in word).strip("-") for word in arguments)
