"""What a run says in structured logs: a line an event, and never a payload."""

from __future__ import annotations

import asyncio
import json
import logging
from typing import Any

import pytest
import structlog
import tenacity
from structlog.testing import capture_logs

import durable
from durable.events import RunEvent, StepRecorded
from durable.stores import memory
from durable.telemetry import all_of, log_events

SECRET = "hunter2-card-4242"


def checkout(step: durable.Step, deps: Any) -> str:
    step("fetch", lambda: {"card": SECRET}, key="fetch-user")
    return step("charge", lambda card: f"paid with {card}", SECRET)


async def checkout_async(step: durable.AsyncStep, deps: Any) -> str:
    await step("fetch", lambda: {"card": SECRET}, key="fetch-user")
    return await step("charge", lambda card: f"paid with {card}", SECRET)


def told(workflow: Any, *, store: Any = None, raises: type[BaseException] | None = None, **options: Any) -> list[Any]:
    """The lines of one run."""
    with capture_logs() as lines, memory() as fresh:
        options.setdefault("on_event", log_events())
        where = store if store is not None else fresh

        def go() -> Any:
            result = durable.run({"token": SECRET}, workflow, id="checkout-1", store=where, **options)
            return asyncio.run(result) if asyncio.iscoroutine(result) else result

        if raises is None:
            go()
        else:
            with pytest.raises(raises):
                go()
    return lines


@pytest.mark.parametrize("workflow", [checkout, checkout_async], ids=["blocking", "async"])
def test_a_line_for_each_event_with_run_key_attempt_and_duration(workflow: Any) -> None:
    lines = told(workflow)
    assert [(line["log_level"], line["event"], line.get("key")) for line in lines] == [
        ("info", "run began", None),
        ("debug", "step began", "fetch-user"),
        ("info", "step recorded", "fetch-user"),
        ("debug", "step began", "charge"),
        ("info", "step recorded", "charge"),
        ("info", "run completed", None),
    ]
    assert {line["run_id"] for line in lines} == {"checkout-1"}
    fetched = lines[2]
    assert (fetched["name"], fetched["attempt"]) == ("fetch", 1)
    assert isinstance(fetched["duration"], float)
    assert "name" not in lines[4]  # the same as its key


def test_replayed_steps_are_muted(caplog: Any) -> None:
    """The second process says at info what it does itself, and nothing of what it was handed out."""
    with memory() as store:

        def stopped(step: durable.Step, deps: Any) -> str:
            step("fetch", lambda: {"card": SECRET}, key="fetch-user")
            raise KeyboardInterrupt

        stopped.__name__ = "checkout"
        told(stopped, store=store, raises=KeyboardInterrupt)
        lines = told(checkout, store=store)
    assert [line["log_level"] for line in lines if line["event"] == "step replayed"] == ["debug"]
    loud = [line for line in lines if line["log_level"] != "debug"]
    assert [line.get("key") for line in loud] == [None, "charge", None]


def test_retries_and_failures_are_told_with_their_classes_only() -> None:
    """I10: neither the message of an exception nor its arguments."""

    def failing(step: durable.Step, deps: Any) -> None:
        retry = tenacity.Retrying(stop=tenacity.stop_after_attempt(2), wait=tenacity.wait_none())
        step("charge", lambda: (_ for _ in ()).throw(ConnectionError(SECRET)), retry=retry)

    lines = told(failing, raises=ConnectionError, metadata={"customer": "c-1"})
    retried, failed = (line for line in lines if line["event"] in ("step is retried", "step failed"))
    assert (retried["attempt"], retried["error"]) == (1, "builtins.ConnectionError")
    assert (failed["attempt"], failed["error"]) == (2, "builtins.ConnectionError")
    assert lines[-1]["event"] == "run failed"
    assert lines[-1]["again"] == ["charge"]


def test_no_line_has_a_payload(capsys: Any) -> None:
    """I10: values, arguments, dependencies, inputs, results, messages; rendered as they would be."""
    log = structlog.wrap_logger(structlog.PrintLogger(), processors=[structlog.processors.JSONRenderer()])

    def failing(step: durable.Step, deps: Any, input: Any) -> str:
        step("fetch", lambda: {"card": SECRET})
        try:
            step("refuse", lambda card: (_ for _ in ()).throw(ValueError(f"{card} refused")), SECRET)
        except ValueError:
            step("note", lambda: SECRET)
        raise ValueError(SECRET)

    def fine(step: durable.Step, deps: Any, input: Any) -> str:
        return SECRET

    with memory() as store:
        for workflow in (failing, fine):
            try:
                options: Any = {"input": {"card": SECRET}, "on_event": log_events(log)}
                durable.run({"token": SECRET}, workflow, id=workflow.__name__, store=store, **options)
            except ValueError:
                pass
    written = capsys.readouterr().out
    assert len(written.splitlines()) == 10
    assert all(json.loads(line)["run_id"] in ("failing", "fine") for line in written.splitlines())
    assert SECRET not in written


def test_payloads_are_told_to_whoever_asks() -> None:
    lines = told(checkout, on_event=log_events(payloads=True))
    values = [json.loads(line["value"]) for line in lines if "value" in line]
    assert values == [{"card": SECRET}, f"paid with {SECRET}"]


def test_a_logger_that_raises_disturbs_nothing(caplog: Any) -> None:
    class Broken:
        def __getattr__(self, level: str) -> Any:
            raise OSError("the disk of the logs is full")

    with caplog.at_level(logging.ERROR, "durable"), memory() as store:
        paid = durable.run({}, checkout, id="a", store=store, on_event=log_events(Broken()))
    assert paid == f"paid with {SECRET}"
    assert "an event listener raised" in caplog.text


def test_several_listeners_hear_the_same_and_one_that_raises_costs_the_others_nothing(caplog: Any) -> None:
    heard: list[RunEvent] = []

    def raising(event: RunEvent) -> None:
        raise RuntimeError("mine")

    with capture_logs() as lines, memory() as store:
        durable.run({}, checkout, id="a", store=store, on_event=all_of(raising, heard.append, log_events()))
    assert len(heard) == len(lines) == 6
    assert sum(isinstance(event, StepRecorded) for event in heard) == 2
    assert caplog.text.count("an event listener raised") == 6
