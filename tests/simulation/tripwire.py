"""Wires over what a simulated world may not touch: the machine's clocks, chance, sockets, threads and timed waits.

The simulation answers what the product asks of these by giving other meanings to names of some of its functions
(`threads.rebound`). A name that moves, or is kept under another, would be the machine's again, and nothing would
tell: the history would be as fine as before, and no simulation any more. So, while a world is `watched`, such a call
raises `Touched` when it comes from `durable`, and the world is broken even if that was swallowed.

Names cannot be compared for this: what is called may be kept as an alias, a default, an attribute of a class, in a
partial. The wires are laid in the standard library instead, before `durable` is imported, so that whatever it keeps
is a wire already. Where `durable` was imported first, as in a process of pytest, nothing is laid: `is_laid` says so,
and what must be watched is begun in a process of its own.

There is no place for a wire in the constructors of `datetime`, whose type must stay what it is: a test reads the
source for them.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import os
import queue
import random
import secrets
import socket
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, Final, cast

import psycopg

__all__ = ["Touched", "is_laid", "watched"]

_PRODUCT: Final = "durable"
# A call that comes through these is that of whoever called them. One through `logging`, for example, is its own affair.
_THROUGH: Final = frozenset(
    {"asyncio", "concurrent", "queue", "random", "secrets", "socket", "threading", "uuid", __name__}
)

_CLOCK: Final = ("clock_gettime", "monotonic", "perf_counter", "time")  # each of them in nanoseconds, too
_SECRETS: Final = ("choice", "randbelow", "randbits", "token_bytes", "token_hex", "token_urlsafe")


class Touched(AssertionError):
    """The product has called the machine's own in a simulated world."""


class _Worlds:
    """What was touched in the world that is watched; None while there is none."""

    touched: list[str] | None = None


@contextmanager
def watched() -> Iterator[list[str]]:
    """Raise `Touched` at such calls from now on. They are in the list, too: somebody may have caught what was raised."""
    touched: list[str] = []
    before, _Worlds.touched = _Worlds.touched, touched
    try:
        yield touched
    finally:
        _Worlds.touched = before


def _look(what: str) -> None:
    if _Worlds.touched is None:
        return
    here = inspect.currentframe()
    frame: FrameType | None = here and here.f_back
    while frame is not None:
        module = _module(frame)
        if module.partition(".")[0] == _PRODUCT:
            where = f"{module}.{frame.f_code.co_qualname}, line {frame.f_lineno}, calls {what}"
            _Worlds.touched.append(where)
            raise Touched(where)
        if module != __name__ and module.partition(".")[0] not in _THROUGH:
            return
        frame = frame.f_back


def _module(frame: FrameType) -> str:
    return str(frame.f_globals.get("__name__", ""))


class _Wire:
    """A wire over a builtin: like that, it stays unbound as an attribute of a class."""

    def __init__(self, name: str, real: Callable[..., Any]) -> None:
        self._name = name
        self._real = real
        functools.update_wrapper(self, real)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        _look(self._name)
        return self._real(*args, **kwargs)


def _wire(name: str, real: Any) -> Any:
    if isinstance(real, classmethod):
        return classmethod(_wire(name, cast(Any, real).__func__))
    if not inspect.isfunction(real):
        return _Wire(name, real)

    @functools.wraps(real)
    def wired(*args: Any, **kwargs: Any) -> Any:
        _look(name)
        return real(*args, **kwargs)

    return wired


def _lay(owner: Any, *names: str) -> None:
    for name in names:
        real = cast(dict[str, Any], vars(owner)).get(name)
        if real is not None:  # not every system has each
            setattr(owner, name, _wire(f"{owner.__name__}.{name}", real))


def _slept(real: Any) -> Any:
    """`asyncio.sleep(0)` lets others go on, and takes no time."""

    @functools.wraps(real)
    def sleep(delay: float, *args: Any, **kwargs: Any) -> Any:
        if delay > 0:
            _look("asyncio.sleep")
        return real(delay, *args, **kwargs)

    return sleep


class _Lock:
    """A lock of which it is seen when somebody waits for it for a time."""

    def __init__(self, name: str, real: Any) -> None:
        self._name = name
        self._real = real

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
        if timeout >= 0:
            _look(f"{self._name}.acquire")
        return bool(self._real.acquire(blocking, timeout))

    def __enter__(self) -> bool:
        return bool(self._real.acquire())

    def __exit__(self, *_: object) -> None:
        self._real.release()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)


class _SimpleQueue(queue.SimpleQueue[Any]):
    """A queue of which it is seen when somebody waits for it."""

    def get(self, block: bool = True, timeout: float | None = None) -> Any:
        if block:
            _look("SimpleQueue.get")
        return super().get(block, timeout)


def _locks(name: str, real: Callable[..., Any]) -> Callable[..., Any]:
    def made() -> Any:
        here = inspect.currentframe()
        caller = here and here.f_back
        ours = caller is not None and _module(caller).partition(".")[0] == _PRODUCT
        return _Lock(name, real()) if ours else real()

    return made


def _lay_all() -> None:
    _lay(time, "sleep", *_CLOCK, *(f"{name}_ns" for name in _CLOCK))
    _lay(os, "urandom", "getrandom")
    _lay(random, "_urandom", *(name for name in random.__all__ if not inspect.isclass(getattr(random, name))))
    _lay(secrets, *_SECRETS)
    _lay(uuid, "uuid1", "uuid4")
    _lay(socket, "create_connection", "getaddrinfo")
    _lay(socket.socket, "__init__")
    _lay(psycopg, "connect")
    _lay(psycopg.Connection, "connect")
    _lay(threading.Thread, "start", "join")
    _lay(threading.Condition, "wait")
    asyncio.sleep = asyncio.tasks.sleep = _slept(asyncio.sleep)
    threading.Lock = _locks("Lock", threading.Lock)  # type: ignore[assignment,misc,unused-ignore]
    threading.RLock = _locks("RLock", threading.RLock)  # type: ignore[assignment,misc,unused-ignore]
    queue.SimpleQueue = _SimpleQueue  # type: ignore[misc]


is_laid: Final = _PRODUCT not in sys.modules
if is_laid:
    _lay_all()
