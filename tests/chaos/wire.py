"""A way to PostgreSQL on which some writes are cut off, or cost their sender its life."""

from __future__ import annotations

import contextlib
import os
import random
import re
import signal
import socket
from typing import Final

from chaos.effects import Log
from harness.proxy import Link, Moment, Proxy, Trap

CUTS: Final = {
    Moment.SENT: "before it arrived",
    Moment.FORWARDED: "while the server worked on it",
    Moment.ANSWERED: "after the server had answered",
}
_RUNS: Final = re.compile(rb"(?:order|fan|money|patient|once|halted|broken|moved)-\d+")
_CLAIM: Final = b"mine AS MATERIALIZED"  # the one statement that writes a run's input
_CLAIMS_SPARED: Final = 20  # there are many of them, from workers that look for work
_SENDER: Final = re.compile(rb"application_name\0w(\d+)\0")
_GREETING: Final = 4096  # bytes: more than a startup message has


class NamedLink(Link):
    """A connection whose client has said which process it is."""

    def __init__(self, proxy: Proxy, client: socket.socket, server: socket.socket) -> None:
        super().__init__(proxy, client, server)
        found = _SENDER.search(client.recv(_GREETING, socket.MSG_PEEK))
        self.pid = int(found[1]) if found else 0


class HostileProxy(Proxy):
    """Cuts the connection at some writes (`cuts`: the chance at each), or kills the process that wrote (`kills`)."""

    def __init__(self, url: str, log: Log, chance: random.Random, *, cuts: float, kills: float) -> None:
        self._log = log
        self._chance = chance
        self._cuts = cuts
        self._kills = kills
        self.calm = False
        super().__init__(url, NamedLink)

    def caught(self, text: bytes) -> list[Trap]:
        """See `Proxy.caught`: by chance, not by a marker."""
        if self.calm or b"INSERT INTO" not in text or b'"durable_steps"' not in text:
            return []
        claims = _CLAIM in text
        lot = self._chance.random() * (_CLAIMS_SPARED if claims else 1)
        runs = b" ".join(sorted(set(_RUNS.findall(text)))).decode()
        if not runs or lot > self._cuts + self._kills:
            return []
        moment = self._chance.choice(list(Moment))
        where = f"{'claim' if claims else 'write'} cut off {CUTS[moment]}"
        if lot < self._cuts:
            return [Trap(moment, b"", lambda link: self._cut(link, runs, where))]
        return [Trap(moment, b"", lambda link: self._kill(link, where))]

    def _cut(self, link: Link, runs: str, where: str) -> None:
        pid = link.pid if isinstance(link, NamedLink) else 0
        self._log.append("cut", key=runs, more=where, pid=pid)
        link.cut()

    def _kill(self, link: Link, where: str) -> None:
        if isinstance(link, NamedLink) and link.pid:
            with contextlib.suppress(ProcessLookupError):
                os.kill(link.pid, signal.SIGSTOP)  # it does nothing more between the line and its death
                self._log.append("kill", more=where, pid=link.pid)
                os.kill(link.pid, signal.SIGKILL)
        link.cut()
