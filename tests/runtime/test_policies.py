"""What tenacity would do for a policy is done, or refused by name: nothing of it is left out in silence."""

from __future__ import annotations

import asyncio
import functools
import math
from collections.abc import Callable
from contextlib import closing
from datetime import timedelta
from decimal import Decimal
from fractions import Fraction
from typing import Any

import pytest
import tenacity
import tenacity.asyncio
from tenacity import AsyncRetrying, RetryCallState, Retrying, stop_after_attempt, wait_fixed

import durable
from durable.errors import (
    InvalidArgument,
    KeyConflict,
    NestedStep,
    OutcomeUnknown,
    RunNotFound,
    StoreUnavailable,
    UnstorableValue,
)
from durable.stores import memory
from durable.testing import Rehearsal
from harness.support import Database

TWICE: Any = {"stop": stop_after_attempt(2)}
PATIENT: Any = Retrying(stop=stop_after_attempt(5), wait=wait_fixed(0))


def say(_: RetryCallState) -> None:
    """A callback."""


async def say_later(_: RetryCallState) -> None:
    """One that awaits."""


async def is_fine(_: Any) -> bool:
    """A predicate that awaits."""
    return True


class Named(tenacity.RetryError):
    """Somebody's own."""


class Counting(Retrying):
    """A loop with something in it."""

    def iter(self, retry_state: RetryCallState) -> Any:
        return super().iter(retry_state)


class Called(Retrying):
    """The same at another place."""

    def __call__(self, fn: Any, *args: Any, **kwargs: Any) -> Any:
        return super().__call__(fn, *args, **kwargs)


class Waiting(AsyncRetrying):
    """And in the other colour."""

    async def _run_wait(self, retry_state: RetryCallState) -> None:  # type: ignore[override]
        await super()._run_wait(retry_state)


class Mild(Retrying):
    """A policy with a name, which changes nothing of the loop."""

    def __init__(self) -> None:
        super().__init__(stop=stop_after_attempt(2), name="mild")

    def describe(self) -> str:
        return "mild"


REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    # what would be called
    "before": (lambda: Retrying(**TWICE, before=say), "before= is not taken: begin the body with it"),
    "after": (lambda: Retrying(**TWICE, after=say), "after= is not taken: listen to StepRetrying"),
    "before_sleep": (lambda: Retrying(**TWICE, before_sleep=say), "before_sleep= is not taken: listen to StepRetrying"),
    "before_sleep that awaits": (lambda: AsyncRetrying(**TWICE, before_sleep=say_later), "before_sleep= is not taken"),
    "retry_error_callback": (lambda: Retrying(**TWICE, retry_error_callback=say), "catch it in the workflow"),
    "retry_error_cls": (lambda: Retrying(**TWICE, retry_error_cls=Named), "retry_error_cls= is not taken"),
    "sleep": (lambda: Retrying(**TWICE, sleep=lambda _: None), "sleep= is not taken: a back-off is recorded"),
    "sleep that awaits": (lambda: AsyncRetrying(**TWICE, sleep=asyncio.sleep), "sleep= is not taken"),
    # a loop of one's own
    "iter": (lambda: Counting(**TWICE), r"Counting changes tenacity's loop \(iter\)"),
    "a call": (lambda: Called(**TWICE), r"Called changes tenacity's loop \(__call__\)"),
    "a wait": (lambda: Waiting(**TWICE), r"Waiting changes tenacity's loop \(_run_wait\)"),
    # for ever, without a pause
    "bare": (Retrying, "for ever, without a pause"),
    "bare and async": (AsyncRetrying, "for ever, without a pause"),
    "a predicate only": (lambda: Retrying(retry=tenacity.retry_if_exception_type(OSError)), "for ever"),
    "said outright": (lambda: Retrying(stop=tenacity.stop_never, wait=tenacity.wait_none()), "for ever"),
    "no seconds": (lambda: Retrying(wait=wait_fixed(0)), "for ever"),
    "no seconds, as a timedelta": (lambda: Retrying(wait=wait_fixed(timedelta())), "for ever"),
    "no seconds, combined": (lambda: Retrying(wait=wait_fixed(0) + tenacity.wait_none()), "for ever"),
    "no seconds in the end": (lambda: Retrying(wait=tenacity.wait_chain(wait_fixed(1), wait_fixed(0))), "for ever"),
    "no seconds, at random": (lambda: Retrying(wait=tenacity.wait_random(0, 0)), "for ever"),
    "no seconds, doubled": (lambda: Retrying(wait=tenacity.wait_exponential(multiplier=0)), "for ever"),
    "no seconds, cut": (lambda: Retrying(wait=tenacity.wait_random_exponential(max=0)), "for ever"),
    "no seconds, jittered": (lambda: Retrying(wait=tenacity.wait_exponential_jitter(max=0)), "for ever"),
    "no seconds, raised": (lambda: Retrying(wait=tenacity.wait_incrementing(start=0, increment=0)), "for ever"),
    "a stop that is none": (
        lambda: Retrying(stop=tenacity.stop_all(tenacity.stop_never, stop_after_attempt(2))),
        "for ever",
    ),
    "no stop of any": (lambda: Retrying(stop=tenacity.stop_any()), "for ever"),
    # results
    "a result": (lambda: Retrying(**TWICE, retry=tenacity.retry_if_result(bool)), "a result is recorded"),
    "no such result": (lambda: Retrying(**TWICE, retry=tenacity.retry_if_not_result(bool)), "a result is recorded"),
    "until it fails": (lambda: Retrying(**TWICE, retry=tenacity.retry_unless_exception_type(OSError)), "a result is"),
    "until it says": (lambda: Retrying(**TWICE, retry=tenacity.retry_if_not_exception_message("x")), "a result is"),
    "always": (lambda: Retrying(**TWICE, retry=tenacity.retry_always), "a result is recorded"),
    "a result, or an error": (
        lambda: Retrying(**TWICE, retry=tenacity.retry_if_exception_type() | tenacity.retry_if_result(bool)),
        "a result is recorded",
    ),
    "a result, deeply": (
        lambda: Retrying(
            **TWICE,
            retry=tenacity.retry_any(
                tenacity.retry_never, tenacity.retry_all(tenacity.retry_if_result(bool), tenacity.retry_always)
            ),
        ),
        "a result is recorded",
    ),
    # what awaits
    "a predicate that awaits": (lambda: AsyncRetrying(**TWICE, retry=is_fine), "awaits"),
    "tenacity's own that awaits": (
        lambda: AsyncRetrying(**TWICE, retry=tenacity.asyncio.retry_if_exception(is_fine)),
        "awaits",
    ),
    "a plain one around one that awaits": (
        lambda: AsyncRetrying(**TWICE, retry=tenacity.retry_if_exception(is_fine)),  # type: ignore[arg-type]
        "awaits",
    ),
    "a partial that awaits": (lambda: AsyncRetrying(**TWICE, retry=functools.partial(is_fine)), "awaits"),
    "one of several": (
        lambda: AsyncRetrying(**TWICE, retry=tenacity.retry_any(tenacity.retry_if_exception(is_fine))),  # type: ignore[arg-type]
        "awaits",
    ),
    "a stop that awaits": (lambda: AsyncRetrying(stop=is_fine), "awaits"),  # type: ignore[arg-type]
    "a wait that awaits": (lambda: AsyncRetrying(**TWICE, wait=is_fine), "awaits"),  # type: ignore[arg-type]
    # no strategies at all
    "a number to stop at": (lambda: Retrying(stop=3), "stop=3 cannot be called"),  # type: ignore[arg-type]
    "a number to wait": (lambda: Retrying(**TWICE, wait=3), "wait=3 cannot be called"),  # type: ignore[arg-type]
    "classes to retry": (lambda: Retrying(**TWICE, retry=(OSError,)), "retry=.* cannot be called"),  # type: ignore[arg-type]
    "a class to stop": (lambda: Retrying(stop=stop_after_attempt), "stop=stop_after_attempt is a class: call it"),  # type: ignore[arg-type]
    "a class to wait": (lambda: Retrying(**TWICE, wait=tenacity.wait_exponential_jitter), "is a class: call it"),  # type: ignore[arg-type]
    "an exception to retry": (lambda: Retrying(**TWICE, retry=OSError), "retry=OSError is a class"),  # type: ignore[arg-type]
}


@pytest.mark.parametrize("what", REFUSED)
@pytest.mark.parametrize("place", ["decorator", "call", "run"])
def test_what_a_policy_asks_for_and_does_not_get_is_refused(what: str, place: str) -> None:
    """Before anything runs, and with the way out."""
    make, words = REFUSED[what]

    def workflow(step: durable.Step, deps: Any) -> None:
        step("a", lambda: pytest.fail("it ran"), retry=make())

    def plain(step: durable.Step, deps: Any) -> None:
        step("a", lambda: pytest.fail("it ran"))

    with closing(memory()) as store, pytest.raises(durable.InvalidArgument, match=words):
        if place == "decorator":
            durable.step(retry=make())
        elif place == "call":
            durable.run({}, workflow, id="a", store=store)
        else:
            durable.run({}, plain, id="a", store=store, retry=make())


TAKEN: dict[str, Callable[[], Any]] = {
    "attempts": lambda: Retrying(**TWICE),
    "reraise": lambda: Retrying(**TWICE, reraise=True),
    "a name": lambda: Retrying(**TWICE, name="charge"),
    "disabled, and bare": lambda: Retrying(enabled=False),
    "a copy": lambda: Retrying().copy(**TWICE),
    "async": lambda: AsyncRetrying(**TWICE),
    "without a wait, but until a delay": lambda: Retrying(stop=tenacity.stop_after_delay(0)),
    "for ever, with a pause": lambda: Retrying(wait=wait_fixed(1), retry=tenacity.retry_never),
    "errors of two kinds": lambda: Retrying(
        **TWICE, retry=tenacity.retry_if_exception_type(OSError) | tenacity.retry_if_exception_message("x")
    ),
    "an error, not for its result": lambda: Retrying(
        **TWICE, retry=tenacity.retry_all(tenacity.retry_always, tenacity.retry_if_exception_type())
    ),
    "a subclass that adds to it": Mild,
    "a predicate": lambda: Retrying(**TWICE, retry=lambda state: isinstance(state.outcome.exception(), OSError)),  # type: ignore[union-attr]
}


@pytest.mark.parametrize("what", TAKEN)
def test_what_a_policy_can_have(database: Database, what: str) -> None:
    def workflow(step: durable.Step, deps: Any) -> list[Any]:
        fine = step("fine", lambda: "fine", retry=TAKEN[what]())
        with pytest.raises(OSError, match="x"):
            step("fails", fails, retry=TAKEN[what]())
        return [fine]

    def fails() -> None:
        raise OSError("x")

    assert durable.run({}, workflow, id="a", store=database.store()) == ["fine"]


# -- answers --------------------------------------------------------------------------------------------------------


def raises(_: RetryCallState) -> Any:
    """A part of a policy with a mistake in it."""
    raise LookupError("no such thing")


def awaits(state: RetryCallState) -> Any:
    """A plain function that does not look as if it awaited."""
    return is_fine(state)


NONSENSE: dict[str, tuple[dict[str, Any], str]] = {
    **{
        f"wait {what}": ({"wait": lambda _, answer=answer: answer}, "a number of seconds, zero or more, not")
        for what, answer in {
            "nan": math.nan,
            "inf": math.inf,
            "negative": -1,
            "negative, large": -(10**400),
            "large": 10**400,
            "timedelta": timedelta(seconds=1),
            "text": "5",
            "None": None,
            "object": object(),
            "negative decimal": Decimal(-1),
            "not a decimal": Decimal("NaN"),
        }.items()
    },
    "wait raises": ({"wait": raises}, "the policy's wait=.* raised LookupError: no such thing"),
    "wait awaits": ({"wait": awaits}, "the policy's wait=.* awaits"),
    "stop raises": ({"stop": raises}, "the policy's stop=.* raised LookupError"),
    "stop awaits": ({"stop": awaits}, "the policy's stop=.* awaits"),
    "retry raises": ({"retry": raises}, "the policy's retry=.* raised LookupError"),
    "retry awaits": ({"retry": awaits}, "the policy's retry=.* awaits"),
    "a predicate raises": (
        {"retry": tenacity.retry_if_exception(lambda e: e.no_such_attribute)},  # type: ignore[attr-defined]
        "raised AttributeError",
    ),
}


@pytest.mark.parametrize("colour", ["blocking", "async", "transaction"])
@pytest.mark.parametrize("what", NONSENSE)
def test_nonsense_is_said_by_name_and_the_run_can_be_mended(database: Database, what: str, colour: str) -> None:
    """Nothing is recorded of that attempt, nothing hangs, and with a better policy the run goes on."""
    parts, words = NONSENSE[what]
    policies = [Retrying(**{**TWICE, **parts}), Retrying(**TWICE)]
    fails = [True]

    def body(*_: Any) -> str:
        if fails[0]:
            raise OSError("down")
        return "up"

    def workflow(step: durable.Step, deps: Any) -> Any:
        if colour == "transaction":
            return step.transaction("fetch", body, retry=policies[0])
        return step("fetch", body, retry=policies[0])

    async def async_workflow(step: durable.AsyncStep, deps: Any) -> Any:
        return await step("fetch", body, retry=policies[0])

    store = database.store()

    def run() -> Any:
        if colour == "async":
            return asyncio.run(durable.run({}, async_workflow, id="a", store=store))
        return durable.run({}, workflow, id="a", store=store)

    with pytest.raises(durable.InvalidArgument, match=words) as told:
        run()
    assert "attempt 1 of the body, which raised OSError" in str(told.value)
    assert database.execute("SELECT count(*) FROM durable_steps WHERE key = 'fetch'") == [(0,)]
    del policies[0]
    fails[0] = False
    assert run() == "up"


@pytest.mark.parametrize("answer", [0, True, Decimal("0.5"), Fraction(1, 2), 1.5])
def test_a_number_of_any_kind_is_one(answer: Any) -> None:
    rehearsal = Rehearsal()

    def workflow(step: durable.Step, deps: Any) -> None:
        step("fetch", lambda: 1 / 0, retry=Retrying(**TWICE, wait=lambda _: answer))

    with pytest.raises(ZeroDivisionError):
        durable.run({}, workflow, id="a", store=rehearsal)
    assert rehearsal.clock.elapsed() == float(answer)


@pytest.mark.parametrize(
    "predicate",
    [
        lambda state: state.outcome.exception() is not None or state.outcome.result() == "pending",
        lambda state: True,
        lambda state: not state.outcome.failed,
        tenacity.retry_any(tenacity.retry_if_exception_type(), lambda state: not state.outcome.failed),  # type: ignore[union-attr]
    ],
)
@pytest.mark.parametrize("is_async", [False, True])
def test_a_predicate_that_wants_another_result_is_told_that_none_comes(predicate: Any, is_async: bool) -> None:
    """What it says of a result cannot be known before."""
    policy = Retrying(**TWICE, retry=predicate)

    def workflow(step: durable.Step, deps: Any) -> Any:
        return step("poll", lambda: "pending", retry=policy)

    async def async_workflow(step: durable.AsyncStep, deps: Any) -> Any:
        return await step("poll", lambda: "pending", retry=policy)

    with closing(memory()) as store, pytest.raises(durable.InvalidArgument, match=r"results are not judged.*did run"):
        if is_async:
            asyncio.run(durable.run({}, async_workflow, id="a", store=store))
        else:
            durable.run({}, workflow, id="a", store=store)


@pytest.mark.parametrize(
    "predicate",
    [
        lambda state: state.outcome.exception().errno == 7,
        lambda state: isinstance(state.outcome.exception(), OSError),
        lambda state: state.outcome.failed,
        lambda state: state.args == () and state.outcome.failed,
    ],
)
def test_a_predicate_that_looks_at_errors_only_says_nothing_of_results(predicate: Any) -> None:
    with closing(memory()) as store:
        policy = Retrying(**TWICE, retry=predicate)
        assert (
            durable.run({}, lambda step, deps: step("a", lambda: "fine", retry=policy), id="a", store=store) == "fine"
        )


def test_a_policy_sees_the_call() -> None:
    """As it would in tenacity's own loop."""
    seen: list[Any] = []

    def wait(state: RetryCallState) -> float:
        seen.append((state.fn, state.args, state.retry_object))
        return 0.0

    def fetch(page: int) -> None:
        raise OSError(page)

    policy = Retrying(**TWICE, wait=wait)
    with closing(memory()) as store, pytest.raises(OSError, match="7"):
        durable.run({}, lambda step, deps: step("a", fetch, 7, retry=policy), id="a", store=store)
    assert seen == [(fetch, (7,), policy)] * 2


@pytest.mark.parametrize("is_async", [False, True])
@pytest.mark.parametrize(
    "error", [StoreUnavailable("db", "it is restarted"), OutcomeUnknown("b", "the signal", "lost"), RunNotFound("b")]
)
def test_what_passes_of_our_own_errors_is_tried_again(error: Exception, is_async: bool) -> None:
    """A body that signals another run, or asks for its result, meets a store that is away for a moment."""
    tries: list[int] = []

    def tell() -> int:
        tries.append(1)
        if len(tries) < 3:
            raise error
        return len(tries)

    async def workflow(step: durable.AsyncStep, deps: Any) -> int:
        return await step("tell", tell, retry=PATIENT)

    with closing(memory()) as store:
        if is_async:
            assert asyncio.run(durable.run({}, workflow, id="a", store=store)) == 3
        else:
            assert durable.run({}, lambda step, _: step("tell", tell, retry=PATIENT), id="a", store=store) == 3


@pytest.mark.parametrize(
    "error",
    [InvalidArgument("so"), UnstorableValue("it", "$", "so"), NestedStep("a", "b"), KeyConflict("a", "args", "so")],
)
def test_a_mistake_is_made_once(error: Exception) -> None:
    tries: list[int] = []

    def tell() -> None:
        tries.append(1)
        raise error

    with closing(memory()) as store, pytest.raises(type(error)):
        durable.run({}, lambda step, _: step("tell", tell, retry=PATIENT), id="a", store=store)
    assert len(tries) == 1


# -- tenacity's own loop, inside and outside ------------------------------------------------------------------------


def test_a_function_that_tenacity_retries_is_a_body_like_any_other(database: Database) -> None:
    """Its loop is the body's own affair: one attempt of the step, and its callbacks are called."""
    tries: list[int] = []
    said: list[int] = []

    @tenacity.retry(
        stop=stop_after_attempt(3), before_sleep=lambda _: said.append(1), retry_error_callback=lambda _: "fallback"
    )
    def fetch() -> str:
        tries.append(1)
        raise OSError

    def workflow(step: durable.Step, deps: Any) -> str:
        return step("fetch", fetch)

    store = database.store()
    for _ in range(2):
        assert durable.run({}, workflow, id="a", store=store) == "fallback"
    assert (len(tries), len(said)) == (3, 2)
    attempts = database.execute("SELECT record->>'attempt' FROM durable_steps WHERE key = 'fetch' AND kind = 'step'")
    assert attempts in ([("1",)], [(None,)])
