"""Keys, replay and drift: what a run remembers, and whether the code still makes the calls that it remembers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from durable._engine.decisions import Abort, Raise
from durable.errors import AmbiguousKey, KeyConflict, UnreadableRecord, WorkflowDrift
from durable.snapshot import FailureRecord, Kind, Record, StepRecord, parse


@dataclass(slots=True, eq=False)
class Call:
    """One use of `step(...)`: its identity, and what has become of it.

    `refusal` is what stands in its way from the start; `original` the live exception of its body, for the one who
    reads the traceback.
    """

    key: str
    name: str
    fingerprint: str = ""
    auto: bool = False
    concurrent: bool = False
    refusal: Raise | Abort | None = None
    began: float = 0.0
    seconds: float = 0.0
    record: StepRecord | None = None
    original: BaseException | None = None


class Journal:
    """The settled steps of one run by key, and the keys that this execution has drawn.

    `main` is the identity of the task or thread that runs the workflow function; what another one draws is concurrent.
    """

    def __init__(self, run_id: str, records: Sequence[Record], main: object) -> None:
        self.run_id = run_id
        self.next_seq = 0
        self.input: bytes | None = None
        self._main = main
        self._settled: dict[str, StepRecord] = {}
        self._asked: dict[str, Call] = {}
        self._repeats: dict[str, int] = {}
        self._drawn_by: dict[str, object] = {}
        self._sequential = True
        self._ordered: set[str] = set()  # recorded automatic keys that a sequential replay must ask for before new ones
        self._load(records)
        self.recorded = len(self._settled)

    def _load(self, records: Sequence[Record]) -> None:
        seqs: dict[str, int] = {}
        off_path: set[str] = set()
        for seq, key, kind, text in records:
            self.next_seq = max(self.next_seq, seq + 1)
            where = f"the {kind} record {key!r} (seq {seq})"
            match kind:
                case Kind.STEP:
                    record = parse(text, StepRecord, run_id=self.run_id, where=where)
                    if not (record.json if record.ok else record.error):
                        raise UnreadableRecord(self.run_id, where, "it says neither a value nor an error")
                    self._settled[key] = record
                    self._sequential &= not record.concurrent
                    seqs[key] = seq
                case Kind.FAILURE:
                    again = parse(text, FailureRecord, run_id=self.run_id, where=where).again
                    # What was done after a failure that is now mended may lie on a path that is never taken again.
                    mended_from = min((seqs[failed] for failed in again if failed in seqs), default=seq)
                    off_path |= {step for step, at in seqs.items() if at >= mended_from}
                    for failed in again:
                        self._settled.pop(failed, None)
                case Kind.INPUT:
                    self.input = text.encode()
                case _:
                    raise UnreadableRecord(self.run_id, where, "this version does not know its kind")
        self._ordered = {key for key, record in self._settled.items() if record.auto and key not in off_path}

    def draw(self, name: str, key: str | None, fingerprint: str, branch: object) -> Call:
        """The call that `step(name, …)` makes in `branch` (a task or thread), under its key.

        A use of a key that has been drawn before, with the same name and arguments, is another call of the same step.
        """
        concurrent = branch is not self._main
        self._sequential &= not concurrent
        auto = key is None
        if key is None:
            if self._drawn_by.setdefault(name, branch) is not branch:
                refusal = Abort(AmbiguousKey(self.run_id, name))
                return Call(name, name, fingerprint, auto=True, concurrent=concurrent, refusal=refusal)
            repeat = self._repeats[name] = self._repeats.get(name, 0) + 1
            key = name if repeat == 1 else f"{name}#{repeat}"
        call = Call(key, name, fingerprint, auto=auto, concurrent=concurrent)
        call.refusal = self._conflict(call) or self._drift(call)
        self._asked.setdefault(key, call)
        self._ordered.discard(key)
        return call

    def _conflict(self, call: Call) -> Raise | None:
        earlier = self._asked.get(call.key)
        if earlier is None:
            return None
        difference = _difference(earlier.name, earlier.fingerprint, call)
        return Raise(KeyConflict(self.run_id, call.key, difference)) if difference else None

    def _drift(self, call: Call) -> Abort | None:
        record = self._settled.get(call.key)
        if record is not None:
            recorded = _difference(record.name, record.fingerprint, call)
            difference = f"it was recorded with {recorded}" if recorded else ""
        elif call.auto and self._sequential and self._ordered:
            unasked = ", ".join(sorted(map(repr, self._ordered))[:5])
            difference = f"it is new, and comes before recorded steps that have not been asked for ({unasked})"
        else:
            difference = ""
        return Abort(WorkflowDrift(self.run_id, call.key, difference)) if difference else None

    def overlapped(self) -> None:
        """Two steps ran at the same time: from here on the order of calls may depend on which was faster."""
        self._sequential = False

    def settled(self, key: str) -> StepRecord | None:
        """What is recorded for a key and to be handed out; None for a step that is to run."""
        return self._settled.get(key)

    def settle(self, key: str, record: StepRecord) -> None:
        """The record is committed."""
        self._settled[key] = record

    def take_seq(self) -> int:
        """The place of the next record; each is given once."""
        seq = self.next_seq
        self.next_seq += 1
        return seq

    def unused(self) -> tuple[str, ...]:
        """The recorded keys that this execution has not asked for."""
        return tuple(key for key in self._settled if key not in self._asked)

    def failed(self, key: str) -> bool:
        """Whether the key's record is a failure."""
        record = self._settled.get(key)
        return record is not None and not record.ok


def _difference(name: str, fingerprint: str, call: Call) -> str:
    """How a call differs from what is known of its key; empty when it does not."""
    if name != call.name:
        return f"the name {name!r}, not {call.name!r}"
    if fingerprint and call.fingerprint and fingerprint != call.fingerprint:
        return "other arguments"
    return ""
