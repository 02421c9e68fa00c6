"""Contestants, each in a process of its own, who work when it is their turn.

What is compared must be measured within the same second: the disk and the neighbours change from one second to the next.
So no contestant runs a whole benchmark at a stretch. Each gets a turn of a few milliseconds, then the next one does,
and they stay where they are meanwhile: in the middle of a workflow, for example. The clock is read in the contestant's
own process, so handing over costs nothing.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Concatenate, Final, ParamSpec, Self

import psycopg

P = ParamSpec("P")

_WRITERS: Final = "durable-"  # the first letters of the names of the library's own threads
_ENDS: Final = 20.0  # seconds that a contestant has to go home


@dataclass
class Lap:
    """One turn: how much was done, in how many seconds, and the CPU seconds that it took of whom."""

    size: int
    seconds: float
    caller: float = 0.0
    writer: float = 0.0
    server: float = 0.0
    notes: dict[str, float] = field(default_factory=dict[str, float])

    @property
    def each(self) -> float:
        """Seconds apiece."""
        return self.seconds / self.size


class Turns:
    """A contestant's side: `for size in turns:` do so much, and be timed while doing it."""

    def __init__(self, pipe: Connection[Any, Any]) -> None:
        self._pipe = pipe
        self._lap: Lap | None = None
        self.over = False

    def __iter__(self) -> Iterator[int]:
        """Each turn until there are no more, as its size."""
        while not self.over:
            yield from self.few(1)

    def few(self, count: int) -> Iterator[int]:
        """The same for so many turns at most."""
        for _ in range(count):
            size = self._pipe.recv()
            if not size:
                self.over = True
                return
            self._lap = Lap(size, 0.0)
            writer, all_threads = _writer_seconds(), time.process_time()
            start = time.perf_counter()
            yield size
            seconds = time.perf_counter() - start
            self._lap.seconds = self._lap.seconds or seconds
            self._lap.writer = _writer_seconds() - writer
            self._lap.caller = time.process_time() - all_threads - self._lap.writer
            self._pipe.send(self._lap)

    def took(self, seconds: float) -> None:
        """The contestant's own reading, where the turn holds more than what is to be measured."""
        assert self._lap is not None  # noqa: S101 -- called within a turn
        self._lap.seconds = seconds

    def note(self, **notes: float) -> None:
        """Something else that was measured in this turn."""
        assert self._lap is not None  # noqa: S101 -- called within a turn
        self._lap.notes.update(notes)


class Lane:
    """A contestant, seen from the outside: `work(turns, …)` in a process of its own. A context manager."""

    def __init__(
        self, server: ServerCpu, work: Callable[Concatenate[Turns, P], object], *args: P.args, **kwargs: P.kwargs
    ) -> None:
        self._server = server
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self.name = work.__name__
        self._process = context.Process(target=_contest, args=(work, theirs, args, kwargs), name=self.name)
        self._process.start()
        theirs.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):  # it has ended already
            self._pipe.send(0)
        self._process.join(_ENDS)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()

    def turn(self, size: int) -> Lap:
        """Let it do so much, and wait until it has."""
        before = self._server.seconds()
        self._pipe.send(size)
        try:
            lap: Lap = self._pipe.recv()
        except EOFError:
            raise RuntimeError(f"{self.name} has ended; what it said stands above") from None
        lap.server = self._server.seconds() - before
        return lap


class ServerCpu:
    """What all processes of a local PostgreSQL have used so far; of a remote one nothing is known."""

    def __init__(self, url: str) -> None:
        with psycopg.connect(url, autocommit=True) as connection:
            (pid,) = connection.execute("SELECT pg_backend_pid()").fetchone() or (0,)
            stat = Path(f"/proc/{pid}/stat")
            local = connection.info.host.startswith("/") and stat.exists()
            self._postmaster = int(stat.read_text().split(") ")[1].split()[1]) if local else None
        self._ended = 0.0
        self._running: dict[str, float] = {}

    def seconds(self) -> float:
        """CPU seconds so far. Of a backend that has ended, what it had used when last seen."""
        if self._postmaster is None:
            return 0.0
        children = Path(f"/proc/{self._postmaster}/task/{self._postmaster}/children").read_text().split()
        now = {pid: seconds for pid in children if (seconds := _on_cpu(f"/proc/{pid}/schedstat")) is not None}
        self._ended += sum(seconds for pid, seconds in self._running.items() if pid not in now)
        self._running = now
        return self._ended + sum(now.values())


def _contest(work: Callable[..., object], pipe: Connection[Any, Any], args: Any, kwargs: Any) -> None:
    work(Turns(pipe), *args, **kwargs)


def _writer_seconds() -> float:
    """What the library's own threads have used so far."""
    ours = [thread.native_id for thread in threading.enumerate() if thread.name.startswith(_WRITERS)]
    return sum(_on_cpu(f"/proc/self/task/{number}/schedstat") or 0.0 for number in ours)


def _on_cpu(schedstat: str) -> float | None:
    try:
        return int(Path(schedstat).read_text().split()[0]) / 1e9
    except (OSError, IndexError):  # ended meanwhile, or not Linux
        return None
