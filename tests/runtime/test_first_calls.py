"""Calls as people write them the first time: each that does not fit is answered with what to write."""

from __future__ import annotations

import asyncio
import inspect
import subprocess
import sys
import threading
import typing
import warnings
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest

import durable
from durable.codecs import JsonCodec
from durable.stores import MemoryStore, PostgresStore, embedded, memory, postgres, schema_sql
from durable.testing import JumpingClock, Rehearsal
from harness.programs import run_program
from harness.support import Database

UUID_ID = UUID("12345678-1234-5678-1234-567812345678")


@pytest.fixture
def store() -> Iterator[MemoryStore]:
    with memory() as store:
        yield store


def charge(order: int, times: int = 1) -> int:
    return order * times


def said(call: Callable[[], Any]) -> str:
    with pytest.raises(durable.InvalidArgument) as it:
        call()
    assert it.value.__suppress_context__ or it.value.__context__ is None
    return str(it.value)


def said_in_a_run(store: Any, call: Callable[[Any], Any]) -> set[str]:
    """What a workflow of either colour is told, which must be the same."""

    def workflow(step: durable.Step, _: object) -> str:
        return said(lambda: call(step))

    async def async_workflow(step: durable.AsyncStep, _: object) -> str:
        with pytest.raises(durable.InvalidArgument) as it:
            await call(step)
        return str(it.value)

    return {
        durable.run({}, workflow, id=str(uuid4()), store=store),
        asyncio.run(durable.run({}, async_workflow, id=str(uuid4()), store=store)),
    }


# -- misspelt options -------------------------------------------------------------------------------------------------

MISSPELT: dict[str, tuple[Callable[[], Any], str]] = {
    "run": (lambda: durable.run({}, charge, id="1", stor=memory()), "store="),  # type: ignore[call-overload]
    "run's timeout": (lambda: durable.run({}, charge, id="1", wait_timout=1), "wait_timeout="),  # type: ignore[call-overload]
    "run's id": (lambda: durable.run({}, charge, ids="1"), "id="),  # type: ignore[call-overload]
    "postgres": (lambda: postgres("postgresql://x", shema="s"), "schema="),  # type: ignore[call-arg]
    "postgres's pool": (lambda: postgres(pools=1), "pool="),  # type: ignore[call-arg]
    "embedded": (lambda: embedded("x", tables="s"), "table="),  # type: ignore[call-arg]
    "memory": (lambda: memory(codecs=None), "codec="),  # type: ignore[call-arg]
    "schema_sql": (lambda: schema_sql(rule="x"), "role="),  # type: ignore[call-arg]
    "decorator": (lambda: durable.step(retrys=3), "retry="),  # type: ignore[call-overload]
    "decorator's timeout": (lambda: durable.step(time_out=3), "timeout="),  # type: ignore[call-overload]
    "codec": (lambda: JsonCodec(max_payloads=3), "max_payload="),  # type: ignore[call-arg]
    "workflow": (lambda: durable.Workflow("w", {}, versoin=3), "version="),  # type: ignore[call-arg]
    "workflow's decorator": (lambda: durable.workflow(nam="checkout"), "name="),  # type: ignore[call-overload]
    "teaching": (lambda: durable.stored_as(Exception, to_plan=str, from_plain=Exception), "to_plain="),  # type: ignore[call-arg]
    "list": (lambda: memory().list(prefx="a"), "prefix="),  # type: ignore[call-arg]
    "purge": (lambda: memory().purge(olderthan=3), "older_than="),  # type: ignore[call-arg]
}


@pytest.mark.parametrize("what", MISSPELT)
def test_a_misspelt_option(what: str) -> None:
    call, meant = MISSPELT[what]
    text = said(call)
    assert f"did you mean {meant}?" in text
    assert "The options of" in text


MISSPELT_IN_A_RUN: dict[str, tuple[Callable[[Any], Any], str]] = {
    "step": (lambda step: step("charge", charge, 1, timout=3), "timeout="),
    "step's key": (lambda step: step("charge", charge, 1, keys="a"), "key="),
    "step's once": (lambda step: step("charge", charge, 1, atmost_once=True), "at_most_once="),
    "map": (lambda step: step.map("charge", charge, [1], max_concurency=3), "max_concurrency="),
    "map's exceptions": (lambda step: step.map("charge", charge, [1], return_exception=True), "return_exceptions="),
    "sleep": (lambda step: step.sleep("nap", 1, keey="k"), "key="),
    "wait_for": (lambda step: step.wait_for("ok", timout=3), "timeout="),
    "transaction": (lambda step: step.transaction("t", charge, isolaton="serializable"), "isolation="),
}


@pytest.mark.parametrize("what", MISSPELT_IN_A_RUN)
def test_a_misspelt_option_of_a_step(store: MemoryStore, what: str) -> None:
    call, meant = MISSPELT_IN_A_RUN[what]
    (text,) = said_in_a_run(store, call)
    assert f"did you mean {meant}?" in text


@pytest.mark.parametrize(
    ("call", "parts"),
    [
        (lambda step: step("charge", charge, order=1), ["step(", "'charge', charge, order)", "lambda: charge(order=order)"]),
        (lambda step: step("charge", charge, 1, times=2), ["lambda: charge(times=times)"]),
        (lambda step: step("c", lambda **fields: fields, colour="red"), ["in a thunk"]),
        (lambda step: step.map("charge", charge, [1], times=2), ["step.map('charge', lambda item: charge(item, times=times), items)"]),
    ],
    ids=["argument", "default", "any", "map"],
)  # fmt: skip
def test_keyword_arguments_of_a_step(store: MemoryStore, call: Callable[[Any], Any], parts: list[str]) -> None:
    """They are its options; the function's arguments are given by position, or in a thunk."""
    (text,) = said_in_a_run(store, call)
    for part in [*parts, "The options of"]:
        assert part in text


def test_what_is_far_from_any_option_is_told_them_all(store: MemoryStore) -> None:
    text = said(lambda: durable.run({}, charge, id="1", colour="red"))  # type: ignore[call-overload]
    assert "did you mean" not in text
    assert "id=, store=, input=" in text


# -- what is missing, or stands elsewhere -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "parts"),
    [
        (lambda: durable.run({}, charge), ["without id", "durable.run(deps, fn, id=…"]),  # type: ignore[call-overload]
        (lambda: durable.run(charge, id="1"), ["without fn"]),  # type: ignore[call-overload]
        (lambda: durable.run({}, charge, "1"), ["durable.run(deps, fn, id=…"]),  # type: ignore[call-overload]
        (lambda: durable.run(charge, {}, id="1", store=memory()), ["not dict", "durable.run(deps, fn"]),  # type: ignore[call-overload]
        (lambda: postgres("postgresql://x", "table"), ["postgres(url, table=…"]),  # type: ignore[call-arg]
        (lambda: durable.signal(memory(), "1"), ["without name"]),  # type: ignore[call-arg]
        (lambda: durable.step("charge"), ["@durable.step(name='charge')"]),  # type: ignore[call-overload]
    ],
    ids=["id", "deps", "id by position", "swapped", "postgres", "signal", "decorator"],
)  # fmt: skip
def test_what_is_missing_is_named(call: Callable[[], Any], parts: list[str]) -> None:
    text = said(call)
    for part in parts:
        assert part in text


@pytest.mark.parametrize(
    ("call", "parts"),
    [
        (lambda step: step("charge"), ["without fn", "step(name, fn, *args"]),
        (lambda step: step(charge), ["the name comes first"]),
        (lambda step: step(charge, 7), ["comes first", "step('charge', charge, …)"]),
        (lambda step: step(charge, 7, key="k"), ["comes first"]),
        (lambda step: step("charge", charge(1)), ["int is not a function", "without calling it"]),
        (lambda step: step("charge", None), ["NoneType is not a function"]),
        (lambda step: step(7, charge, 1), ["a step's name must be a string", "str("]),
        (lambda step: step("charge", charge, 1, key=7), ["a step's key must be a string", "str("]),
        (lambda step: step("charge", charge, 1, key=UUID_ID), ["not UUID", "str("]),
        (lambda step: step("charge", charge, 1, key=("a", 1)), ["a step's key must be a string, not tuple"]),
        (lambda step: step.sleep(3), ["without seconds"]),
        (lambda step: step.sleep("nap", "3"), ["seconds", "timedelta", "not str"]),
        (lambda step: step.wait_for(), ["without name"]),
    ],
)  # fmt: skip
def test_a_step_that_is_called_in_another_way(store: MemoryStore, call: Callable[[Any], Any], parts: list[str]) -> None:
    (text,) = said_in_a_run(store, call)
    for part in parts:
        assert part in text


def test_a_coroutine_in_the_place_of_its_function(store: MemoryStore) -> None:
    """It is closed: no warning of Python's beside the error."""

    async def fetch() -> int:
        return 1

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        (text,) = said_in_a_run(store, lambda step: step("fetch", fetch()))
    assert "step(name, fetch, arg) instead of step(name, fetch(arg))" in text


def test_a_mistake_within_a_function_is_its_own(store: MemoryStore) -> None:
    """A `TypeError` of the user's is no misfit of ours."""

    def workflow(step: durable.Step, _: object) -> None:
        charge("x", y=1)  # type: ignore[call-arg, arg-type]

    with pytest.raises(TypeError, match="unexpected keyword argument 'y'"):
        durable.run({}, workflow, id="1", store=store)
    with pytest.raises(TypeError, match="missing 1 required"):
        durable.run({}, lambda step, _: step("charge", charge), id="2", store=store)  # type: ignore[arg-type]


def test_arguments_that_are_given_as_args(store: MemoryStore) -> None:
    """As `threading.Thread` takes them."""
    for given in ({"args": (1,)}, {"kwargs": {"order": 1}}):
        (text,) = said_in_a_run(store, lambda step, given=given: step("charge", charge, **given))  # type: ignore[misc]
        assert "given its arguments by position, step('charge', charge, order)" in text
        assert "The options of step(...) are key=" in text


NO_STORES: dict[str, tuple[Any, str]] = {
    "a URL": ("postgresql://localhost/x", "not str"),
    "an id": ("run-1", "not str"),
    "nothing": (None, "not NoneType"),
    "a function": (postgres, "not postgres itself: call it, postgres(…)"),
    "a class": (MemoryStore, "not MemoryStore itself: call it, MemoryStore(…)"),
}


@pytest.mark.parametrize("what", NO_STORES)
def test_what_is_no_store(what: str) -> None:
    """Also where a store and an id have changed places."""
    given, words = NO_STORES[what]
    for verb in (durable.status, durable.result, durable.has_state, durable.delete_state, durable.cancel):
        assert words in said(partial(verb, given, "run-1"))
        awaited: Callable[..., Any] = getattr(durable.aio, verb.__name__)
        assert words in said(lambda awaited=awaited: asyncio.run(awaited(given, "run-1")))  # type: ignore[misc]
    assert words in said(partial(durable.signal, given, "run-1", "name"))
    assert words in said(partial(durable.list_pending, given))
    if given is not None:
        assert words in said(lambda: durable.run({}, lambda step, _: 1, id="1", store=given))


# -- signatures -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fn", "options"),
    [
        (durable.run, ["id", "store", "lease"]),
        (durable.Step.__call__, ["key", "retry", "timeout", "at_most_once"]),
        (durable.AsyncStep.map, ["key", "max_concurrency"]),
        (postgres, ["table", "schema", "codec"]),
        (JsonCodec, ["max_payload"]),
        (PostgresStore.purge, ["older_than"]),
    ],
)
def test_the_signatures_stay(fn: Callable[..., Any], options: list[str]) -> None:
    """For `help()`, editors and type checkers (tests/typing has those)."""
    parameters = inspect.signature(fn).parameters
    assert set(options) <= set(parameters)
    assert not any(one.kind is one.VAR_KEYWORD for one in parameters.values())
    assert fn.__doc__
    if fn is durable.run:
        assert len(typing.get_overloads(durable.run)) == 4


@pytest.mark.parametrize("run", [durable.run, durable.Workflow.run])
def test_the_blocking_overloads_come_first(run: Callable[..., Any]) -> None:
    """A type checker names the first one in its error; what people write first is blocking."""
    firsts = [str(inspect.signature(overload).parameters["fn"].annotation) for overload in typing.get_overloads(run)]
    assert [first.startswith("Async") for first in firsts] == [False, False, True, True]


# -- ids --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("id_", [UUID_ID, 123], ids=["UUID", "int"])
def test_an_id_that_is_no_text(store: MemoryStore, database: Database, id_: Any) -> None:
    """One rule wherever an id is given: it is a string, and the error says `str(…)`."""
    real = database.store()
    for given in (store, real):
        calls: list[Callable[[], Any]] = [
            lambda given=given: durable.run({}, lambda step, deps: 1, id=id_, store=given),  # type: ignore[misc]
            *(
                partial(verb, given, id_)
                for verb in (durable.cancel, durable.status, durable.result, durable.has_state)
            ),
            partial(durable.delete_state, given, id_),
            partial(durable.signal, given, id_, "name"),
            partial(given.load, id_),
            partial(given.delete, id_),
            partial(given.status, id_),
            partial(given.save, id_, {}),
        ]
        for call in calls:
            text = said(call)
            assert "a run's id must be a string" in text
            assert "write str(…)" in text

    class Five:
        """A store of the user's, which would take anything."""

        def save(self, *_: Any) -> None: ...
        def load(self, *_: Any) -> None: ...
        def delete(self, *_: Any) -> None: ...
        def list(self, **_: Any) -> list[Any]:
            return []

        def close(self) -> None: ...

    for verb in (durable.status, durable.result, durable.has_state, durable.delete_state):
        assert "write str(…)" in said(partial(verb, Five(), id_))
        awaited: Callable[..., Any] = getattr(durable.aio, verb.__name__)
        assert "write str(…)" in said(lambda awaited=awaited: asyncio.run(awaited(Five(), id_)))  # type: ignore[misc]


# -- durations --------------------------------------------------------------------------------------------------------


def test_a_timedelta_wherever_seconds_are_asked_for() -> None:
    """Of the same meaning as its seconds."""
    clock = JumpingClock()
    day = timedelta(days=1)

    @durable.step(timeout=timedelta(seconds=30))
    def fetch() -> int:
        return 1

    def workflow(step: durable.Step, _: object) -> list[Any]:
        began = clock.now()
        step.sleep("nap", day)
        slept = clock.now() - began
        with pytest.raises(durable.SignalTimedOut, match="within 86400 s"):
            step.wait_for("ok", timeout=day)
        return [
            slept >= day,
            fetch(),
            step("one", lambda: 1, timeout=timedelta(seconds=30)),
            step.map("two", len, ["x"], timeout=timedelta(seconds=30)),
        ]

    with Rehearsal(memory(), clock=clock) as rehearsal:
        options: dict[str, Any] = {"lease": timedelta(seconds=10), "wait_timeout": day, "deadline": timedelta(days=9)}
        assert durable.run({}, workflow, id="1", store=rehearsal, **options) == [True, 1, 1, [1]]


def test_a_timedelta_on_the_clock_of_a_test() -> None:
    clock, heard = JumpingClock(patience=timedelta(seconds=10)), list[str]()
    clock.after(timedelta(minutes=1), lambda: heard.append("after"))
    clock.advance(timedelta(seconds=59))
    assert (clock.elapsed(), heard) == (59.0, [])
    clock.advance(1)
    assert (clock.elapsed(), heard) == (60.0, ["after"])
    assert "not str" in said(lambda: clock.advance("1"))  # type: ignore[arg-type]
    assert "zero or more" in said(lambda: clock.advance(timedelta(seconds=-1)))


def test_a_timedelta_as_an_age(database: Database) -> None:
    store = database.store()
    durable.run({}, lambda step, _: 1, id="1", store=store)
    assert store.purge(older_than=timedelta(days=1)) == 0
    assert asyncio.run(store.aio.purge(older_than=timedelta(0))) == 1


def test_a_timedelta_that_waits(store: MemoryStore) -> None:
    """As `wait_timeout`, while another thread executes the run."""
    began, go_on = threading.Event(), threading.Event()

    def held(step: durable.Step, _: object) -> int:
        began.set()
        go_on.wait(30)
        return 1

    holder = threading.Thread(target=lambda: durable.run({}, held, id="2", store=store))
    holder.start()
    try:
        assert began.wait(30)
        with pytest.raises(durable.WaitTimedOut):
            durable.run({}, held, id="2", store=store, on_conflict="wait", wait_timeout=timedelta(milliseconds=1))
    finally:
        go_on.set()
        holder.join()


@pytest.mark.parametrize(
    ("option", "value", "words"),
    [
        ("lease", timedelta(0), "lease must be between"),
        ("lease", timedelta(days=2), "lease must be between"),
        ("wait_timeout", timedelta(seconds=-1), "wait_timeout must be"),
        ("deadline", timedelta(0), "deadline must be a positive number"),
        ("deadline", "tomorrow", "deadline must be a number of seconds, like 30 or 0.5, or a timedelta, not str"),
        ("wait_timeout", True, "not bool"),
        ("wait_timeout", 10**400, "fits into a float"),
        ("lease", datetime.now(UTC), "not datetime"),
    ],
)
def test_a_duration_that_will_not_do(store: MemoryStore, option: str, value: Any, words: str) -> None:
    options: dict[str, Any] = {option: value}
    assert words in said(lambda: durable.run({}, lambda step, _: 1, id="1", store=store, **options))


# -- the directory of the embedded server -----------------------------------------------------------------------------


def test_git_leaves_the_embedded_servers_directory_alone(tmp_path: Path) -> None:
    """From its first moment; what the user wrote there later stays."""
    repository = tmp_path / "repository"
    subprocess.run(["git", "init", "-q", repository], check=True)
    with embedded(repository / "nested" / ".durable"):
        shown = subprocess.run(
            ["git", "-C", repository, "status", "--porcelain"], capture_output=True, text=True, check=True
        ).stdout
        assert shown == ""
    ignore = repository / "nested" / ".durable" / ".gitignore"
    assert ignore.read_text() == "*\n"
    ignore.write_text("# mine\n")
    with embedded(repository / "nested" / ".durable"):
        assert ignore.read_text() == "# mine\n"


def test_a_warning_points_at_the_users_line(tmp_path: Path) -> None:
    """Not at one of ours."""
    program = tmp_path / "program.py"
    program.write_text("import durable\n\ndurable.run({}, lambda step, deps: 1, id='1')\n")
    told = run_program([sys.executable, program], check=True).stderr
    assert f"{program}:3: DurableWarning" in told
