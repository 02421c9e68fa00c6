"""What a user sees of an error: the lines of his own code, and one line of ours wherever his calls it."""

from __future__ import annotations

import asyncio
import functools
import json
import logging
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

import pytest
import tenacity

import durable
from durable._runtime import driver as driver_module
from durable.stores import MemoryStore, embedded, memory, postgres
from durable.testing import Rehearsal
from harness.programs import run_program
from harness.support import Database

OURS = str(Path(durable.__file__).parent)
HERE = __file__
NOWHERE = "postgresql://127.0.0.1:1/nowhere?connect_timeout=1"


class Broken(Exception):
    """What bodies raise."""


def entries(exception: BaseException) -> Iterator[TracebackType]:
    at = exception.__traceback__
    while at is not None:
        yield at
        at = at.tb_next


def lines(exception: BaseException) -> list[str]:
    """The traceback, a word a line: "ours", or the function of this file."""
    told: list[str] = []
    for entry in entries(exception):
        code = entry.tb_frame.f_code
        if code.co_filename.startswith(OURS):
            told.append("ours")
        elif code.co_filename == HERE:
            told.append(code.co_name)
        else:
            told.append(Path(code.co_filename).name)
    return told


def raised(call: Callable[[], Any]) -> BaseException:
    """What a call raises; its traceback without this function's line."""
    try:
        call()
    except BaseException as problem:
        assert problem.__traceback__ is not None
        return problem.with_traceback(problem.__traceback__.tb_next)
    raise AssertionError("it raised nothing")


def chained(exception: BaseException) -> list[str]:
    """The classes of all that would be printed with it."""
    shown = traceback.TracebackException.from_exception(exception)
    told: list[str] = []
    link: traceback.TracebackException | None = shown
    while link is not None:
        told.append(str(getattr(link, "exc_type", None) and link.exc_type.__name__))
        after = None if link.__suppress_context__ else link.__context__
        link = link.__cause__ or after
    return told


def body(*_: object) -> None:
    raise Broken("no such user")


def deeper(*_: object) -> None:
    body()


run: Any = durable.run  # each colour is a mistake to the other's types


class Colour:
    """A workflow in one colour, with the run's line in `caller`."""

    def __init__(self, *, is_async: bool) -> None:
        self.is_async = is_async

    def __repr__(self) -> str:
        return "async" if self.is_async else "blocking"

    def run(self, *steps: Callable[[Any], Any], store: Any, **options: Any) -> BaseException:
        if self.is_async:

            async def workflow(step: durable.AsyncStep, _: object) -> None:
                for call in steps:
                    await call(step)

            async def caller() -> None:
                await run({}, workflow, id="r", store=store, **options)

            problem = raised(lambda: asyncio.run(caller()))
        else:

            def workflow(step: durable.Step, _: object) -> None:  # type: ignore[misc]
                for call in steps:
                    call(step)

            def caller() -> None:  # type: ignore[misc]
                run({}, workflow, id="r", store=store, **options)

            problem = raised(caller)
        kept = list(entries(problem))
        start = next(number for number, entry in enumerate(kept) if entry.tb_frame.f_code.co_name == "caller")
        return problem.with_traceback(kept[start])


BOTH = [pytest.param(Colour(is_async=False), id="blocking"), pytest.param(Colour(is_async=True), id="async")]
IN_A_STEP = ["caller", "ours", "workflow", "ours"]


@pytest.fixture
def store() -> Iterator[MemoryStore]:
    with memory() as store:
        yield store


@pytest.mark.parametrize("colour", BOTH)
@pytest.mark.parametrize(
    ("options", "fn", "tail"),
    [
        ({}, body, ["body"]),
        ({}, deeper, ["deeper", "body"]),
        ({"timeout": 5}, deeper, ["deeper", "body"]),  # on a thread of its own
        ({"retry": tenacity.Retrying(stop=tenacity.stop_after_attempt(2))}, deeper, ["deeper", "body"]),
        ({"at_most_once": True}, body, ["body"]),
        ({}, functools.partial(int, "x"), []),  # C code has no lines
    ],
    ids=["body", "deeper", "timeout", "retry", "once", "C"],
)
def test_a_body_that_fails(
    store: MemoryStore, colour: Colour, options: dict[str, Any], fn: Callable[[], Any], tail: list[str]
) -> None:
    """The run's line, the workflow's, the body's: each with one of ours between."""
    problem = colour.run(lambda step: step("fetch", fn, **options), store=store)
    line = ["<lambda>"] if not colour.is_async else []  # an awaitable is made in one line, and fails in another
    expected = ["caller", "ours", "workflow", *line, "ours", *tail]
    assert lines(problem) == expected
    assert chained(problem) == [type(problem).__name__]


@pytest.mark.parametrize("colour", BOTH)
def test_the_body_of_an_async_step_and_of_a_map(store: MemoryStore, colour: Colour) -> None:
    """An async body has its lines as well; and an item's failure comes through threads or tasks."""

    async def async_body() -> None:
        await asyncio.sleep(0)
        deeper()

    tail = ["deeper", "body"]
    if colour.is_async:
        problem = colour.run(lambda step: step("fetch", async_body), store=store)
        assert lines(problem) == ["caller", "ours", "workflow", "ours", "async_body", *tail]
    problem = colour.run(lambda step: step.map("each", deeper, [1, 2, 3]), store=memory())
    line = [] if colour.is_async else ["<lambda>"]
    assert lines(problem) == ["caller", "ours", "workflow", *line, "ours", *tail]


@pytest.mark.parametrize("colour", BOTH)
def test_a_decorated_function(store: MemoryStore, colour: Colour) -> None:
    @durable.step
    def decorated() -> None:
        deeper()

    @durable.step
    async def awaited() -> None:
        deeper()

    problem = colour.run(lambda _: awaited() if colour.is_async else decorated(), store=store)
    assert [line for line in lines(problem) if line != "<lambda>"][3:] == [
        "ours",
        "awaited" if colour.is_async else "decorated",
        "deeper",
        "body",
    ]
    assert lines(problem).count("ours") == 2


@pytest.mark.parametrize("colour", BOTH)
def test_a_replayed_failure(store: MemoryStore, colour: Colour) -> None:
    """It has no live lines of the body, but all others."""

    def caught(step: Any) -> Any:
        if colour.is_async:
            return _caught_async(step)
        with pytest.raises(Broken):
            step("fetch", body)
        return None

    def stop(step: Any) -> Any:
        return step("stop", body)

    first = colour.run(caught, stop, store=store)
    assert lines(first)[-1] == "body"
    problem = colour.run(lambda step: step("fetch", body), store=store)
    assert lines(problem).count("ours") == 2
    assert lines(problem)[-1] == "ours"
    assert "workflow" in lines(problem)
    assert chained(problem) == ["Broken"]


async def _caught_async(step: Any) -> None:
    with pytest.raises(Broken):
        await step("fetch", body)


@pytest.mark.parametrize("colour", BOTH)
@pytest.mark.parametrize(
    ("calls", "error"),
    [
        (
            [lambda step: step("a", len, "x", key="k"), lambda step: step("b", len, "x", key="k")],
            durable.errors.KeyConflict,
        ),
        ([lambda step: step("a", len, "x", key=7)], durable.InvalidArgument),
        ([lambda step: step("a", "not a function")], durable.InvalidArgument),
        ([lambda step: step("a", len, "x", timout=7)], durable.InvalidArgument),
        ([lambda step: step("a", len)], TypeError),  # the body's own arguments do not fit
        ([lambda step: step("a", object)], durable.UnstorableValue),
        ([lambda step: step.sleep("a", -1)], durable.InvalidArgument),
        ([lambda step: step.map("a", len, ["x"], key=lambda _: 1 / 0)], ZeroDivisionError),
    ],
    ids=["KeyConflict", "key", "no function", "option", "TypeError", "UnstorableValue", "sleep", "map's key"],
)
def test_a_mistake_in_a_call(
    store: MemoryStore, colour: Colour, calls: list[Callable[[Any], Any]], error: type[Exception]
) -> None:
    """Refused in the workflow: its line, and one of ours."""
    problem = colour.run(*calls, store=store)
    assert type(problem) is error, problem
    assert "workflow" in lines(problem)
    assert lines(problem).count("ours") == 2
    assert chained(problem) == [error.__name__]


def test_what_the_dependencies_do_not_have(store: MemoryStore) -> None:
    """One line of ours, whatever the dependencies are."""

    class Deps:
        """One with a property that fails."""

        @property
        def broken(self) -> int:
            body()
            return 1

    calls: list[tuple[Any, Any]] = [
        ({"a": 1}, lambda deps: deps.b),
        ({"a": 1}, lambda deps: deps["b"]),
        (None, lambda deps: deps.b),
        (Deps(), lambda deps: deps.b),
        (Deps(), lambda deps: deps.broken),
    ]
    for number, (deps, call) in enumerate(calls):
        problem = raised(lambda: durable.run(deps, lambda _, deps: call(deps), id=str(number), store=store))  # noqa: B023
        borders = 1 if deps is None else 2  # what has no step in it is given as it is
        assert lines(problem).count("ours") == borders, lines(problem)


def test_no_line_of_the_border_itself(store: MemoryStore) -> None:
    """Its own frames say nothing: what is shown is the function that was called."""

    def workflow(step: durable.Step, _: object) -> None:
        step.transaction("t", lambda connection: None)

    problem = raised(lambda: durable.run({}, workflow, id="1", store=store))
    assert "boundary.py" not in "".join(traceback.format_exception(problem))
    problem = Colour(is_async=False).run(lambda step: step("one", deeper), store=memory())
    assert "boundary.py" not in "".join(traceback.format_exception(problem))


@pytest.mark.parametrize("colour", BOTH)
@pytest.mark.parametrize("what", ["drift", "cancelled", "deadline", "lease"])
def test_an_error_that_ends_the_run_shows_where_the_workflow_was_left(
    store: MemoryStore, colour: Colour, what: str
) -> None:
    """Control flow carries it out of the workflow; the user sees an ordinary error, from the workflow's line on."""
    cancel, options = threading.Event(), dict[str, Any]()
    error: type[durable.DurableError] = durable.RunCancelled

    def first(step: Any) -> Any:
        return step("one", cancel.set)

    if what == "drift":
        colour.run(lambda step: step("one", len, "x", key="one"), lambda step: step("no", body), store=store)
        first, error = lambda step: step("one", len, "other", key="one"), durable.WorkflowDrift
    elif what == "cancelled":
        options["cancel"] = cancel
    elif what == "deadline":
        options["deadline"], error = 1e-9, durable.DeadlineExceeded
    else:
        first, error = lambda step: step("one", lambda: store.delete("r", force=True)), durable.LeaseLost
    problem = colour.run(first, lambda step: step("two", lambda: 2), store=store, **options)
    assert type(problem) is error, problem
    assert "workflow" in lines(problem)
    assert lines(problem).count("ours") == 2
    assert chained(problem) == [error.__name__]


@pytest.mark.parametrize("colour", BOTH)
@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"lease": 0.1}, durable.InvalidArgument),
        ({"leese": 30}, durable.InvalidArgument),
        ({"metadata": {1: object()}}, durable.DurableError),
        ({"version": "1"}, durable.InvalidArgument),
    ],
)
def test_a_mistake_in_the_call_of_run(
    store: MemoryStore, colour: Colour, options: dict[str, Any], error: type[Exception]
) -> None:
    problem = colour.run(store=store, **options)
    assert isinstance(problem, error)
    assert lines(problem) == ["caller", "ours"]
    assert chained(problem) == [type(problem).__name__]


@pytest.mark.parametrize("colour", BOTH)
def test_a_store_that_is_out_of_reach(colour: Colour) -> None:
    """Nothing of how we noticed: neither our frames nor an `IndexError` of a pool that was empty."""
    with postgres(NOWHERE) as store:
        problem = colour.run(lambda step: step("one", len, "x"), store=store, lease=0.6)
    assert type(problem) is durable.StoreUnavailable
    assert lines(problem) == ["caller", "ours"]
    assert "IndexError" not in chained(problem)


def test_a_server_that_cannot_be_started(tmp_path: Path) -> None:
    """The message says what the system said."""
    (tmp_path / "file").touch()
    problem = raised(lambda: embedded(tmp_path / "file" / "within"))
    assert type(problem) is durable.errors.ServerNotStarted
    assert lines(problem) == ["<lambda>", "ours"]
    assert chained(problem) == ["ServerNotStarted"]


@pytest.mark.parametrize(
    "verb", [durable.status, durable.result, durable.has_state, durable.list_pending, durable.cancel]
)
def test_the_functions_beside_run(verb: Callable[..., Any], store: MemoryStore) -> None:
    """Each mistake with one line of ours."""
    arguments = [store, 7] if verb is not durable.list_pending else [store]
    options = {"limit": 0} if verb is durable.list_pending else {}
    problem = raised(lambda: verb(*arguments, **options))
    assert isinstance(problem, durable.InvalidArgument)
    assert lines(problem) == ["<lambda>", "ours"]
    with pytest.raises(durable.InvalidArgument, match="has no option 'lmit'"):
        verb(*arguments, lmit=1)


def test_a_stores_verbs(database: Database) -> None:
    """In either colour, from deep within."""
    store = database.store()
    for call in (lambda: store.save("a", {}), lambda: store.load(7), lambda: store.purge(older_than="x")):  # type: ignore[arg-type]
        problem = raised(call)
        assert isinstance(problem, durable.DurableError)
        assert lines(problem) == ["<lambda>", "ours"]

    async def load() -> None:
        await store.aio.load(7)  # type: ignore[arg-type]

    kept = lines(raised(lambda: asyncio.run(load())))
    assert kept[kept.index("load") :] == ["load", "ours"]


def test_a_run_within_a_body(store: MemoryStore) -> None:
    """One line of ours at each border, however many there are."""

    def inner(step: durable.Step, _: object) -> None:
        step("inner", deeper)

    def call() -> None:
        durable.run({}, inner, id="inner", store=store)

    problem = Colour(is_async=False).run(lambda step: step("outer", call), store=store)
    told = lines(problem)
    assert told == ["caller", "ours", "workflow", "<lambda>", "ours", "call", "ours", "inner", "ours", "deeper", "body"]


def test_what_led_to_an_error_stays(store: MemoryStore) -> None:
    """The user's own causes and contexts are his to see, each with its lines."""

    def translated() -> None:
        try:
            body()
        except Broken as problem:
            raise ValueError("in other words") from problem

    problem = Colour(is_async=False).run(lambda step: step("one", translated), store=store)
    assert chained(problem) == ["ValueError", "Broken"]
    assert lines(problem)[-1] == "translated"

    def in_a_handler(step: durable.Step) -> None:
        try:
            body()
        except Broken:
            step("two", "not a function")  # type: ignore[arg-type]

    problem = Colour(is_async=False).run(in_a_handler, store=memory())
    assert chained(problem) == ["InvalidArgument", "Broken"]


def test_a_mistake_of_ours_keeps_every_line(store: MemoryStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """A report of it needs them."""
    monkeypatch.setattr(driver_module, "Returned", json.JSONDecoder().decode)
    problem = Colour(is_async=False).run(lambda step: step("one", len, "x"), store=store)
    assert lines(problem).count("ours") > 3
    assert "workflow" in lines(problem)


def test_a_caught_error_is_as_short(store: MemoryStore, caplog: pytest.LogCaptureFixture) -> None:
    """Also where the workflow itself looks at it."""

    def workflow(step: durable.Step, _: object) -> list[str]:
        try:
            step("one", deeper)
        except Broken as problem:
            logging.getLogger("mine").exception("caught")
            return lines(problem)
        return []

    assert durable.run({}, workflow, id="caught", store=store) == ["workflow", "ours", "deeper", "body"]
    assert caplog.text.count(OURS) == 1


def test_a_recorded_traceback_is_as_short(store: MemoryStore) -> None:
    """The text that a `StepFailed` brings along."""

    class Local(Exception):
        """A class that is not found again."""

    def local() -> None:
        raise Local

    problem = Colour(is_async=False).run(lambda step: step("one", local), store=store)
    assert isinstance(problem, durable.StepFailed)
    assert problem.remote_traceback.count(OURS) <= 1
    assert "in local" in problem.remote_traceback


def test_in_a_rehearsal_too() -> None:
    with Rehearsal(memory(), always_replay=True) as rehearsal:
        problem = Colour(is_async=False).run(lambda step: step("one", deeper), store=rehearsal)
    assert lines(problem).count("ours") <= 2


def test_an_interruption_keeps_every_line(store: MemoryStore) -> None:
    """Where Ctrl-C struck is what it tells."""

    def interrupted() -> None:
        raise KeyboardInterrupt

    problem = Colour(is_async=False).run(lambda step: step("one", interrupted), store=store)
    assert type(problem) is KeyboardInterrupt
    assert lines(problem)[-1] == "interrupted"


def test_a_cancellation_that_led_to_an_error_is_as_short(store: MemoryStore) -> None:
    """`asyncio.timeout` is how many wait: its `TimeoutError` came of a cancellation in the body."""

    async def waiting() -> None:
        await asyncio.Event().wait()

    async def workflow(step: durable.AsyncStep, _: object) -> None:
        async with asyncio.timeout(0.01):
            await step("waits", waiting)

    problem = raised(lambda: asyncio.run(durable.run({}, workflow, id="1", store=store)))
    assert isinstance(problem, TimeoutError)
    assert problem.__cause__ is not None
    told = lines(problem.__cause__)
    assert told.count("ours") == 1
    assert told[0] == "workflow"
    assert "waiting" in told


def test_a_group_has_short_members(store: MemoryStore) -> None:
    """`TaskGroup`: each member's lines, as they came."""

    async def workflow(step: durable.AsyncStep, _: object) -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(step("one", deeper, key="1"))
            group.create_task(step("one", deeper, key="2"))

    problem = raised(lambda: asyncio.run(durable.run({}, workflow, id="group", store=store)))
    assert isinstance(problem, ExceptionGroup)
    assert lines(problem).count("ours") == 1
    for member in problem.exceptions:
        assert lines(member) == ["ours", "deeper", "body"]


def test_it_is_what_python_prints(tmp_path: Path) -> None:
    """Read as a user reads it."""
    program = tmp_path / "program.py"
    program.write_text(
        "import durable\nfrom durable.stores import memory\n"
        "def charge(order):\n    return {}[order]\n"
        "def checkout(step, deps):\n    return step('charge', charge, 7)\n"
        "with memory() as store:\n    durable.run({}, checkout, id='1', store=store)\n"
    )

    told = run_program([sys.executable, program]).stderr
    shown = [line.split(", ")[-1].strip() for line in told.splitlines() if line.startswith("  File")]
    assert shown == ["in <module>", "in run", "in checkout", "in __call__", "in charge"]
    assert told.rstrip().endswith("KeyError: 7")


def test_an_exception_from_where_no_line_is_comes_out_as_itself() -> None:
    """A signal's handler raises between two lines, too. (Found by the whole blows: one of 1,000 came as a TypeError of ours.)"""

    def fails(step: durable.Step, _: None) -> None:
        raise KeyError("mine")

    fails.__code__ = fails.__code__.replace(co_linetable=b"")
    came: object = None
    with memory() as store:
        try:
            durable.run(None, fails, id="run", store=store)
        except Exception as problem:
            came = repr(problem)  # its traceback is more than pytest can print
    assert came == "KeyError('mine')"
