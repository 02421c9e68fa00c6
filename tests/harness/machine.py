"""A PostgreSQL server of a test's own, which can be brought down and up again."""

from __future__ import annotations

import contextlib
import fcntl
import functools
import os
import shutil
import signal
import subprocess
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from durable.errors import ServerNotStarted
from durable.stores._embedded import server
from durable.stores._embedded.server import Server
from harness.ownership_children import gone, postmaster, remove_server, wait_until

_ROOT: Final = Path(__file__).resolve().parents[2]
_SEEDS: Final = _ROOT / ".durable-seeds"
_MEMORY: Final = Path("/dev/shm")
_ROOM: Final = 2 << 30  # bytes: PostgreSQL keeps up to 1 GB of WAL, and a session's schemas take a third of one


@contextlib.contextmanager
def shared_home() -> Iterator[Path]:
    """The directory of the server that the test workers share: in memory where there is room, else beside the sources.

    A commit costs a third less there, and waits for no disk. What the tests see is the same: the server has `fsync=on`, and
    what is not flushed is lost with a killed server as ever. Only the machine's power failing would show the
    difference. The last process to leave removes it.
    """
    if not _has_room():
        yield _ROOT / ".durable-tests"
        return
    home = _MEMORY / f"durable-tests-{os.getuid()}-{zlib.crc32(bytes(_ROOT)):08x}"
    _SEEDS.mkdir(exist_ok=True)
    with (_SEEDS / "in use").open("ab") as lock:
        fcntl.flock(lock, fcntl.LOCK_SH)
        yield prepared(home)
        with contextlib.suppress(BlockingIOError):  # another process uses it
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            remove_server(home)
            shutil.rmtree(home)


def _has_room() -> bool:
    try:
        available = int(Path("/proc/meminfo").read_text().partition("MemAvailable:")[2].split()[0]) << 10
        return min(available, shutil.disk_usage(_MEMORY).free) > _ROOM
    except (OSError, IndexError):
        return False


def prepared(home: Path) -> Path:
    """A directory for a server, in which its data are there already: a copy costs an eighth of the initdb that it stands for."""
    home.mkdir(parents=True, exist_ok=True)
    with server._lock(home / "lock"):
        data = server._data_directory(home, server._account())
        if not data.exists():
            fresh = data.with_name("data.new")
            shutil.rmtree(fresh, ignore_errors=True)
            subprocess.run(["cp", "-a", _seed(), fresh], check=True)
            fresh.rename(data)
    return home


@functools.cache
def _seed() -> Path:
    """What initdb makes, once for all sessions."""
    binaries = server._binaries(_SEEDS)
    base = _SEEDS / server._version(binaries)
    base.mkdir(parents=True, exist_ok=True)
    with server._lock(base / "lock"):
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
