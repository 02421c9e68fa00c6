"""What a PostgreSQL store was told: which tables are its own, which ids, and whom it keeps out."""

from __future__ import annotations

from dataclasses import dataclass

from durable._common.checks import check_name
from durable.clocks import Clock
from durable.stores._postgres.sql.names import Names


@dataclass(frozen=True, slots=True)
class Settings:
    """As `postgres(url)` takes them."""

    names: Names
    prefix: str
    excludes: bool
    take_over_dead: bool
    clock: Clock

    def row(self, run_id: str) -> str:
        """The id under which a run stands in the tables; `InvalidArgument` if it can have none."""
        check_name("a run's id", run_id)
        return check_name("a run's id, with the store's prefix,", self.prefix + run_id) if self.prefix else run_id
