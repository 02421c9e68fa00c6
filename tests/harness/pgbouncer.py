"""A real PgBouncer in front of a test's database.

It comes from Debian's packages (`apt-get install pgbouncer`), which `.ci/run` installs. Nothing here fetches anything: where
it is not, `support.needs_pgbouncer` skips the tests, and says so.
"""

from __future__ import annotations

import os
import pwd
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from harness.ownership_children import wait_until

SERVERS: Final = 3  # connections to the database that all clients share
_PORT: Final = 6432  # of a local socket: only a name in a directory of our own


@dataclass(frozen=True)
class Bouncer:
    """One that runs. `url` leads through it to the database `behind`."""

    url: str
    behind: str

    @contextmanager
    def held(self) -> Iterator[Sessions]:
        """All its connections to the database are busy in here, but for the one that is let go."""
        with ExitStack() as stack:
            clients = [
                stack.enter_context(psycopg.connect(self.url, autocommit=True, prepare_threshold=None))
                for _ in range(SERVERS)
            ]
            for client in clients:
                client.execute("BEGIN")
            yield Sessions(clients)


class Sessions:
    """What is behind a `Bouncer`, when all of it is held."""

    def __init__(self, clients: list[psycopg.Connection[Any]]) -> None:
        self._clients = clients

    @contextmanager
    def only(self, number: int) -> Iterator[None]:
        """This one is free, so that everybody gets this one."""
        client = self._clients[number]
        client.execute("COMMIT")
        yield
        client.execute("BEGIN")  # on the only one that can be had: the same


def program() -> str | None:
    """Where PgBouncer is, or None: it must be installed."""
    return shutil.which("pgbouncer", path=os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/usr/local/sbin"]))


def version() -> tuple[int, int]:
    """Which PgBouncer this is."""
    path = program()
    assert path is not None
    said = subprocess.run([path, "-V"], capture_output=True, text=True, check=True).stdout
    found = re.search(r"(\d+)\.(\d+)", said)
    assert found is not None, said
    return int(found[1]), int(found[2])


@contextmanager
def bouncer(behind: str, *, mode: str = "transaction", keeps: int = 0, servers: int = SERVERS) -> Iterator[Bouncer]:
    """Start one in front of the database `behind`, whose sessions it hands out in turns.

    `keeps`: how many prepared statements it keeps for its clients, which it can since 1.21; `servers`: its connections.
    """
    path = program()
    assert path is not None
    parts = {key: str(value) for key, value in conninfo_to_dict(behind).items()}
    with tempfile.TemporaryDirectory(prefix="bouncer-", dir="/tmp") as directory:
        settings = {
            "listen_addr": "",
            "unix_socket_dir": directory,
            "listen_port": _PORT,
            "auth_type": "any",
            "pool_mode": mode,
            "default_pool_size": servers,
            "server_round_robin": 1,
            "max_client_conn": 200,
            "logfile": f"{directory}/log",
        }
        if version() >= (1, 21):
            settings["max_prepared_statements"] = keeps
        target = " ".join(
            f"{key}={parts[key]}" for key in ("host", "port", "user", "password", "dbname") if key in parts
        )
        lines = ["[databases]", f"behind = {target}", "[pgbouncer]", *(f"{key} = {settings[key]}" for key in settings)]
        ini = Path(directory, "pgbouncer.ini")
        ini.write_text("\n".join(lines) + "\n", encoding="utf-8")
        url = make_conninfo(host=directory, port=_PORT, dbname="behind", user=parts.get("user", "postgres"))
        process = subprocess.Popen([path, "--quiet", str(ini)], **_account(Path(directory), ini))
        try:
            wait_until(lambda: _answers(process, url), "PgBouncer to answer")
            started = Bouncer(url, behind)
            if mode == "transaction":
                with started.held():  # from here on there are several sessions to mix up
                    pass
            yield started
        finally:
            process.terminate()
            process.wait()


def _account(*paths: Path) -> dict[str, Any]:
    """It refuses to be root."""
    if os.geteuid() != 0:
        return {}
    nobody = pwd.getpwnam("nobody")
    for path in paths:
        os.chown(path, nobody.pw_uid, nobody.pw_gid)
    return {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": ()}


def _answers(process: subprocess.Popen[bytes], url: str) -> bool:
    assert process.poll() is None, "PgBouncer ended at once"
    try:
        psycopg.connect(url, autocommit=True).close()
    except psycopg.OperationalError:
        return False
    return True
