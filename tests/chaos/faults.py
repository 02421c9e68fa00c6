"""What strikes during a round: each fault is a thread that waits a random time and strikes, again and again."""

from __future__ import annotations

import random
import signal
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import psycopg

from chaos.crew import Crew
from chaos.effects import Log
from chaos.servers import Ground

_FIRST: Final = 0.5  # seconds until the first stroke, at most: a short round has one of each
_HOWS: Final = (signal.SIGKILL, signal.SIGQUIT, signal.SIGINT)


@dataclass(frozen=True)
class Weather:
    """How often each fault strikes: a second, but for `deadly`, `cuts` and `wire_kills`, which are chances.

    `deadly` at each place that a worker comes by, the other two at each write that goes through a proxy. `slow` is the
    chance that a body takes long; `stop_for` says for how many leases a stopped process is stopped.
    """

    deadly: float = 0.0
    kills: float = 0.0
    losses: float = 0.0  # of all workers at once
    stops: float = 0.0
    cuts: float = 0.0
    wire_kills: float = 0.0
    terminations: float = 0.0
    server_kills: float = 0.0
    promotions: float = 0.0
    full_disks: float = 0.0
    slow: float = 0.0
    stop_for: tuple[float, float] = (1.1, 1.8)


class Faults:
    """All the threads of a round."""

    def __init__(self, weather: Weather, seed: str, crew: Crew, ground: Ground, log: Log, lease: float) -> None:
        self._over = threading.Event()
        self._crew = crew
        self._ground = ground
        self._log = log
        self._lease = lease
        self._stop_for = weather.stop_for
        self._waking: list[threading.Thread] = []
        self._problems: list[BaseException] = []
        kinds: dict[str, tuple[float, Callable[[random.Random], object]]] = {
            "kills": (weather.kills, crew.kill),
            "losses": (weather.losses, lambda _: crew.kill_all()),
            "stops": (weather.stops, self._stop),
            "terminations": (weather.terminations, self._terminate),
            "server kills": (weather.server_kills, self._kill_server),
            "promotions": (weather.promotions, self._promote),
            "full disks": (weather.full_disks, self._fill),
        }
        self._threads = [
            threading.Thread(target=self._strike, args=(rate, fault, random.Random(f"{seed} {name}")), name=name)
            for name, (rate, fault) in kinds.items()
            if rate
        ]
        for thread in self._threads:
            thread.start()

    def end(self) -> None:
        """No more of them; whatever is stopped or down is up again when this returns."""
        self._over.set()
        for thread in [*self._threads, *self._waking]:
            thread.join()
        if self._problems:
            raise self._problems[0]

    def _strike(self, rate: float, fault: Callable[[random.Random], object], chance: random.Random) -> None:
        wait = chance.uniform(0, _FIRST)
        while not self._over.wait(wait):
            wait = chance.expovariate(rate)
            try:
                fault(chance)
            except BaseException as problem:  # the harness's own failure: the round is void
                self._problems.append(problem)
                return

    def _stop(self, chance: random.Random) -> None:
        if (pid := self._crew.stop(chance)) is not None:
            seconds = self._lease * chance.uniform(*self._stop_for)
            thread = threading.Thread(target=self._wake, args=(pid, seconds))
            self._waking.append(thread)
            thread.start()

    def _wake(self, pid: int, seconds: float) -> None:
        self._over.wait(seconds)
        self._crew.wake(pid)

    def _terminate(self, _: random.Random) -> None:
        query = """
            SELECT pg_terminate_backend(pid) FROM (
                SELECT pid FROM pg_stat_activity WHERE application_name ~ '^w[0-9]+$' ORDER BY random() LIMIT 1) AS one
        """
        try:
            with psycopg.connect(self._ground.admin, autocommit=True) as connection:
                if connection.execute(query).fetchone() == (True,):
                    self._log.append("terminated")
        except psycopg.OperationalError:
            pass  # the server is down for another reason

    def _kill_server(self, chance: random.Random) -> None:
        how = chance.choice(_HOWS)
        self._ground.down(how)
        self._log.append("server down", more=how.name)
        self._over.wait(chance.uniform(0, self._lease))
        self._ground.up()
        self._log.append("server up")

    def _promote(self, chance: random.Random) -> None:
        self._ground.promote(self._log, chance)

    def _fill(self, chance: random.Random) -> None:
        with self._ground.full():
            self._log.append("disk full")
            self._over.wait(chance.uniform(0.1, 1.5 * self._lease))
        self._log.append("disk free")
