"""The store of an embedded PostgreSQL."""

from __future__ import annotations

from collections.abc import Sequence

from durable.codecs import Codec
from durable.stores._embedded.server import Server
from durable.stores._postgres.sql.names import Names
from durable.stores._postgres.store import PostgresStore


class EmbeddedStore(PostgresStore):
    """A PostgreSQL store and its server: closing it lets go of both. `url` connects other programs to the server."""

    def __init__(self, server: Server, names: Names, codec: Codec | Sequence[Codec] | None = None) -> None:
        super().__init__(server.url, names, codec=codec)
        self._server = server
        self.url = server.url

    def close(self) -> None:
        """Close the store, then let go of the server, which ends with its last user."""
        super().close()
        self._server.close()
