"""Exceptions as records: the same live and replayed, and no run is lost because its error could not be stored."""

from __future__ import annotations

import asyncio
import dataclasses
import datetime as dt
import json
import smtplib
import subprocess
from collections.abc import Callable
from decimal import Decimal
from typing import Any

import attrs
import msgspec
import pytest
import tenacity

import durable
import durable.testing
from durable.codecs import JsonCodec
from durable.codecs._failures import from_record, to_record
from durable.records import FailureRecord, render
from durable.stores import memory
from harness.support import Database
from harness.value_kinds import Colour, Line, Plain

CODEC = JsonCodec()


class Typed(Exception):
    """Its arguments are values of every kind."""


class Coded(Exception):
    """It rebuilds from its arguments, and makes its text of them."""

    def __init__(self, code: int, at: dt.date) -> None:
        super().__init__(code, at)
        self.code = code

    def __reduce__(self) -> Any:
        return type(self), self.args

    def __str__(self) -> str:
        return f"code {self.code}"


class Silent(Exception):
    """`__str__` raises."""

    def __str__(self) -> str:
        raise RuntimeError("pl4nted")


class Picky(Exception):
    """Its constructor takes something else than it hands on."""

    def __init__(self, *, code: int) -> None:
        super().__init__(f"code {code}")
        self.code = code


@dataclasses.dataclass
class Declared(Exception):
    """A data class: its fields, and what the decorator makes of them."""

    code: int
    at: dt.date | None = None


@attrs.define(auto_exc=True)
class Slotted(Exception):
    """Its field lives in a slot."""

    code: int


class Worded(Exception):
    """It calls no constructor of its base, and makes its text of an attribute."""

    def __init__(self, code: int) -> None:
        self.code = code

    def __str__(self) -> str:
        return f"code {self.code}"


class Named(KeyError):
    """Built on a built-in one, with a text of its own."""

    def __init__(self, table: str, *, column: str) -> None:
        super().__init__(f"{table}.{column}")
        self.place = {"table": table, "column": (column, 1)}


class Several(ExceptionGroup[Exception]):
    """A group that carries something."""

    code = 0

    def __new__(cls, message: str, exceptions: list[Exception], code: int = 0) -> Any:
        self = super().__new__(cls, message, exceptions)
        self.code = code
        return self

    def __init__(self, message: str, exceptions: list[Exception], code: int = 0) -> None: ...


class Holding(Exception):
    """It holds what cannot be stored, and something that can."""

    def __init__(self, message: str, response: object) -> None:
        super().__init__(message)
        self.response = response
        self.status = 502
        self.at = dt.date(2031, 5, 1)


class Above(Exception):
    """What `Below` can be caught by."""


def parsing(text: str) -> Exception:
    try:
        json.loads(text)
    except ValueError as problem:
        return problem
    raise AssertionError


class Proxying(Exception):
    """Hands on what it is asked for, as SDKs' errors do, to a response that may not be there: never an `AttributeError`."""

    def __getattr__(self, name: str) -> Any:
        raise KeyError(name)


class Answering(Exception):
    """Has an answer to everything."""

    def __getattr__(self, name: str) -> Any:
        return 7


class Recursing(Exception):
    """Asks itself."""

    def __getattr__(self, name: str) -> Any:
        return getattr(self.response, name)


@dataclasses.dataclass(frozen=True)
class Frozen(Exception):
    number: int


class Unchanging(Exception):
    """Takes no attribute at all, as a frozen data class."""

    def __setattr__(self, name: str, value: object) -> None:
        raise TypeError(name)


def through(exception: BaseException) -> Exception:
    """As a replay would raise it."""
    return from_record(to_record(exception, CODEC), CODEC, run_id="r", where="a step")


def caused(depth: int) -> Exception:
    top = ValueError("0")
    link: Exception = top
    for number in range(1, depth):
        link.__cause__ = ValueError(str(number))
        link = link.__cause__
    return top


def cyclic() -> Exception:
    first, second = ValueError("first"), KeyError("second")
    first.__cause__, second.__cause__ = second, first
    return first


def odd_notes() -> Exception:
    problem = ValueError("x")
    problem.__notes__ = ["fine", 3, "\0\ud800", "x" * 100_000]  # type: ignore[list-item]
    return problem


def unchanging() -> Exception:
    problem = Unchanging("x")
    BaseException.__setattr__(problem, "__notes__", ["n"])
    BaseException.__setattr__(problem, "__cause__", Frozen(1))
    return problem


def stateful(state: object = 404) -> Exception:
    problem = ValueError("x")
    problem.status = state  # type: ignore[attr-defined]
    return problem


def same_class() -> dict[str, Exception]:
    """New ones each time: one that was raised keeps alive whatever its traceback leads to."""
    return {
        "a message": ValueError("bad"),
        "nothing": ValueError(),
        "typed arguments": Typed(Decimal("1.5"), dt.date(2031, 5, 1), (1, {2}), Colour.RED, Line("tea", Decimal(3))),
        "a text made of arguments": Coded(3, dt.date(2031, 5, 1)),
        "an OSError's parts": OSError(2, "no", "file"),
        "the name of an attribute": AttributeError("no", name="price", obj=object()),
        "the name of a name": NameError("no", name="price"),
        "the name of a local one": UnboundLocalError("no", name="price"),
        "two file names": FileNotFoundError(2, "no", "file", None, "other"),
        "a keyword": Picky(code=3),
        "a data class": Declared(7, dt.date(2031, 5, 1)),
        "a slot": Slotted(7),
        "a text made of an attribute": Worded(7),
        "a built-in base": Named("orders", column="id"),
        "a group that carries something": Several("g", [ValueError("a")], 7),
        "a process that failed": subprocess.CalledProcessError(1, ["ls", "-l"], stderr="no"),
        "JSON that is none": parsing('{"a"'),
        "bytes that are no text": UnicodeDecodeError("utf-8", b"\xff", 0, 1, "bad"),
        "a module that is not there": ImportError("no", name="shop", path="/shop.py"),
        "a syntax error": SyntaxError("bad", ("shop.py", 1, 2, "x y")),
        "a mail that was refused": smtplib.SMTPResponseException(550, "no"),
        "the end of an iterator": StopIteration(3),
        "an attribute that was set from outside": stateful(),
        "one of ours": durable.UnstorableValue("it", "$.a", "no", "Do."),
        "a message of 10 MB": ValueError("x" * 10_000_000),
        "a key of 10 MB": KeyError("x" * 10_000_000),
        "a message with NUL and a surrogate": ValueError("a\0b\ud800"),
        "a group": ExceptionGroup("g", [ValueError("a"), ExceptionGroup("h", [KeyError("k")])]),
        "one that looks its attributes up": Proxying("x"),
        "one that has an answer to everything": Answering("x"),
        "one that asks itself": Recursing("x"),
        "one that takes no attribute": unchanging(),
        "a cyclic cause": cyclic(),
        "a cause of a cause of …": caused(1000),
        "notes that are none": odd_notes(),
        "a group of 10,000": ExceptionGroup("g", [ValueError("x" * 10_000)] * 10_000),
    }


def step_failed() -> dict[str, Exception]:
    """What does not rebuild."""
    return {
        "an argument that cannot come back": ValueError(Plain()),
        "an attribute that cannot come back": Holding("x", object()),
        "an attribute of 100 KB": stateful("x" * 100_000),
        "a class of a function": type("Local", (Exception,), {"__qualname__": "f.<locals>.Local"})("x"),
        "no module": type("Odd", (Exception,), {"__module__": "not.there"})("x"),
    }


@pytest.mark.parametrize("name", same_class())
def test_it_comes_back_as_its_class(name: str) -> None:
    """FAULTS 81: live as on every replay, of bounded size."""
    exception = same_class()[name]
    record = to_record(exception, CODEC)
    assert len(render(FailureRecord(record))) < 2_000_000
    once, twice = (from_record(record, CODEC, run_id="r", where="a step") for _ in range(2))
    assert type(once) is type(twice) is type(exception)
    assert repr(once) == repr(twice)
    assert carried(once) == carried(twice) == carried(exception)
    # What was recorded of it once, is recorded of it again: a second execution of the workflow sees no other exception.
    assert to_record(once, CODEC).args == record.args or len(str(exception)) > 8000


def carried(exception: Exception) -> dict[str, Any]:
    """What it carries besides its arguments, its notes and its causes."""
    slots = {"code": exception.code} if isinstance(exception, Slotted) else {}
    names = ("errno", "filename", "filename2", "name", "path", "value")
    fields = {name: getattr(exception, name) for name in names if hasattr(type(exception), name)}
    state = {name: item for name, item in vars(exception).items() if not name.startswith("__")}
    return fields | state | slots


@pytest.mark.parametrize("name", step_failed())
def test_otherwise_it_is_step_failed(name: str) -> None:
    """FAULTS 81: with its class's name, its text where it has one, and its traceback."""
    exception = step_failed()[name]
    back = through(exception)
    assert isinstance(back, durable.StepFailed)
    assert type(exception).__name__ in back.type


def test_step_failed_tells_its_class_and_what_of_it_is_plain(database: Database) -> None:
    """`is_a` as `isinstance` would have it, also of a class that is not there; `attributes` decoded; live and replayed."""

    class Stop(BaseException):
        pass

    below = type("Below", (Above, TimeoutError), {"__qualname__": "f.<locals>.Below", "__module__": "not.there"})
    seen: list[Any] = []

    def workflow(step: durable.Step, _: Any) -> None:
        for key, exception in (("holding", Holding("x", object())), ("below", below("x"))):
            try:
                step("fails", raising(exception), key=key)
            except durable.StepFailed as problem:
                classes = (Holding, Above, TimeoutError, OSError, ValueError, Exception, (KeyError, Above), ())
                seen.append(([problem.is_a(one) for one in classes], problem.attributes))
        raise Stop

    store = database.store()
    for _ in range(2):
        with pytest.raises(Stop):
            durable.run(None, workflow, id="r", store=store)
    assert seen[:2] == seen[2:]
    assert seen[:2] == [
        ([True, False, False, False, False, True, False, False], {"status": 502, "at": dt.date(2031, 5, 1)}),
        ([False, True, True, True, False, True, True, False], {}),
    ]


@durable.alias("shop.old:Declined")
class Refused(Exception):
    """It was once called otherwise."""


def test_a_class_that_was_renamed_is_found_by_its_alias() -> None:
    """As data classes are."""
    record = to_record(Refused("x"), CODEC)
    assert record.type == "shop.old:Declined"
    assert type(through(Refused("x"))) is Refused
    unlike = through(Holding("x", object()))
    assert isinstance(unlike, durable.StepFailed)
    assert not unlike.is_a(Refused)
    held = Refused("x")
    held.response = object()  # type: ignore[attr-defined]
    back = through(held)
    assert isinstance(back, durable.StepFailed)
    assert back.is_a(Refused)


called: list[str] = []


class Loud(Exception):
    """Every method that a record could start."""

    def __new__(cls, *_: Any) -> Any:
        called.append("__new__")
        return super().__new__(cls)

    def __init__(self, *_: Any) -> None:
        called.append("__init__")

    def __setattr__(self, name: str, value: Any) -> None:
        called.append("__setattr__")
        super().__setattr__(name, value)

    def __setstate__(self, state: Any) -> None:
        called.append("__setstate__")

    @property
    def code(self) -> int:
        return 0

    @code.setter
    def code(self, _: int) -> None:
        called.append("code")


class LoudGroup(ExceptionGroup[Exception]):
    """The same for groups."""

    def __new__(cls, *arguments: Any) -> Any:
        called.append("__new__")
        return super().__new__(cls, *arguments)

    def __init__(self, *_: Any) -> None:
        called.append("__init__")


@pytest.mark.parametrize("class_", [Loud, LoudGroup])
def test_no_constructor_runs_because_a_row_says_so(class_: type[Exception]) -> None:
    """FAULTS 178: whatever its arguments and its state are."""
    member = to_record(ValueError("a"), CODEC)
    forged = type(member)(
        type=f"{__name__}:{class_.__name__}",
        message="x",
        args=msgspec.Raw(b'["x"]'),
        state=msgspec.Raw(b'{"code": 1, "args": [7], "__class__": 1, "__cause__": 2, "__dict__": {"a": 1}}'),
        members=(member,) if class_ is LoudGroup else (),
    )
    called.clear()
    back = from_record(forged, CODEC, run_id="r", where="a step")
    assert (type(back), called) == (class_, [])
    assert back.__cause__ is None


def test_whether_an_exception_survives_can_be_asked() -> None:
    """For a test of the user's own."""
    assert all(durable.testing.survives(exception) for exception in same_class().values())
    assert not any(durable.testing.survives(exception) for exception in step_failed().values())


def test_one_whose_text_cannot_be_made_is_its_class_too() -> None:
    """FAULTS 81: `__str__` raises, live and replayed."""
    record = to_record(Silent("x"), CODEC)
    back = from_record(record, CODEC, run_id="r", where="a step")
    assert (type(back), back.args) == (Silent, ("x",))
    assert "pl4nted" not in record.message


def test_what_a_short_one_says_is_whole() -> None:
    """Arguments of every type, notes, cause and members, all the way down."""
    original = same_class()["typed arguments"]
    back = through(original)
    assert repr(back.args) == repr(original.args)
    assert str(through(same_class()["a text made of arguments"])) == "code 3"
    group = through(same_class()["a group of 10,000"])
    assert isinstance(group, ExceptionGroup)
    assert 50 < len(group.exceptions) <= 100
    assert "more of its 10,000 exceptions were not stored" in group.__notes__[-1]
    long = through(same_class()["a message of 10 MB"])
    assert len(str(long)) < 10_000
    assert str(long).endswith("…")


@pytest.mark.parametrize("exceptions", [same_class, step_failed], ids=["same class", "StepFailed"])
def test_live_and_replayed_are_alike_in_a_run(
    database: Database, exceptions: Callable[[], dict[str, Exception]]
) -> None:
    """FAULTS 81: through PostgreSQL; the workflow catches, and goes on."""

    class Stop(BaseException):
        pass

    seen: list[list[str]] = []

    def workflow(step: durable.Step, _: Any) -> None:
        seen.append([])
        for name, exception in exceptions().items():
            try:
                step("fails", raising(exception), key=name)
            except Exception as problem:
                seen[-1] += [type(problem).__name__, str(problem), repr(problem.__cause__)]
        raise Stop

    store = database.store()
    for _ in range(2):
        with pytest.raises(Stop):
            durable.run(None, workflow, id="r", store=store)
    live, replayed = seen
    assert live == replayed
    assert len(live) == 3 * len(exceptions())


class Rewinding(Exception):
    """It has its own mind about tracebacks."""

    def with_traceback(self, _: Any) -> Any:
        raise RuntimeError


class Renewing(Exception):
    """It answers with another one."""

    def with_traceback(self, _: Any) -> Any:
        return ValueError("another")


class Noteless(Exception):
    """It takes no notes."""

    def add_note(self, _: str) -> None:
        raise RuntimeError


@pytest.mark.parametrize("class_", [Proxying, Answering, Recursing, Unchanging, Frozen, Rewinding, Renewing, Noteless])
@pytest.mark.parametrize("attempts", [1, 2])
def test_what_a_class_does_with_attributes_is_not_met(class_: Any, attempts: int) -> None:
    """Caught and handed on, after retries, with a traceback that is cut: it is the user's exception at every place."""
    retry = tenacity.Retrying(stop=tenacity.stop_after_attempt(attempts), wait=tenacity.wait_none())

    def workflow(step: durable.Step, _: Any) -> None:
        try:
            step("fails", raising(class_(1)), retry=retry)
        except class_ as problem:
            notes = [] if attempts == 1 else ["step 'fails' failed in 2 attempts"]
            assert vars(problem).get("__notes__", []) == notes
            raise

    with memory() as store:
        for _ in range(2):
            with pytest.raises(class_) as it:
                durable.run(None, workflow, id="r", store=store)
            assert type(it.value) is class_
        assert store.status("r") == "failed"


def raising(exception: Exception) -> Any:
    def body() -> None:
        raise exception

    return body


def test_the_run_itself_may_fail_with_any_of_them() -> None:
    """FAULTS 81: its failure is recorded, and the caller gets the exception itself."""
    store = memory()
    for name, exception in (same_class() | step_failed()).items():
        with pytest.raises(type(exception)) as it:
            durable.run(None, failing(exception), id=name, store=store)
        assert it.value is exception
    store.close()


def failing(exception: Exception) -> Any:
    def workflow(step: durable.Step, _: Any) -> None:
        raise exception

    return workflow


@dataclasses.dataclass(frozen=True)
class FrozenError(Exception):
    """It refuses every assignment, that of its own traceback too."""

    code: int


@attrs.frozen
class FrozenByAttrs(Exception):
    """The same by another library's way."""

    code: int


class Closed(Exception):
    """The same by hand."""

    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError(f"pl4nted: {name}")


class Absent(Exception):
    """It answers for attributes that it does not have, and raises."""

    def __getattr__(self, name: str) -> Any:
        raise RuntimeError(f"pl4nted: {name}")


class Guarded(Exception):
    """It tells nothing of itself."""

    def __getattribute__(self, name: str) -> Any:
        raise RuntimeError(name)


class Frameless(Exception):
    @property
    def __traceback__(self) -> Any:
        raise RuntimeError

    @__traceback__.setter
    def __traceback__(self, _: Any) -> None: ...


class Causeless(Exception):
    @property
    def __cause__(self) -> Any:  # type: ignore[override]
        raise RuntimeError


class Stateless(Exception):
    @property
    def __dict__(self) -> Any:  # type: ignore[override]
        raise RuntimeError


class Memberless(ExceptionGroup[Exception]):
    def __new__(cls, *_: Any) -> Any:
        return super().__new__(cls, "several", [ValueError()])

    @property
    def exceptions(self) -> Any:
        raise RuntimeError


class _Hashless(type):
    def __eq__(cls, other: object) -> bool:
        raise RuntimeError

    __hash__ = None  # type: ignore[assignment]


class Classless(Exception, metaclass=_Hashless): ...


@pytest.mark.parametrize("class_", [Guarded, Frameless, Causeless, Stateless, Memberless, Classless], ids=range(6))
@pytest.mark.parametrize("is_async", [False, True])
def test_one_that_lets_nobody_look_at_it_is_a_failure_too(class_: Any, is_async: bool) -> None:
    """FAULTS 81: recorded once, live as on a replay; the body does not run again for it."""
    bodies: list[int] = []
    caught: list[str] = []
    dies = [True]

    def body() -> None:
        bodies.append(1)
        raise class_(1)

    def end(problem: Exception) -> None:
        caught.append(str(problem))
        assert isinstance(problem, durable.StepFailed)
        if dies:
            dies.clear()
            raise KeyboardInterrupt

    def workflow(step: durable.Step, _: None) -> None:
        try:
            step("fails", body)
        except Exception as problem:
            end(problem)

    async def async_workflow(step: durable.AsyncStep, _: None) -> None:
        try:
            await step("fails", body)
        except Exception as problem:
            end(problem)

    def run() -> None:
        if is_async:
            asyncio.run(durable.run(None, async_workflow, id="r", store=store))
        else:
            durable.run(None, workflow, id="r", store=store)

    with memory() as store:
        with pytest.raises(KeyboardInterrupt):
            run()
        run()
    assert caught == [caught[0]] * 2
    assert class_.__qualname__ in caught[0]
    assert bodies == [1]


@pytest.mark.parametrize("class_", [FrozenError, FrozenByAttrs, Closed, Absent])
@pytest.mark.parametrize("way", ["alone", "of a cause", "with a note", "in several attempts"])
def test_an_exception_that_refuses_attributes_is_one_like_any_other(class_: type[Exception], way: str) -> None:
    """It is recorded, caught by its class, live and replayed, and ends the run as itself."""
    works = False
    again = tenacity.Retrying(stop=tenacity.stop_after_attempt(2), wait=tenacity.wait_none())

    def work() -> str:
        if works:
            return "done"
        problem = class_(402)
        if way == "with a note":
            BaseException.__setattr__(problem, "__notes__", ["a note"])
        if way == "of a cause":
            raise problem from class_(1)
        raise problem

    def workflow(step: durable.Step, _: None) -> str:
        try:
            return step("work", work, retry=again if way == "in several attempts" else None)
        except class_:
            step("note", lambda: 1)
            raise

    with memory() as store:
        with pytest.raises(class_):
            durable.run(None, workflow, id="a", store=store)
        with pytest.raises(durable.RetryRefused):
            durable.run(None, workflow, id="a", store=store)
        assert durable.retry(store, "a") == ["note"]
        works = True
        assert durable.run(None, workflow, id="a", store=store) == "done"
