"""An hour of a resident, and beside it one of another, in whose database a transaction stays open all the while."""

from __future__ import annotations

import json
import multiprocessing
import secrets
import statistics
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import psycopg
from psycopg.conninfo import make_conninfo

from chaos import gauges
from chaos.flatness import HOUR, MEMORY, ROOM, VALUES, Course, course, quarter
from chaos.resident import TRANSACTIONS, Orders, Report, pace, reside
from chaos.traffic import DRAWERS, TILL
from harness.ownership_children import start_forkserver
from harness.programs import LIMIT, limited

FREE: Final = "alone"
HELD: Final = "beside an open transaction"
CONNECTIONS: Final = 6 + TRANSACTIONS  # for small and large records, claims, long journals, the heartbeat, a purge
LONG_ENOUGH: Final = 600.0  # seconds, from which on growth is told from a beginning
_AFTERWARDS: Final = 1 / 6  # of the time that the transaction was open
_AFTERWARDS_TOLD: Final = 180.0  # seconds at least, if growth is told: vacuum comes every minute
_EVERY: Final = 10.0  # seconds between two looks
_LOOKS: Final = 24  # at least
_PATIENCE: Final = 120.0  # seconds for an answer
_CONTEXT: Final = multiprocessing.get_context("forkserver")


@dataclass(frozen=True)
class Tenant:
    """Who is watched: `held` beside a transaction that stays open, and with which leak."""

    name: str
    held: bool = False
    leak: str = ""


PAIR: Final = (Tenant(FREE), Tenant(HELD, held=True))


@dataclass
class Hour:
    """What one of them has shown. Sizes in bytes, times in milliseconds: (median, 99 % within, how many).

    `afterwards` are the sizes when the transaction ended, and the largest in the second half of the time after it.
    """

    name: str
    seconds: float
    counts: dict[str, int]
    courses: dict[str, Course] = field(default_factory=dict)
    times: dict[str, tuple[float, float, int]] = field(default_factory=dict)
    times_afterwards: dict[str, tuple[float, float, int]] = field(default_factory=dict)
    afterwards: dict[str, tuple[float, float]] = field(default_factory=dict)
    hot: float = 0.0  # of a hundred updates of leases, in the last quarter
    dead: tuple[float, float] = (0.0, 0.0)  # rows, at most: in the last quarter, and in the second half afterwards
    violations: list[str] = field(default_factory=list)


class _Watched:
    """A resident under the eyes of this process."""

    def __init__(self, tenant: Tenant, url: str, directory: Path, seconds: float) -> None:
        self.name = tenant.name
        self.held = tenant.held
        self.url = url
        self._pipe, theirs = _CONTEXT.Pipe()
        orders, limit = Orders(url, str(directory), pace(seconds), tenant.leak), {"seconds": LIMIT + round(2 * seconds)}
        self._process = _CONTEXT.Process(target=limited, args=(reside, orders, theirs), kwargs=limit, daemon=True)
        self._process.start()
        theirs.close()
        self.at: list[float] = []
        self.samples: list[dict[str, float]] = []
        self.times: list[dict[str, list[float]]] = []
        self.last: Report | None = None

    def await_begin(self) -> None:
        """Until it has used every way once, see `chaos.crush`."""
        self._told("report")

    def look(self, at: float) -> None:
        """A sample."""
        report = self._told("report")
        assert self._process.pid is not None
        self.at.append(at)
        self.samples.append(gauges.held(self._process.pid, self.url, report))
        self.times.append(report.times)

    def end(self) -> None:
        """Wait until it has cleared up."""
        self.last = self._told("end")
        self._process.join(_PATIENCE)

    def kill(self) -> None:
        """Wait for nothing."""
        self._process.kill()
        self._process.join()

    def _told(self, word: str) -> Report:
        self._pipe.send(word)
        if not self._pipe.poll(_PATIENCE):
            raise TimeoutError(f"the resident {self.name} has not answered for {_PATIENCE:g} s")
        answer: Report = self._pipe.recv()
        return answer


def afterwards(seconds: float) -> float:
    """Seconds for which they are watched when the transaction has ended, which was open for so many."""
    return max(seconds * _AFTERWARDS, _AFTERWARDS_TOLD if seconds >= LONG_ENOUGH else 0.0)


def lived(server: str, seconds: float, tenants: Sequence[Tenant] = PAIR, record: Path | None = None) -> list[Hour]:
    """All of them beside each other, each in a database of its own. A `record` gets a line of JSON for each look."""
    start_forkserver("chaos.resident")
    held, every = any(tenant.held for tenant in tenants), min(_EVERY, seconds / _LOOKS)
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="durable-hour-")))
        stack.callback(_print_errors, directory)
        watched = []
        for tenant in tenants:
            url = stack.enter_context(_database(server))
            watched.append(_Watched(tenant, url, directory, seconds))
            stack.callback(watched[-1].kill)
        for each in watched:
            each.await_begin()
        began, looks = time.monotonic(), round(seconds / every)
        moments = [began + n * every for n in range(1, looks + 1 + round(afterwards(seconds) / every) * held)]
        with ExitStack() as open_ones:
            for each in watched:
                if each.held:
                    open_ones.enter_context(_transaction(each.url))
            _look(watched, moments[:looks], record)
        _look(watched, moments[looks:], record)
        for each in watched:
            each.end()
        return [_shown(each, looks, seconds) for each in watched]


def _print_errors(directory: Path) -> None:
    for log in directory.glob("errors-*"):
        if told := log.read_text("utf-8").strip():
            print(told)


def _look(watched: Sequence[_Watched], moments: Iterable[float], record: Path | None) -> None:
    """At each of these moments of this machine, or as soon after it as may be."""
    for moment in moments:
        time.sleep(max(0.0, moment - time.monotonic()))
        for each in watched:
            each.look(time.monotonic())
            if record is not None:
                seen = {"name": each.name, "at": each.at[-1], **each.samples[-1], **each.times[-1]}
                with record.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(seen) + "\n")


@contextmanager
def _transaction(url: str) -> Iterator[None]:
    """In here one is open, with a snapshot of its own."""
    with psycopg.connect(url, application_name="holder") as holder:
        holder.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
        holder.execute("SELECT 1")
        yield


@contextmanager
def _database(server: str) -> Iterator[str]:
    """The URL of a database of its own: what is open in another one keeps nothing alive in it."""
    name = f"hour_{secrets.token_hex(4)}"
    with psycopg.connect(server, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name} TEMPLATE template0".encode())
    url = make_conninfo(server, dbname=name)
    with psycopg.connect(url) as connection:
        connection.execute(TILL)
        connection.execute("INSERT INTO till SELECT number, 0 FROM generate_series(0, %s) AS number", (DRAWERS - 1,))
    yield url
    with psycopg.connect(server, autocommit=True) as connection:
        connection.execute(f"DROP DATABASE {name} WITH (FORCE)".encode())


def _shown(watched: _Watched, looks: int, seconds: float) -> Hour:
    assert watched.last is not None
    hour = Hour(watched.name, seconds, dict(watched.last.counts))
    hour.violations += [f"surprise: {surprise}" for surprise in watched.last.surprises]
    most = max(sample["connections"] for sample in watched.samples)
    if most > CONNECTIONS:
        hour.violations.append(f"{most:g} connections, and {CONNECTIONS} at most are promised")
    hour.violations += [f"{rows} rows left in {table}" for table, rows in gauges.left(watched.url).items() if rows]
    samples, after = watched.samples[:looks], watched.samples[looks + (len(watched.samples) - looks) // 2 :]
    last = samples[-1]
    sizes = [name for name in last if name.startswith(("table ", "index ")) and last[_table(name)]]
    for name in (*gauges.PROCESS, *sizes):
        file, values = name in sizes, [sample.get(name, 0.0) for sample in samples]
        room = MEMORY if name == gauges.RESIDENT else _room(name, seconds) if file else 0.0
        hour.courses[name] = course(watched.at[:looks], values, room=room, file=file, seconds=seconds)
    hour.times = _times(quarter(watched.times[:looks], 3))
    first = quarter(samples, 3)[0]
    if updates := last[gauges.UPDATES] - first[gauges.UPDATES]:
        hour.hot = 100 * (last[gauges.HOT] - first[gauges.HOT]) / updates
    hour.dead = (max(sample[gauges.DEAD] for sample in quarter(samples, 3)), 0.0)
    if after:
        hour.times_afterwards = _times(watched.times[-len(after) :])
        hour.afterwards = {name: (last[name], max(sample[name] for sample in after)) for name in sizes}
        hour.dead = (hour.dead[0], max(sample[gauges.DEAD] for sample in after))
    if seconds >= LONG_ENOUGH:
        hour.violations += list(_growth(hour, held=watched.held))
    return hour


def _room(name: str, seconds: float) -> float:
    """Of a file. In an hour large values have more than these by their share; before, one comes sooner or later than vacuum."""
    return VALUES if name.startswith("table ") and name.endswith("large values") and seconds < HOUR else ROOM


def _table(name: str) -> str:
    """That in which there are large values, if it is about these: most tables never have any."""
    return name.replace("index ", "table ") if name.endswith("large values") else name


def _growth(hour: Hour, *, held: bool) -> Iterator[str]:
    """What is not flat and should be: what a process holds always, tables and indexes alone or when the transaction has ended."""
    for name, through in hour.courses.items():
        if not through.flat and (not held or name in gauges.PROCESS):
            yield f"{name} grows: {through.second:,.0f} in the second quarter, {through.last:,.0f} in the last"
    for name, (end, most) in hour.afterwards.items():
        if held and hour.courses[name].goes_on(end, most, hour.seconds):
            yield f"{name} goes on growing: {end:,.0f} when the transaction ended, {most:,.0f} afterwards"


def _times(reports: Iterable[Mapping[str, Sequence[float]]]) -> dict[str, tuple[float, float, int]]:
    every: dict[str, list[float]] = {}
    for report in reports:
        for name, times in report.items():
            every.setdefault(name, []).extend(1000 * seconds for seconds in times)
    return {
        name: (statistics.median(times), statistics.quantiles(times, n=100)[98], len(times))
        for name, times in every.items()
        if len(times) > 1
    }
