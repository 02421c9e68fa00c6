"""A listener that draws how far a script's own run is."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from typing import Any, Final

from durable._common.locks import locked
from durable.errors import InvalidArgument
from durable.events import (
    Listener,
    MapBegan,
    RunBegan,
    RunCompleted,
    RunEvent,
    RunFailed,
    RunInterrupted,
    RunReturned,
    StepBegan,
    StepLeft,
    StepRecorded,
    StepRetrying,
)
from durable.records import Kind, Record, StepRecord, parse, places_set_aside

_BAR: Final = 10  # letters
_ENDS: Final = (RunCompleted, RunFailed, RunInterrupted, RunReturned)


def progress(console: Any = None) -> Listener:
    """A listener for `on_event=` that draws a line on the terminal: how many steps are done, and which one is at work.

    What was recorded by an earlier execution counts as done from the beginning. Of a `step.map`, whose items are steps, there
    is a bar: how many there are is known. How many steps a run has is not, before its end. `console` is a
    `rich.console.Console`, by default one on stderr; where that is no terminal, a line is written at the end alone.

    Raises `InvalidArgument` where rich is not installed.
    """
    try:
        from rich.console import Console  # noqa: PLC0415 -- of an extra
        from rich.status import Status  # noqa: PLC0415
    except ModuleNotFoundError:
        raise InvalidArgument(
            "durable.telemetry.progress() draws with rich, which is not installed: pip install 'durable-postgres[cli]'"
        ) from None
    return _Drawing(console or Console(stderr=True), Status).hear


class _Drawing:
    """What is drawn of the runs that a listener hears of, several at once included."""

    def __init__(self, console: Any, status: Any) -> None:
        self._lock = threading.Lock()
        self._console = console
        self._status_class = status
        self._status: Any = None
        self._runs: dict[str, _Count] = {}

    @locked
    def hear(self, event: RunEvent) -> None:
        """Count it, and draw."""
        count = self._runs.setdefault(event.run_id, _Count())
        count.take(event)
        if isinstance(event, _ENDS):
            del self._runs[event.run_id]
            self._console.print(f"{event.run_id}: {count.told(event)}", highlight=False, markup=False)
        self._draw()

    def _draw(self) -> None:
        if not self._console.is_terminal:
            return
        from rich.text import Text  # noqa: PLC0415 -- as above

        text = Text("   ".join(f"{run_id}: {count.line()}" for run_id, count in self._runs.items()))
        if not self._runs:
            if self._status is not None:
                self._status.stop()
                self._status = None
        elif self._status is None:
            self._status = self._status_class(text, console=self._console)
            self._status.start()
        else:
            self._status.update(text)


class _Count:
    """The steps of one run."""

    def __init__(self) -> None:
        self._earlier = 0
        self._done: set[str] = set()
        self._failed: set[str] = set()
        self._at_work: dict[str, None] = {}
        self._maps: dict[str, tuple[str, ...]] = {}  # of each the keys of its items

    def take(self, event: RunEvent) -> None:
        match event:
            case RunBegan(run_id=run_id, records=records):
                self._done = _recorded(records, run_id)
                self._earlier = len(self._done)
            case MapBegan(name=name, keys=keys):
                self._maps[name] = keys
            case StepBegan(key=key):
                self._at_work[key] = None
            case StepRecorded(key=key, record=record):
                self._at_work.pop(key, None)
                (self._done if record.ok else self._failed).add(key)
                if record.ok:
                    self._failed.discard(key)
            case StepRetrying(key=key) | StepLeft(key=key):
                self._at_work.pop(key, None)
            case _:
                pass

    def line(self) -> str:
        """While it goes on."""
        parts = [self._steps(), *self._of_maps()]
        if self._at_work:
            first, *more = self._at_work
            parts.append(f"{first} and {len(more)} more" if more else first)
        return ", ".join(parts)

    def told(self, event: RunEvent) -> str:
        """At its end."""
        match event:
            case RunCompleted():
                return f"completed, {self._steps()}"
            case RunReturned():
                return "had ended before"
            case RunFailed(error=error):
                return f"failed ({error.rpartition(':')[2]}), {self._steps()}"
            case _:
                return f"interrupted, {self._steps()}"

    def _of_maps(self) -> Iterator[str]:
        """Of each map that goes on, how far it is, with a bar."""
        for name, keys in self._maps.items():
            done, total = sum(key in self._done for key in keys), len(keys)
            if done < total:
                full = done * _BAR // total
                yield f"{name} {'#' * full}{'-' * (_BAR - full)} {done}/{total}"

    def _steps(self) -> str:
        done = len(self._done)
        earlier = f" ({self._earlier} before)" if self._earlier else ""
        failed = f", {len(self._failed)} failed" if self._failed else ""
        return f"{done} {'step' if done == 1 else 'steps'} done{earlier}{failed}"


def _recorded(records: Sequence[Record], run_id: str) -> set[str]:
    """The keys of the steps that a journal says are done."""
    gone, done = places_set_aside(records, run_id=run_id), set[str]()
    for record in records:
        if record.kind == Kind.STEP and record.seq not in gone:
            step = parse(record.text, StepRecord, run_id=run_id, where=record.key)
            (done.add if step.ok else done.discard)(record.key)
    return done
