"""What a worker decides, by readings of a clock that nothing else moves."""

from __future__ import annotations

from typing import Any, Final

import pytest
from msgspec.structs import replace

from durable._engine.decisions import Claim, Granted, Migrate
from durable._engine.leases import Lease
from durable._engine.workers import (
    FULL_INTERVAL,
    GATHER,
    LEAVE_TIMEOUT,
    MAX_CRASHES,
    MAX_INTERVAL,
    MIN_INTERVAL,
    SAME_REQUEST,
    Ask,
    Bury,
    Execute,
    Leave,
    PutOff,
    Rest,
    ReturnRuns,
    WorkerState,
    judge,
)
from durable.errors import (
    AccessDenied,
    DurableError,
    InvalidArgument,
    RunPoisoned,
    SchemaMismatch,
    ServerNotStarted,
    StoreUnavailable,
    UnreadableRecord,
    UnsuitableServer,
)
from durable.records import Execution, Header, Status


def idle(concurrency: int = 2, grace: float = 20.0) -> WorkerState:
    """A worker that has found nothing at 0."""
    state = WorkerState(concurrency, grace)
    ask = state.decide(0.0)
    assert ask == Ask(concurrency, looks_for_dead=True, says_idle=True)
    state.polled(0.0, ask, 0, None)
    return state


def test_an_idle_worker_polls_from_time_to_time() -> None:
    state = idle()
    assert state.decide(0.25) == Rest(MIN_INTERVAL - 0.25)
    assert state.decide(MIN_INTERVAL) == Ask(2, looks_for_dead=True)


def test_a_worker_that_works_until_it_is_idle_looks_once_more_after_the_last_run() -> None:
    state = WorkerState(2, 20.0, until_idle=True)
    state.polled(0.0, Ask(2, says_idle=True), 1, None)
    state.polled(0.0, Ask(1, says_idle=True), 0, None)
    assert isinstance(state.decide(0.0), Rest)  # it still holds one
    state.ended(0.5)
    ask = state.decide(0.5)
    assert isinstance(ask, Ask)
    state.polled(0.5, ask, 0, 3600.0)
    assert state.decide(0.5) == Leave()


def test_a_run_that_is_due_again_is_looked_for_then() -> None:
    state = idle()
    state.polled(0.0, Ask(2), 1, None)
    state.polled(0.0, Ask(1, says_idle=True), 0, None)
    state.ended(0.5, due_in=0.25)
    assert state.decide(0.5) == Rest(0.25)


def test_a_run_whose_end_is_being_recorded_leaves_its_place_to_another() -> None:
    """With such runs it holds twice as many as it executes, at the most: what cannot be recorded does not pile up."""
    state = WorkerState(2, 20.0)
    state.polled(0.0, Ask(2, says_idle=True), 2, None)
    state.ending(0.5)
    assert state.decide(0.5) == Ask(1, looks_for_dead=True)
    state.polled(0.5, Ask(1), 1, None)
    state.ending(0.5)
    state.polled(0.5, Ask(1), 1, None)
    state.ending(0.5)  # the third, beside one that is executed
    assert isinstance(state.decide(0.5), Rest)
    state.ended(0.6, was_ending=True)
    assert state.decide(0.6) == Ask(1, looks_for_dead=True)
    state.ended(0.6, was_ending=True)
    state.ended(0.6, was_ending=True)
    assert state.decide(0.6) == Ask(1, looks_for_dead=True)
    state.ended(0.7)  # of which no end was recorded, such as one that was lost
    assert state.decide(0.7) == Ask(2, looks_for_dead=True)


def test_a_worker_that_drains_waits_for_the_ends_that_are_being_recorded() -> None:
    state = WorkerState(1, 20.0)
    state.polled(0.0, Ask(1, says_idle=True), 1, None)
    state.ending(0.5)
    state.drain(0.5)
    assert state.decide(0.5) == Rest(20.0)
    state.ended(0.6, was_ending=True)
    assert state.decide(0.6) == Leave()


def test_it_polls_when_the_next_run_is_due() -> None:
    state = idle()
    state.polled(1.0, Ask(2), 0, 0.5)
    assert state.decide(1.0) == Rest(0.5)


@pytest.mark.parametrize(("workers", "rest"), [(1, 1.0), (2, 1.0), (6, 3.0), (10, 5.0), (100, MAX_INTERVAL)])
def test_the_more_workers_there_are_the_more_seldom_each_polls(workers: int, rest: float) -> None:
    """Law W10: two polls a second for a fleet of up to ten, twenty for a hundred."""
    state = idle()
    state.polled(1.0, Ask(2), 0, None, workers)
    assert state.decide(1.0) == Rest(rest)
    assert workers / rest <= max(2.0, workers / MAX_INTERVAL)


def test_it_says_that_it_has_room_before_the_poll_after_which_it_rests() -> None:
    """Law W11, FAULTS 139: a start that comes after the poll wakes it, and one that came before is found by it."""
    state = WorkerState(2, 20.0)
    first = state.decide(0.0)
    assert isinstance(first, Ask)
    state.polled(0.0, first, 1, None)  # the store has taken it off the idle ones
    second = state.decide(0.0)
    assert isinstance(second, Ask)
    assert second.says_idle
    state.polled(0.0, second, 0, None)
    assert isinstance(state.decide(0.0), Rest)


def test_it_is_taken_for_busy_once_it_is_woken() -> None:
    """What it was woken for is taken first, with the fewest statements; then it says that there is room for more."""
    state = idle()
    state.wake(0.5)
    assert state.decide(0.5) == Ask(2)
    state.polled(0.5, Ask(2), 1, None)
    assert state.decide(0.5) == Ask(1, says_idle=True)


def test_it_says_so_too_where_another_has_taken_what_it_was_woken_for() -> None:
    state = idle()
    state.wake(0.5)
    state.polled(0.5, Ask(2), 0, None)
    assert state.decide(0.5) == Ask(2, says_idle=True)


def test_with_a_backlog_it_lets_free_slots_gather() -> None:
    """One poll for each slot would be a round trip and a commit for each run."""
    state = WorkerState(16, 20.0)
    state.polled(0.0, Ask(16, looks_for_dead=True, says_idle=True), 16, None)
    assert state.decide(0.0) == Rest(FULL_INTERVAL)
    state.ended(0.5)
    rest = state.decide(0.5)
    assert isinstance(rest, Rest)
    assert rest.seconds == pytest.approx(GATHER)
    state.ended(0.502)
    assert state.decide(0.5 + GATHER) == Ask(2)


def test_many_free_slots_are_enough() -> None:
    state = WorkerState(16, 20.0)
    state.polled(0.0, Ask(16, looks_for_dead=True, says_idle=True), 16, None)
    for _ in range(4):
        assert isinstance(state.decide(0.5), Rest)
        state.ended(0.5)
    assert state.decide(0.5) == Ask(4)


def test_it_asks_for_no_more_than_it_has_room_for() -> None:
    state = WorkerState(2, 20.0)
    ask = state.decide(0.0)
    assert isinstance(ask, Ask)
    state.polled(0.0, ask, 2, None)
    assert state.decide(0.0) == Rest(FULL_INTERVAL)
    assert state.decide(FULL_INTERVAL) == Ask(0)  # it takes nothing, and is known to be there
    state.polled(FULL_INTERVAL, Ask(0), 0, None)
    assert state.decide(FULL_INTERVAL) == Rest(FULL_INTERVAL)
    state.ended(3.0)
    assert state.decide(3.0) == Ask(1, looks_for_dead=True)


def test_a_poll_that_fails_is_tried_again_ever_later() -> None:
    state = WorkerState(2, 20.0)
    pauses: list[float] = []
    now = 0.0
    for _ in range(8):
        state.failed(now, StoreUnavailable("the server", "gone"))
        state.wake(now)  # which hurries nothing
        rest = state.decide(now)
        assert isinstance(rest, Rest)
        pauses.append(rest.seconds)
        now += rest.seconds
    assert pauses == sorted(pauses)
    assert pauses[-1] == 1.0


SETUP_ERRORS: Final = [
    AccessDenied("db", "no such role"),
    SchemaMismatch("t", "newer", "upgrade"),
    UnsuitableServer("db", "a standby", "ask the primary"),
    ServerNotStarted("no binaries", "install them"),
]


@pytest.mark.parametrize("error", SETUP_ERRORS, ids=lambda error: type(error).__name__)
def test_what_no_other_try_can_mend_ends_a_worker_that_has_not_polled_yet(error: DurableError) -> None:
    state = WorkerState(2, 20.0)
    state.failed(0.0, error)
    assert state.decide(0.0) == Leave(error)


@pytest.mark.parametrize("error", SETUP_ERRORS, ids=lambda error: type(error).__name__)
def test_what_has_worked_may_work_again(error: DurableError) -> None:
    """A fail-over leads to a standby for a while."""
    state = idle()
    state.failed(1.0, error)
    assert isinstance(state.decide(1.0), Rest)
    state.drain(2.0)
    assert state.decide(2.0) == Leave()


def test_a_closed_store_ends_the_worker_once_what_it_holds_has_ended() -> None:
    error, state = InvalidArgument("the store is closed"), held(1)
    state.failed(1.0, error)
    assert state.is_draining
    assert state.decide(1.0) == Rest(20.0)
    state.ended(2.0)
    assert state.decide(2.0) == Leave(error)


def held(runs: int) -> WorkerState:
    """A worker that holds so many runs."""
    state = WorkerState(8, 20.0)
    state.polled(0.0, Ask(8), runs, None)
    return state


def test_a_worker_that_drains_takes_nothing_more_and_leaves_with_the_last_run() -> None:
    state = held(2)
    state.drain(1.0)
    assert state.is_draining
    assert state.decide(1.0) == Rest(20.0)
    state.ended(2.0)
    assert state.decide(2.0) == Rest(19.0)
    state.ended(3.0)
    assert state.decide(3.0) == Leave()


def test_when_the_grace_is_over_it_gives_back_what_is_left_and_leaves() -> None:
    state = held(1)
    state.drain(1.0)
    assert state.decide(21.0) == ReturnRuns()
    assert state.decide(21.0) == Rest(LEAVE_TIMEOUT)
    assert state.decide(21.0 + LEAVE_TIMEOUT) == Leave()


def test_a_second_request_ends_the_grace() -> None:
    state = held(1)
    state.drain(1.0)
    state.hurry(2.0)
    assert state.decide(2.0) == ReturnRuns()
    state.ended(2.5)
    assert state.decide(2.5) == Leave()


def test_a_request_that_comes_by_two_ways_at_once_is_one() -> None:
    state = held(1)
    state.drain(1.0)
    state.hurry(1.0 + SAME_REQUEST / 2)
    assert state.decide(2.0) == Rest(19.0)


CLAIM = Claim(run_id="r", workflow="checkout", version=1, seconds=30.0)


def granted(crashes: int = 0, problem: Any = None) -> Granted:
    """A grant of a run under which so many workers have died."""
    header = Header("checkout", Execution(Status.RUNNING, crashes=crashes))
    return Granted(Lease("r", "1:x", 1, 30.0, 0.0), header, [], problem=problem)


def test_a_run_under_which_workers_died_in_a_row_is_buried() -> None:
    """FAULTS 142."""
    assert judge(granted(MAX_CRASHES - 1), CLAIM) == Execute(CLAIM)
    match judge(granted(MAX_CRASHES), CLAIM):
        case Bury(error=RunPoisoned(crashes=crashes)):
            assert crashes == MAX_CRASHES
        case other:
            pytest.fail(f"{other}")


def test_a_run_that_cannot_be_read_is_put_off() -> None:
    problem = UnreadableRecord("r", "the header", "of a newer version")
    match judge(granted(problem=problem), None):
        case PutOff(error=error, seconds=seconds):
            assert error is problem
            assert seconds > MAX_INTERVAL
        case other:
            pytest.fail(f"{other}")


def test_a_run_of_another_function_of_the_same_name_is_put_off() -> None:
    """Both are called so by their functions only; the next deploy may bring the right one."""
    run = granted()
    stored = replace(run, header=replace(run.header, metadata={"version": 1, "workflowFunction": "shop:checkout"}))
    its_own = replace(CLAIM, function="shop:checkout")
    assert judge(stored, its_own) == Execute(its_own)
    assert isinstance(judge(stored, replace(CLAIM, function="other:checkout")), PutOff)
    assert isinstance(judge(stored, None), PutOff)
    assert isinstance(judge(stored, replace(CLAIM, version=2)), Migrate)


def test_the_first_poll_says_that_the_worker_is_there() -> None:
    """Also where its listener has woken it before: it is on the list when it is told to leave right after its first run."""
    state = WorkerState(1, 20.0)
    state.wake(0.0)
    first = state.decide(0.0)
    assert isinstance(first, Ask)
    assert first.says_idle
    state.polled(0.0, first, 0, None)
    state.wake(0.1)
    second = state.decide(0.1)
    assert isinstance(second, Ask)
    assert not second.says_idle
