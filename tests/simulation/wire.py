"""The way from a process to the server: connections that can be cut, delayed, deaf; with the faces that the store expects."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import cache
from typing import Any, Final, Protocol

import psycopg
from psycopg import errors
from psycopg.pq import TransactionStatus

from durable.clocks import Clock
from durable.errors import DurableError, StoreUnavailable, TransactionMisused
from simulation import threads
from simulation.server import BEGIN, CONFLICT, ROLLBACK, UNANSWERED, Backend, Request, Server
from simulation.session import Refused
from simulation.tables import Result, octets_of

__all__ = ["Connections", "Host", "Wire"]

_WHERE: Final = "the simulated database"
_CONNECTING: Final = 0.003  # seconds
_TRYING: Final = 0.02
_POOL_LOOK: Final = 0.05
_LONGEST_LAG: Final = 0.02
_FIN: Final = 0.0005  # until the end of a connection is seen at the other end
_NEXT: Final = 1e-6  # from one segment to the next
_TCP_GIVES_UP: Final = 10.0  # see `tcp_user_timeout` in `connections`


class Fate(Protocol):
    """What is to become of one request."""

    kind: str  # "" for nothing special
    amount: float
    how: str


class Host(threads.Host, Protocol):
    """The process at this end."""

    clock: Clock

    @property
    def paused_until(self) -> float:
        """When it goes on, if it is stopped."""
        ...

    @property
    def starved_until(self) -> float:
        """Until when the user's pool has no connection for it."""
        ...

    @property
    def rate(self) -> float:
        """Bytes that each of its connections carries in a second; 0: any number."""
        ...

    def fate(self) -> Fate | None:
        """Of the request that is sent now."""
        ...

    def latency(self) -> float:
        """Of the message that is sent now, in seconds."""
        ...


@cache
def _name(query: bytes) -> str:
    return query.decode().partition(" ")[0]


def _octets(item: tuple[str, Any]) -> int:
    """The length of the records that go with a statement, about: without tracebacks."""
    name, parameters = item
    match name:
        case "checkpoint":
            text = parameters[4]
        case "transaction_record":
            text = parameters[5]
        case "checkpoint_batch" | "finish_batch":
            text = parameters[0]
        case "enqueue":
            text = parameters["runs"]
        case _:
            return 0
    return octets_of(text.decode() if isinstance(text, bytes) else str(text))


class Answer:
    """What psycopg gives as a cursor."""

    result = Result([], 0)
    statusmessage: str | None = None  # what was refused tells nothing of what came before it

    @property
    def rowcount(self) -> int:
        """As psycopg has it."""
        return self.result.rowcount

    def fetchone(self) -> tuple[Any, ...] | None:
        """As psycopg has it, of the first row."""
        return next(iter(self.result.rows), None)

    def __next__(self) -> tuple[Any, ...]:
        return self.result.rows[0]

    def fetchall(self) -> list[tuple[Any, ...]]:
        """As psycopg has it."""
        return self.result.rows

    def __iter__(self) -> Iterator[tuple[Any, ...]]:
        return iter(self.result.rows)


class Wire:
    """One connection. What is sent on it is answered, or lost with it."""

    def __init__(self, host: Host, server: Server) -> None:
        self.closed = False
        self.silent_after = math.inf  # a reading of the host's clock
        self.patience = math.inf  # seconds without a byte, after which nothing more is waited for
        self._moves_until = 0.0  # the last byte of what was sent last, either way
        self.prepare_threshold: int | None = None
        self.on_close: Callable[[], object] | None = None
        self._host = host
        self._server = server
        self.era = str(server.starts)
        self._timeline = server.timeline
        self._backend: Backend = server.backend(self)
        self._tell: Callable[[object], None] | None = None
        self._items: Request = ()
        self._deaf = ""
        self._sent = 0
        self._since = self._arrival = 0.0  # when what was sent last was sent, and arrives
        self._armed = 0
        self._pipeline: list[tuple[tuple[str, Any], Answer]] | None = None

    @contextmanager
    def pipeline(self) -> Iterator[None]:
        """Everything that is executed inside is sent at once."""
        self._pipeline = []
        yield
        pipeline, self._pipeline = self._pipeline, None
        results = iter(self.request([item for item, _ in pipeline]))
        for (name, _), answer in pipeline:
            if name not in UNANSWERED:
                answer.result = next(results)

    def cursor(self, **_: Any) -> Wire:
        """As psycopg has it."""
        return self

    def execute(self, query: bytes, parameters: Any = None, **_: Any) -> Answer:
        """As psycopg has it."""
        answer, name = Answer(), _name(query)
        if self._pipeline is not None:
            self._pipeline.append(((name, parameters), answer))
        else:
            answer.result = next(iter(self.request([(name, parameters)])), answer.result)
        return answer

    def request(self, items: Request) -> Sequence[Result]:
        """The results of statements that are sent together; or psycopg's errors."""
        if self.closed:
            raise psycopg.OperationalError("the connection is closed")
        self._sent += 1
        answer = threads.wait(self._host, None, lambda tell: self._send(items, tell))
        if isinstance(answer, Refused):
            raise errors.lookup(answer.sqlstate)("refused")
        if isinstance(answer, Exception):
            raise answer
        results: Sequence[Result] = answer
        return results

    @property
    def pgconn(self) -> Wire:
        """This: it has the transaction's status."""
        return self

    @property
    def transaction_status(self) -> TransactionStatus:
        """As libpq knows it, between two requests."""
        if self.closed:
            return TransactionStatus.UNKNOWN
        session = self._backend.session
        if session.failed:
            return TransactionStatus.INERROR
        return TransactionStatus.IDLE if session.transaction is None else TransactionStatus.INTRANS

    def close(self) -> None:
        """As psycopg has it; from any thread, as if its socket were shut down."""
        if not self.closed:
            self.closed = True
            if self._deaf != "silent":
                self.hang_up()
            self._told(psycopg.OperationalError("the connection is lost"))
            if self.on_close is not None:
                self.on_close()

    def hear(self, channel: str, act: Callable[[], object]) -> None:
        """Let this be called for what is said on a channel, as long as the connection is there."""

        def said(seconds: float) -> None:
            if not self.closed:
                self._host.after(self._host.latency() + seconds, act)

        self._server.listeners[channel] = said

    def hang_up(self) -> None:
        """Let the server see the end of the connection, behind what was sent on it."""
        backend = self._backend
        if not backend.idle or self._arrival > self._timeline.now or backend.session.transaction is not None:
            self._timeline.after(max(_FIN, self._arrival - self._timeline.now + _NEXT), backend.hang_up)

    def die(self, how: str) -> None:
        """The host is dead: its sockets are closed, or a request on its way never arrives (`drops`), or does so late."""
        if self.closed:
            return
        if not how:
            self.hang_up()
            return
        before, on_its_way = self._backend, self._arrival > self._timeline.now
        if before.idle and (on_its_way or before.session.transaction is not None):
            before.gone = True
            self._backend = self._server.backend(self, before.session)
            if how == "lags":
                late = _LONGEST_LAG * self._timeline.chance(4, before.number, self._sent)
                self._timeline.after(late, self._backend.take, self._items if on_its_way else (), self._backend.hang_up)
            else:
                self._backend.take((), _nothing)

    # -- called by the server

    def replied(self, answer: Sequence[Result] | Refused) -> None:
        """See `server.Client`."""
        if self._deaf == "cut":
            self._timeline.after(self._host.latency(), self.close)
        elif not self._deaf:
            latency = self._host.latency()
            if isinstance(answer, list):
                latency += self._carried(latency, sum(result.octets for result in answer))
            if latency > 0.1:
                self.delayed()
            self._timeline.after(latency, self._arrived, self._sent, answer)

    def broken(self) -> None:
        """See `server.Client`."""
        self._timeline.after(self._host.latency(), self.close)

    def delayed(self) -> None:
        """See `server.Client`: somebody should look whether it comes in time."""
        if self._armed != self._sent:
            self._armed = self._sent
            self._look(self._sent)

    def _look(self, sent: int) -> None:
        if self.closed or sent != self._sent or self._tell is None or self._host.dead:
            return
        if (
            self._moves_until > self._timeline.now and self.silent_after < math.inf
        ):  # silence is counted from the last byte
            self.silent_after = self._host.clock.elapsed() + self._moves_until - self._timeline.now + self.patience
        if self.silent_after == math.inf:  # nobody watches: if nothing comes any more, TCP notices in the end
            left = self._since + _TCP_GIVES_UP - self._timeline.now if self._deaf else math.inf
        else:
            left = self.silent_after - self._host.clock.elapsed()
        if self._host.paused_until > self._timeline.now:
            left = max(left, self._host.paused_until - self._timeline.now)
        if left == math.inf:
            self._armed = 0
        elif left > 0:
            self._timeline.after(left + 0.001, self._look, sent)
        else:
            self.close()

    def _send(self, items: Request, tell: Callable[[object], None]) -> None:
        self._tell, self._items = tell, items
        fate, latency = self._host.fate(), self._host.latency()
        latency += self._carried(latency, sum(map(_octets, items)) * self._server.tables.weights[0])
        self._since = self._timeline.now
        self._arrival = self._since + latency
        if latency > 0.1:
            self.delayed()
        kind = "" if fate is None else fate.kind
        arrive: Callable[..., object] = self._backend.take
        if fate is None or not kind:
            self._timeline.after(latency, arrive, items)
            return
        if kind == "conflict":  # rolling back is never in anybody's way
            last = items[-1] if items[-1][0] == ROLLBACK else (CONFLICT, fate.how)
            self._timeline.after(latency, arrive, (*items[:-1], last))
            return
        self._deaf = fate.how or "cut"
        self.delayed()
        match kind:
            case "lose request":
                self._arrival = 0.0
                if self._deaf == "cut":
                    self._timeline.after(latency, self.close)
            case "lose reply":
                self._timeline.after(latency, arrive, items)
            case "late request":  # it arrives when its sender has given it up
                self._arrival += fate.amount
                self._timeline.after(latency, self.close)
                self._timeline.after(latency + fate.amount, arrive, items, _nothing)
            case "half request":  # and its transaction stays open until the server notices
                self._deaf = "silent"
                begins = () if self._backend.session.transaction is not None else ((BEGIN, None),)
                part = items[: max(1, len(items) - 1)] if len(items) > 1 else (*begins, *items)
                self._timeline.after(latency, self.close)
                self._timeline.after(latency, arrive, part, lambda: self._abandoned(fate.amount))
            case _:
                raise AssertionError(kind)

    def _carried(self, latency: float, octets: int) -> float:
        """Seconds that so many bytes take, after the first one has come."""
        if not (self._host.rate and octets):
            return 0.0
        seconds = octets / self._host.rate
        self._moves_until = self._timeline.now + latency + seconds
        return seconds

    def _abandoned(self, seconds: float) -> None:
        self._timeline.after(seconds, self._backend.hang_up)

    def _arrived(self, sent: int, answer: object) -> None:
        if sent == self._sent:
            self._told(answer)

    def _told(self, answer: object) -> None:
        tell, self._tell = self._tell, None
        if tell is not None:
            tell(answer)


class GuardedConnection:
    """See `guarded.GuardedConnection`: what a body gets, to execute statements on."""

    def __init__(self, wire: Wire, step: str) -> None:
        self.ended = False  # a body's statements are those of the model, which end nothing
        self._wire = wire
        self._step = step
        self._over = False

    def execute(self, name: str, parameters: Any) -> Answer:
        """As psycopg has it."""
        if self._over:
            raise TransactionMisused(self._step, "its connection was used after the body had returned")
        return self._wire.execute(name.encode(), parameters)

    def take_away(self) -> TransactionMisused | None:
        """See `guarded.GuardedConnection`."""
        self._over = True
        in_error = self._wire.transaction_status == TransactionStatus.INERROR
        return TransactionMisused(self._step, "the body went on after an SQL error") if in_error else None

    def revoke(self) -> None:
        """See `guarded.GuardedConnection`."""
        self._over = True


class Session:
    """See `session.Session`."""

    __slots__ = ("connection", "is_lent", "prepare", "server")

    def __init__(self, connection: Wire, _: object, server: str) -> None:
        self.connection = connection
        self.is_lent = True
        self.server = server
        self.prepare: bool | None = None

    def execute(self, query: bytes, parameters: Any = None) -> Answer:
        """See `session.Session`."""
        return self.connection.execute(query, parameters)

    queue = execute

    def together(self) -> AbstractContextManager[None]:
        """See `session.Session`."""
        return self.connection.pipeline()

    def rollback(self) -> None:
        """See `session.Session`."""
        self.connection.execute(b"ROLLBACK")

    def execute_write(self, query: bytes, values: Sequence[bytes]) -> int:
        """See `session.Session`: a checkpoint's columns, as the wire has them."""
        seq, key, kind, nonce, record, row, token = (value.decode() for value in values)
        return self.connection.execute(query, (int(seq), key, kind, int(nonce), record, row, token)).rowcount


def is_sound(connection: Wire) -> bool:
    """See `session.is_sound`."""
    return connection.transaction_status == TransactionStatus.IDLE


class Connections:
    """See `connections.Connections`, and its watchdog."""

    def __init__(self, host: Host, server: Server) -> None:
        self.where = _WHERE
        self.ready = False  # nothing to warn of when it is dropped
        self.prepares = True
        self.unfit = None
        self.forces_sync_commit = False
        self.pool_size: int | None = None
        self._host = host
        self._server = server
        self._idle: list[Session] = []
        self.wires: list[Wire] = []

    @property
    def watchdog(self) -> Connections:
        """This."""
        return self

    def watch(self, connection: Wire, until: float, allowance: float = 0.0) -> None:  # noqa: ARG002 -- all is counted here
        """See `Watchdog`."""
        connection.silent_after = until
        connection.patience = until - self._host.clock.elapsed()

    def unwatch(self, connection: Wire) -> None:
        """See `Watchdog`."""
        connection.silent_after = math.inf

    def take(self, until: float) -> Session:
        """See `connections.Connections`."""
        host = self._host
        while host.starved_until > self._server.timeline.now:
            if host.clock.elapsed() >= until:
                raise StoreUnavailable(_WHERE, "no connection came free")
            host.clock.sleep(_POOL_LOOK)
        while self._idle:
            session = self._idle.pop()
            if not session.connection.closed:
                session.is_lent = True
                return session
        wire = self.connect(until)
        return Session(wire, {}, self.server_of(wire))

    def connect(self, until: float) -> Wire:  # noqa: ARG002 -- the host sleeps as long as it must
        """See `connections.Connections`."""
        self._host.clock.sleep(_CONNECTING)
        if not self._server.up:
            self._host.clock.sleep(_TRYING)
            raise StoreUnavailable(_WHERE, "it is down")
        self.wires.append(Wire(self._host, self._server))
        return self.wires[-1]

    def server_of(self, connection: Wire) -> str:
        """See `connections.Connections`."""
        return connection.era

    def take_spare(self) -> Session | None:
        """See `connections.Connections`."""
        return None

    def give_back(self, session: Session) -> None:
        """See `connections.Connections`."""
        if not session.is_lent:
            return
        session.is_lent = False
        if not is_sound(session.connection):
            session.connection.close()
        else:
            self._idle.append(session)

    def explain(self, problem: psycopg.Error) -> DurableError:
        """See `connections.Connections`."""
        return StoreUnavailable(_WHERE, str(problem))

    def close(self) -> None:
        """See `connections.Connections`."""


def _nothing() -> None:
    pass
