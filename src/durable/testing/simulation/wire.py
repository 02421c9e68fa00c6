"""The way from a process to the server: connections that can be cut, delayed, deaf; with the faces that the store expects."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final, Protocol

import psycopg
from psycopg import errors

from durable.clocks import Clock
from durable.errors import DurableError, StoreUnavailable
from durable.testing.simulation import threads
from durable.testing.simulation.server import BEGIN, COMMIT, Backend, Request, Server
from durable.testing.simulation.session import Refused
from durable.testing.simulation.statements import Result

__all__ = ["Connections", "Host", "Wire"]

_WHERE: Final = "the simulated database"
_CONNECTING: Final = 0.003  # seconds
_TRYING: Final = 0.02
_POOL_LOOK: Final = 0.05
_LONGEST_LAG: Final = 0.02


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

    def fate(self) -> Fate | None:
        """Of the request that is sent now."""
        ...

    def latency(self) -> float:
        """Of the message that is sent now, in seconds."""
        ...


class Answer:
    """What psycopg gives as a cursor."""

    def __init__(self) -> None:
        self.result = Result([], 0)

    @property
    def rowcount(self) -> int:
        """As psycopg has it."""
        return self.result.rowcount

    def fetchall(self) -> list[tuple[Any, ...]]:
        """As psycopg has it."""
        return self.result.rows

    def __iter__(self) -> Iterator[tuple[Any, ...]]:
        return iter(self.result.rows)


class Wire:
    """One connection. What is sent on it is answered, or lost with it."""

    def __init__(self, host: Host, server: Server) -> None:
        self.closed = False
        self.silent_after = 0.0  # a reading of the host's clock
        self._host = host
        self._server = server
        self.era = str(server.promotions)
        self._timeline = server.timeline
        self._backend: Backend = server.backend(self)
        self._tell: Callable[[object], None] | None = None
        self._items: Request = ()
        self._deaf = ""
        self._sent = 0
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
            if name not in (BEGIN, COMMIT):
                answer.result = next(results)

    def cursor(self, **_: Any) -> Wire:
        """As psycopg has it."""
        return self

    def execute(self, query: bytes, parameters: Any = None, **_: Any) -> Answer:
        """As psycopg has it."""
        answer, name = Answer(), query.decode().partition(" ")[0]
        if self._pipeline is not None:
            self._pipeline.append(((name, parameters), answer))
        else:
            answer.result = self.request([(name, parameters)])[0]
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

    def close(self) -> None:
        """As psycopg has it; from any thread, as if its socket were shut down."""
        if not self.closed:
            self.closed = True
            self._told(psycopg.OperationalError("the connection is lost"))

    def drop(self, *, lags: bool) -> None:
        """The host is dead: a request that has not arrived yet never does, or arrives late."""
        if self._backend.idle and self._tell is not None:
            self._backend.gone = True
            if lags:
                late = _LONGEST_LAG * self._timeline.chance(4, self._backend.number, self._sent)
                self._timeline.after(late, self._server.backend(self).take, self._items, _nothing)

    # -- called by the server

    def replied(self, answer: Sequence[Result] | Refused) -> None:
        """See `server.Client`."""
        if self._deaf == "cut":
            self._timeline.after(self._host.latency(), self.close)
        elif not self._deaf:
            latency = self._host.latency()
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
        left = self.silent_after - self._host.clock.elapsed()
        if self._host.paused_until > self._timeline.now:
            left = max(left, self._host.paused_until - self._timeline.now)
        if left > 0:
            self._timeline.after(left + 0.001, self._look, sent)
        else:
            self.close()

    def _send(self, items: Request, tell: Callable[[object], None]) -> None:
        self._tell, self._items = tell, items
        fate, latency = self._host.fate(), self._host.latency()
        if latency > 0.1:
            self.delayed()
        kind = "" if fate is None else fate.kind
        arrive: Callable[..., object] = self._backend.take
        if fate is None or not kind:
            self._timeline.after(latency, arrive, items)
            return
        self._deaf = fate.how or "cut"
        self.delayed()
        match kind:
            case "lose request":
                if self._deaf == "cut":
                    self._timeline.after(latency, self.close)
            case "lose reply":
                self._timeline.after(latency, arrive, items)
            case "late request":  # it arrives when its sender has given it up
                self._timeline.after(latency, self.close)
                self._timeline.after(latency + fate.amount, arrive, items, _nothing)
            case "half request":  # and its transaction stays open until the server notices
                part = items[: max(1, len(items) - 1)] if len(items) > 1 else ((BEGIN, None), *items)
                self._timeline.after(latency, self.close)
                self._timeline.after(latency, arrive, part, lambda: self._abandoned(fate.amount))
            case _:
                raise AssertionError(kind)

    def _abandoned(self, seconds: float) -> None:
        self._timeline.after(seconds, self._backend.session.roll_back)

    def _arrived(self, sent: int, answer: object) -> None:
        if sent == self._sent:
            self._told(answer)

    def _told(self, answer: object) -> None:
        tell, self._tell = self._tell, None
        if tell is not None:
            tell(answer)


class Lane:
    """See `connections.Lane`."""

    __slots__ = ("connection",)

    def __init__(self, connection: Wire) -> None:
        self.connection = connection

    @property
    def timeline(self) -> str:
        """See `connections.Lane`."""
        return self.connection.era

    def execute(self, query: bytes, parameters: Any = None) -> Answer:
        """See `connections.Lane`."""
        return self.connection.execute(query, parameters)

    also = execute

    def wrote(self, query: bytes, values: Sequence[bytes]) -> int:
        """See `connections.Lane`: a checkpoint's columns, as the wire has them."""
        seq, key, kind, nonce, record, row, token = (value.decode() for value in values)
        return self.connection.execute(query, (int(seq), key, kind, int(nonce), record, row, token)).rowcount


class Connections:
    """See `connections.Connections`, and its watchdog."""

    def __init__(self, host: Host, server: Server) -> None:
        self.where = _WHERE
        self.ready = False  # nothing to warn of when it is dropped
        self.prepares = True
        self._host = host
        self._server = server
        self._idle: list[Lane] = []
        self.wires: list[Wire] = []

    @property
    def watchdog(self) -> Connections:
        """This."""
        return self

    def watch(self, connection: Wire, until: float) -> None:
        """See `Watchdog`."""
        connection.silent_after = until

    def unwatch(self, _: Wire) -> None:
        """See `Watchdog`."""

    def take(self, until: float) -> Lane:
        """See `connections.Connections`."""
        host = self._host
        while host.starved_until > self._server.timeline.now:
            if host.clock.elapsed() >= until:
                raise StoreUnavailable(_WHERE, "no connection came free")
            host.clock.sleep(_POOL_LOOK)
        while self._idle:
            lane = self._idle.pop()
            if not lane.connection.closed:
                return lane
        return Lane(self.connect(until))

    def connect(self, until: float) -> Wire:  # noqa: ARG002 -- the host sleeps as long as it must
        """See `connections.Connections`."""
        self._host.clock.sleep(_CONNECTING)
        if not self._server.up:
            self._host.clock.sleep(_TRYING)
            raise StoreUnavailable(_WHERE, "it is down")
        self.wires.append(Wire(self._host, self._server))
        return self.wires[-1]

    def give_back(self, lane: Lane) -> None:
        """See `connections.Connections`."""
        if not lane.connection.closed:
            self._idle.append(lane)

    def meaning(self, problem: psycopg.Error) -> DurableError:
        """See `connections.Connections`."""
        return StoreUnavailable(_WHERE, str(problem))

    def close(self) -> None:
        """See `connections.Connections`."""


def _nothing() -> None:
    pass
