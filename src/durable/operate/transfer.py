"""Runs as lines of JSON, to be taken elsewhere: exported, imported and exported again they are the same, to the byte."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from datetime import datetime
from typing import Final

import msgspec
from msgspec import Raw, Struct, structs

from durable._engine.starts import Route
from durable.errors import InvalidArgument, RunNotFound, UnreadableRecord
from durable.operate.view import read_journal
from durable.records import Kind, Record, StepRecord, parse, render
from durable.snapshots import header_and_records
from durable.stores.copies import StoredRun
from durable.stores.protocol import ReadableStore
from durable.stores.reading import NEVER, Filter, SentSignal

FORMAT: Final = 1


class _Run(Struct, tag="run", tag_field="line", omit_defaults=True):
    """The first line of a run."""

    id: str
    header: Raw
    format: int
    #: When it was changed last.
    updated: datetime | None = None
    #: Queue, workflow and version.
    route: tuple[str, str, int] | None = None
    priority: int | None = None
    due: datetime | None = None
    partition: str | None = None


class _Record(Struct, tag="record", tag_field="line"):
    seq: int
    key: str
    kind: str
    at: datetime | None
    epoch: int
    record: Raw


class _Signal(Struct, tag="signal", tag_field="line", omit_defaults=True):
    """Of one that was received, and sent with a `dedup`, only that is told, without a name."""

    name: str
    at: datetime
    payload: Raw
    dedup: int | None = None


_encode: Final = msgspec.json.Encoder().encode
_sorted: Final = msgspec.json.Encoder(order="sorted").encode
_decode: Final = msgspec.json.Decoder(_Run | _Record | _Signal).decode


def export_run(store: ReadableStore, id: str) -> Iterator[bytes]:
    """The run as lines: its header, each record, and each signal that it has not received. Raises `RunNotFound`."""
    document = store.document(id)
    lines = store.runs(Filter(ids=(id,)), limit=1)
    if document is None or not lines:
        raise RunNotFound(id)
    line = lines[0]
    route = None
    if line.priority is not None:
        route = (line.queue or "", line.workflow, line.version or 1)
    # What would wake a suspended run is not in the file: it looks itself, at once, and is suspended again.
    due = line.updated_at if line.awaits or line.due_at == NEVER else line.due_at
    header = _sorted(msgspec.json.decode(document))  # whatever order a store keeps its keys in
    yield _encode(_Run(id, Raw(header), FORMAT, line.updated_at, route, line.priority, due, line.partition))
    records = read_journal(store, id)
    for record in records:
        text = Raw(_without_number(record, run_id=id).encode())
        yield _encode(_Record(record.seq, str(record.key), str(record.kind), record.at, record.epoch, text))
    received = received_signals(records, run_id=id)
    for signal in store.signals(id):
        if signal.number not in received:
            yield _encode(_Signal(signal.name, signal.at, Raw(signal.payload.encode()), signal.dedup_hash))
        elif signal.dedup_hash is not None:
            yield _encode(_Signal("", signal.at, Raw(b"null"), signal.dedup_hash))


def read_runs(lines: Iterable[bytes], *, file: str = "the file") -> Iterator[StoredRun]:
    """The runs that such lines tell of; `InvalidArgument`, naming the line, for what is no such line."""
    first: _Run | None = None
    records: list[Record] = []
    signals: list[SentSignal] = []
    for number, text in enumerate(lines, 1):
        if not text.strip():
            continue
        told = _read(text, file, number)
        if isinstance(told, _Run):
            if told.format != FORMAT:
                raise InvalidArgument(
                    f"{file}, line {number}: its format is {told.format}, and this version knows {FORMAT}"
                )
            if first is not None:
                yield _stored(first, records, signals, file)
            first, records, signals = told, [], []
        elif first is None:
            raise InvalidArgument(f"{file}, line {number}: a run begins with a line of its header: is the file whole?")
        elif isinstance(told, _Record):
            content = bytes(told.record).decode()
            records.append(Record(told.seq, told.key, told.kind, content, told.at, told.epoch))
        else:
            signals.append(SentSignal(0, told.name, bytes(told.payload).decode(), told.at, told.dedup))
    if first is not None:
        yield _stored(first, records, signals, file)


def _without_number(record: Record, *, run_id: str) -> str:
    """Its text. The number of the signal that it has received is made negative: no signal of another store has it."""
    if record.kind == Kind.STEP and '"signal"' in record.text:
        step = parse(record.text, StepRecord, run_id=run_id, where=record.key)
        if step.signal is not None and step.signal > 0:
            return render(structs.replace(step, signal=-step.signal))
    return record.text


def received_signals(records: Iterable[Record], *, run_id: str) -> frozenset[int]:
    """The numbers of the signals that a journal says were received."""
    numbers: set[int] = set()
    for record in records:
        if record.kind == Kind.STEP and '"signal"' in record.text:
            step = parse(record.text, StepRecord, run_id=run_id, where=record.key)
            if step.signal is not None:
                numbers.add(step.signal)
    return frozenset(numbers)


def _read(text: bytes, file: str, number: int) -> _Run | _Record | _Signal:
    try:
        told: _Run | _Record | _Signal = _decode(text)
        return told
    except (msgspec.MsgspecError, UnicodeError, RecursionError):
        raise InvalidArgument(f"{file}, line {number}: it is no line of an exported run") from None


def _stored(run: _Run, records: list[Record], signals: list[SentSignal], file: str) -> StoredRun:
    document = bytes(run.header).decode()
    try:
        header, _ = header_and_records(document, run_id=run.id)
    except UnreadableRecord as problem:
        raise InvalidArgument(f"{file}: {problem}") from None
    return StoredRun(
        id=run.id,
        document=document,
        records=records,
        signals=signals,
        route=None if run.route is None else Route(*run.route),
        priority=run.priority,
        due_at=run.due,
        partition=run.partition,
        updated_at=run.updated,
        epoch=header.execution.epoch,
    )
