"""The supervisor of an embedded PostgreSQL: ends the server when its last user has gone.

Run as a program of its own, with nothing but the standard library:
`python supervisor.py FIFO_FD ALIVE_FD LOCK_FILE UID GID POSTGRES ARGUMENTS…` (UID −1: the caller's). The users of the
server hold the FIFO open for writing; the kernel closes it for them however they end. When the last writer is gone,
POLLHUP comes. ALIVE_FD is the writing end of a pipe and says, by staying open, that the supervisor lives. It is
no user's child, so that no user of the server has to wait for it.
"""

import fcntl
import os
import select
import signal
import subprocess
import sys

_POLL = 500  # milliseconds between looks at whether the server still runs


def main(fifo: int, lock: str, uid: int, gid: int, command: list[str]) -> None:
    """Start the server, and stay until it or its last user is gone."""
    if os.fork():
        os._exit(0)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):  # a Ctrl-C in the user's terminal is not for us
        signal.signal(number, signal.SIG_IGN)
    as_user = {} if uid < 0 else {"user": uid, "group": gid, "extra_groups": ()}
    server = subprocess.Popen(command, stdin=subprocess.DEVNULL, **as_user)  # type: ignore[call-overload] # noqa: S603
    users = select.poll()
    users.register(fifo, select.POLLIN)
    try:
        while server.poll() is None:
            if _is_abandoned(users.poll(_POLL)):
                # Newcomers join under this lock. If its file is gone, so is the directory, and none can join.
                with open(lock, "r+b") as file:  # noqa: PTH123
                    fcntl.flock(file, fcntl.LOCK_EX)
                    if _is_abandoned(users.poll(0)):
                        _stop(server)
    finally:
        _stop(server)


def _stop(server: "subprocess.Popen[bytes]") -> None:
    if server.poll() is None:
        server.send_signal(signal.SIGINT)  # fast shutdown: no user is left to wait for
        server.wait()


def _is_abandoned(events: list[tuple[int, int]]) -> bool:
    return any(event & select.POLLHUP for _, event in events)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[3], int(sys.argv[4]), int(sys.argv[5]), sys.argv[6:])
