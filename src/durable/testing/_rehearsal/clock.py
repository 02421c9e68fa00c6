"""A clock for tests: its time jumps over whatever a workflow waits for."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any, Final

from durable._common.durations import Duration, add_seconds, check_duration, to_seconds, to_utc
from durable.testing._rehearsal.timeline import Action, Timeline

_START: Final = datetime(2026, 1, 1, tzinfo=UTC)


class JumpingClock:
    """Time for a test: it passes only by jumps, to the next moment that a sleep, a back-off or a time-out waits for.

    It jumps once every run is idle: something in it waits, and none of its bodies or stores is at work. A run is not idle
    while its own code computes between two steps, nor before it has begun.

    `start` is the first moment (aware; by default the beginning of 2026). A run that waits for what no time brings, like a
    signal without time-out, is given `patience` real seconds, in which the test may send it; then `RehearsalError`.
    """

    def __init__(self, start: datetime = _START, *, patience: Duration = 10.0) -> None:
        # The moment that the clock was last set to, and the seconds elapsed then.
        self._set_at = to_utc("start", start), 0.0
        self.timeline = Timeline(self.now, to_seconds("patience", patience))

    def __repr__(self) -> str:
        return f"<JumpingClock at {self.now().isoformat()}>"

    def now(self) -> datetime:
        """The moment, aware, in UTC."""
        moment, elapsed = self._set_at
        return add_seconds(moment, self.timeline.elapsed - elapsed)

    def elapsed(self) -> float:
        """Seconds that have passed on this clock since its start."""
        return self.timeline.elapsed

    def after(self, seconds: Duration, action: Action) -> None:
        """Call `action()` when so many seconds have passed from now on: a signal, a cancellation, the world's next move.

        It is called by the run that is woken with it, or by `advance`. An async function is awaited, in an async workflow.
        """
        self.timeline.schedule(_checked_seconds(seconds), action)

    def set(self, moment: datetime) -> None:
        """Set the wall clock to an aware `moment`, back or forward, as NTP and people do. No time passes by that.

        With `after(seconds, lambda: clock.set(...))` it happens while a run waits.
        """
        checked = to_utc("the moment", moment)
        with self.timeline.changed:
            self._set_at = checked, self.timeline.elapsed
            self.timeline.poke()  # a sleep until a moment has to be counted anew

    def advance(self, seconds: Duration) -> None:
        """Let time pass, even while runs are at work: actions that come due are called, and waiting branches woken."""
        self.timeline.advance(_checked_seconds(seconds))


def _checked_seconds(seconds: Any) -> float:
    return check_duration("the time that passes", seconds, zero=True)
