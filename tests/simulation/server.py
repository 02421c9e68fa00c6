"""The database server: backends that execute requests on the model, and what becomes of them when it goes down."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, Protocol, TypeAlias

from simulation.database import Transaction, Wait
from simulation.session import Refused, Running, Session
from simulation.slots import slot_of
from simulation.statements import STATEMENTS, Verb
from simulation.tables import KEY_COLUMNS, Result, new_database
from simulation.timeline import Timeline

__all__ = ["BEGIN", "COMMIT", "CONFLICT", "ROLLBACK", "UNANSWERED", "Backend", "Client", "Request", "Server"]

BEGIN: Final = "BEGIN"
COMMIT: Final = "COMMIT"
ROLLBACK: Final = "ROLLBACK"
CONFLICT: Final = "CONFLICT"  # in place of a statement: the server refuses it with the SQLSTATE that stands with it
_SESSION: Final = frozenset(
    {"RESET", "DISCARD", "CLOSE", "UNLISTEN", "SELECT", "DEALLOCATE", "SET"}
)  # of nothing that is modelled
UNANSWERED: Final = frozenset({BEGIN, COMMIT, ROLLBACK, *_SESSION})  # statements without a result of their own
_LOOKS: Final = 1.0  # seconds after which a statement under way in a step's transaction sees that its client has gone
_WAKING: Final = 0.0001  # seconds
_LONGEST_STALL: Final = 0.8
_LATE: Final = 3.0

Request: TypeAlias = Sequence[tuple[str, Any]]


class Client(Protocol):
    """The other end of a backend's connection."""

    def replied(self, answer: Sequence[Result] | Refused) -> None:
        """What came of the request."""
        ...

    def broken(self) -> None:
        """The server has let go of the connection."""
        ...

    def delayed(self) -> None:
        """The reply may take longer than anybody waits."""
        ...


class Server:
    """One primary. `stalls` is how likely a statement is to stop where others may act; `early` replies before COMMIT.

    `statements` and `keys` may be others than the store's own, to plant a bug in them.
    """

    def __init__(
        self,
        timeline: Timeline,
        stalls: float,
        statements: Mapping[str, Verb] | None = None,
        keys: Mapping[str, frozenset[str]] = KEY_COLUMNS,
        *,
        early: bool = False,
    ) -> None:
        self.timeline = timeline
        self.stalls = stalls
        self.statements = STATEMENTS if statements is None else dict(statements)
        self.early = early
        self.ahead = 0.0  # seconds that its wall clock is ahead
        self.database, self.tables = new_database(lambda: timeline.now + self.ahead, keys)
        self.up = True
        self.given_back: set[str] = set()  # the tokens of leases whose holders have asked to give them back
        self.recalled: set[str] = set()  # likewise of what a poll has taken whose reply was lost
        self.recalls: dict[
            str, int
        ] = {}  # of each such poll's name, the number of the sending that recalled the ones before
        self.waits = 0  # for locks
        self.victims = 0
        self.starts = 0  # of another server, or of the same again
        self.on_request: Callable[[int, Request], object] | None = None  # is told the backend's number
        self.idled = 0  # transactions that were ended for holding on without a statement
        self.deaf = 0.0  # how likely a notification is to be lost, late or doubled
        self.notified: Counter[str] = Counter()
        self.listeners: dict[str, Callable[[float], object]] = {}  # by channel: is told after so many seconds
        self.database.on_notify = self._notify
        self.on_begin: Callable[[str, Any], object] | None = None  # is told of each statement, before its snapshot
        self.on_statement: Callable[[str, Transaction], object] | None = (
            None  # is told of each that has come to its end
        )
        self._backends: list[Backend] = []
        self._made = 0

    def backend(self, client: Client, session: Session | None = None) -> Backend:
        """A backend for a new connection, or another one for what stands in a `session`."""
        self._made += 1
        backend = Backend(self, client, self._made)
        backend.session = session or backend.session
        self._backends.append(backend)
        return backend

    def crash(self, back_after: float, forgets: int = 0) -> None:
        """Every connection is gone, and what was not committed; with what a standby lacked, if one takes over."""
        self.up = False
        self.starts += 1
        for backend in self._backends:
            backend.gone = True
            backend.session.roll_back()
            backend.client.broken()
        self._backends.clear()
        if forgets:
            self.database.fail_over(max(0, self.database.commits - forgets))
        self.listeners.clear()
        self.timeline.after(back_after, self._start)

    def _start(self) -> None:
        self.up = True
        self.tables.started[0] = self.database.clock()

    def _notify(self, channel: str) -> None:
        heard, number = self.listeners.get(channel), sum(self.notified.values())
        fate = "heard"
        if self.timeline.chance(6, number) < self.deaf:
            fate = ("lost", "late", "doubled")[int(3 * self.timeline.chance(6, number, 1))]
        self.notified[fate] += 1
        if heard is not None and fate != "lost":
            heard(_LATE * self.timeline.chance(6, number, 2) if fate == "late" else 0.0)
            if fate == "doubled":
                heard(0.001)


class Backend:
    """Executes one request after the other, to the end, whether or not anybody still listens."""

    __slots__ = (
        "_answers",
        "_finished",
        "_items",
        "_left",
        "_requests",
        "_running",
        "client",
        "gone",
        "number",
        "server",
        "session",
    )

    def __init__(self, server: Server, client: Client, number: int) -> None:
        self.server = server
        self.client = client
        self.number = number
        self.session = Session(server.database, server.tables, server.statements, commits=False)
        self.gone = False
        self._left = False  # whether nobody is at the other end any more
        self._requests = 0
        self._items: list[tuple[str, Any]] = []
        self._answers: list[Result] = []
        self._running: Running | None = None
        self._finished: Callable[[], object] | None = None

    @property
    def idle(self) -> bool:
        """Whether no request has arrived that is not answered."""
        return not self._items

    def take(self, items: Request, finished: Callable[[], object] | None = None) -> None:
        """Execute a request that has arrived; then reply, or do what is asked for instead."""
        if self.gone:
            return
        if self.server.on_request is not None:
            self.server.on_request(self.number, items)
        self._requests += 1
        self._items, self._answers, self._finished = list(items), [], finished
        self._go()

    def hang_up(self) -> None:
        """The client has closed the connection: what has arrived is executed, and what is not committed then is undone."""
        if self.idle:
            self._end()
            return
        self._left = True
        transaction = self.session.transaction
        if transaction is not None and transaction.idle_limit is not None:
            self.server.timeline.after(_LOOKS, self._end)

    def _end(self) -> None:
        if not self.gone:
            self.gone = True
            self.session.roll_back()

    def _idled(self, request: int) -> None:
        """The server ends who has held a transaction for too long without a statement."""
        if request == self._requests and not self.gone and self.session.transaction is not None:
            self.server.idled += 1
            self._end()
            self.client.broken()

    def _go(self) -> None:
        if self.gone:
            return
        while self._items:
            name, parameters = self._items[0]
            if name == BEGIN:
                self.session.begin()
            elif name in _SESSION:
                pass
            elif name == ROLLBACK:
                self.session.roll_back()
            elif name == CONFLICT:
                self.session.fail()
                self._refused(Refused(parameters))
                return
            elif name == COMMIT:
                if self._stalled():
                    return
                self.session.commit()
            elif not self._executed(name, parameters):
                return
            self._items.pop(0)
        self._answered(self._answers)

    def _answered(self, answer: Sequence[Result] | Refused) -> None:
        if self._finished is None:
            self.client.replied(answer)
        else:
            self._finished()
        transaction = self.session.transaction
        if self._left:
            self._end()
        elif transaction is not None and transaction.idle_limit is not None:
            self.server.timeline.after(transaction.idle_limit, self._idled, self._requests)

    def _refused(self, error: Refused) -> None:
        self._items.clear()
        self._answered(error)

    def _executed(self, name: str, parameters: Any) -> bool:
        running = self._running
        if running is None:
            if name == "release_batch":
                self.server.given_back.update(parameters[1])
            elif name == "recall":
                self.server.recalled.update(self._polled(parameters["name"]))
                recalls, sending = self.server.recalls, parameters["sending"]
                recalls[parameters["name"]] = max(sending, recalls.get(parameters["name"], 0))
            elif name == "recall_members":  # it frees slots, which are held by leases that have ended, too
                self.server.recalled.update(self._polled(parameters["name"], ended=True))
            if self.server.on_begin is not None:
                self.server.on_begin(name, parameters)
            implicit = self.session.transaction is None
            running = self._running = self.session.start(name, parameters, stops=self.server.stalls > 0)
            if implicit:
                self._items.insert(1, (COMMIT, None))
        while not running.proceed():
            if type(running.wait) is Wait:
                self.server.waits += 1
                running.wait.notify = self._wake
                self.client.delayed()
                return False
            if self._stalled():
                return False
        self._running = None
        if running.error is not None:
            self.server.victims += 1
            self._refused(running.error)
            return False
        self._answers.append(running.result)
        if self.server.on_statement is not None and self.session.transaction is not None:
            self.server.on_statement(name, self.session.transaction)
        if self.server.early and [name for name, _ in self._items[1:]] == [COMMIT] and self._finished is None:
            answers, self._finished = list(self._answers), _nothing
            self.client.replied(answers)
            self.server.timeline.after(0.05, self._go)
            self._items.pop(0)
            return False
        return True

    def _polled(self, poll: str, *, ended: bool = False) -> list[str]:
        """The tokens that the sendings of a poll have made, of leases that have not ended, or of those with slots that have."""
        now, locks = self.server.database.clock(), self.server.tables.locks
        leases = filter(None, map(locks.committed, list(locks.rows)))
        tokens = [lease.owner_token or "" for lease in leases if lease.expires_at > now or (ended and slot_of(lease))]
        return [token for token in tokens if token.partition(":")[2].startswith(f"{poll}.")]

    def _wake(self) -> None:
        self.server.timeline.after(_WAKING, self._go)

    def _stalled(self) -> bool:
        """Whether others may act here for a while; asked once at each place."""
        stalls = self.server.stalls
        if not stalls:
            return False
        timeline = self.server.timeline
        place = (1, self.number, self.session.database.commits, len(self._items), int(timeline.now * 1e6))
        if self._items[0][0] == COMMIT and self._items[0][1] == "stalled":
            return False
        if timeline.chance(*place) >= stalls:
            return False
        if self._items[0][0] == COMMIT:
            self._items[0] = (COMMIT, "stalled")
        long = timeline.chance(*place, 1)
        timeline.after(long**4 * _LONGEST_STALL, self._go)
        self.client.delayed()
        return True


def _nothing() -> None:
    pass
