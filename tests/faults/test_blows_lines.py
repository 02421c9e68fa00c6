"""FAULTS 173: an exception at every line of the library that a blocking run executes, as a signal handler may raise it anywhere."""

# pyright: reportUnknownLambdaType=false, reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# (`execute` takes workflows of either colour, as Any.)

from __future__ import annotations

import asyncio
import contextlib
import gc
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import durable
from harness.blows import HANGS, KINDS, Tally, places, store_of, within
from harness.support import Database

execute: Any = durable.run  # in either colour

_SOURCE = str(Path(durable.__file__).parent)
_WAITING = str(Path(_SOURCE, "_runtime", "shielded.py"))  # what every async run waits by for its replies
_RESULT = [1, 2, [3, 4]]


class SoftLimit(Exception):
    """What a handler raises that is meant for `except Exception`."""


class _Strike:
    """A trace function that raises at the n-th line of the library's, or of a part of it."""

    def __init__(self, n: int, blow: type[BaseException], source: str) -> None:
        self._left = n
        self._source = source
        self._blow = blow
        self.where = ""
        self.is_entry = False  # of a function: before its first line

    def __call__(self, frame: Any, _event: str, _: Any) -> Any:
        return self._line if frame.f_code.co_filename.startswith(self._source) else None

    def _line(self, frame: Any, event: str, _: Any) -> Any:
        if event == "line":
            self._left -= 1
            if not self._left:
                sys.settrace(None)
                code = frame.f_code
                lines = [line for _, _, line in code.co_lines() if line is not None and line > code.co_firstlineno]
                self.is_entry = frame.f_lineno == min(lines, default=0)
                self.where = f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno} {frame.f_code.co_name}"
                raise self._blow
        return self._line


def _struck(
    stride: int, blow: type[BaseException], call: Callable[[int], Any], source: str = _SOURCE
) -> Iterator[tuple[int, _Strike, Any]]:
    """What `call(n)` comes to with a blow at its n-th line, for each n of the stride until it has no such line."""

    def traced(n: int, strike: _Strike) -> Any:
        sys.settrace(strike)
        try:
            return call(n)
        except BaseException as problem:
            return problem
        finally:
            sys.settrace(None)

    for n in places(stride):
        strike = _Strike(n, blow, source)
        came = within(lambda n=n, strike=strike: traced(n, strike))
        if not strike.where:
            return
        yield n, strike, came


def _body(connection: Any) -> int:
    return int(connection.execute("SELECT 1").fetchone()[0])


def _workflow(step: Any, transacts: bool) -> list[Any]:
    first = step("a", lambda: 1)
    with contextlib.suppress(ZeroDivisionError):
        step("fails", lambda: 1 / 0)
    if transacts:
        step.transaction("t", _body)
    step.sleep("s", 0.001)
    return [first, step("b", lambda: 2), step.map("m", int, [3, 4], max_concurrency=1)]


@pytest.mark.filterwarnings("ignore:.*was deleted while still open", "ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("blow", [KeyboardInterrupt, SoftLimit], ids=lambda blow: blow.__name__)
@pytest.mark.parametrize("kind", KINDS)
def test_an_exception_at_every_line(kind: str, blow: type[BaseException], database: Database) -> None:
    """It comes out of `run` as itself, or the run had come to its end."""
    tally, store, transacts = Tally(), store_of(kind, database), kind == "postgres"

    def workflow(step: Any, _: Any) -> Any:
        return _workflow(step, transacts)

    execute(None, workflow, id="warm", store=store)
    for n, strike, came in _struck(31, blow, lambda n: execute(None, workflow, id=f"r{n}", store=store)):
        at = f"{n} {strike.where}"
        tally.blows += 1
        tally.came[type(came).__name__] += 1
        if came == HANGS:
            tally.hangs.append(at)
        elif not isinstance(came, blow) and came != _RESULT and not _is_guarded(came, strike.where):
            tally.wrong.append(f"{at}: {came!r}")
        asked(tally, at, store, workflow, f"r{n}", _RESULT)
    gc.collect()  # a connection that was being handed over is closed with its last reference
    tally.show(f"{blow.__name__} at every line, {kind}")


def _is_guarded(came: Any, where: str) -> bool:
    """Whether this struck around code of the user's, whose exceptions are expected there: a failure's text, a store's verb."""
    if where.startswith(
        ("_failures.py", "_exceptions.py", "_names.py", "_json.py", "_encoder.py", "_decoder.py", "events.py")
    ):
        return isinstance(came, durable.DurableError)
    return isinstance(came, durable.StoreError) and "raised SoftLimit" in str(came)


@pytest.mark.filterwarnings("ignore:.*was deleted while still open", "ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("stride", "source"), [(37, _SOURCE), (1, _WAITING)], ids=["all", "where it waits"])
def test_an_exception_at_every_line_of_an_async_run(kind: str, stride: int, source: str, database: Database) -> None:
    """On the event loop's thread. The run ends, and so does another; what is not known is said to be unknown."""
    tally, store, transacts = Tally(), store_of(kind, database), kind == "postgres"

    async def workflow(step: Any, _: Any) -> Any:
        first = await step("a", lambda: 1)
        second = await step.transaction("t", _body) if transacts else 1
        return [first, second, await step("b", lambda: 2)]

    def run(n: object) -> Any:
        return asyncio.run(execute(None, workflow, id=f"r{n}", store=store))

    run("warm")
    for n, strike, came in _struck(stride, SoftLimit, run, source):
        at = f"{n} {strike.where}"
        if strike.is_entry and strike.where.endswith((" _resolve", " pass_on")):
            continue  # the loop has called it and it has not begun: nothing of ours runs that could see to it
        tally.blows += 1
        tally.came[type(came).__name__] += 1
        if came == HANGS:
            tally.hangs.append(at)
        elif not isinstance(came, SoftLimit | durable.StoreError) and came != [1, 1, 2]:
            tally.wrong.append(f"{at}: {came!r}")
        another = within(
            lambda n=n: execute(None, lambda step, _: step("x", lambda: 1), id=f"another {n}", store=store)
        )
        if another != 1:
            tally.stores_lost.append(f"{at}: {another!r}")
    gc.collect()
    tally.show(f"SoftLimit at every line of an async run, {kind}")


def asked(tally: Tally, at: str, store: Any, workflow: Any, id: str, result: Any) -> None:
    """Does another run work, and is the id free at once?"""
    another = within(lambda: execute(None, lambda step, _: step("x", lambda: 1), id=f"another {at}", store=store))
    if another != 1:
        tally.stores_lost.append(f"{at}: {another!r}")
    again = within(lambda: execute(None, workflow, id=id, store=store))
    if isinstance(again, durable.ConcurrentExecution):
        tally.leases_kept.append(f"{at}: {again!r}")
    elif again != result:
        tally.wrong.append(f"{at}: again {again!r}")
