"""A way to PostgreSQL through which nothing goes unseen: it counts round trips and commits, and springs traps.

It reads just enough of the wire protocol: a message is a type, a length and a body; what is bound is the text of its
statement and its parameters; each `Sync` (or simple query) of the client is answered by one `ReadyForQuery`, which says
whether a transaction is still open. Two threads carry each connection, one a direction, message by message.

    with Proxy(database.url) as proxy:
        trap = proxy.trap(Moment.ANSWERED, "charge-card", Link.cut)   # the server has committed, the client never hears
        store = postgres(proxy.url)
"""

from __future__ import annotations

import enum
import socket
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field
from typing import Final, NamedTuple, Self, TypeAlias

from psycopg.conninfo import conninfo_to_dict, make_conninfo

_ANSWERED_BY_READY: Final = (b"", b"Q", b"S", b"F")  # a startup message, Query, Sync, FunctionCall
_ASKS_NOTHING: Final = (b"", b"p", b"X", b"H")  # startup, password, Terminate, and the Flush after a pipeline's Sync
_EXECUTES: Final = (b"Q", b"E")  # Query, Execute
_WRITES: Final = {b"INSERT", b"UPDATE", b"DELETE", b"MERGE", b"COPY", b"TRUNCATE", b"COMMIT"}  # first words of tags


class Count(NamedTuple):
    """What has gone through a proxy, without the making of connections, which a pool does when it likes.

    - `round_trips`: how often the server said that it is ready, which is how often it was asked to answer.
    - `turns`: how often a client spoke after its server had: what a distant database makes it wait for.
    - `commits`: transactions that ended well and held a writing command, whether or not it found rows to write. A
      `SELECT` that writes (in a `WITH`) is seen only in an explicit transaction.
    - `statements`: how many were executed, those that begin and end a transaction as well. A simple query is one.
    """

    round_trips: int = 0
    turns: int = 0
    commits: int = 0
    statements: int = 0

    def since(self, earlier: Count) -> Count:
        """What has come on top of an earlier count."""
        return Count(*(now - then for now, then in zip(self, earlier, strict=True)))


class Moment(enum.Enum):
    """Where on its way a statement is when a trap springs."""

    SENT = "sent"  # the client has sent it, the server has not got it
    FORWARDED = "forwarded"  # the server has got it, with everything up to its Sync; the client gets no reply meanwhile
    ANSWERED = "answered"  # the server has answered, and committed if it was to; the client has got nothing of it


Action: TypeAlias = Callable[["Link"], object]


@dataclass(frozen=True)
class Trap:
    """Calls `action` once, in the thread that carries the message, for the first statement that holds `marker`."""

    moment: Moment
    marker: bytes
    action: Action
    sprung: threading.Event = field(default_factory=threading.Event)

    def spring(self, link: Link) -> None:
        """Act, and only then say so."""
        try:
            self.action(link)
        finally:
            self.sprung.set()


class Proxy:
    """Listens on a local port; `url` leads through it to the server of the url that it was given.

    `link` carries a connection; another one may be worse at it.
    """

    def __init__(self, url: str, link: type[Link] | None = None) -> None:
        parts = conninfo_to_dict(url)
        self._host, self._port = str(parts.get("host") or "localhost"), int(parts.get("port") or 5432)
        self._link = link or Link
        self._listening = socket.create_server(("127.0.0.1", 0))
        self._lock = threading.Lock()  # guards what follows
        self._count = Count()
        self._traps: list[Trap] = []
        self._links: list[Link] = []
        self._closed = False
        address, port = self._listening.getsockname()
        # Encryption would hide the messages.
        self.url = make_conninfo(url, host=address, port=port, sslmode="disable", gssencmode="disable")
        self._accepting = threading.Thread(target=self._accept, name="proxy", daemon=True)
        self._accepting.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def count(self) -> Count:
        """What has gone through so far. A reply is counted before the client gets it."""
        with self._lock:
            return self._count

    def trap(self, moment: Moment, marker: str, action: Action) -> Trap:
        """Call `action(link)` when the next statement whose text or parameters hold `marker` is at this moment."""
        trap = Trap(moment, marker.encode(), action)
        with self._lock:
            self._traps.append(trap)
        return trap

    def close(self) -> None:
        """Cut every connection and wait for the threads."""
        with self._lock:
            self._closed = True
        with suppress(OSError):  # accept() has no other way to learn of it
            socket.create_connection(self._listening.getsockname()).close()
        self._accepting.join()
        self._listening.close()
        for link in self._links:
            link.cut()
            link.join()

    def add(self, *, round_trips: int = 0, turns: int = 0, commits: int = 0, statements: int = 0) -> None:
        """For links: count something."""
        more = Count(round_trips, turns, commits, statements)
        with self._lock:
            self._count = Count(*(so_far + new for so_far, new in zip(self._count, more, strict=True)))

    def caught(self, text: bytes) -> list[Trap]:
        """For links: the traps that a statement steps into. Each is taken away."""
        with self._lock:
            caught = [trap for trap in self._traps if trap.marker in text]
            self._traps = [trap for trap in self._traps if trap not in caught]
        return caught

    def _accept(self) -> None:
        while True:
            client, _ = self._listening.accept()
            with self._lock:
                if self._closed:
                    client.close()
                    return
            try:
                server = self._connect()
            except OSError:  # as the client would have seen it: a connection that is closed at once
                client.close()
                continue
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            link = self._link(self, client, server)
            with self._lock:
                self._links.append(link)
            link.start()

    def _connect(self) -> socket.socket:
        if not self._host.startswith("/"):
            server = socket.create_connection((self._host, self._port))
            server.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            return server
        server = socket.socket(socket.AF_UNIX)
        try:
            server.connect(f"{self._host}/.s.PGSQL.{self._port}")
        except OSError:
            server.close()
            raise
        return server


class Link:
    """One connection through the proxy."""

    def __init__(self, proxy: Proxy, client: socket.socket, server: socket.socket) -> None:
        self._proxy = proxy
        self._client = client
        self._server = server
        self._server_spoke = True
        self._replying = threading.Lock()  # held while a trap acts on what was forwarded: no reply overtakes it
        # (number of the ReadyForQuery, trap) in order; the replies are held back while there is one.
        self._awaited: deque[tuple[int, Trap]] = deque()
        self._threads = [
            threading.Thread(target=carry, name=f"proxy-{carry.__name__}", daemon=True)
            for carry in (self._to_server, self._to_client)
        ]

    def start(self) -> None:
        """Begin to carry messages."""
        for thread in self._threads:
            thread.start()

    def cut(self) -> None:
        """End the connection on both sides, now: what is being carried or held back is lost."""
        for end in (self._client, self._server):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def join(self) -> None:
        """Wait until both directions have ended."""
        for thread in self._threads:
            thread.join()
        self._client.close()
        self._server.close()

    def _to_server(self) -> None:
        asked = 0
        statements: dict[bytes, bytes] = {}
        forwarded: list[Trap] = []
        try:
            for kind, message in _messages(self._client, startup=True):
                if self._server_spoke and kind not in _ASKS_NOTHING:
                    self._server_spoke = False
                    self._proxy.add(turns=1)
                if kind in _EXECUTES:
                    self._proxy.add(statements=1)
                for trap in self._proxy.caught(_executed(kind, message, statements)):
                    match trap.moment:
                        case Moment.SENT:
                            trap.spring(self)
                        case Moment.FORWARDED:
                            forwarded.append(trap)
                        case Moment.ANSWERED:
                            self._awaited.append((asked + 1, trap))
                if kind not in _ANSWERED_BY_READY:
                    self._server.sendall(message)
                    continue
                asked += 1
                with self._replying if forwarded else nullcontext():
                    self._server.sendall(message)
                    while forwarded:
                        forwarded.pop(0).spring(self)
        except OSError:
            pass  # one of the ends is gone, which the other is told below
        finally:
            # What has been forwarded stays on its way, as it would without us.
            with suppress(OSError):
                self._server.shutdown(socket.SHUT_WR)

    def _to_client(self) -> None:
        answered, wrote, held = 0, False, bytearray()
        try:
            for kind, message in _messages(self._server):
                self._server_spoke = True
                held += message
                if kind == b"C":  # CommandComplete, with the tag
                    command = message[5:].split(b"\0")[0].split(b" ")[0]
                    wrote = (wrote or command in _WRITES) and command != b"ROLLBACK"
                elif kind == b"E":  # ErrorResponse
                    wrote = False
                elif kind == b"Z":  # ReadyForQuery, with the transaction's status
                    answered += 1
                    idle = message[5:] == b"I"
                    if answered > 1:
                        self._proxy.add(round_trips=1, commits=int(idle and wrote))
                    wrote = wrote and not idle
                    while self._awaited and self._awaited[0][0] == answered:
                        # It stays in the queue while it acts, so that nothing is passed on.
                        self._awaited[0][1].spring(self)
                        self._awaited.popleft()
                if not self._awaited:
                    with self._replying, suppress(OSError):  # a dead client's replies are of interest all the same
                        self._client.sendall(held)
                    held.clear()
        except OSError:
            pass
        finally:
            self.cut()


def _messages(end: socket.socket, *, startup: bool = False) -> Iterator[tuple[bytes, bytes]]:
    """Each message that this end sends: its type, and the whole of it. A startup message, which comes first, has none."""
    with end.makefile("rb") as stream:
        header = 4 if startup else 5
        while len(head := stream.read(header)) == header:
            yield head[:-4], head + stream.read(int.from_bytes(head[-4:]) - 4)
            header = 5


def _executed(kind: bytes, message: bytes, statements: dict[bytes, bytes]) -> bytes:
    """What a message is about to execute: a statement's text and its parameters. Parsed statements are remembered."""
    match kind:
        case b"Q":  # Query
            return message
        case b"P":  # Parse: the statement's name, its text
            name, text, _ = message[5:].split(b"\0", 2)
            statements[name] = text
        case b"B":  # Bind: the portal's name, the statement's, its parameters
            _, name, parameters = message[5:].split(b"\0", 2)
            return statements.get(name, b"") + parameters
    return b""
