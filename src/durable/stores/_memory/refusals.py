"""What the store in memory has no database for."""

from __future__ import annotations

from typing import Any, NoReturn

from durable._engine.leases import Lease
from durable._engine.step_kinds import Isolation
from durable.errors import InvalidArgument, UnsuitableConnection
from durable.stores.protocol import Transaction
from durable.stores.requests import Request


class NoDatabase:
    """The verbs of a store that works in transactions, refused."""

    def perform_within(self, request: Request[Any], connection: Any, function: str) -> NoReturn:  # noqa: ARG002
        """Not here: no transaction of a database has part in what is in memory."""
        raise UnsuitableConnection(
            f"{function}(connection=…) writes in a transaction of the store's database, and the store in memory has none: "
            f"leave out connection=, or use a store in PostgreSQL (embedded() starts one for tests)"
        )

    async def submit_within(self, request: Request[Any], connection: Any, function: str) -> NoReturn:
        """Not here either."""
        self.perform_within(request, connection, function)

    def transaction(self, lease: Lease, name: str, isolation: Isolation) -> Transaction:  # noqa: ARG002
        """Not here: there is no database to do anything in."""
        raise InvalidArgument(
            f"step.transaction({name!r}) needs the database that its body works in, and the store in memory has none: "
            f"embedded() starts a real PostgreSQL for tests, postgres(url) uses yours"
        )
