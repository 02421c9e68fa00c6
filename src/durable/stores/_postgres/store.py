"""The PostgreSQL store: the verbs of `RunStore` as statements."""

from __future__ import annotations

import random
import secrets
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any, Final, Self, TypeVar

import msgspec
import psycopg

from durable._engine.decisions import Claim, ClaimReply, Granted, Refused
from durable._engine.leases import Lease
from durable.clocks import Clock, SystemClock
from durable.errors import DurableError, LeaseLost, OutcomeUnknown, UnstorableValue
from durable.snapshot import Execution, Header, Record, Status, parse
from durable.stores._heartbeat import Heartbeat
from durable.stores._owner import Owner, is_dead
from durable.stores._postgres import schema
from durable.stores._postgres.connections import Connection, Connections, Lane
from durable.stores._postgres.statements import Names, statements
from durable.stores._threads import ThreadedStore

T = TypeVar("T")

_SERIALIZATION_FAILURES: Final = ("40001", "40P01")
_REFUSED_FOR_WHAT_IT_IS: Final = ("22", "23", "54")  # SQLSTATE classes: data, integrity, program limit
_TRIES: Final = 5
_THREADS: Final = 8  # one for each connection of the pool


class PostgresStore:
    """Runs in the user's own PostgreSQL. Made by `postgres(url)` and `embedded()`; nothing is opened before first use."""

    def __init__(self, url: str, names: Names, *, take_over_dead: bool = True, clock: Clock | None = None) -> None:
        self._names = names
        self._connections = Connections(url, lambda connection: schema.prepare(connection, names))
        self._sql = statements(names)
        self._clock = clock or SystemClock()
        self._owner = Owner()
        self._take_over_dead = take_over_dead
        self._heartbeat = Heartbeat(self._renew, self._clock)
        self._heartbeat_connection: Connection | None = None
        self._aio = ThreadedStore(self, _THREADS)

    def __repr__(self) -> str:
        return f"<durable store in PostgreSQL at {self._connections.where}, {self._names.quoted['snapshots']}>"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def identity(self) -> object:
        """The database and the table in it."""
        return (self._connections.where, self._names)

    @property
    def aio(self) -> ThreadedStore:
        """The same verbs for asyncio."""
        return self._aio

    def begin(self, claim: Claim, alive: Callable[[], bool]) -> ClaimReply:
        """See `RunStore.begin`. One round trip; two when the last owner was found dead on this machine."""
        reply, token = self._claimed(claim, dead=None)
        if isinstance(reply, Refused) and self._take_over_dead and is_dead(reply.owner, token):
            owner = reply.owner
            reply, _ = self._claimed(claim, dead=token)
            if isinstance(reply, Granted):
                reply = replace(reply, taken_from=owner)
        if isinstance(reply, Granted):
            self._heartbeat.keep(reply.lease, alive)
        return reply

    def checkpoint(self, lease: Lease, record: Record) -> None:
        """See `RunStore.checkpoint`. One round trip, one commit."""
        row = (lease.run_id, lease.token, record.seq, record.key, record.kind, _nonce(), record.text)
        self._write(lease, f"step {record.key!r}", self._sql["checkpoint"], row)

    def finish(self, lease: Lease, status: Status, record: Record) -> None:
        """See `RunStore.finish`. One round trip, one commit."""
        row = {
            "id": lease.run_id,
            "token": lease.token,
            "status": status,
            "seq": record.seq,
            "key": record.key,
            "kind": record.kind,
            "nonce": _nonce(),
            "record": record.text,
        }
        self._write(lease, f"the run's end ({status})", self._sql["finish"], row)
        self._heartbeat.drop(lease)

    def release(self, lease: Lease) -> None:
        """See `RunStore.release`. One round trip, one commit."""
        self._heartbeat.drop(lease)
        self._on_a_connection(lambda lane: lane.cursor.execute(self._sql["release"], (lease.run_id, lease.token)))

    def close(self) -> None:
        """Let go of connections and threads; runs that are still executing lose their store. Quiet when closed."""
        self._aio.close()
        self._heartbeat.close()
        if self._heartbeat_connection is not None:
            self._heartbeat_connection.close()
        self._connections.close()
        self._owner.close()

    def _claimed(self, claim: Claim, dead: str | None) -> tuple[ClaimReply, str | None]:
        """Claim in one pipelined transaction; the reply, and the token that stands there now."""
        nonce = f"{self._owner.instance}.{secrets.token_hex(8)}"
        values = _claim_values(claim, nonce, self._owner.text, dead)

        def claimed(lane: Lane) -> tuple[float, tuple[Any, ...], list[Record]]:
            connection, sent = lane.connection, self._clock.elapsed()
            with connection.pipeline():
                connection.execute("BEGIN ISOLATION LEVEL READ COMMITTED")
                connection.execute(self._sql["take_lease"], values)
                connection.execute(self._sql["open_run"], values)
                run = connection.execute(self._sql["read_run"], values)
                journal = connection.execute(self._sql["read_journal"], values)
                connection.execute("COMMIT")
            row = run.fetchone()
            assert row is not None  # noqa: S101 -- the statement has one row whatever is stored
            return sent, row, [Record(*record) for record in journal]

        sent, (epoch, token, owner, expires_in, document), records = self._on_a_connection(claimed)
        header = None
        if document is not None:
            header = parse(document, Header, run_id=claim.run_id, where="the header")
        if header is not None and token == f"{epoch}:{nonce}":
            return Granted(Lease(claim.run_id, token, epoch, claim.seconds, sent), header, records), token
        held = token is not None and expires_in > 0
        return Refused(header, records, owner if held else None, expires_in if held else None), token

    def _write(self, lease: Lease, what: str, statement: bytes, row: Any) -> None:
        """Execute a fenced write: committed when this returns."""
        try:
            written = self._on_a_connection(lambda lane: lane.cursor.execute(statement, row).rowcount)
        except psycopg.Error as problem:
            if problem.sqlstate is not None and problem.sqlstate[:2] in _REFUSED_FOR_WHAT_IT_IS:
                # The server's own words may quote the value.
                refusal = f"PostgreSQL refused it with SQLSTATE {problem.sqlstate} ({type(problem).__name__})"
                raise UnstorableValue(what, "$", refusal) from None
            if problem.sqlstate is None:
                raise OutcomeUnknown(lease.run_id, what, type(problem).__name__) from None
            raise self._connections.meaning(problem) from None
        if written != 1:
            raise LeaseLost(lease.run_id, "another execution has taken it over")

    def _on_a_connection(self, work: Callable[[Lane], T]) -> T:
        """Do some work that is one transaction; again if it was the victim of a conflict, which leaves nothing behind."""
        tries = 1
        while True:
            lane = self._connections.take()
            try:
                return work(lane)
            except psycopg.Error as problem:
                _rolled_back(lane.connection)
                if problem.sqlstate not in _SERIALIZATION_FAILURES or tries == _TRIES:
                    raise
                tries += 1
            finally:
                self._connections.give_back(lane)

    def _renew(self, leases: Sequence[Lease]) -> set[str]:
        try:
            if self._heartbeat_connection is None:
                self._heartbeat_connection = self._connections.connect()
            ids, tokens = [lease.run_id for lease in leases], [lease.token for lease in leases]
            columns = (ids, tokens, [lease.seconds for lease in leases])
            return {token for (token,) in self._heartbeat_connection.execute(self._sql["renew"], columns)}
        except (psycopg.Error, DurableError):
            connection, self._heartbeat_connection = self._heartbeat_connection, None
            if connection is not None:
                connection.close()
            raise


def _claim_values(claim: Claim, nonce: str, owner: str, dead: str | None) -> dict[str, Any]:
    metadata: dict[str, Any] = {**claim.metadata, "version": claim.version}
    if claim.input_hash is not None:
        metadata["inputHash"] = claim.input_hash
    header = Header(claim.workflow, Execution(Status.RUNNING), metadata=metadata)
    return {
        "id": claim.run_id,
        "workflow": claim.workflow,
        "version": claim.version,
        "seconds": claim.seconds,
        "input": None if claim.input is None else claim.input.decode(),
        "input_hash": claim.input_hash,
        "after_failure": claim.after_failure,
        "create": claim.create,
        "header": msgspec.json.encode(header).decode(),
        "random": nonce,
        "owner": owner,
        "dead": dead,
    }


def _nonce() -> int:
    return random.getrandbits(63)


def _rolled_back(connection: Connection) -> None:
    with suppress(psycopg.Error):
        if connection.info.transaction_status is not psycopg.pq.TransactionStatus.IDLE:
            connection.execute("ROLLBACK")
