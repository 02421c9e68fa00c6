"""Polls of PostgreSQL whose replies are lost: what a sending has taken is given back by the next one that arrives."""

from __future__ import annotations

import math
from typing import Any

import durable
from durable._engine.starts import Route
from durable._runtime.new_runs import Start
from durable.stores._postgres.statements import Statements
from durable.stores.requests import Poll
from harness.support import Database


@durable.workflow("polled")
def polled(step: durable.Step, _: Any) -> None:
    """Is never executed here."""


def test_a_poll_gives_back_what_any_of_its_sendings_has_taken(database: Database) -> None:
    """The first takes a run, and its reply is lost; the second is lost on its way; the third gives back what the first took."""
    with database.store() as store:
        durable.start_many(polled, [Start(id="a"), Start(id="b")], store=store)
        internal: Any = store
        statements, resources = Statements(internal._sql, store.clock), internal._held.resources
        job = internal._requests._polling(Poll([Route("default", "polled", 1)], 1, 30.0, lambda _: True))
        session = resources.connections.take(math.inf)
        (first,) = statements.perform(session, [job])
        job.doubtful = True
        job.payload.send_again()
        (third,) = statements.perform(session, [job])
        resources.connections.give_back(session)
    assert [len(due.found) for due in (first, third)] == [1, 1]
    tokens = database.execute("SELECT owner_token FROM durable_locks WHERE owner_token IS NOT NULL")
    assert tokens == [(third.found[0].lease.token,)]
