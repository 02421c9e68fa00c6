"""Leaks, planted in a resident before it begins, which an hour of it must show."""

from __future__ import annotations

import asyncio
import itertools
import os
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import psycopg

_KEPT: Final[list[Any]] = []
_PARCEL: Final = 4096  # bytes
_SELDOM: Final = 10  # runs
_CONNECTIONS: Final = 30  # at most: the server has room for a hundred


@dataclass(frozen=True)
class Leak:
    """What is done for each short run, whether what is old is deleted, and what the verdict must be about."""

    at_run: Callable[[], object]
    shows: str
    purges: bool = True


def leak(name: str, url: str) -> Leak:
    """This one; none if it has no name."""
    return LEAKS[name](url) if name else Leak(lambda: None, "")


def _connection(url: str) -> Leak:
    def opened() -> None:
        if len(_KEPT) < _CONNECTIONS:
            _KEPT.append(psycopg.connect(url, application_name="resident"))

    return Leak(opened, "connections")


def _thread(url: str) -> Leak:
    return Leak(_seldom(lambda: threading.Thread(target=threading.Event().wait, daemon=True).start()), "threads")


def _task(url: str) -> Leak:
    return Leak(_seldom(lambda: _KEPT.append(asyncio.ensure_future(asyncio.Event().wait()))), "tasks")


def _file(url: str) -> Leak:
    return Leak(_seldom(lambda: _KEPT.append(os.open(os.devnull, os.O_RDONLY))), "file descriptors")


def _list(url: str) -> Leak:
    return Leak(lambda: _KEPT.append(bytearray(_PARCEL)), "resident set")


def _seldom(what: Callable[[], object]) -> Callable[[], None]:
    numbers = itertools.count(1)

    def at_run() -> None:
        if next(numbers) % _SELDOM == 0:
            what()

    return at_run


def _purge(url: str) -> Leak:
    return Leak(lambda: None, "rows left", purges=False)


LEAKS: Final[dict[str, Callable[[str], Leak]]] = {
    "a connection a run": _connection,
    "a thread every ten runs": _thread,
    "a task every ten runs": _task,
    "a file every ten runs": _file,
    "a list that grows": _list,
    "no purge": _purge,
}
