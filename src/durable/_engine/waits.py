"""When the waits of steps end, in elapsed seconds: setting the wall clock changes nothing."""

from __future__ import annotations

from datetime import datetime
from typing import Final

from durable._common.durations import add_seconds
from durable._engine.calls import Call
from durable._engine.decisions import Reading

RESOLUTION: Final = 1e-6  # seconds, of moments: what is left of a wait below that is nothing


class Waits:
    """The waits of one execution, by the keys of their steps: from when until when.

    What passes in this process is counted in elapsed seconds. A moment is for people, and for what outlives the process:
    it is turned into elapsed seconds once, when it has been read from a record.
    """

    def __init__(self) -> None:
        self._spans: dict[str, tuple[float, float]] = {}

    def begin(self, call: Call, first: float, seconds: float, reading: Reading) -> tuple[datetime, datetime]:
        """Begin a wait of `seconds` for a call first attempted at `first`. Returns both moments, to be recorded.

        Both are converted by the wall clock as it stands now, so setting it later does not change the span between them.
        """
        call.first, call.due = self._spans[call.key] = first, reading.elapsed + seconds
        return add_seconds(reading.at, first - reading.elapsed), add_seconds(reading.at, seconds)

    def resume(self, call: Call, first: datetime, due: datetime, reading: Reading) -> None:
        call.first, call.due = self._recorded(call, first, due, reading)

    def left_of_sleep(self, call: Call, began: datetime | None, until: datetime, reading: Reading) -> float:
        """How many seconds are left of a sleep, by the moments that are recorded of it.

        One that `began` at a moment lasts so many seconds, however the wall clock is set meanwhile; one that did not lasts
        until a moment on that clock.
        """
        if began is None:
            return (until - reading.at).total_seconds()
        if call.attempts:  # it began here. That it is recorded says nothing of when this process comes by again
            self._spans[call.key] = call.began, call.began + (until - began).total_seconds()
        return self._recorded(call, began, until, reading)[1] - reading.elapsed

    def _recorded(self, call: Call, began: datetime, due: datetime, reading: Reading) -> tuple[float, float]:
        span = self._spans.get(call.key)
        if span is None:
            # Between the two lives the wall clock may have been set back, or it is another machine's: no more is left until
            # the second moment than lay between both, and the first is past.
            length = (due - began).total_seconds()
            until = reading.elapsed + min((due - reading.at).total_seconds(), length)
            span = self._spans[call.key] = until - length, until
        return span
