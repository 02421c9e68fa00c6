"""Keys, replay and drift: what a run remembers, and whether the code still makes the calls that it remembers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from msgspec import UNSET

from durable._engine.calls import Call
from durable._engine.causes import InFlight
from durable._engine.closing import Closable, Closing, begin_closing
from durable._engine.decisions import Abort, Conclusion, Raise
from durable._engine.drawn import Drawn, load_drawn
from durable._engine.keys import Keys, tell_scope
from durable._engine.lines import Lines, read_lines
from durable._engine.scopes import SLASH, holders
from durable._engine.step_kinds import Race, Sleep
from durable.errors import AmbiguousKey, DurableError, KeyConflict, UnreadableRecord, WorkflowDrift
from durable.records import (
    AsideRecord,
    AttemptRecord,
    Drawable,
    FailureRecord,
    Kind,
    Record,
    Status,
    StepRecord,
    parse,
    places_set_aside,
)


class Journal(Keys):
    """The settled steps of one run by key, and the keys that this execution has drawn.

    `main` is the identity of the task or thread that runs the workflow function; what another one draws is concurrent.
    `is_asked_to_end` says whether the main one is being cancelled; its driver knows.
    """

    def __init__(self, run_id: str, records: Sequence[Record], main: object) -> None:
        super().__init__(run_id)
        self.is_asked_to_end: Callable[[], bool] = lambda: False
        self.next_seq = 0
        self.input: bytes | None = None
        self._main = main
        self._settled: dict[str, StepRecord] = {}
        self._attempted: dict[str, AttemptRecord] = {}
        # The keys of the steps that were recorded in the branches of a race, by the key of that.
        self._in_races: dict[str, list[str]] = {}
        # Of these, the ones that are not asked for any more, since their races are decided.
        self._passed: set[str] = set()
        #: The places of the steps' records that were found.
        self._places: dict[str, int] = {}
        #: The numbers of the signals that were received: no other call may have one of these.
        self.taken_signals: list[int] = []
        # Whether this history, or now, says nothing about order: see `StepRecord.unordered`.
        self._unordered = False
        # How many calls were drawn, are to be run, and have not settled yet.
        self._open = 0
        # The one of them that no other has been beside.
        self._alone: Call | None = None
        # Whether a call was left without a record: a replay may take another way from here on.
        self._left_unrecorded = False
        # Keys of which a record was set aside: asked for again, they are not new.
        self._forgotten: set[str] = set()
        # Of the calls made while exceptions were in flight: which, by their tags.
        self._amid: dict[str, frozenset[str]] = {}
        # Calls made while their branch was being cancelled, and nothing since.
        self._left: dict[object, list[Call]] = {}
        #: Of these, the keys of the ones after which it went on, until a record says so.
        self.kept: list[str] = []
        #: The keys of the steps that have to be decided on before this run goes on.
        self.undecided: tuple[str, ...] = ()
        #: What is to be done when the run ends, and how far that is; None where that is nothing, as almost always.
        self.closable: Closable | None = None
        # Recorded automatic keys that a sequential replay must ask for before new ones.
        self._ordered: set[str] = set()
        #: Whether the run had come to its end: then it had passed every place that this execution comes to.
        self.had_ended = False
        # The key that was recorded last, of those on the path; empty where none was.
        self._last_recorded = ""
        self._load(records)
        self.recorded = len(self._settled)
        self._written_from = self.next_seq
        # The recorded keys in their order, once that is asked, and how many of them are known to have been asked for.
        self._replayed: tuple[tuple[str, ...], int] = ((), 0)
        self._failed_before = bool(records) and records[-1].kind == Kind.FAILURE

    def _load(self, records: Sequence[Record]) -> None:
        seqs = self._places
        off_path: set[str] = set()
        left: dict[str, StepRecord] = {}
        gone = places_set_aside(records, run_id=self.run_id)
        for seq, key, kind, text, _at, _epoch in records:
            if seq > self.next_seq:
                # One is missing, which a fail-over to an older prefix has lost: what follows it says nothing about order.
                self._unordered = True
            if seq >= self.next_seq:
                self.next_seq = seq + 1
            if seq in gone:
                self._forgotten.add(key)
                continue
            try:
                if kind == Kind.STEP:
                    self._load_step(key, parse(text, StepRecord, run_id=self.run_id, where=key), left)
                    seqs[key] = seq
                    off_path.discard(key)  # on the path again, if it had failed
                elif kind == Kind.ATTEMPT:
                    self._attempted[key] = parse(text, AttemptRecord, run_id=self.run_id, where=key)
                elif kind == Kind.FAILURE:
                    failure = parse(text, FailureRecord, run_id=self.run_id, where=key)
                    self._load_failure(seq, failure, seqs, off_path)
                    _keep(left, failure.kept)
                elif kind == Kind.ASIDE:
                    aside = parse(text, AsideRecord, run_id=self.run_id, where=key)
                    self.undecided = tuple(step for step in self.undecided if step not in aside.keys) + aside.undecided
                elif kind == Kind.INPUT:
                    self.input = text.encode()
                else:
                    raise UnreadableRecord(self.run_id, key, "this version does not know its kind")
            except UnreadableRecord as problem:
                problem.where = f"the {kind} record {key!r} (seq {seq})"
                raise
        self._forget(left)
        if self.closable is not None:
            self._load_closable(self.closable, records, gone)
        self.drawn = load_drawn(records, gone, run_id=self.run_id)
        self._ordered = {
            key for key, record in self._settled.items() if record.auto and not record.race and key not in off_path
        }
        self._last_recorded = next((key for key in reversed(self._settled) if key not in off_path), "")

    def _forget(self, left: dict[str, StepRecord]) -> None:
        """Set aside what was done while a process was being left, and what is to be done by every execution."""
        # The branches of a race whose winner is recorded are not begun again.
        counts = (key for key, record in left.items() if record.once or record.transaction)
        self.undecided += tuple(key for key in counts if left[key].race not in self._settled)
        gone = left.keys() | {key for key, record in self._settled.items() if record.cleanup}
        self._forgotten |= gone
        for key in gone:
            self._settled.pop(key, None)

    def _load_step(self, key: str, record: StepRecord, left: dict[str, StepRecord]) -> None:
        if record.value is UNSET if record.ok else record.error is None:
            raise UnreadableRecord(self.run_id, key, "it says neither a value nor an error")
        if (record.at_end or record.closes or record.ending is not None) and self.closable is None:
            self.closable = Closable(Lines())
        if record.closes or record.ending is not None:  # no step of the workflow's
            self._attempted.pop(key, None)
            return
        self._settled[key] = record
        if self._attempted:
            self._attempted.pop(key, None)
        if left:
            left.pop(key, None)
            _keep(left, record.kept)
        if record.left is not None:
            left[key] = record
        if record.signal is not None:
            self.taken_signals.append(record.signal)
        if record.race:
            self._in_races.setdefault(record.race, []).append(key)
        elif record.concurrent:
            self._concurrent = True
        if record.unordered:
            self._unordered = True

    def _load_closable(self, closable: Closable, records: Sequence[Record], gone: frozenset[int]) -> None:
        closable.lines = read_lines(records, run_id=self.run_id)
        for seq, key, kind, text, *_ in records:
            if kind == Kind.STEP and seq not in gone:
                closable.sort(key, seq, parse(text, StepRecord, run_id=self.run_id, where=key))

    def note_closable(self, key: str, seq: int, record: StepRecord) -> None:
        """The record is written in this place, of a run that has something to be done at its end."""
        if self.closable is None:
            self.closable = Closable(Lines())
        self.closable.note(key, seq, record)

    def begin_closing(self, conclusion: Conclusion, error: DurableError | None) -> Closing | None:
        """See `closing.begin_closing`."""
        return begin_closing(self.closable, self._settled, frozenset(self._asked), conclusion, error)

    def _load_failure(self, seq: int, failure: FailureRecord, seqs: dict[str, int], off_path: set[str]) -> None:
        self._ambiguous |= set(failure.ambiguous)
        self.undecided = failure.undecided
        # What was done after a failure that is now mended may lie on a path that is never taken again.
        mended_from = min((seqs[failed] for failed in failure.again if failed in seqs), default=seq)
        off_path |= {step for step, at in seqs.items() if at >= mended_from}
        for failed in failure.again:
            self._settled.pop(failed, None)

    def draw(self, call: Call, branch: object, amid: InFlight | None = None) -> Call:
        """The call, made in `branch` (a task or thread), under its key.

        A use of a key that has been drawn before, with the same name and arguments, is another call of the same step.
        `amid` is what is in flight: mended code may never come there.
        """
        name, fingerprint, auto, scope = call.name, call.fingerprint, call.auto, call.scope
        beside = branch is not self._main or self._open > 0
        if call.race is None:  # what goes on within a race is not beside what comes before and after it
            self._concurrent = self._concurrent or beside
        if auto:
            first = call.key  # the name, within its scope
            repeat = self._repeats.get(first, 0) + 1
            if self._is_ambiguous(first, repeat, fingerprint, branch, in_race=call.race is not None):
                call.refusal = Abort(AmbiguousKey(self.run_id, first))
                return call
            self._repeats[first] = repeat
            if repeat > 1:
                call.key = f"{first}#{repeat}"
        key, call.concurrent, call.started = call.key, beside, self.next_seq
        if self._left_unrecorded or amid is not None:
            call.unordered = True
        asked = (name, fingerprint, auto, scope)
        if asked == self._last_asked:  # in a loop of thunks one is kept for all of them
            asked = self._last_asked
        self._last_asked = asked
        earlier = self._asked.setdefault(key, asked)
        if amid is not None:  # a step that was called before is what it was then, whatever asks for its value now
            self._drawn_amid(call, amid, is_new=earlier is asked)
        if self._left and (amid is None or not amid.is_cancelled):
            self._went_on(branch)
        call.refusal = (None if earlier is asked else self._conflict(call, *earlier)) or self._drift(call)
        self._ordered.discard(key)
        if call.refusal is None:
            if call.race is None:
                self._begin(call)  # also where it is recorded: until its outcome is handed out, others are beside it
            if type(call.kind) is Race and key in self._settled:
                self.pass_branches(key)
        return call

    def take_patch(self, name: str) -> bool:
        """Whether the run takes the new way at the places of this name: one answer for all of them, in every execution.

        No, where it had passed one of them by the old way: then something of it is recorded that comes later.
        """
        if self.drawn is None:
            self.drawn = Drawn()
        return self.drawn.take(f"patched:{name}", not (self.had_ended or self._is_on_old_ground())) is True

    def _is_on_old_ground(self) -> bool:
        """Whether an earlier execution has recorded what this one may still come to.

        Of calls that came one after another the last record says so: an earlier one that is not asked for was of a step that
        the code has no more. Of branches, those of races included, nothing is known: any record may be of the one that asks.
        """
        if any(not self._is_asked(key) for key in self._attempted):
            return True
        if self._concurrent or self._unordered or self._left_unrecorded or self._in_races:
            return any(not self._is_asked(key) for key in self._settled)
        return bool(self._last_recorded) and not self._is_asked(self._last_recorded)

    def _is_asked(self, key: str) -> bool:
        """Whether a recorded step was asked for, or need not be: what it was called in, an item or a race, is over."""
        if key in self._asked or key in self._passed:
            return True
        return SLASH in key and any(
            (holder in self._asked or holder in self._passed)
            and (record := self._settled.get(holder)) is not None
            and record.holds
            for holder in holders(key)
        )

    @property
    def is_replaying(self) -> bool:
        """Whether steps are recorded that this execution has not asked for; not once it has recorded something itself.

        Only reads what other threads may change.
        """
        if self.next_seq != self._written_from:
            return False
        recorded, count = self._replayed
        recorded = recorded or tuple(self._settled)
        while count < len(recorded) and self._is_asked(recorded[count]):
            count += 1
        self._replayed = recorded, count
        return count < len(recorded)

    def pass_branches(self, key: str) -> None:
        """The race of this key is decided: the steps in its branches count as asked for."""
        for step in self._in_races.get(key, ()):
            if step in self._settled:
                self._passed.add(step)
                self.pass_branches(step)

    def with_branches(self, keys: Iterable[str]) -> Iterator[str]:
        """The keys, and of races those of the steps in their branches."""
        for key in keys:
            yield key
            yield from self.with_branches(self._in_races.get(key, ()))

    def _drawn_amid(self, call: Call, amid: InFlight, *, is_new: bool) -> None:
        call.amid = amid.keys
        call.amid_cancellation = amid.is_cancelled
        # Sleeps and clean-up do nothing that would have to be decided on if what is in flight ends the run.
        if amid.tags and is_new and not (call.cleanup or isinstance(call.kind, Sleep)):
            self._amid[call.key] = amid.tags
        if amid.is_cancelled:
            call.left = True
            self._left.setdefault(amid.branch, []).append(call)

    def _went_on(self, branch: object) -> None:
        """A branch calls a step, and is not being cancelled: what was done while others were is history.

        So is what it did itself, if it was. While the main branch is asked to end, the process may be: then of others nothing
        is known. What the main branch does while it is being cancelled, only itself can make history.
        """
        if branch is self._main:
            gone_by = list(self._left)
        elif self.is_asked_to_end():
            gone_by = [branch]
        else:
            gone_by = [left for left in self._left if left is not self._main]
        for one in gone_by:
            for call in self._left.pop(one, ()):
                call.left = False  # also for a transaction that has to be begun again
                if call.record is not None:
                    self.kept.append(call.key)

    def take_kept(self, *, at_the_end: bool = False) -> tuple[str, ...]:
        """The keys of steps that ran while a branch was being cancelled, and are history now; each is said once.

        `at_the_end` of a run that says how it ended, that is all of them.
        """
        if at_the_end:
            self._went_on(self._main)
        kept, self.kept = tuple(self.kept), []
        return kept

    def drawn_amid(self, tags: frozenset[str]) -> tuple[str, ...]:
        """The steps that have a value and were called while one of these exceptions was in flight, in their order."""
        return tuple(
            key
            for key, amid in self._amid.items()
            if amid & tags and key not in tags and (record := self._settled.get(key)) is not None and record.ok
        )

    def _begin(self, call: Call) -> None:
        if self._alone is not None:
            self._alone.concurrent = True
        self._alone = None if self._open else call
        self._open += 1
        call.opened = True

    def _conflict(self, call: Call, name: str, fingerprint: str, auto: bool, scope: str) -> Raise | None:
        difference = _difference(name, fingerprint, call)
        if auto is not call.auto:
            difference = "key= absent, as the step's name" if auto else "key= given"
        if scope != call.scope:  # the slash may be one of a key that was given
            difference = f"the name {name!r}, {tell_scope(scope)}"
        return Raise(KeyConflict(self.run_id, call.key, difference)) if difference else None

    def _drift(self, call: Call) -> Abort | None:
        record = self._settled.get(call.key) or self._attempted.get(call.key)
        if record is not None:
            recorded = _difference(record.name, record.fingerprint, call)
            difference = f"it was recorded with {recorded}" if recorded else ""
        elif call.key in self._forgotten or call.race is not None:
            return None
        elif self._ordered and call.auto and not (self._concurrent or self._unordered or self._left_unrecorded):
            unasked = ", ".join(sorted(map(repr, self._ordered))[:5])
            difference = f"it is new, and comes before recorded steps that have not been asked for ({unasked})"
        else:
            return None
        return Abort(WorkflowDrift(self.run_id, call.key, difference)) if difference else None

    def close(self, call: Call, *, recorded: bool) -> None:
        """The call has settled (`recorded`), or was left without a record."""
        if call.opened:
            call.opened = False
            self._open -= 1
            if self._alone is call:
                self._alone = None
        if not recorded and call.race is None:
            self._left_unrecorded = True

    def record_of(self, key: str) -> StepRecord | None:
        """What is recorded for a key and to be handed out; None for a step that is to run."""
        return self._settled.get(key)

    def place_of(self, key: str) -> int:
        """The place of the record of a step that has one: the order in which outcomes came, and are to come again."""
        return self._places.get(key, self.next_seq)  # what was recorded since comes after all that was found

    def add_outcome(self, key: str, record: StepRecord) -> None:
        """The record is committed."""
        if self.closable is None or key not in self.closable.keys:
            self._settled[key] = record
        self._attempted.pop(key, None)
        if record.race:
            self._in_races.setdefault(record.race, []).append(key)
        if record.drawn is not None and self.drawn is not None:
            self.drawn.note(key, record.drawn)

    def attempt_of(self, key: str) -> AttemptRecord | None:
        """What is known of a step that has not settled."""
        return self._attempted.get(key)

    def note_attempt(self, key: str, record: AttemptRecord) -> None:
        """The record is committed."""
        self._attempted[key] = record
        if record.drawn is not None and self.drawn is not None:
            self.drawn.note(key, record.drawn)

    def drawn_for(self, key: str) -> Mapping[str, Drawable] | None:
        """What was drawn, and the next record of this step is to hold."""
        return None if self.drawn is None else self.drawn.for_record(key)

    def take_seq(self) -> int:
        """The place of the next record; each is given once."""
        seq = self.next_seq
        self.next_seq += 1
        return seq

    def former_status(self) -> Status | None:
        """What the run goes back to when it is left now: failed, if it was and nothing has been written since."""
        return Status.FAILED if self._failed_before and self.next_seq == self._written_from else None

    def unused_keys(self) -> tuple[str, ...]:
        """The recorded keys that this execution has not asked for."""
        return tuple(key for key in self._settled if not self._is_asked(key))

    def with_led(self, tags: Iterable[str]) -> frozenset[str]:
        """These tags of exceptions, and of what items made of their own steps' failures, the keys of those."""
        found, open_ends = set[str](), list(tags)
        while open_ends:
            tag = open_ends.pop()
            if tag not in found:
                found.add(tag)
                record = self._settled.get(tag)
                open_ends += () if record is None else record.led
        return frozenset(found)

    def holds(self, key: str) -> bool:
        """Whether a step is recorded that was called in the body of the item of this key."""
        within = f"{key}{SLASH}"
        return any(step.startswith(within) for step in (*self._settled, *self._attempted))

    def may_run_again(self, key: str) -> bool:
        """Whether the key's record is a failure, of a step that need not run at most once."""
        record = self._settled.get(key)
        return record is not None and not record.ok and not record.once


def _keep(left: dict[str, StepRecord], kept: Sequence[str]) -> None:
    for key in kept:
        left.pop(key, None)


def _difference(name: str, fingerprint: str, call: Call) -> str:
    """How a call differs from what is known of its key; empty when it does not."""
    if name and name != call.name:  # other tools record no names
        return f"the name {name!r}, not {call.name!r}"
    if fingerprint and call.fingerprint and fingerprint != call.fingerprint:
        return "other arguments"
    return ""
