"""What is read in several statements is true of some moment, also while runs begin and end between them."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest

import durable
from durable.stores._postgres.session import Session
from harness.support import Database

READS: dict[str, Callable[[Any, str], Any]] = {
    "status": lambda store, name: store.status(name),
    "load": lambda store, name: store.load(name),
    "list": lambda store, name: [found.id for found in store.list() if found.id == name],
    "orphaned": lambda store, _: store.stats().orphaned,
}


def work(step: durable.Step, _: None, given: int) -> int:
    return step("one", lambda: given)


@pytest.mark.parametrize("read", READS)
def test_a_run_that_begins_between_two_statements(
    database: Database, monkeypatch: pytest.MonkeyPatch, read: str
) -> None:
    """Before each statement of the read, one after the other, the run begins, and ends: there is nothing wrong with it."""
    store, other = database.store(), database.store()
    store.stats()  # connected
    execute, asked, struck = Session.execute, [0], [0]

    def begins_first(session: Session, *given: Any, **options: Any) -> Any:
        if threading.current_thread() is reader:
            asked[0] += 1
            if asked[0] == struck[0]:
                begun = threading.Thread(target=lambda: durable.run(None, work, id=name, store=other, input=1))
                begun.start()
                begun.join()
        return execute(session, *given, **options)

    monkeypatch.setattr(Session, "execute", begins_first)
    reader = threading.current_thread()
    for number in range(1, 20):
        name, asked[0], struck[0] = f"x{number}", 0, number
        found = READS[read](store, name)
        assert found in (None, "completed", [], [name], 0) or found.execution.status == "completed"
        if asked[0] < number:
            assert number > 1, "nothing was asked"
            return
    pytest.fail("it asks for ever")
