"""The workers of a round and their leader, who starts another one where one has died."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import threading
import time
from collections.abc import Sequence
from multiprocessing.process import BaseProcess
from typing import Final

from chaos.effects import Log
from chaos.worker import Orders, work
from harness.ownership_children import start_forkserver
from harness.programs import limited

_CONTEXT: Final = multiprocessing.get_context("forkserver")
_SURPRISES: Final = 20  # workers that end as none should; then the round is given up
_LOOK: Final = 0.005  # seconds between two looks at who has died


class Crew:
    """One process for each of these orders, until it has ended by itself."""

    def __init__(self, orders: Sequence[Orders], log: Log) -> None:
        start_forkserver("chaos.worker")
        self._log = log
        self._lock = threading.RLock()  # guards what follows
        self._stopped: set[int] = set()
        self._surprises = 0
        self._slots: list[tuple[Orders, BaseProcess | None]] = [(each, self._started(each)) for each in orders]

    def lead(self, seconds: float) -> bool:
        """Restart whoever dies, until all have ended by themselves; False if they have not within so many seconds."""
        until = time.monotonic() + seconds
        while any(process is not None for _, process in self._slots):
            if time.monotonic() > until or self._surprises > _SURPRISES:
                return False
            with self._lock:
                self._slots = [(orders, self._looked_after(orders, process)) for orders, process in self._slots]
            time.sleep(_LOOK)
        return True

    def kill(self, chance: random.Random) -> None:
        """SIGKILL one of them."""
        with self._lock:
            if living := self._living():
                self._killed([chance.choice(living)], "a random moment")

    def kill_all(self) -> None:
        """SIGKILL every one of them at once: the loss of a machine."""
        with self._lock:
            self._killed(self._living(), "all at once")

    def stop(self, chance: random.Random) -> int | None:
        """SIGSTOP one of them, and return its pid; one at least goes on."""
        with self._lock:
            awake = [pid for pid in self._living() if pid not in self._stopped]
            if len(awake) < 2 or not _sent(pid := chance.choice(awake), signal.SIGSTOP):
                return None
            self._log.append("stop", pid=pid)
            self._stopped.add(pid)
        return pid

    def wake(self, pid: int) -> None:
        """SIGCONT, if it is still there."""
        with self._lock:
            if pid in self._stopped:
                self._stopped.discard(pid)
                self._log.append("wake", pid=pid)
                _sent(pid, signal.SIGCONT)

    def end(self) -> None:
        """Let go of whoever is left."""
        for _, process in self._slots:
            if process is not None:
                process.kill()
                process.join()

    def _killed(self, pids: list[int], how: str) -> None:
        still = [
            pid for pid in pids if _sent(pid, signal.SIGSTOP)
        ]  # they do nothing more between the line and their death
        for pid in still:
            self._log.append("kill", more=how, pid=pid)
            _sent(pid, signal.SIGKILL)
            self._stopped.discard(pid)

    def _living(self) -> list[int]:
        return [process.pid for _, process in self._slots if process is not None and process.is_alive() and process.pid]

    def _looked_after(self, orders: Orders, process: BaseProcess | None) -> BaseProcess | None:
        if process is None or process.is_alive():
            return process
        code, pid = process.exitcode, process.pid
        process.close()
        if code == 0:
            return None
        if code != -signal.SIGKILL:
            self._log.append("surprise", more=f"a worker ended with {code}", pid=pid or 0)
            self._surprises += 1
        return self._started(orders)

    def _started(self, orders: Orders) -> BaseProcess:
        process = _CONTEXT.Process(target=limited, args=(work, orders), daemon=True)
        process.start()
        return process


def _sent(pid: int, number: signal.Signals) -> bool:
    """Whether there still was a process to get this signal: it may have killed itself."""
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return False
    return True
