"""Runs that are started: what is sent for them, and which runs they have led to."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Any, Final, Protocol

import msgspec
from msgspec import Struct, structs

from durable._engine.headers import queue_header
from durable._engine.starts import NewRun, Route, Started
from durable.records import Header
from durable.stores._postgres.job import ABSENT

_json: Final = msgspec.json.Encoder()


class StartRow(Struct, gc=False):
    """A run that is started, as it is sent. Behind a newline its route has its slot: see the migration of queues."""

    n: int
    id: str
    route: str
    priority: int
    at: str | None
    delay: float
    header: Header
    input: str | None
    nonce: int
    parent_token: str | None = None


class Starting(Struct, eq=False):
    """The payload of a start: its runs, and each as a row. Sent twice, they are the same."""

    runs: Sequence[NewRun]
    rows: list[StartRow]
    prefix: str


class Rows(Protocol):
    """A store, as it names the rows of its runs."""

    @property
    def prefix(self) -> str:
        """What is put before each id."""
        ...

    def row(self, run_id: str) -> str:
        """The id under which a run stands in the tables; `InvalidArgument` if it can have none."""
        ...


def plan_start(runs: Sequence[NewRun], store: Rows) -> Starting:
    """What is sent for these runs."""
    return Starting(runs, [_row(run, store) for run in runs], store.prefix)


def render_route(route: Route, prefix: str) -> str:
    """A route as it stands in the leases' rows of a store with this prefix."""
    return _json.encode([prefix, route.queue, route.workflow, route.version]).decode()


def render_slot(queue: str, partition: str | None, prefix: str) -> str:
    """What the runs of a partition are counted in."""
    return _json.encode([prefix, queue, partition]).decode()


def render_queue(queue: str, prefix: str) -> str:
    """A queue as its row is called, in a store with this prefix."""
    return _json.encode([prefix, queue]).decode()


def read_queue(name: str) -> str:
    """The queue whose row is called so."""
    _, queue = msgspec.json.decode(name)
    return str(queue)


def partition_of(route: str) -> str | None:
    """The partition of a route that stands in a lease's row; None without one."""
    _, _, slot = route.replace("\t", "\n").partition("\n")
    return msgspec.json.decode(slot)[2] if slot else None


def render_own(prefix: str) -> str:
    """How each route begins of what `durable.run` has begun, for workers to recover."""
    return _json.encode([prefix, ""]).decode()[:-1]


def render_first(prefix: str) -> str:
    """How each route begins of a store with this prefix, and of those whose prefix begins with it."""
    return _json.encode([prefix]).decode()[:-2]


def name_route(route: str) -> str:
    """A route for people."""
    _, queue, workflow, version = msgspec.json.decode(line_of(route))
    return f"{queue}: {workflow}@{version}"


def queue_of(route: str) -> str:
    """The queue of a route that stands in a lease's row."""
    _, queue, _, _ = msgspec.json.decode(line_of(route))
    return str(queue)


def line_of(route: str) -> str:
    """Its part for workers, before the slot."""
    return route.replace("\t", "\n").partition("\n")[0]


def read_started(startings: Sequence[Starting], new: set[int], rows: Sequence[Any], prefix: str) -> list[Any]:
    """What each has led to, by the rows of `read_started`, numbered as these were; `ABSENT` where one has led to nothing.

    What stood in its way has ended, or was deleted, in between: it is sent again.
    """
    found = {n: told for n, *told in rows}
    return [_read(starting, new, found, prefix) for starting in startings]


def _read(starting: Starting, new: set[int], found: Mapping[int, Sequence[Any]], prefix: str) -> Any:
    started: list[Started] = []
    for row in starting.rows:
        if row.n not in found:
            return ABSENT
        stands, workflow, input_hash, status, is_mine = found[row.n]
        is_new = is_mine or row.n in new
        started.append(Started(stands.removeprefix(prefix), is_new, workflow or "", input_hash, status or ""))
    return started


def _row(run: NewRun, store: Rows) -> StartRow:
    nonce, header = random.getrandbits(63), queue_header(run, prefix=store.prefix)
    route = render_route(run.route, store.prefix)
    if run.partition is not None:
        route += "\n" + render_slot(run.route.queue, run.partition, store.prefix)
    return StartRow(
        0,
        store.row(run.run_id),
        route,
        run.priority,
        None if run.at is None else run.at.isoformat(),
        run.delay,
        header if run.input is not None else structs.replace(header, nonce=nonce),
        None if run.input is None else run.input.decode(),
        nonce,
    )
