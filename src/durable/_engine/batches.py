"""Group commit: what is committed together, and what follows when that goes wrong.

A *writer* holds entries that wait. It takes a batch (of one verb, which is one statement, or of verbs that share commits,
which is one transaction), performs it, and answers each entry. When a batch fails, a `Verdict` on the error says what the
failure means, and with it what becomes of each entry. No entry waits beyond its deadline.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Sequence
from enum import Enum
from typing import Any, Final, Generic, NamedTuple, TypeVar, assert_never

from msgspec import Struct

from durable._engine.leases import Lease

MAX_ENTRIES: Final = 500  # a batch is as fast per record at 500 as it gets
MIN_ENTRIES: Final = 16  # that are not worth a commit of their own for each half
MAX_BYTES: Final = 4 * 1024 * 1024  # keeps a batch within some 10 ms on the wire and in the parser
# An entry above this goes by itself, on a way of its own: small ones never wait behind it.
MAX_SHARED_BYTES: Final = 256 * 1024
MIN_SPEED: Final = 250_000  # bytes a second of a line that is slow and works
MAX_RECORDS: Final = 10_000  # of a journal, that are read at once
MAX_CONFLICTS: Final = (
    20  # times that an entry, or a step's transaction, may be the victim of others before that is an error
)
MAX_WAITING: Final = 64 * 1024 * 1024  # bytes that may wait before a caller with more has to wait too

# Seconds that a statement waits for a lock which a transaction of the user's may hold for as long as it likes: less than
# PostgreSQL's deadlock_timeout, so that in a circle with one of these ours gives way. And for what goes alone.
MAX_LOCK_WAIT: Final = 0.2
MAX_LONE_LOCK_WAIT: Final = 0.02

_MAX_REPLY_WAIT: Final = 30.0  # seconds, under a shorter lease that is being renewed all the while
_MAX_SILENCE: Final = 10.0  # seconds in which no byte comes or goes, before a connection is given up
_MIN_SILENCE: Final = 0.2
_MIN_PAGE: Final = 16 * 1024


class Patience(Enum):
    """What becomes of an entry while the database gives no answer."""

    LASTING = "a running workflow waits for it: it is tried until its deadline"
    FROM_OUTSIDE = "nothing has begun with it: it fails at once, unless it was sent already"
    BRIEF = "nothing depends on it: it fails at once, and is sent once more when its reply was lost"


class Verb(Struct, frozen=True, eq=False):
    """What an entry asks of the store; each is one statement for any number of entries."""

    name: str
    patience: Patience = Patience.LASTING
    #: Whether a batch may have several entries of one run. A statement that takes the lease cannot take it twice.
    shares_runs: bool = False
    #: Whether it may be committed together with other verbs of which that is true.
    shares_commits: bool = False

    def __str__(self) -> str:
        return self.name


V = TypeVar("V", bound=Verb)


class Entry(Struct, Generic[V], eq=False):
    """Something that waits to be committed."""

    #: What it asks of the store.
    verb: V
    #: The run that it concerns.
    run_id: str
    #: Bytes on the wire.
    size: int
    #: A reading of the elapsed-time clock after which its answer is of no use.
    latest: float
    #: The lease under which it is written, if it is; see `reply_deadline`.
    lease: Lease | None = None
    #: Whether it was sent and its reply was lost: it must be read back before it is sent again.
    unknown: bool = False
    #: Whether that was ever so: found absent, it may still arrive, and no failure is definite any more.
    doubtful: bool = False
    #: How often it was the victim of a conflict.
    tries: int = 0
    #: Whether a lock that it, or an entry of its batch, wants was not to be had in time: from then on it goes alone.
    locked_out: bool = False

    def __repr__(self) -> str:
        return f"<{type(self).__name__}, {self.verb} of run {self.run_id!r}>"  # what it carries may be secret

    @property
    def deadline(self) -> float:
        """When its answer is due, as a reading of the elapsed-time clock. A lease that is renewed meanwhile puts it off."""
        return self.latest if self.lease is None else min(self.latest, self.lease.deadline)


def reply_deadline(lease: Lease, size: int = 0) -> float:
    """When the answer to what is written under a lease is due at the latest, however often that is renewed meanwhile.

    `size` in bytes, of what a slow line takes its time for.
    """
    return lease.sent + max(lease.seconds, _MAX_REPLY_WAIT) + size / MIN_SPEED


def page_bytes(claims: int) -> int:
    """How many bytes of its journal each of so many claims brings at once; the rest of a longer one is read in pages."""
    return max(_MIN_PAGE, min(MAX_SHARED_BYTES, MAX_BYTES // claims))


E = TypeVar("E", bound=Entry[Any])


class Backlog(Generic[E]):
    """The entries that wait, and the portions in which they go."""

    def __init__(self) -> None:
        self._waiting: dict[tuple[Verb, bool], deque[tuple[int, E]]] = {}
        self._arrivals = 0
        self._taken_last = 0
        self.taken: list[E] = []  # the last batch
        self.bytes = 0
        self.full = False  # whether a caller with more must wait

    def __bool__(self) -> bool:
        return bool(self._waiting)

    def add(self, entry: E) -> None:
        """Let an entry wait for its turn."""
        self._arrivals += 1
        kind = (entry.verb, entry.unknown)
        queue = self._waiting.get(kind)
        if queue is None:
            self._waiting[kind] = deque([(self._arrivals, entry)])  # at once: an interrupt must leave no empty queue
        else:
            queue.append((self._arrivals, entry))
        self._count(entry.size)

    def mend(self) -> None:
        """After a fault in the midst of `take` or `expired`: no empty queue may be left."""
        self._waiting = {kind: queue for kind, queue in self._waiting.items() if queue}
        self._count(0)

    def holds(self, entry: E) -> bool:
        """Whether this very entry waits."""
        return any(waiting is entry for queue in self._waiting.values() for _, waiting in queue)

    def take(self) -> list[E]:
        """The next batch: the kind of entry that has waited longest, with what shares commits with it, as many as fit.

        Of a run there is one claim at the most, and one verb: statements do not go in the order of what they are made of.

        It takes half of the entries in flight (what waits, and what the last batch answered), so one half of the callers
        works while the other half commits.
        """
        # From the start: whatever ends this in the midst, the entries are found there, or still wait.
        self.taken = batch = list[E]()
        kinds = self._next_kinds()
        queues = [self._waiting[kind] for kind in kinds]
        runs: dict[str, Verb] = {}
        size = last = 0
        has_passed_over = False
        most = max(MIN_ENTRIES, min(MAX_ENTRIES, (sum(map(len, queues)) + self._taken_last + 1) // 2))
        for number, entry in queues[0] if len(queues) == 1 else heapq.merge(*queues):
            if len(batch) == most or (batch and size + entry.size > MAX_BYTES):
                break
            verb = runs.get(entry.run_id)
            if verb is not None and not (verb is entry.verb and verb.shares_runs):
                has_passed_over = True
                continue
            runs[entry.run_id] = entry.verb
            batch.append(entry)
            size += entry.size
            last = number
        chosen = set(map(id, batch)) if has_passed_over else None
        for kind, queue in zip(kinds, queues, strict=True):
            if chosen is not None:
                self._waiting[kind] = deque(item for item in queue if id(item[1]) not in chosen)
            else:
                while queue and queue[0][0] <= last:
                    queue.popleft()
            if not self._waiting[kind]:
                del self._waiting[kind]
        self._count(-size)
        self._taken_last = len(batch)
        return batch

    def _next_kinds(self) -> list[tuple[Verb, bool]]:
        """The kind of entry that has waited longest, and those that share commits with it."""
        if len(self._waiting) == 1:
            return list(self._waiting)
        first = min(self._waiting, key=lambda kind: self._waiting[kind][0][0])
        if first[1] or not first[0].shares_commits:
            return [first]
        return [kind for kind in self._waiting if kind[0].shares_commits and not kind[1]]

    def expired(self, elapsed: float) -> list[E]:
        """Take out the entries whose deadline has passed."""
        self.taken = late = list[E]()
        for kind, queue in list(self._waiting.items()):
            kept: deque[tuple[int, E]] = deque()
            for item in queue:
                if item[1].deadline <= elapsed:
                    late.append(item[1])
                else:
                    kept.append(item)
            if kept:
                self._waiting[kind] = kept
            else:
                del self._waiting[kind]
        self._count(-sum(entry.size for entry in late))
        return late

    def _count(self, size: int) -> None:
        self.bytes = self.bytes + size if self._waiting else 0
        self.full = self.bytes >= MAX_WAITING


class Verdict(Enum):
    """What an error of a batch means for its entries."""

    REFUSED = "nothing was committed: some entry is at fault for what it is"
    CONFLICT = "nothing was committed: the victim of others"
    UNPREPARED = "nothing was committed: this way to the database keeps no prepared statements"
    LOCKED = (
        "nothing was committed: a transaction that has not ended holds what some entry wants, which is not waited for"
    )
    PASSING = "nothing was committed, but it may pass"
    UNREACHED = "nothing was sent: the database cannot be reached"
    UNKNOWN = "it was sent and the reply is lost"
    FINAL = "nothing was committed, and that will not change by itself"


class Recovery(NamedTuple):
    """What becomes of a failed batch."""

    #: Entries that fail.
    failed: list[Any]
    #: Portions to try at once.
    at_once: list[list[Any]]
    #: Entries to try after a pause.
    later: list[Any]


def recover(batch: list[E], verdict: Verdict) -> Recovery:
    """What follows from a verdict on a batch."""
    match verdict:
        case Verdict.FINAL:
            return Recovery(batch, [], [])
        case Verdict.REFUSED | Verdict.CONFLICT if len(apart := by_verb(batch)) > 1:
            return Recovery([], apart, [])  # each by itself, as if they had never been together
        case Verdict.REFUSED:
            return Recovery([], _halves(batch), []) if len(batch) > 1 else Recovery(batch, [], [])
        case Verdict.CONFLICT:
            for entry in batch:
                entry.tries += 1
            failed = [entry for entry in batch if entry.tries >= MAX_CONFLICTS]
            rest = [entry for entry in batch if entry.tries < MAX_CONFLICTS]
            return Recovery(failed, _halves(rest), [])
        case Verdict.LOCKED:
            if len(batch) == 1 and batch[0].locked_out:
                return Recovery(batch, [], [])
            for (
                entry
            ) in batch:  # one by one: halving costs the whole time-out for each half on the way to the one that waits
                entry.locked_out = True
            return Recovery([], [[entry] for entry in reversed(batch)], [])
        case Verdict.UNPREPARED:
            return Recovery([], [batch], [])
        case Verdict.UNKNOWN:
            for entry in batch:
                entry.unknown = entry.doubtful = True
            if batch[0].verb.patience is not Patience.BRIEF:
                return Recovery([], [], batch)
            # Once more, on another connection.
            again, spent = [entry for entry in batch if not entry.tries], [entry for entry in batch if entry.tries]
            for entry in again:
                entry.tries += 1
            return Recovery(spent, [again] if again else [], [])
        case Verdict.PASSING | Verdict.UNREACHED:
            impatient = [entry for entry in batch if _is_impatient(entry)]
            return Recovery(impatient, [], [entry for entry in batch if entry not in impatient])
        case never:
            assert_never(never)


def by_verb(batch: Sequence[E]) -> list[list[E]]:
    """The entries of a batch, those of each verb by themselves."""
    if all(entry.verb is batch[0].verb for entry in batch):
        return [list(batch)]
    groups: dict[Verb, list[E]] = {}
    for entry in batch:
        groups.setdefault(entry.verb, []).append(entry)
    return list(groups.values())


def _is_impatient(entry: Entry[Any]) -> bool:
    patience = entry.verb.patience
    return patience is Patience.BRIEF or (patience is Patience.FROM_OUTSIDE and not entry.unknown)


def _halves(batch: list[E]) -> list[list[E]]:
    middle = (len(batch) + 1) // 2
    return [half for half in (batch[:middle], batch[middle:]) if half]


def first_deadline(batch: list[E]) -> float:
    """When the first answer of a batch is due, as a reading of the elapsed-time clock."""
    return batch[0].deadline if len(batch) == 1 else min(entry.deadline for entry in batch)


def reply_timeout(deadline: float, elapsed: float) -> float:
    """Seconds to wait for a sign of the reply to a batch: time must be left to read back what became of it."""
    return min(_MAX_SILENCE, max(_MIN_SILENCE, (deadline - elapsed) / 2))
