"""What a child costs its parent: which statements are sent for it, counted and not timed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import pytest

import durable
from durable.stores._postgres.statements import Statements
from harness.support import Database

WITHIN = 30.0  # seconds


@durable.workflow(name="adds")
def adds(step: durable.Step, deps: Any, n: int) -> int:
    return n + 1


@durable.workflow(name="asks")
def asks(step: durable.Step, deps: Any, n: int) -> int:
    return step.call(adds, n, key="child")


@durable.workflow(name="aasks")
async def aasks(step: durable.AsyncStep, deps: Any, n: int) -> int:
    return await step.call(adds, n, key="child")


@pytest.mark.parametrize("workflow", [asks, aasks])
def test_a_child_costs_its_parent_four_round_trips(
    database: Database, workflow: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: Counter[str] = Counter()
    perform = Statements.perform

    def counted(self: Statements, session: Any, jobs: Sequence[Any]) -> Sequence[Any]:
        sent.update({str(job.verb) for job in jobs if job.run_id == "p"})
        return perform(self, session, jobs)

    monkeypatch.setattr(Statements, "perform", counted)
    with database.store() as store:
        handle = durable.start(workflow, 1, id="p", store=store)
        worker = durable.Worker(store, None, [workflow], suspend_after=0.0)
        worker.run_until_idle()
        assert handle.status() == "suspended"
        with durable.Worker(store, None, [adds]):
            assert durable.handle(store, "p/child").result(WITHIN) == 2
        worker.run_until_idle()
        assert handle.result(WITHIN) == 2
    for verb in ("enqueue", "read", "finish", "renew"):  # of any run that is started, resumed and ended
        sent.pop(verb, None)
    assert sent == {"begin child": 1, "release": 1, "receive": 1, "checkpoint": 1}
