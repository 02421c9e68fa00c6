"""The outcomes of several children, of which each is waited for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, NamedTuple, Protocol

from durable._runtime.bodies import Body


class ChildWait(Protocol):
    """A child as what waits for it sees it; see `ChildHandle`."""

    key: str
    name: str
    wait: Body


class WaitForAll:
    """One call of `step.wait_all`."""

    name: Final = "wait_all"


class Failed(NamedTuple):
    """A child that has ended without a value."""

    exception: Exception


def in_order(told: Sequence[Any], *, return_exceptions: bool) -> list[Any]:
    """The outcomes, which were told from the last to the first; the first exception is raised, unless it is to be returned."""
    outcomes = list(reversed(told))
    failed = next((outcome for outcome in outcomes if isinstance(outcome, Failed)), None)
    if failed is not None and not return_exceptions:
        raise failed.exception
    return [outcome.exception if isinstance(outcome, Failed) else outcome for outcome in outcomes]
