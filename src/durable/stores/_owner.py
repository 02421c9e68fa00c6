"""Whether the owner of a lease is dead, for a claimer on the same machine.

An owner holds an `flock` on a file of its own, whose path stands in the lease. The kernel drops the lock when the process
is gone, however it ended. A claimer that opens that very file (made under this boot, naming the lease's token) and gets
the lock knows that the owner is dead. Anything else proves nothing, and the lease is waited for. Looking for a process id
instead could take a live lease, since ids are per namespace and a zombie's threads may live.
"""

from __future__ import annotations

import contextlib
import fcntl
import mmap
import os
import secrets
import socket
import tempfile
import time
from pathlib import Path
from typing import Final

_BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")
HOST: Final = f"{socket.gethostname()}:"  # the owners of this machine begin with it
# In seconds: a dead owner's file proves its death, which is not asked about much later.
_KEEP_STALE: Final = 7 * 24 * 3600.0
_SWEEP_EVERY: Final = 24 * 3600.0  # seconds: looking at each file at each start would cost more than the start


class Owner:
    """This process as an owner of leases, until it is closed or ends."""

    def __init__(self) -> None:
        self.instance = secrets.token_hex(8)
        self._path: Path | None = None
        self._lock: int | None = None
        self._kept: mmap.mmap | None = None
        with contextlib.suppress(OSError):  # without the file a restart waits for the lease, which is always safe
            self._make_file()
        # For the lease: its owner, and where the proof lies.
        self.text = f"{this_process()} {self._path or ''}".rstrip()

    def close(self) -> None:
        """Remove the file: leases that are still held end by themselves."""
        path, lock, kept = self._path, self._lock, self._kept
        self._path = self._lock = self._kept = None  # first: a signal handler may close it as well
        if path is not None and lock is not None:
            with contextlib.suppress(OSError):
                path.unlink()
            if _locks.pop(lock, None) == _identity(lock):
                if kept is not None:
                    kept.close()
                os.close(lock)
            else:  # closed elsewhere, and perhaps of another file by now, as the mapping's own may be: left alone
                _lost.append(kept)

    def _make_file(self) -> None:
        content = _content(self.instance)
        directory = _directory()
        _sweep(directory)
        path = directory / f"{self.instance}.owner"
        lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.write(lock, content)
        # A lock lasts as long as anything refers to the open file. Other code may close its descriptor (`os.closerange`, or a
        # second `close` of the same number), but not a mapping.
        if (not_in_children := getattr(mmap, "MADV_DONTFORK", None)) is not None:
            self._kept = mmap.mmap(lock, len(content), prot=mmap.PROT_READ)
            self._kept.madvise(not_in_children)
        self._path, self._lock = path, lock
        _locks[lock] = _identity(lock)


def this_process() -> str:
    """This process by host and process id: a run's header names its executor so."""
    return f"{HOST}{os.getpid()}"


_locks: Final[dict[int, tuple[int, int] | None]] = {}  # descriptors, each with its file
_lost: Final[list[object]] = []


def _identity(descriptor: int) -> tuple[int, int] | None:
    """The file of this descriptor, by device and inode."""
    try:
        status = os.fstat(descriptor)
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _let_go() -> None:
    """In a forked child: let go of the parent's locks, which must not outlive the parent. Its mappings are not inherited."""
    while _locks:
        lock, file = _locks.popitem()
        if file == _identity(lock):
            with contextlib.suppress(OSError):
                os.close(lock)


os.register_at_fork(after_in_child=_let_go)


def is_dead(owner: str | None, token: str | None) -> bool:
    """Whether this owner of a lease with this token is proven dead."""
    _, _, path = (owner or "").partition(" ")
    instance = (token or "").partition(":")[2].partition(".")[0]
    if not path or not instance:
        return False
    try:
        file = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return False
    try:
        if os.read(file, 256) != _content(instance):
            return False
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)  # shared: claimers must not take each other for the owner
    except OSError:
        return False
    finally:
        os.close(file)
    return True


def _content(instance: str) -> bytes:
    return _BOOT_ID.read_bytes() + instance.encode() + b"\n"


def _directory() -> Path:
    """A directory that only this user can write to."""
    base = os.environ.get("XDG_RUNTIME_DIR") or tempfile.gettempdir()
    directory = Path(base) / f"durable-{os.getuid()}"
    directory.mkdir(mode=0o700, exist_ok=True)
    status = directory.lstat()
    if status.st_uid != os.getuid() or status.st_mode & 0o077 or not directory.is_dir():
        raise PermissionError(directory)
    return directory


def _sweep(directory: Path) -> None:
    now, last = time.time(), directory / "swept"
    with contextlib.suppress(FileNotFoundError):
        if abs(now - last.stat().st_mtime) < _SWEEP_EVERY:  # `abs`: setting the clock back does not put it off
            return
    last.touch(0o600)
    oldest = now - _KEEP_STALE
    for file in directory.glob("*.owner"):
        with contextlib.suppress(OSError):
            if file.stat().st_mtime < oldest and _is_unlocked(file):
                file.unlink()


def _is_unlocked(file: Path) -> bool:
    descriptor = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        return True
    except OSError:
        return False
    finally:
        os.close(descriptor)
