"""Leaks, planted in a resident before it begins, which an hour of it must show."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import psycopg

_KEPT: Final[list[Any]] = []
_PARCEL: Final = 4096  # bytes


@dataclass(frozen=True)
class Leak:
    """What is done for each short run, and whether what is old is deleted."""

    at_run: Callable[[], object]
    purges: bool = True


def leak(name: str, url: str) -> Leak:
    """This one; none if it has no name."""
    return LEAKS[name](url) if name else Leak(lambda: None)


def _connection(url: str) -> Leak:
    return Leak(lambda: _KEPT.append(psycopg.connect(url, application_name="resident")))


def _thread(url: str) -> Leak:
    return Leak(lambda: threading.Thread(target=threading.Event().wait, daemon=True).start())


def _task(url: str) -> Leak:
    return Leak(lambda: _KEPT.append(asyncio.ensure_future(asyncio.Event().wait())))


def _file(url: str) -> Leak:
    return Leak(lambda: _KEPT.append(os.open(os.devnull, os.O_RDONLY)))


def _list(url: str) -> Leak:
    return Leak(lambda: _KEPT.append(bytearray(_PARCEL)))


def _purge(url: str) -> Leak:
    return Leak(lambda: None, purges=False)


LEAKS: Final[dict[str, Callable[[str], Leak]]] = {
    "a connection a run": _connection,
    "a thread a run": _thread,
    "a task a run": _task,
    "a file a run": _file,
    "a list that grows": _list,
    "no purge": _purge,
}
