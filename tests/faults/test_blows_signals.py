"""FAULTS 173: real signals, at random moments of a run: what their handler raises comes out as itself, and nothing is left behind."""

# pyright: reportUnknownLambdaType=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# (`execute` takes workflows of either colour, as Any.)

from __future__ import annotations

import random
import signal
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import durable
from durable.stores import embedded
from harness.blows import STRIDE, Tally, store_of
from harness.support import Database

execute: Any = durable.run  # in either colour

_BLOWS = 1000 // STRIDE if STRIDE else 60
_PATIENCE = 20.0  # seconds, after which something hangs
_KINDS = ("memory", "postgres", "five verbs", "embedded")


class SoftLimit(Exception):
    """What a handler raises that is meant for `except Exception`."""


class Impatient(KeyboardInterrupt):
    """What a handler raises that is not."""


class Hangs(BaseException):
    """Nothing has come for so long."""


class _Alarm:
    """Raises so many seconds after it is set; and once more, as `Hangs`, where that came to nothing."""

    def __init__(self) -> None:
        self._blow: type[BaseException] | None = None

    def set(self, seconds: float, blow: type[BaseException]) -> None:
        self._blow = blow
        signal.setitimer(signal.ITIMER_REAL, seconds, _PATIENCE)

    def strike(self, blow: type[BaseException]) -> None:
        """At once."""
        self._blow = blow
        signal.setitimer(signal.ITIMER_REAL, _PATIENCE)
        signal.raise_signal(signal.SIGALRM)

    def off(self) -> None:
        signal.setitimer(signal.ITIMER_REAL, 0)
        self._blow = None

    @property
    def has_struck(self) -> bool:
        return self._blow is None

    def rings(self, *_: Any) -> None:
        blow, self._blow = self._blow or Hangs, None
        raise blow


@pytest.fixture
def alarm() -> Iterator[_Alarm]:
    if threading.current_thread() is not threading.main_thread():
        pytest.skip("signals are handled by the main thread")
    alarm = _Alarm()
    before = signal.signal(signal.SIGALRM, alarm.rings)
    yield alarm
    alarm.off()
    signal.signal(signal.SIGALRM, before)


@pytest.mark.filterwarnings("ignore:.*was deleted while still open", "ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("blow", [Impatient, SoftLimit], ids=lambda blow: blow.__name__)
@pytest.mark.parametrize("where", ["in the run", "around its commit"])
@pytest.mark.parametrize("kind", _KINDS)
def test_a_signal_at_any_moment(
    kind: str, where: str, blow: type[BaseException], database: Database, alarm: _Alarm, tmp_path: Any
) -> None:
    store = embedded(tmp_path / "server") if kind == "embedded" else store_of(kind, database)
    transacts = kind in ("postgres", "embedded")
    tally, chance = Tally(), random.Random(f"{kind} {where} {blow.__name__}")

    def body(connection: Any = None) -> int:
        if where == "around its commit" and armed:
            alarm.set(chance.uniform(1e-5, longest), blow)
        return 1 if connection is None else int(connection.execute("SELECT 1").fetchone()[0])

    def workflow(step: Any, _: Any) -> Any:
        first = step("a", lambda: 1)
        second = step.transaction("t", body) if transacts else step("t", body)
        return [first, second, step("b", lambda: 2)]

    armed, longest = False, 0.0
    began = time.monotonic()
    for n in range(5):
        execute(None, workflow, id=f"warm {n}", store=store)
    longest = (time.monotonic() - began) / 8 * (0.7 if where == "around its commit" else 1.2)
    for n in range(_BLOWS // (2 * len(_KINDS)) if STRIDE == 0 else _BLOWS):
        armed = True
        try:
            try:
                if where == "in the run":
                    alarm.set(chance.uniform(1e-5, longest), blow)
                came = execute(None, workflow, id=f"r{n}", store=store)
            finally:
                alarm.off()
        except BaseException as problem:
            came = problem
        armed = False
        tally.blows += 1
        tally.came[type(came).__name__] += 1
        if isinstance(came, Hangs):
            tally.hangs.append(str(n))
            break
        # It may strike within a verb of the user's own store, whose exceptions are expected there.
        is_the_stores = isinstance(came, durable.StoreError) and f"raised {blow.__name__}" in str(came)
        if came != [1, 1, 2] and not isinstance(came, blow) and not is_the_stores:
            tally.wrong.append(f"{n}: {came!r}")
        _ask(tally, n, store, workflow)
    if kind == "embedded":
        store.close()
    tally.show(f"a signal {where}, {blow.__name__}, {kind}")


class _StruckLock:
    """A connection's lock; its methods do what they are for, and then the signal comes that was waiting for them to return."""

    def __init__(self, lock: Any, at: str, strike: Callable[[], None]) -> None:
        self._lock, self._at, self._strike = lock, at, strike

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._lock, name)

        def struck(*args: Any, **options: Any) -> Any:
            answer = method(*args, **options)
            if name == self._at:
                self._strike()
            return answer

        return struck

    def __enter__(self) -> Any:  # a lock of C's is taken by `with` as by one instruction, and so it is left
        return self._lock.__enter__()

    def __exit__(self, *given: object) -> None:
        self._lock.__exit__(*given)


@pytest.mark.filterwarnings("ignore:.*was deleted while still open", "ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("blow", [Impatient, SoftLimit], ids=lambda blow: blow.__name__)
@pytest.mark.parametrize("at", ["acquire", "release", "locked"])
@pytest.mark.parametrize("under_way", [False, True], ids=["", "a statement is under way"])
def test_a_signal_as_the_connection_is_taken_away(
    at: str, under_way: bool, blow: type[BaseException], database: Database, alarm: _Alarm
) -> None:
    """A handler runs when a call into C returns, and so right after a lock was acquired by one."""
    store, tally, threads = store_of("postgres", database), Tally(), list[threading.Thread]()

    def body(connection: Any) -> int:
        if not armed:
            return 1
        lock = connection.lock
        if under_way:
            threads.append(threading.Thread(target=lambda: connection.execute("SELECT pg_sleep(0.2)")))
            threads[0].start()
            while not lock.locked():
                time.sleep(0.001)
        connection.lock = _StruckLock(lock, at, lambda: alarm.strike(blow))
        return 1

    def workflow(step: Any, _: Any) -> Any:
        return [step("a", lambda: 1), step.transaction("t", body), step("b", lambda: 2)]

    armed = True
    try:
        came = execute(None, workflow, id="r0", store=store)
    except BaseException as problem:
        came = problem
    finally:
        alarm.off()
    armed = False
    for thread in threads:
        thread.join()
    tally.blows += 1
    if isinstance(came, Hangs):
        tally.hangs.append(at)
    elif came != [1, 1, 2] and not isinstance(came, blow):
        tally.wrong.append(f"{at}: {came!r}")
    _ask(tally, 0, store, workflow)
    tally.show(f"a signal after {at}, {blow.__name__}")


def _ask(tally: Tally, n: int, store: Any, workflow: Any) -> None:
    """Does another run work, and is the id free at once? On other threads, which no signal has struck."""
    came: list[Any] = []

    def work() -> None:
        for run_id, fn in (f"another {n}", lambda step, _: step("x", lambda: 1)), (f"r{n}", workflow):
            try:
                came.append(execute(None, fn, id=run_id, store=store))
            except BaseException as problem:
                came.append(problem)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(_PATIENCE)
    if len(came) < 2 or came[0] != 1:
        tally.stores_lost.append(f"{n}: {came}")
    elif isinstance(came[1], durable.ConcurrentExecution):
        tally.leases_kept.append(f"{n}: {came[1]}")
    elif came[1] != [1, 1, 2]:
        tally.wrong.append(f"{n}: again {came[1]!r}")
