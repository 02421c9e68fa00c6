"""Schedules on either store: each moment begins one run, whoever looks; and retention, for which workers take turns."""

from __future__ import annotations

import asyncio
import itertools
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import pytest
from msgspec.structs import replace

import durable
from durable._engine.schedules import OF_RETENTION, DueSchedule, Scheduled
from durable._runtime.retention import apply_retention
from durable._runtime.schedules import find_ticks, run_of_tick
from durable.codecs import codec_of
from durable.errors import InvalidArgument, ScheduleNotFound
from durable.stores.protocol import ReadableStore
from durable.stores.requests import Poll, Polled, PutSchedules, TickSchedule

WITHIN: Final = 30.0
_NO_METADATA: Final[list[Any]] = [{}, [], {"a": 1}, {1: "a"}, {"a": "\0"}]


@durable.workflow(name="report")
def report(step: durable.Step, deps: Any, tick: durable.Tick) -> durable.Tick:
    return tick


@durable.workflow(name="stuck")
def stuck(step: durable.Step, deps: Any, tick: durable.Tick) -> None:
    step.wait_for("go")


@durable.workflow(name="bare")
def bare(step: durable.Step, deps: Any) -> str:
    return "bare"


def half_past() -> str:
    """A timetable whose moments are half an hour from now: none comes while a test is at work."""
    return f"{(datetime.now(UTC) + timedelta(minutes=30)).minute} * * * *"


def poll(store: ReadableStore, *names: str) -> Polled:
    """What a worker is told that has these schedules."""
    return store.perform(Poll([], 0, 30.0, lambda lease: True, schedules=names))


def encode(store: ReadableStore, schedule: durable.Schedule) -> Scheduled:
    return schedule.encode(codec_of(store))


def miss(store: ReadableStore, schedule: durable.Schedule, hours: float) -> DueSchedule:
    """As if no worker had been there for so many hours; what a poll says of it then."""
    store.perform(PutSchedules([encode(store, schedule)]))
    (new,) = poll(store, schedule.name).due
    assert new.due_at is None
    ticks = find_ticks(replace(new, now=new.now - timedelta(hours=hours)))
    assert store.perform(TickSchedule(new, (), ticks.due_at))
    (due,) = poll(store, schedule.name).due
    assert due.due_at == ticks.due_at
    return due


def tick(store: ReadableStore, due: DueSchedule) -> bool:
    """What a worker makes of it."""
    ticks = find_ticks(due)
    runs = [run_of_tick(due.scheduled, at, codec_of(store)) for at in ticks.begun]
    return store.perform(TickSchedule(due, runs, ticks.due_at))


def ids(store: ReadableStore) -> list[str]:
    return sorted(line.id for line in store.runs())


def test_a_schedule_begins_runs_whose_input_is_the_tick(store: ReadableStore) -> None:
    nightly = durable.Schedule("nightly", half_past(), report, zone="Europe/Berlin")
    miss(store, nightly, 1)
    durable.Worker(store, None, [report], schedules=[nightly]).run_until_idle()
    line = durable.schedule(store, "nightly").status()
    assert line.last_at is not None
    assert line.due_at == line.last_at + timedelta(hours=1)
    assert ids(store) == [line.last_id] == [f"nightly/{line.last_at.isoformat()}"]
    assert durable.handle(store, str(line.last_id), report).result() == durable.Tick("nightly", line.last_at)


def test_each_second_begins_a_run(store: ReadableStore) -> None:
    got = threading.Event()

    @durable.workflow(name="beats")
    def beats(step: durable.Step, deps: Any) -> None:
        if len(ids(store)) >= 3:
            got.set()

    beat = durable.Schedule("beat", every=1, workflow=beats, missed="all")
    with durable.Worker(store, None, [beats], schedules=[beat]):
        assert got.wait(WITHIN)
    moments = [datetime.fromisoformat(run.partition("/")[2]) for run in ids(store)]
    assert [later - earlier for earlier, later in itertools.pairwise(moments)] == [
        timedelta(seconds=1) for _ in moments[1:]
    ]


def test_150_of_any_number_of_workers_one_begins_the_run(store: ReadableStore) -> None:
    """FAULTS 150: eight have seen the same moment due, and each wants to be the one."""
    due = miss(store, durable.Schedule("s", half_past(), report), 1)
    barrier = threading.Barrier(8)

    def race(_: int) -> bool:
        barrier.wait(WITHIN)
        return tick(store, due)

    with ThreadPoolExecutor(8) as pool:
        won = list(pool.map(race, range(8)))
    assert (won.count(True), len(ids(store))) == (1, 1)


@pytest.mark.parametrize(("missed", "count"), [("latest", 1), ("skip", 0), ("all", 3)])
def test_152_three_hours_down(store: ReadableStore, missed: Any, count: int) -> None:
    """FAULTS 152."""
    hourly = durable.Schedule("hourly", half_past(), report, missed=missed)
    miss(store, hourly, 3)
    durable.Worker(store, None, [report], schedules=[hourly]).run_until_idle()
    assert len(ids(store)) == count
    assert poll(store, "hourly").due == () or not poll(store, "hourly").due
    durable.Worker(store, None, [report], schedules=[hourly]).run_until_idle()
    assert len(ids(store)) == count


def test_153_a_changed_timetable_is_never_applied_to_the_past(store: ReadableStore) -> None:
    """FAULTS 153: what the old one has missed is not made up for by the new one, and what has seen the old one cannot tick."""
    old = durable.Schedule("s", half_past(), report, missed="all")
    seen = miss(store, old, 3)
    new = durable.Schedule("s", "0 0 1 1 *", report, missed="all")
    store.perform(PutSchedules([encode(store, new)]))
    assert not tick(store, seen)
    (due,) = poll(store, "s").due
    assert due.due_at is None
    assert tick(store, due)
    assert ids(store) == []
    line = durable.schedule(store, "s").status()
    assert (line.timetable, line.due_at) == ("0 0 1 1 *", datetime(datetime.now(UTC).year + 1, 1, 1, tzinfo=UTC))


def test_153_what_has_found_out_when_an_older_text_is_due_is_refused(store: ReadableStore) -> None:
    """FAULTS 153: both moments are unknown, so that the text alone tells them apart."""
    old, new = (durable.Schedule("s", cron, report) for cron in ("0 0 1 1 *", half_past()))
    store.perform(PutSchedules([encode(store, old)]))
    (seen,) = poll(store, "s").due
    store.perform(PutSchedules([encode(store, new)]))
    assert not tick(store, seen)
    assert poll(store, "s").due[0].scheduled.cron == half_past()


def test_153_two_texts_at_once_do_not_flap(store: ReadableStore) -> None:
    """FAULTS 153: a text is written when a worker starts, and by the last start; those that tick go by what is written."""
    old = durable.Schedule("s", half_past(), report)
    new = durable.Schedule("s", half_past(), bare, missed="skip")
    with durable.Worker(store, None, [report, bare], schedules=[old]):
        wait_for(lambda: poll(store, "s").tick_in is not None)
        with durable.Worker(store, None, [report, bare], schedules=[new]):
            wait_for(lambda: durable.schedule(store, "s").status().workflow == "bare@1")
            revision = _revision(store)
            for _ in range(3):  # the old one polls on, and leaves it
                durable.start(report, durable.Tick("x", datetime.now(UTC)), store=store).result(WITHIN)
            assert _revision(store) == revision
    assert durable.schedule(store, "s").status().missed == "skip"


def test_153_what_only_its_input_or_policy_changes_stays_due_when_it_was(store: ReadableStore) -> None:
    due = miss(store, durable.Schedule("s", half_past(), report), 1)
    store.perform(PutSchedules([encode(store, durable.Schedule("s", half_past(), report, missed="all"))]))
    (after,) = poll(store, "s").due
    assert (after.due_at, after.scheduled.missed) == (due.due_at, "all")


def test_153_a_schedule_that_was_renamed_ticks_under_its_new_name_only(store: ReadableStore) -> None:
    """FAULTS 153: none that is at work has the old one, so that nothing ticks it, though it is due."""
    miss(store, durable.Schedule("old", half_past(), report), 1)
    durable.Worker(store, None, [report], schedules=[durable.Schedule("new", half_past(), report)]).run_until_idle()
    assert ids(store) == []
    assert [line.name for line in store.schedules()] == ["new", "old"]


def test_154_a_tick_whose_run_was_purged_does_not_begin_another(store: ReadableStore) -> None:
    """FAULTS 154: that the moment is over stands in the schedule, and not in the id of a run."""
    due = miss(store, durable.Schedule("s", half_past(), bare), 1)
    assert tick(store, due)
    durable.Worker(store, None, [bare]).run_until_idle()
    assert store.purge(older_than=0) == 1
    assert not tick(store, due)
    assert ids(store) == []


def test_what_waits_for_the_run_before_is_not_due(store: ReadableStore) -> None:
    waiting = durable.Schedule("w", half_past(), stuck, overlap="queue", missed="all")
    assert tick(store, miss(store, waiting, 2))
    first = ids(store)
    polled = poll(store, "w")
    assert not polled.due
    durable.Worker(store, None, [stuck], schedules=[waiting]).run_until_idle()
    assert ids(store) == first  # suspended, it has not ended
    durable.signal(store, first[0], "go")
    durable.Worker(store, None, [stuck], schedules=[waiting]).run_until_idle()
    assert len(ids(store)) == 2


def test_what_skips_begins_none_beside_a_run_that_has_not_ended(store: ReadableStore) -> None:
    once = durable.Schedule("o", half_past(), stuck, overlap="skip", missed="all")
    assert tick(store, miss(store, once, 2))
    assert len(ids(store)) == 1  # of two
    (line,) = store.schedules()
    due = DueSchedule(encode(store, once), 1, line.due_at, datetime.now(UTC) + timedelta(hours=1), is_open=True)
    assert find_ticks(due).begun == []


def test_a_pause_ends_without_what_came_in_it(store: ReadableStore) -> None:
    hourly = durable.Schedule("h", half_past(), report, missed="all")
    due = miss(store, hourly, 3)
    handle = durable.schedule(store, "h")
    handle.pause()
    assert not tick(store, due)
    assert (poll(store, "h").due, handle.status().paused, handle.status().due_at) in (
        ((), True, None),
        ([], True, None),
    )
    durable.Worker(store, None, [report], schedules=[hourly]).run_until_idle()  # its start does not end the pause
    assert handle.status().paused
    handle.resume()
    durable.Worker(store, None, [report], schedules=[hourly]).run_until_idle()
    assert (ids(store), handle.status().due_at is None) == ([], False)


def test_run_now_and_backfill(store: ReadableStore) -> None:
    hourly = durable.Schedule("h", half_past(), report, zone="Asia/Kolkata")
    miss(store, hourly, 1)
    handle = durable.schedule(store, "h")
    handle.pause()
    now = handle.run_now()
    until = datetime.now(UTC)
    filled = handle.backfill(until - timedelta(hours=3), until)
    assert len(filled) == 3
    assert [one.id for one in handle.backfill(until - timedelta(hours=2), until)] == [one.id for one in filled[1:]]
    durable.Worker(store, None, [report]).run_until_idle()
    results = [one.result() for one in (now, *filled)]
    assert [f"h/{one.at.isoformat()}" for one in results] == [now.id, *(one.id for one in filled)]
    with pytest.raises(InvalidArgument, match="future"):
        handle.backfill(until, until + timedelta(hours=1))
    with pytest.raises(InvalidArgument, match="before since"):
        handle.backfill(until, until - timedelta(hours=1))
    with pytest.raises(InvalidArgument, match="10,000 moments"):
        handle.backfill(until - timedelta(days=3000), until)
    with pytest.raises(InvalidArgument, match="aware"):
        handle.backfill(datetime(2026, 1, 1), until)


def test_the_handle_for_asyncio(store: ReadableStore) -> None:
    store.perform(PutSchedules([encode(store, durable.Schedule("a", half_past(), report))]))

    async def use() -> list[str]:
        handle = durable.schedule(store, "a").aio
        await handle.pause()
        assert (await handle.status()).paused
        await handle.resume()
        until = datetime.now(UTC)
        filled = await handle.backfill(until - timedelta(hours=1), until)
        now = await handle.run_now()
        await handle.delete()
        with pytest.raises(ScheduleNotFound):
            await handle.status()
        return [filled[0].id, now.id]

    assert asyncio.run(use()) == ids(store)


def test_a_schedule_that_is_not_there_is_named(store: ReadableStore) -> None:
    handle = durable.schedule(store, "nothing")
    for verb in (handle.status, handle.pause, handle.resume, handle.run_now, handle.delete):
        with pytest.raises(ScheduleNotFound, match="no schedule 'nothing'"):
            verb()


def test_a_given_input_is_that_of_each_run(store: ReadableStore) -> None:
    @durable.workflow(name="taker")
    def taker(step: durable.Step, deps: Any, what: dict[str, int]) -> int:
        return what["n"]

    given = durable.Schedule("g", half_past(), taker, input={"n": 3})
    miss(store, given, 1)
    durable.Worker(store, None, [taker], schedules=[given]).run_until_idle()
    (run,) = ids(store)
    assert durable.handle(store, run, taker).result() == 3


def test_a_zone_that_is_gone_stops_its_own_schedule_only(
    store: ReadableStore, caplog: pytest.LogCaptureFixture
) -> None:
    """FAULTS 151: it is said once, and the others tick."""
    good = durable.Schedule("good", half_past(), report)
    bad = durable.Schedule("bad", half_past(), report, zone="Europe/Berlin")
    miss(store, good, 1)
    due = miss(store, bad, 1)
    worker = durable.Worker(store, None, [report], schedules=[good, bad])
    internal: Any = worker
    internal._setup.schedules["bad"] = replace(due.scheduled, zone="Europe/Gone")
    worker.run_until_idle()
    assert [run.partition("/")[0] for run in ids(store)] == ["good"]
    told = [record.getMessage() for record in caplog.records if "Europe/Gone" in record.getMessage()]
    assert len(told) == 1
    assert "'bad'" in told[0]


@pytest.mark.parametrize("given", [3, "s", durable.Schedule("s", every=10, workflow="report"), ["s"], [None]], ids=str)
def test_what_is_no_list_of_schedules_is_refused(given: Any) -> None:
    with pytest.raises(InvalidArgument, match="schedules"):
        durable.Worker(durable.stores.memory(), None, [bare], schedules=given)
    with pytest.raises(InvalidArgument, match="retention"):
        durable.Worker(durable.stores.memory(), None, [bare], retention=given)


def test_two_schedules_of_one_name_are_refused() -> None:
    twice = [durable.Schedule("s", every=10, workflow=bare), durable.Schedule("s", every=20, workflow=bare)]
    with pytest.raises(InvalidArgument, match="two schedules are called 's'"):
        durable.Worker(durable.stores.memory(), None, [bare], schedules=twice)


# -- retention ------------------------------------------------------------------------------------------------------


def test_retention_by_queue_status_and_metadata(store: ReadableStore) -> None:
    @durable.workflow(name="fails")
    def fails(step: durable.Step, deps: Any) -> None:
        raise ValueError

    for run, queue, metadata in (
        ("a", "mail", {"customer": "acme"}),
        ("b", "mail", {"customer": "bolt"}),
        ("c", "x", {}),
    ):
        durable.start(bare, id=run, store=store, queue=queue, metadata=metadata)
    durable.start(fails, id="f", store=store, queue="mail")
    durable.start(bare, id="later", store=store, queue="mail", delay=3600)
    durable.Worker(store, None, [bare, fails], queues=["mail", "x"]).run_until_idle()
    assert store.purge(older_than=0, queue="mail", metadata={"customer": "acme"}) == 1
    assert ids(store) == ["b", "c", "f", "later"]
    assert store.purge(older_than=0, queue="mail", status="failed") == 1
    apply_retention(store, [durable.Retention(after=3600, status=None)])
    assert ids(store) == ["b", "c", "later"]
    apply_retention(store, [durable.Retention(after=timedelta(0), queue="x", status=None)])
    assert ids(store) == ["b", "later"]
    apply_retention(store, [durable.Retention(after=0, status=None)])
    assert ids(store) == ["later"]


def test_a_purge_takes_the_oldest_and_no_more_than_it_may(store: ReadableStore) -> None:
    for n in range(5):
        durable.run(None, bare, id=f"r{n}", store=store)
    assert store.purge(older_than=0, limit=2) == 2
    assert ids(store) == ["r2", "r3", "r4"]


def test_163_a_purge_of_what_waits_is_refused(store: ReadableStore) -> None:
    """Fault 163: by name where it is asked for, and passed over where all that has ended is."""
    durable.start(stuck, durable.Tick("x", datetime.now(UTC)), id="asleep", store=store)
    durable.start(bare, id="due", store=store, queue="nobody")
    durable.Worker(store, None, [stuck], suspend_after=0.0).run_until_idle()
    assert [durable.handle(store, run).status() for run in ("asleep", "due")] == ["suspended", "queued"]
    for status in ("suspended", "queued", "running"):
        refused: Any = status
        with pytest.raises(InvalidArgument, match="never purged"):
            store.purge(older_than=0, status=refused)
        with pytest.raises(InvalidArgument, match="never purged"):
            durable.Retention(after=0, status=refused)
    assert store.purge(older_than=0, status=None) == 0
    assert ids(store) == ["asleep", "due"]


def test_workers_take_turns_at_retention(store: ReadableStore) -> None:
    """What one has done in this minute the others do not do again; the turn itself is no schedule that anything lists."""
    policy = durable.Retention(after=0)
    durable.run(None, bare, id="old", store=store)
    worker = durable.Worker(store, None, [bare], retention=[policy])
    internal: Any = worker
    store.perform(PutSchedules(list(internal._setup.schedules.values())))
    (new,) = poll(store, OF_RETENTION).due
    assert store.perform(TickSchedule(new, (), new.now - timedelta(seconds=30)))
    with worker:
        wait_for(lambda: not ids(store))
    assert (list(store.schedules()), list(poll(store, OF_RETENTION).due)) == ([], [])


@pytest.mark.parametrize(
    "options",
    [{}, {"after": -1}, {"after": "1d"}, {"after": 1, "status": "ended"}, {"after": 1, "queue": ""}]
    + [{"after": 1, "metadata": given} for given in _NO_METADATA],
    ids=str,
)
def test_what_is_no_policy_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(InvalidArgument):
        durable.Retention(**options)


def wait_for(holds: Any) -> None:
    """Until it does."""
    pause = threading.Event()
    for _ in range(int(WITHIN / 0.02)):
        if holds():
            return
        pause.wait(0.02)
    pytest.fail("it did not come to hold")


def _revision(store: ReadableStore) -> Sequence[Any]:
    internal: Any = store
    if hasattr(internal, "_schedules"):
        return [internal._schedules._stored["s"].revision]
    held = internal._reading.perform(
        lambda session: session.execute(
            f"SELECT revision FROM {internal._names.quoted['schedules']}".encode()
        ).fetchall()
    )
    return list(held)
