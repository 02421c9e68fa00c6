"""The processes of one command: a signal to this one is handed on to all, and one that dies is started again."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from types import FrameType
from typing import Final

FIRST_PAUSE: Final = 0.5  # seconds between a death and the next start, doubled for each further death in a row
MAX_PAUSE: Final = 30.0
_STEADY: Final = 60.0  # seconds of life after which a death is the first one again
_HURRY: Final = 5.0  # seconds that the processes have after the second signal, until they are killed


class Processes:
    """`count` processes of `command`, until a signal ends them.

    Each gets a socket, by the option `--lifeline`, on which it says that it has begun, and which ends when this process does.
    One that exits with the status `mistake` ends all: another try would come to the same.
    """

    def __init__(self, command: Sequence[str], count: int, mistake: int) -> None:
        self._command = command
        self._places = [_Place() for _ in range(count)]
        self._mistake = mistake
        self._signals = 0  # that have come
        self._handed_on = 0  # of these
        self._kill_at: float | None = None
        self._status = 0

    def run(self) -> int:
        """Work until a signal comes; the exit status: 0 if all have ended well, else 1, or `mistake`."""
        with self._bell() as bell:
            self._places[0].start(self._command)
            while True:
                self._hand_on()
                self._look()
                if self._is_ending and not any(place.process for place in self._places):
                    return self._status
                lines = [place.line for place in self._places if place.line is not None]
                readable, _, _ = select.select([bell, *lines], [], [], self._timeout())
                if bell in readable:
                    bell.recv(4096)

    @property
    def _is_ending(self) -> bool:
        return self._handed_on > 0

    def _look(self) -> None:
        """Note who has died and who has begun, and start what is due."""
        for place in self._places:
            if (status := place.settle()) is not None:
                self._on_end(place, status)
        if self._is_ending or self._places[0].line is not None:  # a mistake is said once, by the first one alone
            return
        now = time.monotonic()
        for place in self._places:
            if place.process is None and now >= place.due_at:
                place.start(self._command)

    def _on_end(self, place: _Place, status: int) -> None:
        if status == self._mistake:
            self._status = status
            self._signals = max(self._signals, 1)
            self._hand_on()
        elif not self._is_ending:
            pause = place.put_off()
            _say(f"a process {_told(status)}; another one begins in {pause:g} s")
        elif status not in (0, -signal.SIGTERM):  # SIGTERM itself ends one that holds nothing yet
            _say(f"a process {_told(status)}; what it held is taken over by others")
            self._status = self._status or 1

    def _hand_on(self) -> None:
        """Tell all processes of the signals that have come: the second one leaves them little time, the third none."""
        while self._handed_on < self._signals:
            self._handed_on += 1
            for place in self._places:
                place.signal(signal.SIGTERM)
            if self._handed_on > 1:
                self._kill_at = time.monotonic() + (_HURRY if self._handed_on == 2 else 0.0)  # noqa: PLR2004
        if self._kill_at is not None and time.monotonic() >= self._kill_at:
            for place in self._places:
                place.signal(signal.SIGKILL)

    def _timeout(self) -> float | None:
        """Seconds until something is due by itself."""
        moments = [] if self._kill_at is None else [self._kill_at]
        if not self._is_ending and self._places[0].line is None:  # the others begin when the first has said how it is
            moments += [place.due_at for place in self._places if place.process is None]
        return max(0.0, min(moments) - time.monotonic()) if moments else None

    @contextlib.contextmanager
    def _bell(self) -> Iterator[socket.socket]:
        """A socket that can be read when a signal has come, or a process has ended."""
        hears, rings = socket.socketpair()
        rings.setblocking(False)
        hears.setblocking(True)
        before_fd = signal.set_wakeup_fd(rings.fileno(), warn_on_full_buffer=False)
        handlers = {signal.SIGTERM: self._on_signal, signal.SIGINT: self._on_signal, signal.SIGCHLD: _ignore}
        before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
        try:
            yield hears
        finally:
            signal.set_wakeup_fd(before_fd)
            for number, handler in before.items():
                signal.signal(number, handler)
            hears.close()
            rings.close()

    def _on_signal(self, _: int, __: FrameType | None) -> None:
        self._signals += 1


class _Place:
    """One of the processes: the one that is there, or the moment when the next one is started."""

    def __init__(self) -> None:
        self.process: subprocess.Popen[bytes] | None = None
        self.due_at = 0.0
        #: On which the process will say that it has begun; None once that is known.
        self.line: socket.socket | None = None
        self._lifeline: socket.socket | None = None
        self._began_at = 0.0
        self._deaths = 0  # in a row

    def start(self, command: Sequence[str]) -> None:
        """Start a process, in a group of its own: the terminal's Ctrl-C is for the parent, which hands it on."""
        if self._lifeline is not None:
            self._lifeline.close()
        self._lifeline, theirs = socket.socketpair()
        with theirs:
            told = [*command, "--lifeline", str(theirs.fileno())]
            self.process = subprocess.Popen(told, pass_fds=[theirs.fileno()], process_group=0)  # noqa: S603
        self._began_at, self.line = time.monotonic(), self._lifeline

    def settle(self) -> int | None:
        """Note whether it has begun; the status of one that has ended since the last call."""
        if self.process is None:
            return None
        if self.line is not None and select.select([self.line], [], [], 0)[0]:
            if not self.line.recv(1):
                self.process.wait()  # its end of the line closes with it
            self.line = None
        if (status := self.process.poll()) is not None:
            self.process = self.line = None
        return status

    def put_off(self) -> float:
        """Set the moment of the next start; the seconds until then."""
        now = time.monotonic()
        self._deaths = 1 if now - self._began_at > _STEADY else self._deaths + 1
        pause = min(MAX_PAUSE, FIRST_PAUSE * 2.0 ** (self._deaths - 1))
        self.due_at = now + pause
        return pause

    def signal(self, number: int) -> None:
        if self.process is not None:
            self.process.send_signal(number)


def _ignore(_: int, __: FrameType | None) -> None:
    """Hear of the end of a process: the bell rings."""


def _told(status: int) -> str:
    if status < 0:
        with contextlib.suppress(ValueError):
            return f"was ended by {signal.Signals(-status).name}"
    return f"ended with status {status}"


def _say(text: str) -> None:
    with contextlib.suppress(OSError):
        sys.stderr.write(f"durable worker [{os.getpid()}]: {text}\n")
        sys.stderr.flush()
