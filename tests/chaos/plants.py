"""Bugs, planted in a worker before it begins, which the judge must find."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from durable._engine.decisions import Granted
from durable._engine.leases import Lease
from durable.snapshot import Kind, Record
from durable.stores._postgres import schema, store, transactions
from durable.stores._postgres.commits import Statements, checkpoint_job
from durable.stores._postgres.writer import ABSENT, Job
from durable.stores.protocol import Release


def planted(name: str) -> None:
    """Plant this one in this process; none if it has no name."""
    if name:
        PLANTS[name]()
