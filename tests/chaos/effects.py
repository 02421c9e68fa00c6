"""The log of effects: one append for each line, whole whoever else writes, in the order in which things happened."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import NamedTuple

import msgspec


class Line(NamedTuple):
    """What a process did or was told. `at` is in seconds, of the machine's clock that all processes share."""

    at: float
    pid: int
    word: str
    run: str = ""
    epoch: int = 0
    key: str = ""
    more: str = ""


class Log:
    """A hold on the file."""

    def __init__(self, path: str | Path) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)

    def append(self, word: str, run: str = "", epoch: int = 0, key: str = "", more: str = "", *, pid: int = 0) -> None:
        """Write a line, of this process or of another one that something was done to."""
        line = Line(time.monotonic(), pid or os.getpid(), word, run, epoch, key, more)
        os.write(self._file, msgspec.json.encode(line) + b"\n")

    def close(self) -> None:
        """Let go of it."""
        os.close(self._file)


def lines(path: str | Path) -> list[Line]:
    """The whole log, in order."""
    return [msgspec.json.decode(text, type=Line) for text in Path(path).read_bytes().splitlines()]
