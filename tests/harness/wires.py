"""A connection that is carried byte by byte."""

from __future__ import annotations

import socket

from harness.proxy import Link


class Wire(Link):
    """A connection that is carried as bytes: `carry` says how what has arrived goes on."""

    def _to_server(self) -> None:
        self._carried(self._client, self._server, "to server")

    def _to_client(self) -> None:
        self._carried(self._server, self._client, "to client")

    def _carried(self, source: socket.socket, sink: socket.socket, way: str) -> None:
        try:
            while arrived := source.recv(1 << 16):
                self.carry(way, arrived, sink)
            sink.shutdown(socket.SHUT_WR)
        except OSError:
            self.cut()

    def carry(self, way: str, arrived: bytes, sink: socket.socket) -> None:
        """Pass it on."""
        sink.sendall(arrived)
