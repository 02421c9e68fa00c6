"""What a round stands on: a PostgreSQL of its own that can be broken."""

from __future__ import annotations

import os
import signal
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from chaos.effects import Log
from machine import Machine
from ownership_children import gone, postmaster, remove_server, wait_until


class Ground(Protocol):
    """One server, or two of which one is ready to take over. `url` leads to whichever takes writes."""

    url: str

    def down(self, how: signal.Signals) -> None:
        """End the server."""

    def up(self) -> None:
        """Have it again."""

    def promote(self, log: Log) -> None:
        """Kill the one that takes writes, and let the other take over."""

    def full(self) -> object:
        """A context without room on the disk."""


class Single:
    """One server."""

    def __init__(self, home: Path) -> None:
        self._home = home
        self._machine = Machine(home)
        self.url = self._machine.url

    def down(self, how: signal.Signals) -> None:
        """See `Ground`. SIGKILL is for every process of it."""
        kill_server(self._home, how)

    def up(self) -> None:
        """See `Ground`."""
        self._machine.up()

    def promote(self, log: Log) -> None:
        raise NotImplementedError("there is only one")

    def full(self) -> object:
        raise NotImplementedError("its disk is the machine's")

    def close(self) -> None:
        """Let go of it."""
        self._machine.close()


def kill_server(home: Path, how: signal.Signals) -> None:
    """End a server: by a word to its first process, or without one to all."""
    pid = postmaster(home)
    assert pid is not None
    all_of_them = [pid]
    if how == signal.SIGKILL:
        all_of_them += [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text("ascii").split()]
    for each in all_of_them:
        try:
            os.kill(each, how)
        except ProcessLookupError:  # a backend that has just ended
            continue
    wait_until(lambda: all(gone(each) for each in all_of_them), "the server to end")


@contextmanager
def single() -> Iterator[Single]:
    """A server in a directory that is removed afterwards."""
    with tempfile.TemporaryDirectory(prefix="durable-chaos-") as directory:
        ground = Single(Path(directory) / "durable")
        yield ground
        ground.close()
        remove_server(Path(directory) / "durable")
