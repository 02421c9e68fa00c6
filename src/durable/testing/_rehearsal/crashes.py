"""Crashes: a place where a run dies, once, as if its process had been killed there."""

from __future__ import annotations

from types import TracebackType
from typing import Final, Literal, Self, TypeAlias, get_args

from durable.errors import DurableError, InvalidArgument

Place: TypeAlias = Literal[
    "before body",
    "after body",
    "checkpoint sent",
    "acknowledged",
    "waiting",
    "before finish",
    "after finish",
]
"""Where a run can die.

- `before body`: the step is to be called, and nothing of it has happened.
- `after body`: its body has returned (or raised), and that is not recorded: it runs again.
- `checkpoint sent`: its outcome is recorded, and the run has not heard so.
- `acknowledged`: its outcome is recorded and known, and nothing has come of it yet.
- `waiting`: in a sleep, a back-off, or a wait for a signal.
- `before finish`: the workflow has returned (or raised), and that is not recorded.
- `after finish`: how it ended is recorded, and the caller has not heard so.
"""

_PLACES_OF_THE_RUN: Final = ("before finish", "after finish")


class Crashed(DurableError):
    """The run died where the test said. Nothing was finished, and nothing cleaned up: call `durable.run` again."""

    __module__ = "durable.testing"  # as a traceback names it


class Crash:
    """One death to come: a block in which a run must die, and go no further.

    `durable.run` raises `Crashed`, which ends with the block. A block in which no run died raises `AssertionError`.
    """

    def __init__(self, place: Place, step: str | None, *, keeps_lease: bool) -> None:
        if place not in get_args(Place):
            raise InvalidArgument(f"a run can crash at {', '.join(map(repr, get_args(Place)))}, not at {place!r}")
        if step is not None and place in _PLACES_OF_THE_RUN:
            raise InvalidArgument(f"{place!r} is a place of the run, and not of its step {step!r}: leave the step out")
        self.place: Final = place
        self.step: Final = step
        self.keeps_lease: Final = keeps_lease
        self.armed = False
        self.error: Crashed | None = None

    def __repr__(self) -> str:
        return f"<Crash {self._where}>"

    def strikes(self, place: Place, names: tuple[str, ...]) -> bool:
        """Whether a run dies here, in the step of these names (its key and its name)."""
        return self.armed and place == self.place and (self.step is None or self.step in names)

    def fire(self, run_id: str) -> Crashed:
        """The death of this run; no other dies of this crash."""
        self.armed = False
        self.error = Crashed(f"run {run_id!r} died {self._where}")
        return self.error

    def __enter__(self) -> Self:
        self.armed = True
        return self

    def __exit__(self, _: type[BaseException] | None, error: BaseException | None, __: TracebackType | None) -> bool:
        self.armed = False
        if error is None and self.error is None:
            raise AssertionError(f"no run died {self._where}: none came there")
        return error is not None and error is self.error

    @property
    def _where(self) -> str:
        return self.place if self.step is None else f"{self.place}, in step {self.step!r}"
