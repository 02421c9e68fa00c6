"""What a command that changes runs works with: the actions on the store, whose audit lines go to stderr."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import structlog

from durable._commands.finding import open_store
from durable._commands.output import Output
from durable._commands.shared import Given
from durable.operate.actions import Actions


@contextmanager
def acting(given: Given, *, create: bool = False) -> Iterator[tuple[Actions, Output]]:
    """The actions on the store that was named, and how to write; the store is closed at the end."""
    with open_store(given, create=create) as store:
        yield Actions(store, log=audit_log()), Output(given)


def audit_log() -> Any:
    """A line on stderr for each action: `2026-11-30T14:02:11Z action=retry run_id=… who=… via=cli outcome=done`."""
    return structlog.wrap_logger(
        structlog.PrintLogger(sys.stderr),
        processors=[
            structlog.processors.TimeStamper(fmt="iso", utc=True, key="at"),
            structlog.processors.LogfmtRenderer(key_order=["at", "event", "action", "run_id", "who", "via", "outcome"]),
        ],
        context_class=dict,
        wrapper_class=structlog.BoundLogger,
    )
