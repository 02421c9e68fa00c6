"""What a workflow's mark says besides its name: a version, a queue, a policy for its runs, migrations."""

from __future__ import annotations

import asyncio
import functools
import inspect
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import tenacity

import durable
from durable._runtime.workflow import WorkflowDefinition, definition_of_workflow
from durable.snapshots import Snapshot
from durable.stores import memory


@pytest.fixture
def store() -> Iterator[Any]:
    with memory() as store:
        yield store


def parcel(step: durable.Step, deps: Any) -> str:
    """A workflow."""
    return step("send", lambda: "sent")


def fresh() -> Callable[..., Any]:
    """The same, as a function of its own."""

    def parcel(step: durable.Step, deps: Any) -> str:
        return step("send", lambda: "sent")

    return parcel


def same(stored: Snapshot) -> Snapshot:
    """Goes on with what is stored."""
    return stored


def stored_version(store: Any, id: str) -> int:
    """Of a run."""
    version: int = store.load(id).metadata["version"]
    return version


def test_what_is_not_marked_has_the_defaults() -> None:
    assert definition_of_workflow(parcel) == WorkflowDefinition(
        "parcel", f"{__name__}:parcel", 1, "default", None, None, 3, False
    )


def test_a_mark_is_read_as_it_was_given() -> None:
    policy = tenacity.Retrying(stop=tenacity.stop_after_attempt(3))
    marked = durable.workflow(
        name="mail", version=3, queue="post", retry=policy, migrates={1: same, 2: same}, max_crashes=5
    )(fresh())
    name, function, version, queue, retry, migrates, max_crashes, is_marked = definition_of_workflow(marked)
    assert (name, function, version, queue, max_crashes, is_marked) == ("mail", None, 3, "post", 5, True)
    assert migrates == {1: same, 2: same}
    assert retry is not None
    assert [retry.retry_delay(OSError(), attempt, 0.0) for attempt in (1, 3)] == [0.0, None]
    assert definition_of_workflow(durable.workflow(fresh())).is_marked


def test_the_mark_is_found_below_partials_and_decorators() -> None:
    marked = durable.workflow(version=2, queue="post")(fresh())

    @functools.wraps(marked)
    def decorated(*args: Any) -> Any:
        return marked(*args)

    for fn in (marked, functools.partial(marked), functools.partial(functools.partial(marked)), decorated):
        assert definition_of_workflow(fn)[2:4] == (2, "post")
    outer = durable.workflow(version=5)(functools.partial(durable.workflow(name="mail", version=4)(fresh())))
    assert definition_of_workflow(outer)[:3] == ("mail", None, 5)


def test_a_second_mark_keeps_the_name_and_a_bare_one_keeps_all() -> None:
    marked = durable.workflow(name="mail", version=2)(fresh())
    assert definition_of_workflow(durable.workflow(durable.workflow()(marked)))[:3] == ("mail", None, 2)
    assert definition_of_workflow(durable.workflow(queue="post")(marked))[:4] == ("mail", None, 1, "post")
    assert definition_of_workflow(durable.workflow(name="parcels")(marked))[0] == "parcels"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"version": "2"}, "version must be an int"),
        ({"version": True}, "version must be an int"),
        ({"version": 2**31}, "31 bits"),
        ({"queue": ""}, "a queue's name must not be empty"),
        ({"queue": "q" * 513}, "a queue's name .* 512"),
        ({"queue": 7}, "a queue's name must be a string"),
        ({"retry": 3}, "retry must be a policy like"),
        ({"retry": tenacity.Retrying()}, "a run is tried again for ever"),
        (
            {"retry": tenacity.Retrying(stop=tenacity.stop_after_attempt(2), after=lambda _: None)},
            "of a policy for runs",
        ),
        ({"migrates": [same]}, "migrates must be a mapping"),
        ({"migrates": {"1": same}}, "version must be an int"),
        ({"version": 2, "migrates": {1: "clear"}}, "must be a function of the stored snapshot"),
        ({"version": 2, "migrates": {2: same}}, "version 2 is the one that is migrated to"),
    ],
)
def test_what_a_mark_cannot_say_is_refused_where_it_is_given(options: dict[str, Any], said: str) -> None:
    with pytest.raises(durable.InvalidArgument, match=said):
        durable.workflow(**options)


def test_runs_are_of_the_marks_version_unless_the_call_says_another(store: Any) -> None:
    marked = durable.workflow(version=4)(fresh())
    durable.run({}, marked, id="by mark", store=store)
    durable.run({}, marked, id="by call", store=store, version=6)
    durable.run({}, fresh(), id="plain", store=store)
    assert [stored_version(store, run) for run in ("by mark", "by call", "plain")] == [4, 6, 1]


def test_the_mark_migrates_runs_of_the_versions_that_it_names(store: Any) -> None:
    def parcel(step: durable.Step, deps: Any) -> str:
        raise AssertionError("this version never ran to its end")

    asked: list[int] = []

    def begin_anew(stored: Snapshot) -> str:
        asked.append(stored.metadata["version"])
        return "clear"

    mail: Any = durable.workflow(name="mail")
    for version in (1, 2, 3):
        with pytest.raises(AssertionError):
            durable.run({}, mail(parcel), id=f"v{version}", store=store, version=version)
    migrates: Any = {1: same, 2: begin_anew}
    marked = durable.workflow(name="mail", version=4, migrates=migrates)(fresh())
    assert durable.run({}, marked, id="v1", store=store) == "sent"
    assert durable.run({}, marked, id="v2", store=store) == "sent"
    assert asked == [2]
    with pytest.raises(durable.VersionMismatch):
        durable.run({}, marked, id="v3", store=store)
    assert [stored_version(store, f"v{version}") for version in (1, 2, 3)] == [4, 4, 3]


def test_what_the_call_says_to_another_version_counts_more(store: Any) -> None:
    durable.run({}, durable.workflow(name="mail")(fresh()), id="x", store=store)
    marked = durable.workflow(name="mail", version=2, migrates={1: same})(fresh())
    with pytest.raises(durable.VersionMismatch):
        durable.run({}, marked, id="x", store=store, on_version_mismatch="raise")
    assert stored_version(store, "x") == 1
    assert durable.run({}, marked, id="x", store=store) == "sent"


def test_an_async_workflow_awaits_its_migration(store: Any) -> None:
    async def parcel(step: durable.AsyncStep, deps: Any) -> str:
        return await step("send", lambda: "sent")

    async def migrate(stored: Snapshot) -> Snapshot:
        return stored

    durable.run({}, durable.workflow(name="mail")(fresh()), id="x", store=store)
    marked = durable.workflow(name="mail", version=2, migrates={1: migrate})(parcel)
    assert inspect.iscoroutinefunction(marked)
    assert asyncio.run(durable.run({}, marked, id="x", store=store)) == "sent"
    with pytest.raises(durable.errors.AsyncMismatch, match="migrates"):
        durable.run({}, durable.workflow(name="mail", version=3, migrates={2: migrate})(fresh()), id="x", store=store)
