"""A journal as bars: what ran when, what waited, and where nothing is recorded. Pure, and by the server's clock alone."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime
from typing import Final, Literal, NamedTuple, TypeAlias, cast

import msgspec
from msgspec import Struct, field

from durable.errors import UnreadableRecord
from durable.operate.standing import State
from durable.records import (
    AttemptRecord,
    ErrorRecord,
    Execution,
    FailureRecord,
    Kind,
    Record,
    StepRecord,
    parse,
    places_set_aside,
)

BarKind: TypeAlias = Literal["ran", "failed", "waiting", "back-off"]
StepState: TypeAlias = Literal["completed", "failed", "waiting", "begun", "set aside"]

_SHORT: Final = 0.001  # seconds: what a record's `seconds` leave out below
_PAIR: Final = 2  # moments, of a sleep: when it began, and until when


class Bar(NamedTuple):
    """A stretch of a step's row, in seconds since the run began."""

    begin: float
    end: float
    kind: BarKind


class StepRow(Struct, kw_only=True):
    """A step: what is recorded under its key, in all executions."""

    #: Its key.
    key: str
    #: Its name.
    name: str
    #: How it stands by its last record.
    state: StepState = "begun"
    #: What is known of when it ran, and waited; in order.
    bars: list[Bar] = field(default_factory=list[Bar])
    #: How many attempts its last record counts.
    attempts: int = 0
    #: Until when it sleeps, is put off, or waits at most; None where that is not known, or it has settled.
    due: datetime | None = None
    #: What it raised last; None of one that has settled well.
    error: ErrorRecord | None = None
    #: The place of its last record.
    seq: int = 0
    #: Under which lease that was stored.
    epoch: int = 0
    #: The id of the child that it has started; empty where it is another kind of step.
    child: str = ""

    @property
    def item_of(self) -> str | None:
        """Of an item of `step.map`, the name of the map."""
        return self.name if self.key.startswith(f"{self.name}[") and self.key.endswith("]") else None

    @property
    def seconds(self) -> float:
        """From the beginning of its first bar to the end of its last."""
        return self.bars[-1].end - self.bars[0].begin if self.bars else 0.0


class Gap(NamedTuple):
    """Between two executions nothing is recorded: from the last record of one to the beginning of the next."""

    begin: float
    end: float


class MapProgress(NamedTuple):
    """How far a `step.map` is, by what is recorded of its items. How many there are in all is recorded nowhere."""

    name: str
    done: int
    failed: int
    retrying: int


class Timeline(Struct, frozen=True, kw_only=True):
    """A run's history."""

    #: When it began; of one that has not, the moment of the look.
    began: datetime
    #: How long it has taken until its end, its last record, or the look.
    seconds: float
    #: How long of that it only waited: for moments, signals and back-offs, and between executions.
    waited: float
    #: Its steps, in the order of their first records.
    rows: tuple[StepRow, ...] = ()
    #: Where nothing is recorded.
    gaps: tuple[Gap, ...] = ()
    #: How often it was taken up.
    executions: int = 0
    #: Its maps.
    maps: tuple[MapProgress, ...] = ()
    #: What ended it, if it failed.
    failure: FailureRecord | None = None
    #: Records that this version cannot read, by their places.
    unreadable: tuple[int, ...] = ()


def draw(
    records: Sequence[Record], execution: Execution | None, state: State, *, now: datetime, run_id: str = "?"
) -> Timeline:
    """The timeline of these records. `execution` is the header's, and `now` the moment of the look.

    A body that was at work when its process died leaves no record, so no bar: between two executions there is a `Gap`.
    """
    dated = [record for record in records if record.at is not None]
    began = _moment(None if execution is None else execution.started_at)
    if began is None or (dated and dated[0].at is not None and dated[0].kind != Kind.INPUT and dated[0].at < began):
        began = min((record.at for record in dated if record.at and record.kind != Kind.INPUT), default=began or now)
    drawing = _Drawing(began, run_id)
    drawing.read(records)
    end = (
        drawing.last if state not in ("running", "waiting", "due") else max(drawing.last, (now - began).total_seconds())
    )
    gaps = list(_gaps(records, execution, began)) if execution is not None else []
    rows = tuple(drawing.finished(end))
    gaps = [gap for gap in gaps if not _is_covered(gap, rows)]
    return Timeline(
        began=began,
        seconds=max(end, 0.0),
        waited=_waited(rows, gaps),
        rows=rows,
        gaps=tuple(gaps),
        executions=0 if execution is None else execution.epoch,
        maps=tuple(_maps(rows)),
        failure=drawing.failure if state == "failed" else None,
        unreadable=tuple(drawing.unreadable),
    )


class _Drawing:
    """The rows, as the records are read."""

    def __init__(self, began: datetime, run_id: str) -> None:
        self._began = began
        self._run_id = run_id
        self._rows: dict[str, StepRow] = {}
        self._ends: list[float] = []  # of each record, when it was stored
        self._places: dict[int, int] = {}  # of each record's seq, its place among them
        self._back_offs: dict[str, float] = {}  # of a step that is put off, until when
        self._sleeping: list[tuple[StepRow, int]] = []  # each with its record's place
        self._starts: list[
            tuple[int, float]
        ] = []  # of settled steps: the seq when they were called, when their body began
        self.last = 0.0
        self.failure: FailureRecord | None = None
        self.unreadable: list[int] = []

    def read(self, records: Sequence[Record]) -> None:
        try:
            gone = places_set_aside(records, run_id=self._run_id)
        except UnreadableRecord:
            gone = frozenset[int]()
        for record in records:
            at = 0.0 if record.at is None else self._offset(record.at)
            self._places[record.seq] = len(self._ends)
            self._ends.append(at)
            if record.kind != Kind.INPUT:
                self.last = max(self.last, at)
            try:
                self._read(record, at)
            except UnreadableRecord:
                self.unreadable.append(record.seq)
            if record.seq in gone and record.key in self._rows:
                self._rows[record.key].state = "set aside"

    def _read(self, record: Record, at: float) -> None:
        where = f"the {record.kind} record {record.key!r} (seq {record.seq})"
        if record.kind == Kind.STEP:
            self._read_step(record, parse(record.text, StepRecord, run_id=self._run_id, where=where), at)
        elif record.kind == Kind.ATTEMPT:
            self._read_attempt(record, parse(record.text, AttemptRecord, run_id=self._run_id, where=where), at)
        elif record.kind == Kind.FAILURE:
            self.failure = parse(record.text, FailureRecord, run_id=self._run_id, where=where)

    def _read_step(self, record: Record, step: StepRecord, at: float) -> None:
        row = self._row(record, step.name)
        begin = max(0.0, at - step.seconds)
        called = self._called(record.seq if step.started is None else step.started)
        until = self._back_offs.pop(record.key, None)
        if step.signal is not None or (
            until is not None and step.seconds == 0 and row.due is not None and not row.error
        ):
            begin = max(called, row.bars.pop().begin if row.bars and row.bars[-1].kind == "waiting" else called)
            row.bars.append(Bar(min(begin, at), at, "waiting"))
        else:
            _end_back_off(row, begin)
            row.bars.append(Bar(begin, at, "ran" if step.ok else "failed"))
        row.state, row.error, row.due = ("completed" if step.ok else "failed"), step.error, None
        row.attempts, row.child = step.attempt, step.child or row.child
        self._starts.append((record.seq if step.started is None else step.started, begin))
        if step.ok and step.seconds <= _SHORT and (until_moment := _sleep_of(step)) is not None:
            row.due = until_moment
            self._sleeping.append((row, record.seq))

    def _read_attempt(self, record: Record, attempt: AttemptRecord, at: float) -> None:
        row = self._row(record, attempt.name)
        row.attempts, row.error, row.due = attempt.number, attempt.error, attempt.due
        row.state = "begun" if attempt.due is None else "waiting"
        if attempt.child:
            row.child, row.due = attempt.child, None
            row.bars.append(Bar(at, at, "waiting"))  # until its end is recorded
            return
        if attempt.due is None:
            return  # that it has begun is all that is known
        due = max(at, self._offset(attempt.due))
        if attempt.error is None:  # a wait for a signal, with a limit
            row.bars.append(Bar(at, due, "waiting"))
        else:
            begin = self._back_offs.get(record.key)
            if begin is None:
                begin = max(0.0, min(at, self._offset(attempt.began)))
            _end_back_off(row, min(begin, at))
            row.bars += [Bar(min(begin, at), at, "failed"), Bar(at, due, "back-off")]
        self._back_offs[record.key] = due

    def finished(self, end: float) -> Iterator[StepRow]:
        """The rows, with the waits ended that others have begun after, or that go on at the end."""
        for row, seq in self._sleeping:
            slept = row.bars.pop()
            until = self._offset(row.due) if row.due is not None else slept.end
            following = [begin for called, begin in self._starts if called > seq]
            limit = min(following, default=end)
            row.bars.append(Bar(slept.begin, max(slept.begin, min(until, max(limit, slept.end))), "waiting"))
            if limit >= until or following:
                row.due = None
            else:
                row.state = "waiting"
        for row in self._rows.values():
            row.bars = [bar._replace(begin=min(bar.begin, end), end=min(bar.end, end)) for bar in row.bars]
            yield row

    def _row(self, record: Record, name: str) -> StepRow:
        row = self._rows.setdefault(record.key, StepRow(key=record.key, name=name or record.key))
        row.seq, row.epoch = record.seq, record.epoch
        return row

    def _called(self, seq: int) -> float:
        """The latest moment before which the step was not called: when the record before its call was stored."""
        place = self._places.get(seq - 1)
        return 0.0 if place is None else max(0.0, self._ends[place])

    def _offset(self, moment: datetime) -> float:
        return (moment - self._began).total_seconds()


def _end_back_off(row: StepRow, begin: float) -> None:
    """The next attempt begins: the back-off before it is over."""
    if row.bars and row.bars[-1].kind == "back-off":
        row.bars[-1] = row.bars[-1]._replace(end=max(row.bars[-1].begin, begin))


def _sleep_of(step: StepRecord) -> datetime | None:
    """Until when a step sleeps, if it is one that does: its value is that moment, or its own beginning and that moment."""
    if step.fingerprint or step.transaction or step.once:
        return None
    try:
        value = msgspec.json.decode(step.json)
    except msgspec.MsgspecError:
        return None
    moments = [_moment(one) for one in cast("list[object]", value)] if isinstance(value, list) else []
    return moments[1] if len(moments) == _PAIR and None not in moments else None


def _gaps(records: Sequence[Record], execution: Execution, began: datetime) -> Iterator[Gap]:
    """From each execution's last record to the beginning of the next one."""
    ends: dict[int, float] = {}
    for record in records:
        if record.at is not None and record.kind != Kind.INPUT:
            ends[record.epoch] = (record.at - began).total_seconds()
    begun = [(one.epoch, one.began) for one in execution.earlier] + [(execution.epoch, execution.began)]
    moments = [(epoch, moment) for epoch, text in begun if (moment := _moment(text)) is not None]
    for (epoch, first), (_, next_) in itertools.pairwise(moments):
        begin = ends.get(epoch, (first - began).total_seconds())
        end = (next_ - began).total_seconds()
        if end > begin:
            yield Gap(max(0.0, begin), end)


def _is_covered(gap: Gap, rows: Iterable[StepRow]) -> bool:
    """Whether a wait goes on all through it: the run was left because it waited, and nothing is missing."""
    slack = max(_SHORT, (gap.end - gap.begin) / 20)
    return any(
        bar.begin <= gap.begin + slack and bar.end >= gap.end - slack
        for row in rows
        for bar in row.bars
        if bar.kind in ("waiting", "back-off")
    )


def _waited(rows: Iterable[StepRow], gaps: Iterable[Gap]) -> float:
    """The length of the waits and gaps in which nothing ran."""
    busy = [(bar.begin, bar.end) for row in rows for bar in row.bars if bar.kind in ("ran", "failed")]
    idle = [(bar.begin, bar.end) for row in rows for bar in row.bars if bar.kind in ("waiting", "back-off")]
    idle += [(gap.begin, gap.end) for gap in gaps]
    return max(0.0, _length([*idle, *busy]) - _length(busy))


def _length(spans: Iterable[tuple[float, float]]) -> float:
    """Of all of them together, each moment counted once."""
    total, until = 0.0, float("-inf")
    for begin, end in sorted(spans):
        if end > until:
            total += end - max(begin, until)
            until = end
    return total


def _maps(rows: Iterable[StepRow]) -> Iterator[MapProgress]:
    states: dict[str, list[str]] = {}
    for row in rows:
        if row.item_of is not None:
            states.setdefault(row.item_of, []).append(row.state)
    for name, found in states.items():
        yield MapProgress(name, found.count("completed"), found.count("failed"), found.count("waiting"))


def _moment(text: object) -> datetime | None:
    with contextlib.suppress(ValueError, OverflowError):
        moment = datetime.fromisoformat(text) if isinstance(text, str) and text else None
        if moment is not None and moment.utcoffset() is not None:
            return moment.astimezone(UTC)
    return None
