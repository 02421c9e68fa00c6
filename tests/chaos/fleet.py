"""A fleet of workers that are killed, on a PostgreSQL that is restarted, until all that was started has ended."""

from __future__ import annotations

import contextlib
import itertools
import multiprocessing
import os
import random
import signal
import statistics
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, Final

import tenacity

import durable
from chaos.effects import Line, Log, lines
from chaos.servers import Ground
from durable.errors import DurableError
from durable.stores import PostgresStore, postgres
from durable.stores.reading import Filter
from harness.ownership_children import start_forkserver
from harness.programs import limited

STEPS: Final = 5
KILL_EACH: Final = 2.0  # seconds
RESTART_EACH: Final = 10.0
_BODY: Final = 0.01  # seconds that a body takes, at most
_PATIENT: Final = tenacity.Retrying(stop=tenacity.stop_after_attempt(1000), wait=tenacity.wait_fixed(0.3))
_NAP: Final = 0.5  # that a run sleeps, suspended
_FOR_LONG: Final = 3600.0  # the time-out of a wait whose signal comes
_WORKERS: Final = 4
_LOOK: Final = 0.05  # seconds between two looks at the fleet
_PATIENCE: Final = 120.0  # seconds without any progress, after which it is given up

_CONTEXT: Final = multiprocessing.get_context("forkserver")


class Trace:
    """What the bodies of one process leave in the log of effects; the dependencies of its runs."""

    def __init__(self, log: Log, store: PostgresStore) -> None:
        self._log = log
        self._store = store

    def tell(self, number: int) -> None:
        """Send the signal that the run of this number waits for."""
        durable.signal(self._store, f"r{number}", "go", number)

    def note(self, word: str, key: str = "") -> None:
        """That this has happened to the run which is being executed here."""
        here = durable.current()
        assert here is not None  # a body's, always
        self._log.append(word, here.id, here.epoch, key)


@durable.workflow(name="five")
def five(step: durable.Step, trace: Trace, number: int) -> int:
    """Five steps. What is noted after a step is acknowledged. Of three runs one sleeps, and the next waits for its signal."""

    def body(key: str) -> int:
        trace.note("begin", key)
        time.sleep(random.random() * _BODY)
        return number

    for place in range(STEPS):
        step("body", body, str(place), key=str(place))
        trace.note("acknowledged", str(place))
        if place == 1 and number % 3 == 0:
            step.sleep("nap", _NAP)
            step("tell", trace.tell, number + 1, retry=_PATIENT)
        elif place == 1 and number % 3 == 1:
            step.wait_for("go", timeout=_FOR_LONG if number % 2 else None)
    return number


def serve(url: str, path: str) -> None:
    """A worker, until it is killed; one that finds no server at its start begins again."""
    log = Log(path)
    while True:
        with contextlib.suppress(DurableError), postgres(url) as store:
            durable.Worker(store, Trace(log, store), [five], concurrency=8, suspend_after=0.1).run()


class Fleet:
    """The processes, each replaced when it is killed."""

    def __init__(self, url: str, path: str, log: Log) -> None:
        start_forkserver("chaos.fleet")
        self._arguments = (serve, url, path)
        self._log = log
        self._processes = [self._started() for _ in range(_WORKERS)]

    def kill_one(self, chance: random.Random) -> None:
        """SIGKILL one, and start another."""
        place = chance.randrange(_WORKERS)
        pid = self._processes[place].pid
        assert pid is not None
        os.kill(pid, signal.SIGSTOP)  # it does nothing more between the line and its death
        self._log.append("kill", pid=pid)
        self._end(place)
        self._processes[place] = self._started()

    def end(self) -> None:
        """SIGKILL them all."""
        for place in range(_WORKERS):
            self._end(place)

    def _end(self, place: int) -> None:
        self._processes[place].kill()
        self._processes[place].join()
        self._processes[place].close()

    def _started(self) -> BaseProcess:
        process = _CONTEXT.Process(target=limited, args=self._arguments, kwargs={"seconds": 3600}, daemon=True)
        process.start()
        return process


def storm(ground: Ground, runs: int, seed: str, pace: float = 1.0) -> tuple[list[str], dict[str, float]]:
    """So many runs under a SIGKILL each two seconds and a restart each ten (times `pace`): what was violated, and counts."""
    chance = random.Random(seed)
    with tempfile.TemporaryDirectory(prefix="durable-fleet-") as directory, postgres(ground.url) as store:
        path = str(Path(directory, "effects"))
        log = Log(path)
        durable.start_many(five, [durable.Start(number, id=f"r{number}") for number in range(runs)], store=store)
        began = time.monotonic()
        fleet = Fleet(ground.url, path, log)
        try:
            strikes = _strike(ground, fleet, store, chance, pace)
        finally:
            fleet.end()
            log.close()
        seconds = time.monotonic() - began
        seen = lines(path)
        said = [*_unfinished(store, runs), *judge(seen)]
    times = recoveries(seen)
    counts: dict[str, float] = {"runs": runs, "seconds": round(seconds, 1), **strikes, "taken over": len(times)}
    if times:
        counts |= {"median recovery, s": round(statistics.median(times), 2), "longest, s": round(max(times), 2)}
    return said, counts


def _strike(ground: Ground, fleet: Fleet, store: PostgresStore, chance: random.Random, pace: float) -> Counter[str]:
    """Until nothing is left to do, or nothing more is done."""
    strikes, now = Counter[str](), time.monotonic()
    kill_at, restart_at = now + pace * KILL_EACH, now + pace * RESTART_EACH
    left, changed_at = -1, now
    while True:
        now = time.monotonic()
        if now >= kill_at:
            fleet.kill_one(chance)
            strikes["kills"] += 1
            kill_at = now + pace * KILL_EACH
        if now >= restart_at:
            ground.down(chance.choice([signal.SIGINT, signal.SIGQUIT, signal.SIGKILL]))
            ground.up()
            strikes["restarts"] += 1
            restart_at = time.monotonic() + pace * RESTART_EACH
        with contextlib.suppress(DurableError):
            stats = store.stats()
            still = stats.queued + stats.running + stats.suspended + stats.interrupted
            if not still:
                return strikes
            left, changed_at = (left, changed_at) if still == left else (still, now)
        if now - changed_at > _PATIENCE:
            return strikes
        time.sleep(_LOOK)


def _unfinished(store: PostgresStore, runs: int) -> list[str]:
    stats = store.stats()
    if stats.completed == runs:
        return []
    lines = store.runs(Filter(statuses=("failed", "queued", "running", "suspended", "interrupted")), limit=10)
    told = [f"{line.id} is {line.status}{_why(store, line.id)}" for line in lines]
    return [f"of {runs} runs not all are completed: {stats}", *told]


def _why(store: PostgresStore, run_id: str) -> str:
    """With what a run has failed."""
    try:
        durable.result(store, run_id)
    except Exception as failure:
        return f" ({type(failure).__name__}: {failure})"
    return ""


def judge(seen: Sequence[Line]) -> list[str]:
    """The bodies that were begun again, by a holder, after they had been acknowledged."""
    acknowledged: dict[tuple[str, str], int] = {}
    said: list[str] = []
    for line in seen:
        place = (line.run, line.key)
        if line.word == "acknowledged":
            acknowledged.setdefault(place, line.epoch)
        elif line.word == "begin" and line.epoch >= acknowledged.get(place, line.epoch + 1):
            said.append(f"step {line.key} of run {line.run} began again after it had been acknowledged")
    return said


def recoveries(seen: Sequence[Line]) -> list[float]:
    """Seconds from each death until another worker did something for each run that it had under way."""
    of_run: dict[str, list[Line]] = defaultdict(list)
    for line in seen:
        of_run[line.run].append(line)
    deaths = {line.pid: line.at for line in seen if line.word == "kill"}
    times: list[float] = []
    for run, its in of_run.items():
        for before, after in itertools.pairwise(its):
            if run and before.pid != after.pid and before.pid in deaths:
                times.append(max(0.0, after.at - max(before.at, deaths[before.pid])))
    return times


def told(counts: dict[str, Any]) -> str:
    """In one line."""
    return ", ".join(f"{name}: {count:g}" for name, count in counts.items())
