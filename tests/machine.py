"""A PostgreSQL server of a test's own, which can be brought down and up again."""

from __future__ import annotations

import os
import signal
from pathlib import Path

from durable.errors import ServerNotStarted
from durable.stores._postgres.server import Server
from ownership_children import gone, postmaster, wait_until


class Machine:
    """A server that can be brought down and up again."""

    def __init__(self, home: Path) -> None:
        self._home = home
        self._servers = [Server(home)]
        self.url = self._servers[0].url

    def down(self, how: signal.Signals) -> None:
        """End it: fast (SIGINT), immediately (SIGQUIT), or without a word (SIGKILL)."""
        pid = postmaster(self._home)
        assert pid is not None
        os.kill(pid, how)
        wait_until(lambda: gone(pid), "the server to end")

    def up(self) -> None:
        """Start it again; what is left of a killed one may stand in the way for a moment."""
        refusals: list[ServerNotStarted] = []

        def started() -> bool:
            try:
                self._servers.append(Server(self._home))
            except ServerNotStarted as refusal:
                refusals.append(refusal)
                return False
            return True

        wait_until(started, f"the server to start again {refusals[-1:]}")
        assert self._servers[-1].url == self.url

    def ensure_up(self) -> None:
        """Start it if a test has left it down."""
        pid = postmaster(self._home)
        if pid is None or gone(pid):
            self.up()

    def close(self) -> None:
        """Let go of it."""
        for server in self._servers:
            server.close()
