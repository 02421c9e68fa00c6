"""FAULTS 179: what a run did while it failed or was left is refused by name, set aside, or history; killed at every boundary."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections import Counter
from collections.abc import Callable, Generator, Iterator
from functools import partial
from typing import Any, cast

import pytest

import durable
from durable.stores import MemoryStore, memory
from harness.stages import Died, Program, Stage, StoreStage, World, memory_stage, postgres_stage
from harness.support import Database

# -- the programs: one `async def` for the engine, both drivers and both stores ----------------------------------------


async def log_in_finally(step: Any, world: Any) -> str:
    try:
        await step("work", world.do, "work")
    finally:
        await step("log", world.do, "log")
    return "done"


async def notify_and_raise(step: Any, world: Any) -> str:
    try:
        await step("work", world.do, "work")
    except ValueError:
        await step("notify", world.do, "notify")
        raise
    return "done"


async def notify_all_and_raise(step: Any, world: Any) -> str:
    try:
        await step("work", world.do, "work")
    except ValueError:
        await step.map("notify", world.do, ["ann", "bob"])
        raise
    return "done"


async def nested_finally(step: Any, world: Any) -> str:
    await step("lock", world.do, "lock")
    try:
        try:
            await step("work", world.do, "work")
        finally:
            await step("note", world.do, "note")
    finally:
        await step("unlock", world.do, "unlock")
    return "done"


async def raise_another(step: Any, world: Any) -> str:
    try:
        await step("work", world.do, "work")
    except ValueError as problem:
        await step("refund", world.do, "refund")
        raise RuntimeError("the order was given up") from problem
    return "done"


async def raise_another_of_nothing(step: Any, world: Any) -> str:
    try:
        await step("work", world.do, "work")
    except ValueError:
        await step("refund", world.do, "refund")
        raise RuntimeError("the order was given up") from None
    return "done"


async def of_a_group(step: Any, world: Any) -> str:
    errors: list[Exception] = []
    try:
        await step("work", world.do, "work")
    except ValueError as problem:
        errors.append(problem)
    if errors:
        try:
            raise ExceptionGroup("several", errors)
        finally:
            await step("report", world.do, "report")
    return "done"


async def its_own_fault(step: Any, world: Any) -> str:
    await step("charge", world.do, "charge")
    try:
        if "work" in world.failing:
            raise KeyError("the workflow's own")
    except KeyError:
        await step("refund", world.do, "refund")
        raise
    return "done"


async def unstorable(step: Any, world: Any) -> str:
    try:
        await step("work", lambda: object() if "work" in world.failing else 1)
    except durable.UnstorableValue:
        await step("refund", world.do, "refund")
        raise
    return "done"


async def in_a_context_manager(step: Any, world: Any) -> str:
    @contextlib.asynccontextmanager
    async def locked() -> Any:
        try:
            yield
        finally:
            await step("unlock", world.do, "unlock")

    async with locked():
        await step("work", world.do, "work")
    return "done"


REFUSED: dict[Program, list[str]] = {
    log_in_finally: ["log"],
    notify_and_raise: ["notify"],
    notify_all_and_raise: ["notify[0]", "notify[1]"],
    nested_finally: ["note", "unlock"],
    raise_another: ["refund"],
    raise_another_of_nothing: ["refund"],
    of_a_group: ["report"],
    its_own_fault: ["refund"],
    unstorable: ["refund"],
    in_a_context_manager: ["unlock"],
}


async def clean_log(step: Any, world: Any) -> str:
    try:
        await step("work", world.do, "work")
    finally:
        await step("log", world.do, "log", cleanup=True)
    return "done"


async def clean_notify(step: Any, world: Any) -> str:
    try:
        await step("work", world.do, "work")
    except ValueError:
        await step("notify", world.do, "notify", cleanup=True)
        raise
    return "done"


async def clean_notify_all(step: Any, world: Any) -> str:
    try:
        await step("work", world.do, "work")
    except ValueError:
        await step.map("notify", world.do, ["ann", "bob"], cleanup=True)
        raise
    return "done"


async def clean_in_between(step: Any, world: Any) -> str:
    await step("first", world.do, "first")
    await step("tell", world.do, "tell", cleanup=True)
    await step("second", world.do, "second")
    await step("work", world.do, "work")
    return "done"


async def clean_with_its_outcome(step: Any, world: Any) -> str:
    status = "failed"
    try:
        await step("work", world.do, "work")
        status = "done"
    finally:
        await step("notify", world.do, "notify", status, cleanup=True)
    return status


async def collected(step: Any, world: Any) -> str:
    errors: list[Exception] = []
    for what in ("work", "b", "c"):
        try:
            await step(what, world.do, what)
        except ValueError as problem:
            errors.append(problem)
    if errors:
        raise ExceptionGroup("several", errors)
    return "done"


async def one_of_a_map(step: Any, world: Any) -> str:
    await step.map("item", world.do, ["a", "work", "c"])
    return "done"


async def reported_after_the_block(step: Any, world: Any) -> str:
    error = None
    try:
        await step("work", world.do, "work")
    except ValueError as problem:
        error = problem
    await step("report", world.do, "report")
    if error is not None:
        raise error
    return "done"


async def tried_by_hand(step: Any, world: Any) -> str:
    last: Exception | None = None
    for number in range(3):
        try:
            await step(f"try-{number}", world.do, "work")
        except ValueError as problem:
            last = problem
            await step.sleep(f"pause-{number}", 0.01)
        else:
            return "done"
    assert last is not None
    raise last


async def fallback_that_fails_too(step: Any, world: Any) -> str:
    try:
        await step("work", world.do, "work")
    except ValueError:
        await step("fallback", world.do, "work")
    return "done"


async def caught_and_failed_later(step: Any, world: Any) -> str:
    try:
        await step("first", world.do, "always")
    except ValueError:
        await step("fallback", world.do, "fallback")
    await step("work", world.do, "work")
    return "done"


async def told_before_and_asked_for_again(step: Any, world: Any) -> str:
    await step("mail", world.do, "mail", key="mail")
    try:
        await step("work", world.do, "work")
    except ValueError:
        await step("mail", world.do, "mail", key="mail")
        raise
    return "done"


async def asked_for_again_after_what_was_caught(step: Any, world: Any) -> str:
    try:
        await step("always", world.do, "always")
    except ValueError:
        await step("mail", world.do, "mail", key="mail")
    try:
        await step("work", world.do, "work")
    finally:
        await step("mail", world.do, "mail", key="mail")
    return "done"


RESUMED: dict[Program, Counter[str]] = {
    clean_log: Counter(work=2, log=2),
    clean_notify: Counter(work=2, notify=1),
    clean_notify_all: Counter(work=2, ann=1, bob=1),
    clean_in_between: Counter(first=1, tell=2, second=1, work=2),
    clean_with_its_outcome: Counter(work=2, notify=2),
    collected: Counter(work=2, b=1, c=1),
    one_of_a_map: Counter(a=1, work=2, c=1),
    reported_after_the_block: Counter(work=2, report=1),
    tried_by_hand: Counter(work=4),
    fallback_that_fails_too: Counter(work=3),
    caught_and_failed_later: Counter(always=1, fallback=1, work=2),
    told_before_and_asked_for_again: Counter(mail=1, work=2),
    asked_for_again_after_what_was_caught: Counter(always=1, mail=1, work=2),
}


async def unlocked_in_finally(step: Any, world: Any) -> str:
    try:
        await step("work", world.do, "work")
    finally:
        await step("unlock", world.do, "unlock")
    return "done"


async def refunded_on_the_way_out(step: Any, world: Any) -> str:
    await step("charge", world.do, "charge")
    try:
        await step("work", world.do, "work")
    except BaseException:
        await step("refund", world.do, "refund")
        raise
    await step("ship", world.do, "ship")
    return "shipped"


async def cleaned_by_a_map(step: Any, world: Any) -> str:
    try:
        await step("work", world.do, "work")
    finally:
        await step.map("clean", world.do, ["x", "y"])
    return "done"


async def an_error_while_leaving(step: Any, world: Any) -> str:
    try:
        await step("work", world.do, "work")
    except BaseException:
        try:
            raise OSError("no such file")
        except OSError:
            await step("note", world.do, "note")
        raise
    return "done"


INTERRUPTED: dict[Program, tuple[Counter[str], Counter[str]]] = {  # what is done while leaving, and by the end
    unlocked_in_finally: (Counter(work=1), Counter(work=2, unlock=1)),
    refunded_on_the_way_out: (Counter(charge=1, work=1), Counter(charge=1, work=2, ship=1)),
    cleaned_by_a_map: (Counter(work=1), Counter(work=2, x=1, y=1)),
    an_error_while_leaving: (Counter(work=1), Counter(work=2)),
    clean_log: (Counter(work=1), Counter(work=2, log=1)),
}


async def stopped_by_hand(step: Any, world: Any) -> str:
    stop = False
    try:
        await step("work", world.do, "work")
    except KeyboardInterrupt:
        stop = True
    if stop:
        await step("goodbye", world.do, "goodbye")
        raise SystemExit(1)
    await step("next", world.do, "next")
    return "done"


# -- what they come to -------------------------------------------------------------------------------------------------


def ended(stage: Stage, program: Program, world: World, *, id: str = "run-1", dies_at: int | None = None) -> Any:
    """What a run comes to, as something to compare: its value, the steps it is refused for, or its exception's class."""
    try:
        return stage.run(program, world, id=id, dies_at=dies_at)
    except durable.RetryRefused as refused:
        return list(refused.steps)
    except BaseException as problem:
        return Died if stage.boundaries.dead else type(problem)


def mended(world: World) -> None:
    """Nothing fails any more, and there is no Ctrl-C."""
    world.failing &= {"always"}
    world.interrupting.clear()
    world.endless.clear()


def killed_everywhere(
    stage: Stage, program: Program, make: Callable[[], World], judge: Callable[[str], object] = str
) -> None:
    """The program's first life, ended at each of its boundaries: it comes to the same end, and so does the mended world.

    A death costs one more call of a body at the most. `judge` is called with each run's id; it is said how many deaths were
    tried.
    """
    undisturbed = make()
    first = ended(stage, program, undisturbed, id="undisturbed")
    names = list(stage.boundaries.passed)
    mended(undisturbed)
    second = ended(stage, program, undisturbed, id="undisturbed")
    judge("undisturbed")
    usual, deaths = Counter(undisturbed.bodies), 0
    for dies_at in range(len(names)):
        world, run_id = make(), f"dies-at-{dies_at}"
        outcome = ended(stage, program, world, id=run_id, dies_at=dies_at)
        if outcome is Died:
            deaths += 1
            # Threads come to their boundaries in another order each time: where it died is what counts.
            over = stage.boundaries.died_at == "finish committed"
            outcome = first if over else ended(stage, program, world, id=run_id)
        if outcome == second:  # it had come to its end before it died
            continue
        assert outcome == first, (dies_at, outcome)
        mended(world)
        assert ended(stage, program, world, id=run_id) == second, dies_at
        assert all(times <= usual[what] + 1 for what, times in Counter(world.bodies).items()), (dies_at, world.bodies)
        judge(run_id)
    assert deaths >= len(names) // 2
    print(f"{program.__name__}: {deaths} deaths on {type(stage).__name__}")


def failing() -> World:
    return World(failing={"work", "always"})


def interrupting() -> World:
    return World(interrupting={"work"})


@pytest.mark.parametrize("program", REFUSED, ids=lambda program: program.__name__)
def test_a_run_that_went_on_while_it_failed_is_refused_by_name(stage: Stage, program: Program) -> None:
    """Before any body, as often as it is asked; set aside by a person, its steps run again."""
    world, names = failing(), REFUSED[program]
    assert ended(stage, program, world) in (ValueError, RuntimeError, ExceptionGroup, KeyError, durable.UnstorableValue)
    done = list(world.bodies)
    mended(world)
    for _ in range(2):
        with pytest.raises(durable.RetryRefused, match=r"durable\.retry\(store, 'run-1'\).*from_step=KEY") as refused:
            stage.run(program, world)
        assert list(refused.value.steps) == names
        assert all(repr(name) in str(refused.value) for name in names)
        assert world.bodies == done
    assert stage.retry("run-1") == names
    assert stage.run(program, world) == "done"
    assert stage.run(program, world) == "done"


@pytest.mark.parametrize("program", RESUMED, ids=lambda program: program.__name__)
def test_a_run_that_only_failed_is_resumed(stage: Stage, program: Program) -> None:
    """Only what failed runs again, and clean-up."""
    world = failing()
    assert ended(stage, program, world) in (ValueError, ExceptionGroup)
    mended(world)
    assert ended(stage, program, world) == "done"
    assert Counter(world.bodies) == RESUMED[program]


@pytest.mark.parametrize("program", INTERRUPTED, ids=lambda program: program.__name__)
def test_an_interruption_begins_nothing(stage: Stage, program: Program) -> None:
    """A crash with manners: what is resumed is a run that stopped in `work`."""
    world, (leaving, by_the_end) = interrupting(), INTERRUPTED[program]
    assert ended(stage, program, world) is KeyboardInterrupt
    assert Counter(world.bodies) == leaving
    mended(world)
    assert ended(stage, program, world) in ("done", "shipped")
    assert Counter(world.bodies) == by_the_end


def test_an_interruption_that_the_workflow_has_taken_over_is_over(stage: Stage) -> None:
    """Once `except` is left, steps are steps; what raises SystemExit then is left as ever."""
    world = interrupting()
    assert ended(stage, stopped_by_hand, world) is SystemExit
    assert Counter(world.bodies) == Counter(work=1, goodbye=1)
    mended(world)
    assert ended(stage, stopped_by_hand, world) == "done"
    assert Counter(world.bodies) == Counter(work=2, goodbye=1, next=1)


EVERYWHERE = [
    *((program, failing) for program in REFUSED),
    *((program, failing) for program in RESUMED),
    *((program, interrupting) for program in INTERRUPTED),
    (stopped_by_hand, interrupting),
]


@pytest.mark.parametrize(("program", "make"), EVERYWHERE, ids=lambda value: value.__name__)
def test_killed_at_every_boundary_it_comes_to_the_same_end(
    stage: Stage, program: Program, make: Callable[[], World]
) -> None:
    """Wherever the first life ends: refused where it was refused, resumed where it was resumed."""
    killed_everywhere(stage, program, make)


# -- cancellation, which is asyncio's ----------------------------------------------------------------------------------


@pytest.fixture(params=["memory", "postgres"])
def awaiting(request: pytest.FixtureRequest) -> Iterator[StoreStage]:
    """A stage whose workflows are async."""
    if request.param == "postgres":
        yield postgres_stage(request.getfixturevalue("database"), is_async=True)
        return
    stage = memory_stage(is_async=True)
    yield stage
    stage._store.close()


async def until_cancelled(world: Any, what: str = "work") -> Any:
    """A body in which the task is asked to end, as when the process is shut down."""
    done = world.do(what)
    if what in world.endless:
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
        await asyncio.Event().wait()
    return done


def endless() -> World:
    """A world in which the body of `work` does not end."""
    return World(endless={"work"})


async def unlocked_when_cancelled(step: Any, world: Any) -> str:
    try:
        await step("work", partial(until_cancelled, world))
    finally:
        await step("unlock", world.do, "unlock")
    return "done"


async def told_when_cancelled(step: Any, world: Any) -> str:
    status = "cancelled"
    try:
        await step("work", partial(until_cancelled, world))
        status = "done"
    finally:
        await step("tell", world.do, "tell", status)
    return status


async def mapped_when_cancelled(step: Any, world: Any) -> str:
    try:
        await step("work", partial(until_cancelled, world))
    finally:
        await step.map("clean", world.do, ["x", "y"])
    return "done"


async def an_error_while_cancelled(step: Any, world: Any) -> str:
    try:
        await step("work", partial(until_cancelled, world))
    except BaseException:
        try:
            raise OSError("no such file")
        except OSError:
            await step("note", world.do, "note")
        raise
    return "done"


@pytest.mark.parametrize(
    ("program", "leaving", "by_the_end"),
    [
        (unlocked_when_cancelled, Counter(work=1, unlock=1), Counter(work=2, unlock=2)),
        (told_when_cancelled, Counter(work=1, tell=1), Counter(work=2, tell=2)),
        (mapped_when_cancelled, Counter(work=1, x=1, y=1), Counter(work=2, x=2, y=2)),
        (an_error_while_cancelled, Counter(work=1, note=1), Counter(work=2, note=1)),
    ],
)
def test_what_ran_while_a_task_was_cancelled_is_set_aside(
    awaiting: StoreStage, program: Any, leaving: Counter[str], by_the_end: Counter[str]
) -> None:
    """It is done, and no part of the history: neither its value nor its arguments bind the next execution."""
    world = endless()
    assert ended(awaiting, program, world) is asyncio.CancelledError
    assert Counter(world.bodies) == leaving
    mended(world)
    assert ended(awaiting, program, world) == "done"
    assert Counter(world.bodies) == by_the_end


async def cleaned_in_new_tasks(step: Any, world: Any) -> str:
    async def clean(what: str) -> None:
        await step("clean", world.do, what, key=what)

    try:
        await step("work", partial(until_cancelled, world))
    finally:
        await asyncio.gather(clean("x"), clean("y"))
    return "done"


async def beside_a_sibling(step: Any, world: Any) -> str:
    async def sibling() -> Any:
        await asyncio.sleep(0)
        return world.do("sibling")

    task = asyncio.create_task(step("sibling", sibling))
    try:
        await step("work", partial(until_cancelled, world))
    finally:
        await task
    return "done"


@pytest.mark.parametrize(
    ("program", "by_the_end"),
    [(cleaned_in_new_tasks, Counter(work=2, x=1, y=1)), (beside_a_sibling, Counter(work=2, sibling=1))],
)
def test_what_other_tasks_did_meanwhile_is_history(
    awaiting: StoreStage, program: Any, by_the_end: Counter[str]
) -> None:
    """Nothing is in flight there; `cleanup=True` is the cure."""
    world = endless()
    assert ended(awaiting, program, world) is asyncio.CancelledError
    mended(world)
    assert ended(awaiting, program, world) == "done"
    assert Counter(world.bodies) == by_the_end


async def timed_out_here(step: Any, world: Any) -> str:
    limit = asyncio.timeout(None)

    async def slow() -> Any:
        world.do("slow")
        if world.endless:
            limit.reschedule(asyncio.get_running_loop().time())
            await asyncio.Event().wait()

    try:
        async with limit:
            try:
                await step("slow", slow)
            finally:
                await step("unlock", world.do, "unlock")
    except TimeoutError:
        await step("fallback", world.do, "fallback")
    await step("work", world.do, "work")
    return "done"


async def timed_out_and_swallowed(step: Any, world: Any) -> str:
    limit = asyncio.timeout(None)

    async def slow() -> Any:
        limit.reschedule(asyncio.get_running_loop().time())
        await asyncio.Event().wait()

    with contextlib.suppress(TimeoutError):
        async with limit:
            try:
                await step("slow", slow)
            finally:
                await step("unlock", world.do, "unlock")
    await step("work", world.do, "work")
    return "done"


def endless_and_failing() -> World:
    return World(endless={"slow"}, failing={"work"})


@pytest.mark.parametrize("program", [timed_out_here, timed_out_and_swallowed])
def test_a_timeout_that_the_workflow_goes_on_after_leaves_history(awaiting: StoreStage, program: Any) -> None:
    """In flight it cannot be told from the end of the process; the next step in that branch tells."""
    world = endless_and_failing()
    assert ended(awaiting, program, world) is ValueError
    mended(world)
    assert ended(awaiting, program, world) == "done"
    bodies = Counter(world.bodies)
    assert (bodies["unlock"], bodies["fallback"], bodies["work"]) == (1, int(program is timed_out_here), 2)


@pytest.mark.parametrize("program", [timed_out_here, timed_out_and_swallowed])
def test_what_the_workflow_went_on_after_is_history_also_for_one_that_is_killed(
    awaiting: StoreStage, program: Any
) -> None:
    """The record of the next step says so, and not the end of the run."""
    world = endless()
    ended(awaiting, program, world, id="undisturbed")
    deadly = awaiting.boundaries.passed.index("before finish")
    world = endless()
    assert ended(awaiting, program, world, dies_at=deadly) is Died
    assert ended(awaiting, program, world) == "done"
    assert Counter(world.bodies)["unlock"] == 1


async def gathered_in_the_handler(step: Any, world: Any) -> str:
    try:
        await step("work", world.do, "work")
    except ValueError:
        await asyncio.gather(step("x", world.do, "x"), step("y", world.do, "y"))
        raise
    return "done"


async def waited_for_in_the_handler(step: Any, world: Any) -> str:
    try:
        await step("work", world.do, "work")
    except ValueError:
        await asyncio.shield(step("x", world.do, "x"))
        await asyncio.wait_for(step("y", world.do, "y"), 60)
        raise
    return "done"


async def on_a_stack(step: Any, world: Any) -> str:
    async with contextlib.AsyncExitStack() as stack:
        stack.push_async_callback(step, "y", world.do, "y")
        stack.push_async_callback(step, "x", world.do, "x")
        await step("work", world.do, "work")
    return "done"


@pytest.mark.parametrize("program", [gathered_in_the_handler, waited_for_in_the_handler, on_a_stack])
def test_steps_that_are_called_in_a_handler_are_seen_wherever_they_are_awaited(
    awaiting: StoreStage, program: Any
) -> None:
    """A step is what it is where it is called; tasks of asyncio's own around it change nothing."""
    world = failing()
    assert ended(awaiting, program, world) is ValueError
    mended(world)
    with pytest.raises(durable.RetryRefused) as refused:
        awaiting.run(program, world)
    assert refused.value.steps == ("x", "y")
    assert Counter(world.bodies) == Counter(work=1, x=1, y=1)


async def until_timed_out(world: Any, limit: asyncio.Timeout | asyncio.Task[Any]) -> Any:
    """A body that loses against its time, if it is endless."""
    done = world.do("work")
    if world.endless:
        if isinstance(limit, asyncio.Task):
            limit.cancel()
        else:
            limit.reschedule(asyncio.get_running_loop().time())
        await asyncio.Event().wait()
    return done


async def refunded_in_time(step: Any, world: Any, limit: Any) -> None:
    try:
        await step("work", partial(until_timed_out, world, limit))
    except asyncio.CancelledError:
        await step("refund", world.do, "refund")
        raise


async def refunded_within_a_timeout(step: Any, world: Any) -> str:
    async with asyncio.timeout(None) as limit:
        await refunded_in_time(step, world, limit)
    return "shipped"


async def refunded_in_a_task_that_is_given_up(step: Any, world: Any) -> str:
    async def work() -> None:
        await refunded_in_time(step, world, asyncio.current_task())

    try:
        await asyncio.create_task(work())
    except asyncio.CancelledError as problem:  # as asyncio.wait_for does
        raise TimeoutError from problem
    return "shipped"


async def refunded_and_raised_as_another(step: Any, world: Any) -> str:
    async with asyncio.timeout(None) as limit:
        try:
            await step("work", partial(until_timed_out, world, limit))
        except asyncio.CancelledError:
            await step("refund", world.do, "refund")
            raise RuntimeError("given up") from None
    return "shipped"


async def refunded_where_a_group_is_left(step: Any, world: Any) -> str:
    begun = asyncio.Event()

    async def other() -> None:
        await begun.wait()
        if world.endless:
            raise ValueError("the other")

    async def work() -> Any:
        begun.set()
        done = world.do("work")
        await (asyncio.Event().wait() if world.endless else asyncio.sleep(0))
        return done

    async with asyncio.TaskGroup() as group:
        group.create_task(other())
        try:
            await step("work", work)
        except asyncio.CancelledError:
            await step("refund", world.do, "refund")
            raise
    return "shipped"


@pytest.mark.parametrize(
    "program",
    [
        refunded_within_a_timeout,
        refunded_in_a_task_that_is_given_up,
        refunded_and_raised_as_another,
        refunded_where_a_group_is_left,
    ],
)
def test_a_cancellation_that_came_to_be_the_failure_of_the_run_is_one(awaiting: StoreStage, program: Any) -> None:
    """Never refunded and shipped: what was done while it was in flight takes a decision, as for any failure."""
    world = endless()
    assert ended(awaiting, program, world) in (TimeoutError, RuntimeError, ExceptionGroup)
    mended(world)
    with pytest.raises(durable.RetryRefused) as refused:
        awaiting.run(program, world)
    assert refused.value.steps == ("refund",)
    assert awaiting.retry("run-1") == ["refund"]
    assert awaiting.run(program, world) == "shipped"
    assert Counter(world.bodies) == Counter(work=2, refund=1)


async def cancelled(task: asyncio.Task[Any]) -> None:
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task


async def loser(step: Any, world: Any, begun: asyncio.Event) -> None:
    async def endless() -> None:
        begun.set()
        await asyncio.Event().wait()

    try:
        await step("slow", endless)
    finally:
        await step("release", world.do, "release", at_most_once="at most once" in world.failing)


async def a_race(step: Any, world: Any) -> None:
    begun = asyncio.Event()
    task = asyncio.create_task(loser(step, world, begun))
    await begun.wait()
    await step("fast", world.do, "fast")
    await cancelled(task)
    await step("next", world.do, "next")


async def lost_a_race(step: Any, world: Any) -> str:
    await a_race(step, world)
    return cast(str, await step("work", partial(until_cancelled, world))) and "done"


async def lost_a_race_in_a_child(step: Any, world: Any) -> str:
    await asyncio.gather(a_race(step, world))
    await until_cancelled(world)  # the main task has called no step since
    return "done"


async def lost_a_race_in_a_group(step: Any, world: Any) -> str:
    async with asyncio.TaskGroup() as group:
        group.create_task(a_race(step, world))
    await until_cancelled(world)
    return "done"


async def lost_to_a_sibling(step: Any, world: Any) -> str:
    begun, over = asyncio.Event(), asyncio.Event()

    async def sibling() -> None:
        await over.wait()
        await step("next", world.do, "next")

    task, other = asyncio.create_task(loser(step, world, begun)), asyncio.create_task(sibling())
    await begun.wait()
    await step("fast", world.do, "fast")
    await cancelled(task)
    over.set()
    await other
    await until_cancelled(world)
    return "done"


RACES: list[Any] = [lost_a_race, lost_a_race_in_a_child, lost_a_race_in_a_group, lost_to_a_sibling]


@pytest.mark.parametrize("program", RACES)
@pytest.mark.parametrize("kind", ["at least once", "at most once"])
def test_what_a_task_did_that_was_cancelled_by_the_workflow_is_history(
    awaiting: StoreStage, program: Any, kind: str
) -> None:
    """Another branch has gone on, and the main task is not asked to end: so the process was not being left."""
    world = endless()
    world.failing = {kind}
    assert ended(awaiting, program, world) is asyncio.CancelledError
    mended(world)
    world.failing = {kind}
    assert ended(awaiting, program, world) == "done"
    assert Counter(world.bodies) == Counter(fast=1, release=1, next=1, work=2)


async def left_with_a_sibling(step: Any, world: Any) -> str:
    main, unlocked = asyncio.current_task(), asyncio.Event()
    assert main is not None

    async def stubborn() -> None:
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.sleep(3600 if world.endless else 0)
        await (unlocked.wait() if world.endless else asyncio.sleep(0))
        await step("note", world.do, "note")

    async def work() -> str:
        if world.endless:
            main.cancel()
            await asyncio.Event().wait()
        return str(world.do("work"))

    async def cleaned() -> None:
        try:
            await step("work", work)
        finally:
            await step("unlock", world.do, "unlock")
            unlocked.set()

    await asyncio.gather(stubborn(), cleaned())
    return "done"


def test_while_the_workflow_is_asked_to_end_a_sibling_that_goes_on_says_nothing_of_others(awaiting: StoreStage) -> None:
    """Its own steps are history; what the other did on its way out is done again."""
    world = endless()
    assert ended(awaiting, left_with_a_sibling, world) is asyncio.CancelledError
    assert Counter(world.bodies) == Counter(unlock=1, note=1)
    mended(world)
    assert ended(awaiting, left_with_a_sibling, world) == "done"
    assert Counter(world.bodies) == Counter(work=1, unlock=2, note=1)


async def siblings_of_a_failure(step: Any, world: Any) -> str:
    async def work() -> Any:
        return world.do("work")

    async def other() -> None:
        for name in ("b", "c"):
            await step(name, world.do, name)

    outcomes: Any = await asyncio.gather(step("work", work), other(), return_exceptions=True)
    problem = outcomes[0]
    if isinstance(problem, Exception):
        await step("report", world.do, "report")
        raise problem
    return "done"


async def a_task_that_fails_unawaited(step: Any, world: Any) -> str:
    async def work() -> Any:
        return world.do("work")

    task = asyncio.create_task(step("work", work))
    await asyncio.wait([task])
    await step("b", world.do, "b")
    await task
    return "done"


async def a_group_that_cancels(step: Any, world: Any) -> str:
    begun = asyncio.Event()

    async def work() -> Any:
        await begun.wait()
        return world.do("work")

    async def other() -> None:
        async def endless() -> None:
            begun.set()
            if "work" in world.failing:
                await asyncio.Event().wait()

        try:
            await step("endless", endless)
        finally:
            await step("unlock", world.do, "unlock")

    async with asyncio.TaskGroup() as group:
        group.create_task(step("work", work))
        group.create_task(other())
    return "done"


@pytest.mark.parametrize(
    ("program", "by_the_end"),
    [
        (siblings_of_a_failure, Counter(work=2, b=1, c=1, report=1)),
        (a_task_that_fails_unawaited, Counter(work=2, b=1)),
        (a_group_that_cancels, Counter(work=2, unlock=1)),
    ],
)
def test_what_goes_on_beside_a_failure_needs_no_decision(
    awaiting: StoreStage, program: Any, by_the_end: Counter[str]
) -> None:
    """As it was: only what failed runs again."""
    world = failing()
    assert ended(awaiting, program, world) in (ValueError, ExceptionGroup)
    mended(world)
    assert ended(awaiting, program, world) == "done"
    assert Counter(world.bodies) == by_the_end


@pytest.mark.parametrize(
    ("program", "make"),
    [
        (unlocked_when_cancelled, endless),
        (told_when_cancelled, endless),
        (cleaned_in_new_tasks, endless),
        (beside_a_sibling, endless),
        (timed_out_here, endless_and_failing),
        (siblings_of_a_failure, failing),
        (a_task_that_fails_unawaited, failing),
        (a_group_that_cancels, failing),
    ],
)
def test_killed_at_every_boundary_of_tasks_too(awaiting: StoreStage, program: Any, make: Any) -> None:
    """The next life is cancelled as well: the world stays as it is until it is mended."""
    killed_everywhere(awaiting, program, make)


async def at_most_once_when_cancelled(step: Any, world: Any) -> str:
    try:
        await step("work", partial(until_cancelled, world))
    except asyncio.CancelledError:
        await step("call the bank", world.do, "call the bank", at_most_once=True)
        raise
    await step("ship", world.do, "ship")
    return "done"


def test_an_effect_while_leaving_is_never_repeated_and_never_passed_over(awaiting: StoreStage) -> None:
    """Not run anew, and not shipped as if it had not been: refused by name, until it is decided on."""
    world = endless()
    assert ended(awaiting, at_most_once_when_cancelled, world) is asyncio.CancelledError
    mended(world)
    for _ in range(2):
        assert ended(awaiting, at_most_once_when_cancelled, world) == ["call the bank"]
    assert world.bodies == ["work", "call the bank"]
    with pytest.raises(durable.RetryRefused, match="even_effects=True"):
        awaiting.retry("run-1")
    assert awaiting.retry("run-1", even_effects=True) == ["call the bank"]
    assert ended(awaiting, at_most_once_when_cancelled, world) == "done"
    assert world.bodies == ["work", "call the bank", "work", "ship"]


# -- money -------------------------------------------------------------------------------------------------------------


async def balanced(step: Any, world: Any) -> str:
    await step.transaction("charge", world.book, "charge")
    try:
        await step("work", world.do, "work")
    except BaseException:
        await step.transaction("refund", world.book, "refund")
        raise
    await step("ship", world.do, "ship")
    return "shipped"


async def balanced_when_cancelled(step: Any, world: Any) -> str:
    await step.transaction("charge", world.book, "charge")
    try:
        await step("work", partial(until_cancelled, world))
    except BaseException:
        await step.transaction("refund", world.book, "refund")
        raise
    await step("ship", world.do, "ship")
    return "shipped"


@pytest.mark.parametrize(
    ("program", "make", "first", "is_async"),
    [
        (balanced, failing, ValueError, False),
        (balanced, failing, ValueError, True),
        (balanced, interrupting, KeyboardInterrupt, False),
        (balanced, interrupting, KeyboardInterrupt, True),
        (balanced_when_cancelled, endless, asyncio.CancelledError, True),  # a task is cancelled, no thread is
    ],
)
def test_money_is_given_back_once_and_never_for_what_was_shipped(
    database: Database, program: Any, make: Any, first: Any, is_async: bool
) -> None:
    """Charged in a transaction, refunded in one: killed at every boundary of the life in which `work` comes to nothing."""
    stage = postgres_stage(database, is_async=is_async)
    expected = "shipped" if first is KeyboardInterrupt else ["refund"]
    undisturbed = make()
    assert ended(stage, program, undisturbed) is first
    boundaries = len(stage.boundaries.passed)
    mended(undisturbed)
    assert ended(stage, program, undisturbed) == expected
    for dies_at in range(boundaries):
        database.execute("TRUNCATE booked")
        world, run_id = make(), f"dies-at-{dies_at}"
        assert ended(stage, program, world, id=run_id, dies_at=dies_at) is Died
        outcomes = [ended(stage, program, world, id=run_id)]
        mended(world)
        outcomes += [ended(stage, program, world, id=run_id) for _ in range(3)]
        booked = Counter(stage.booked)
        assert booked["charge from"] == booked["charge to"] == 1
        assert booked["refund from"] == booked["refund to"] <= 1
        assert booked["refund to"] + world.bodies.count("ship") <= 1, (dies_at, outcomes, world.bodies)
        assert outcomes[-1] == expected, (dies_at, outcomes)
    print(f"{program.__name__} of {first.__name__}: {boundaries} deaths")


@pytest.mark.parametrize("is_async", [False, True])
def test_an_effect_stands_until_a_person_says_that_it_may_happen_again(database: Database, is_async: bool) -> None:
    """Without a word nothing is set aside; from the charge on, everything is done anew."""
    stage, world = postgres_stage(database, is_async=is_async), failing()
    assert ended(stage, balanced, world) is ValueError
    before = database.everything()
    for options in ({}, {"from_step": "charge"}):
        with pytest.raises(durable.RetryRefused, match=r"even_effects=True") as refused:
            stage.retry("run-1", **options)
        assert "refund" in refused.value.steps
    assert database.everything() == before
    assert stage.retry("run-1", from_step="charge", even_effects=True) == ["charge", "work", "refund"]
    assert database.status("run-1") == "running"
    mended(world)
    assert ended(stage, balanced, world) == "shipped"
    assert Counter(stage.booked) == Counter({"charge from": 2, "charge to": 2, "refund from": 1, "refund to": 1})


# -- what is in flight -------------------------------------------------------------------------------------------------


@pytest.fixture
def store() -> Iterator[MemoryStore]:
    store = memory()
    yield store
    store.close()


class Stop(BaseException):
    """Leaves a run unfinished."""


def test_what_the_caller_is_handling_has_nothing_to_do_with_the_workflow(store: MemoryStore) -> None:
    """The order of steps is watched, and an interruption that is being handled interrupts nothing."""

    def workflow(step: durable.Step, _: Any) -> list[str]:
        done = [] if first else [step("notify", lambda: "notified")]
        done.append(step("charge", lambda: "charged"))
        if first:
            raise Stop
        return done

    for caught in (LookupError, KeyboardInterrupt, asyncio.CancelledError):
        for first in (True, False):
            try:
                raise caught
            except BaseException:
                with pytest.raises(Stop if first else durable.WorkflowDrift):
                    durable.run({}, workflow, id=caught.__name__, store=store)


def test_a_run_in_an_except_block_fails_like_any_other(store: MemoryStore) -> None:
    """Its caller's exception is the context of all that it raises, and led to none of it."""
    fails = True

    def workflow(step: durable.Step, _: Any) -> str:
        step("reserve", lambda: "seat")
        if fails:
            raise ValueError("no")
        return "done"

    try:
        raise KeyboardInterrupt
    except KeyboardInterrupt:
        with pytest.raises(ValueError, match="no"):
            durable.run({}, workflow, id="r", store=store)
        fails = False
        assert durable.run({}, workflow, id="r", store=store) == "done"


def test_the_same_for_an_async_workflow_whose_loop_runs_in_an_except_block(store: MemoryStore) -> None:
    """Its tasks see what the caller of `asyncio.run` is handling, and go on."""

    async def workflow(step: durable.AsyncStep, _: Any) -> list[str]:
        async def branch(key: str) -> str:
            return await step("do", lambda: key, key=key)

        one = await step("first", lambda: "first")
        return [one, *await asyncio.gather(branch("a"), branch("b"))]

    try:
        raise KeyboardInterrupt
    except KeyboardInterrupt:
        assert asyncio.run(durable.run({}, workflow, id="r", store=store)) == ["first", "a", "b"]
    load = store.load("r")
    assert load is not None
    assert not any(step.left or step.amid for step in load.steps.values())


@pytest.mark.parametrize("ends_by", [KeyboardInterrupt, SystemExit, OSError])
def test_an_event_loop_that_is_run_in_an_except_block_ends_all_its_tasks(
    store: MemoryStore, ends_by: type[BaseException]
) -> None:
    """As asyncio.run does: what its caller is handling is neither raised in the workflows nor a part of how they fail."""
    names, begun, unlocked = ["a", "b", "c"], asyncio.Semaphore(0), list[str]()

    async def body() -> None:
        begun.release()
        await asyncio.Event().wait()

    async def workflow(step: durable.AsyncStep, _: None, name: str) -> None:
        try:
            await step("work", body)
        finally:
            await step("unlock", unlocked.append, name)

    async def bystander() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            unlocked.append("bystander")

    async def main() -> None:
        runs = [durable.run(None, workflow, id=name, store=store, input=name) for name in names]
        tasks = [asyncio.create_task(coroutine) for coroutine in (bystander(), *runs)]
        for _ in names:
            await begun.acquire()
        assert not any(task.done() for task in tasks)
        raise ends_by

    with pytest.raises(ends_by):
        asyncio.run(main())
    assert set(unlocked) == {*names, "bystander"}
    assert {durable.status(store, name) for name in names} == {"interrupted"}


def test_an_event_loop_that_goes_on_in_an_except_block_is_where_it_was(store: MemoryStore) -> None:
    """The workflow fails by itself, and what it did before needs no decision."""
    loop, begun, gate = asyncio.new_event_loop(), asyncio.Event(), asyncio.Event()
    failing, done = {"work"}, list[str]()

    def do(what: str) -> str:
        done.append(what)
        if what in failing:
            raise ValueError(what)
        return what

    async def workflow(step: durable.AsyncStep, _: None) -> str:
        await step("a", do, "a")
        begun.set()
        await gate.wait()
        await step("b", do, "b")
        return await step("work", do, "work")

    async def begin() -> asyncio.Task[Any]:
        task = asyncio.create_task(cast(Any, durable.run(None, workflow, id="a", store=store)))
        await begun.wait()
        return task

    try:
        task = loop.run_until_complete(begin())
        try:
            raise OSError("the application's")
        except OSError:
            gate.set()
            with pytest.raises(ValueError, match="work"):
                loop.run_until_complete(task)
    finally:
        loop.close()
    failing.clear()
    assert asyncio.run(cast(Any, durable.run(None, workflow, id="a", store=store))) == "work"
    assert done == ["a", "b", "work", "work"]


def test_a_generator_that_is_closed_early_interrupts_nothing(store: MemoryStore) -> None:
    """GeneratorExit is in flight in it: only it is being left."""

    def workflow(step: durable.Step, _: Any) -> list[str]:
        def pages() -> Generator[str, None, None]:
            try:
                while True:
                    yield step("page", lambda: "a page")
            finally:
                done.append(step("close", lambda: "closed"))

        done: list[str] = []
        reader = pages()
        done.append(next(reader))
        reader.close()
        return done

    assert durable.run({}, workflow, id="r", store=store) == ["a page", "closed"]


def test_a_coroutine_that_is_closed_begins_nothing(store: MemoryStore) -> None:
    """GeneratorExit is in flight in it, and the workflow is being left."""
    bodies: list[str] = []

    async def workflow(step: durable.AsyncStep, _: Any) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            await step("unlock", lambda: bodies.append("unlock"))

    async def main() -> None:
        coroutine: Any = durable.run({}, workflow, id="r", store=store)
        task = asyncio.create_task(coroutine)
        await asyncio.sleep(0.05)
        with contextlib.suppress(RuntimeError):
            coroutine.close()
        task.cancel()
        with contextlib.suppress(BaseException):
            await task

    asyncio.run(main())
    assert bodies == []


@pytest.mark.parametrize("interruption", [KeyboardInterrupt, SystemExit, Stop])
@pytest.mark.parametrize("kind", ["step", "map", "sleep", "decorated", "cleanup", "recorded", "in a group"])
def test_no_kind_of_step_is_begun_under_an_interruption(
    store: MemoryStore, interruption: type[BaseException], kind: str
) -> None:
    """What is raised again is the interruption itself, so `run` is left by that."""
    bodies: list[str] = []

    @durable.step
    def unlock() -> None:
        bodies.append("unlock")

    def workflow(step: durable.Step, _: Any) -> None:
        step("before", lambda: None, key="k")
        raised = interruption()
        try:
            raise raised if kind != "in a group" else BaseExceptionGroup("several", [ValueError(), raised])
        finally:
            try:
                match kind:
                    case "map":
                        step.map("unlock", lambda _: bodies.append("unlock"), [1, 2])
                    case "sleep":
                        step.sleep("rest", 0.0)
                        bodies.append("slept")
                    case "decorated":
                        unlock()
                    case "cleanup":
                        step("unlock", lambda: bodies.append("unlock"), cleanup=True)
                    case "recorded":
                        step("before", lambda: None, key="k")
                        bodies.append("replayed")
                    case _:
                        step("unlock", lambda: bodies.append("unlock"))
            except BaseException as again:
                assert again is raised
                raise

    with pytest.raises(interruption):
        durable.run({}, workflow, id="r", store=store)
    assert bodies == []
    assert store.status("r") == "interrupted"


def test_threads_of_a_map_are_handed_what_is_in_flight_and_others_are_not(store: MemoryStore) -> None:
    """A thread that the workflow starts itself begins with nothing in flight: what it does is history."""
    life: list[str] = []

    def workflow(step: durable.Step, _: Any) -> str:
        try:
            step("work", lambda: 1 / len(life))
        except ZeroDivisionError:
            thread = threading.Thread(target=lambda: step("note", lambda: None))
            thread.start()
            thread.join()
            raise
        return "done"

    with pytest.raises(ZeroDivisionError):
        durable.run({}, workflow, id="r", store=store)
    life.append("mended")
    assert durable.run({}, workflow, id="r", store=store) == "done"


def test_a_decorated_step_declares_its_cleanup(store: MemoryStore) -> None:
    """As at the call."""
    bodies: list[str] = []
    life: list[int] = []

    @durable.step(cleanup=True)
    def notify(status: str) -> None:
        bodies.append(status)

    def workflow(step: durable.Step, _: Any) -> str:
        status = "failed"
        try:
            step("work", lambda: 1 / len(life))
            status = "ok"
        finally:
            notify(status)
        return status

    with pytest.raises(ZeroDivisionError):
        durable.run({}, workflow, id="r", store=store)
    life.append(1)
    assert durable.run({}, workflow, id="r", store=store) == "ok"
    assert bodies == ["failed", "ok"]


def test_cleanup_cannot_run_at_most_once() -> None:
    """Said at the call, and at the decorator."""
    with pytest.raises(durable.InvalidArgument, match="not both"):
        durable.step(cleanup=True, at_most_once=True)
    with pytest.raises(durable.InvalidArgument, match="cleanup must be True or False"):
        durable.step(cleanup="yes")  # type: ignore[call-overload]


def test_a_sequential_step_says_nothing_of_its_start(store: MemoryStore) -> None:
    """Its place says it; one that was beside another, or had attempts before, says more."""

    def workflow(step: durable.Step, _: Any) -> None:
        for name in "abc":
            step(name, lambda: 1)
        step.map("item", lambda number: number, range(3))

    durable.run({}, workflow, id="r", store=store)
    texts = {record.key: record.text for record in store._runs["r"].records.values()}
    assert not any(word in texts[name] for name in "abc" for word in ("started", "amid", "left", "kept", "cleanup"))


# -- what is cut -------------------------------------------------------------------------------------------------------
