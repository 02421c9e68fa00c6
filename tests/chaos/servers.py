"""What a round stands on: a PostgreSQL of its own, or two, that can be broken."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, Final, Protocol

import psycopg
from psycopg.conninfo import make_conninfo

from chaos.effects import Log
from durable.stores._embedded import server
from harness.machine import Machine
from harness.ownership_children import gone, postmaster, remove_server, wait_until

_ROOM: Final = 96  # MiB on the small disk
_BEHIND: Final = 0.5  # seconds, at most, by which an asynchronous standby is behind
_CHUNK: Final = bytes(1 << 16)


class Ground(Protocol):
    """A server, or two of which one is ready to take over. `url` is for workers; `admin` for who must not miss."""

    url: str
    admin: str

    def down(self, how: signal.Signals) -> None:
        """End the server."""

    def up(self) -> None:
        """Have it again."""

    def promote(self, log: Log, chance: random.Random) -> None:
        """Kill the one that takes writes, let the other take over, and give it a standby again."""

    def full(self) -> AbstractContextManager[None]:
        """In here there is no room on the disk."""


class Single:
    """One server."""

    def __init__(self, home: Path) -> None:
        self._home = home
        self.machine = Machine(home)
        self.url = self.admin = self.machine.url

    def down(self, how: signal.Signals) -> None:
        """See `Ground`."""
        kill_server(self._home, how)

    def up(self) -> None:
        """See `Ground`."""
        self.machine.up()

    def promote(self, log: Log, chance: random.Random) -> None:
        """See `Ground`."""
        raise NotImplementedError("there is only one")

    def full(self) -> AbstractContextManager[None]:
        """See `Ground`."""
        raise NotImplementedError("its disk is the machine's")


class Small(Single):
    """One server whose database is on a small disk."""

    def __init__(self, home: Path, disk: Path) -> None:
        super().__init__(home)
        self._disk = disk
        with psycopg.connect(self.url, autocommit=True) as connection:
            connection.execute(f"CREATE TABLESPACE small LOCATION '{disk / 'space'}'".encode())
            connection.execute("CREATE DATABASE small TABLESPACE small TEMPLATE template0")
        self.url = self.admin = make_conninfo(self.url, dbname="small")

    @contextmanager
    def full(self) -> Iterator[None]:
        """See `Ground`."""
        filler = self._disk / "filler"
        try:
            with filler.open("wb", buffering=0) as file:
                try:
                    while True:
                        file.write(_CHUNK)
                except OSError:  # it is full
                    pass
            yield
        finally:
            filler.unlink()


class Pair:
    """A primary and its standby, behind a URL with two hosts."""

    def __init__(self, base: Path, *, synchronous: bool) -> None:
        self._homes = [base / "one", base / "two"]
        self._machines = [Machine(home) for home in self._homes]
        self._synchronous = synchronous
        self._primary = 0
        hosts = ",".join(str(server._socket_directory(home, server._account())) for home in self._homes)
        self.url = make_conninfo(self._machines[0].url, host=hosts)
        self.admin = make_conninfo(self.url, target_session_attrs="read-write")
        self._machines[1].down(signal.SIGINT)
        self._follow()

    def down(self, how: signal.Signals) -> None:
        """See `Ground`."""
        kill_server(self._homes[self._primary], how)

    def up(self) -> None:
        """See `Ground`."""
        self._machines[self._primary].up()

    def full(self) -> AbstractContextManager[None]:
        """See `Ground`."""
        raise NotImplementedError("its disk is the machine's")

    def promote(self, log: Log, chance: random.Random) -> None:
        """See `Ground`."""
        if not self._synchronous:
            self._hold_back(chance.uniform(0, _BEHIND))
        self.down(signal.SIGKILL)
        log.append("primary killed")
        self._primary = 1 - self._primary
        with psycopg.connect(self._machines[self._primary].url, autocommit=True) as connection:
            assert connection.execute("SELECT pg_promote(true, 60)").fetchone() == (True,)
        log.append("promoted", more="a synchronous standby" if self._synchronous else "an asynchronous standby")
        self._follow()

    def _hold_back(self, seconds: float) -> None:
        """Stop what sends to the standby, so that it is behind."""
        with psycopg.connect(self._machines[self._primary].url, autocommit=True) as connection:
            senders = connection.execute("SELECT pid FROM pg_stat_replication").fetchall()
        for (pid,) in senders:
            os.kill(pid, signal.SIGSTOP)
        time.sleep(seconds)

    def _follow(self) -> None:
        """Make the other one a standby, from scratch. Until it follows, nobody waits for it."""
        primary, other = self._machines[self._primary], 1 - self._primary
        home, account = self._homes[other], server._account()
        data = Path(os.path.realpath(home / "data"))
        self._settings("")
        shutil.rmtree(data)
        command: list[str | Path] = [
            server._binaries(self._homes[self._primary] / "data") / "pg_basebackup",
            "-d",
            primary.url,
        ]
        options: list[str | Path] = ["-D", data, "-X", "stream", "-R", "-c", "fast"]
        environment: dict[str, Any] = {"env": server._environment(), "cwd": "/", **account.options}
        subprocess.run([*command, *options], check=True, capture_output=True, **environment)
        self._machines[other].up()
        wait_until(lambda: self._followers("state = 'streaming'"), "the standby to follow")
        if self._synchronous:
            self._settings("*")
            wait_until(lambda: self._followers("sync_state = 'sync'"), "the standby to be synchronous")

    def _settings(self, standbys: str) -> None:
        with psycopg.connect(self._machines[self._primary].url, autocommit=True) as connection:
            connection.execute(f"ALTER SYSTEM SET synchronous_standby_names = '{standbys}'".encode())
            connection.execute("SELECT pg_reload_conf()")

    def _followers(self, condition: str) -> bool:
        with psycopg.connect(self._machines[self._primary].url, autocommit=True) as connection:
            query = f"SELECT count(*) = 1 FROM pg_stat_replication WHERE {condition}".encode()
            return connection.execute(query).fetchone() == (True,)

    def close(self) -> None:
        """Let go of both."""
        for machine in self._machines:
            machine.close()


def kill_server(home: Path, how: signal.Signals) -> None:
    """End a server: by a word to its first process, or, with SIGKILL, every process of it."""
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
        ground.machine.close()
        remove_server(Path(directory) / "durable")


@contextmanager
def small() -> Iterator[Small]:
    """A server with a small disk, which is a mount of its own; `PermissionError` where that may not be made."""
    with tempfile.TemporaryDirectory(prefix="durable-chaos-") as directory, _disk() as disk:
        ground = Small(Path(directory) / "durable", disk)
        yield ground
        ground.machine.close()
        remove_server(Path(directory) / "durable")


@contextmanager
def pair(*, synchronous: bool) -> Iterator[Pair]:
    """Two servers in directories that are removed afterwards."""
    with tempfile.TemporaryDirectory(prefix="durable-chaos-") as directory:
        ground = Pair(Path(directory), synchronous=synchronous)
        yield ground
        ground.close()
        for home in ("one", "two"):
            remove_server(Path(directory) / home)


@contextmanager
def _disk() -> Iterator[Path]:
    disk = Path(tempfile.mkdtemp(prefix="durable-disk-", dir="/var/tmp"))
    command = ["mount", "-t", "tmpfs", "-o", f"size={_ROOM}m,mode=0711", "tmpfs", str(disk)]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode:
        disk.rmdir()
        raise PermissionError(done.stderr.strip())
    try:
        (disk / "space").mkdir()
        server._account().take(disk / "space")
        yield disk
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)
        disk.rmdir()
