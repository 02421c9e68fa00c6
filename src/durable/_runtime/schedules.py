"""`durable.Schedule`: what it is given, and the runs that its ticks begin."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any, Final, Literal, TypeAlias, cast

from durable._common.boundary import public
from durable._common.checks import check_name
from durable._common.durations import Duration, check_duration, show
from durable._engine.schedules import (
    MIN_EVERY,
    MISSED,
    OF_RETENTION,
    OVERLAPS,
    RETENTION_INTERVAL,
    DueSchedule,
    Scheduled,
    Ticks,
    ask_timetable,
    decide_ticks,
    tick_id,
)
from durable._engine.starts import NewRun, Route
from durable._runtime.new_runs import define_started
from durable._runtime.plan import MISSING, arities, check_arity
from durable._runtime.ticks import Tick
from durable._runtime.timetables import check_cron, find_moments, zone_of
from durable.clocks import SystemClock
from durable.codecs import Codec, parameter_annotation
from durable.errors import InvalidArgument

Missed: TypeAlias = Literal["latest", "all", "skip"]
Overlap: TypeAlias = Literal["allow", "queue", "skip"]

MAX_SCHEDULE_NAME: Final = 400  # bytes: with the moment behind it, it is the id of a run
_INPUT: Final = 2  # the place of the workflow's parameter
_WITH_INPUT: Final = 3  # parameters


class Schedule:
    """Begins runs of a workflow by the clock. Given to workers, as `Worker(store, deps, [report], schedules=[nightly])`::

        nightly = durable.Schedule("nightly", "30 2 * * *", report, zone="Europe/Berlin")
        beat = durable.Schedule("beat", every=10, workflow=check)

    - `name`: tells it from the store's other schedules. A run's id is this name, `/`, and its moment:
      `nightly/2026-12-01T02:30:00+01:00`.
    - `cron`: five fields, as crontab has them, or `@hourly`, `@daily`, `@weekly`, `@monthly`, `@yearly`; in `zone`.
    - `workflow`: a function that is marked with `@durable.workflow`, or its name, `"report"` or `"report@2"`.
    - `every`, in the place of `cron`: seconds or a `timedelta`, at least one second. The moments are multiples of it since the
      beginning of 1970, in UTC, so that all processes agree on them: `every=3600` is each full hour.
    - `zone`: a name of the tz database.
    - `missed`: of the moments at which no worker was there, or none had time, the `"latest"` begins a run, or `"all"` do (a
      hundred in a poll), or with `"skip"` none that is over for more than a minute.
    - `overlap`: where the run of the moment before has not ended, `"allow"` begins another one beside it; `"queue"` waits until
      it has, and then goes by `missed` for what has come meanwhile; `"skip"` begins none.
    - `input`: of each run; by default a `durable.Tick`, for a workflow that takes an input.

    Raises `InvalidArgument`.
    """

    @public("durable.Schedule")
    def __init__(
        self,
        name: str,
        cron: str | None = None,
        workflow: Callable[..., Any] | str | None = None,
        *,
        every: Duration | None = None,
        zone: str = "UTC",
        missed: Missed = "latest",
        overlap: Overlap = "allow",
        input: Any = MISSING,
    ) -> None:
        self.name: Final = check_schedule_name(name)
        if workflow is None:
            raise InvalidArgument(f"the schedule {name!r} has no workflow: pass the function that it is to start")
        self._workflow, self._input, given = workflow, input, input is not MISSING
        if (cron is None) == (every is None):
            raise InvalidArgument(
                f"the schedule {name!r} needs one of cron, like '30 2 * * *', and every=, seconds, which say when it ticks"
            )
        if not isinstance(zone, str):
            raise InvalidArgument(
                f"zone must be the name of a time zone, like 'Europe/Berlin', not {type(zone).__name__}"
            )
        if every is not None and zone != "UTC":
            raise InvalidArgument("zone= is that of cron's fields: every= ticks at the same moments everywhere")
        self._definition = define_started(workflow)
        if not isinstance(workflow, str) and (given or _WITH_INPUT not in arities(workflow)):
            check_arity(workflow, given=given, is_new=True)
        self._cron = None if cron is None else check_cron(cron, zone_of(zone), SystemClock().now())
        self._every = None if every is None else _check_every(every)
        self._zone = zone
        self._missed = _check_choice("missed", missed, MISSED)
        self._overlap = _check_choice("overlap", overlap, OVERLAPS)

    def __repr__(self) -> str:
        when = f"every {self._every:g} s" if self._cron is None else f"{self._cron} {self._zone}"
        return f"<schedule {self.name!r}, {when}>"

    def encode(self, codec: Codec) -> Scheduled:
        """What is stored of it, its input by this codec. Raises `UnstorableValue`."""
        fn, definition, given = self._workflow, self._definition, self._input is not MISSING
        text = fingerprint = None
        if given:
            annotation = None if isinstance(fn, str) else parameter_annotation(fn, _INPUT)
            text = codec.encode(self._input, what="the input", annotation=annotation).decode()
            fingerprint = codec.fingerprint(self._input, what="the input")
        return Scheduled(
            name=self.name,
            cron=self._cron,
            zone=self._zone,
            every=self._every,
            missed=self._missed,
            overlap=self._overlap,
            route=Route(definition.queue, definition.name, definition.version),
            function=definition.function,
            input=text,
            input_hash=fingerprint,
            takes_tick=not given and (isinstance(fn, str) or _WITH_INPUT in arities(fn)),
        )


def store_schedules(schedules: object, codec: Codec) -> dict[str, Scheduled]:
    """What is stored of a worker's schedules, by their names. Raises `InvalidArgument` and `UnstorableValue`."""
    if isinstance(schedules, Schedule) or not isinstance(schedules, Sequence):
        raise InvalidArgument("schedules must be a list of schedules: Worker(…, schedules=[durable.Schedule(…)])")
    stored: dict[str, Scheduled] = {}
    given: Sequence[Any] = cast(Any, schedules)
    for schedule in given:
        if not isinstance(schedule, Schedule):
            raise InvalidArgument(f"schedules has durable.Schedule(…) in it, and not {type(schedule).__name__}")
        if schedule.name in stored:
            raise InvalidArgument(f"two schedules are called {schedule.name!r}: give one of them another name")
        stored[schedule.name] = schedule.encode(codec)
    return stored


def find_ticks(due: DueSchedule) -> Ticks:
    """Which moments of a schedule that is due begin runs. Raises `InvalidArgument` where its timetable is not known here."""
    return decide_ticks(due, find_moments(due.scheduled, ask_timetable(due)))


def run_of_tick(scheduled: Scheduled, at: datetime, codec: Codec) -> NewRun:
    """The run of a moment. Raises `InvalidArgument`, and what the codec does."""
    local = at.astimezone(UTC if scheduled.every is not None else zone_of(scheduled.zone))
    tick = Tick(scheduled.name, local)
    text = None if scheduled.input is None else scheduled.input.encode()
    return NewRun(
        run_id=tick_id(scheduled.name, local),
        route=scheduled.route,
        function=scheduled.function,
        input=codec.encode(tick, what="the tick") if scheduled.takes_tick else text,
        input_hash=codec.fingerprint(tick, what="the tick") if scheduled.takes_tick else scheduled.input_hash,
        tick_at=at,
    )


def turns_of_retention() -> Scheduled:
    """The schedule by which the workers of a store take turns at retention. It begins no runs."""
    return Scheduled(name=OF_RETENTION, every=RETENTION_INTERVAL, missed="latest", route=Route("", "", 1))


def check_schedule_name(name: object) -> str:
    """The name, if a schedule can have it."""
    checked = check_name("a schedule's name", name)
    if len(checked.encode()) > MAX_SCHEDULE_NAME:
        raise InvalidArgument(
            f"a schedule's name has at most {MAX_SCHEDULE_NAME} bytes, and {checked[:40]!r}… has more"
        )
    return checked


def _check_every(given: Duration) -> float:
    every = check_duration("every", given)
    if every < MIN_EVERY:
        raise InvalidArgument(
            f"every must be at least {MIN_EVERY:g} second, not {show(given)}: workers look no more often"
        )
    return every


def _check_choice(what: str, given: object, known: Sequence[str]) -> str:
    if not isinstance(given, str) or given not in known:
        raise InvalidArgument(f"{what} must be one of {', '.join(map(repr, known))}, not {show(given)}")
    return given
