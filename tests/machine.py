"""A PostgreSQL server of a test's own, which can be brought down and up again."""

from __future__ import annotations

import functools
import os
import signal
import subprocess
from pathlib import Path
from typing import Final

from durable.errors import ServerNotStarted
from durable.stores._postgres import server
from durable.stores._postgres.server import Server
from ownership_children import gone, postmaster, wait_until

_SEEDS: Final = Path(__file__).resolve().parent.parent / ".durable-seeds"


def prepared(home: Path) -> Path:
    """A directory for a server, in which its data are there already: a copy costs an eighth of the initdb that it stands for."""
    home.mkdir(parents=True, exist_ok=True)
    data = server._data_directory(home, server._account())
    if not (data / "PG_VERSION").exists():
        subprocess.run(["cp", "-a", _seed(), data], check=True)
    return home


@functools.cache
def _seed() -> Path:
    """What initdb makes, once for all sessions."""
    binaries = server._binaries(_SEEDS)
    base = _SEEDS / server._version(binaries)
    base.mkdir(parents=True, exist_ok=True)
    with server._locked(base / "lock"):
        account = server._account()
        data = server._data_directory(base, account)
        if not (data / "PG_VERSION").exists():
            server._initialise(binaries, data, account)
    return data


class Machine:
    """A server that can be brought down and up again."""

    def __init__(self, home: Path, *settings: str) -> None:
        self._home = home
        with (prepared(home) / "data" / "postgresql.auto.conf").open("a") as file:
            file.writelines(f"{setting}\n" for setting in settings)
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
        for each in self._servers:
            each.close()
