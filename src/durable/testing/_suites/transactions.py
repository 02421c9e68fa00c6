"""What a store with transactions must do: a suite to inherit in your tests."""

from __future__ import annotations

from typing import Any

from durable._engine.leases import Lease
from durable.errors import LeaseLost
from durable.stores.protocol import RolledBack, RunStore, Transaction
from durable.stores.requests import Checkpoint, Release
from durable.testing._suites.raising import raises
from durable.testing._suites.run_stores import a_step, granted

_WHILE = 20.0  # seconds for a transaction that nothing stands in the way of


def body(_: Any, value: str) -> str:
    """The body of a step, with any store's connection."""
    return value


class TransactionSuite:
    """The verbs of `Transaction`, as far as the journal shows them. A fixture `store` gives an empty store."""

    def test_a_record_is_committed_with_it(self, store: RunStore) -> None:
        """And not before."""
        lease = granted(store).lease
        transaction = _begin(store, lease)
        assert transaction.call(body, ("done",)) == "done"
        transaction.commit(a_step(1, "one"))
        transaction.rollback()  # quiet: the end has come
        assert _keys(store, lease) == ["one"]

    def test_what_is_rolled_back_or_abandoned_is_not_there(self, store: RunStore) -> None:
        """Also when the body had returned; and the record of another one takes its place."""
        lease = granted(store).lease
        for end in ("rollback", "abandon"):
            transaction = _begin(store, lease)
            transaction.call(body, ("undone",))
            getattr(transaction, end)()
            with raises(RolledBack):
                transaction.commit(a_step(1, "undone"))
        store.perform(Checkpoint(lease, a_step(1, "one")))
        assert _keys(store, lease) == ["one"]

    def test_who_lost_the_lease_begins_none(self, store: RunStore) -> None:
        """The body is not called."""
        stale = granted(store).lease
        store.perform(Release(stale))
        current = granted(store).lease
        with raises(LeaseLost):
            store.transaction(stale, "late", "read committed").begin(_WHILE)
        assert _keys(store, current) == []

    def test_what_a_body_raises_is_raised(self, store: RunStore) -> None:
        """As it is; rolled back, nothing of it is there."""
        lease = granted(store).lease
        transaction = _begin(store, lease)

        def fails(_: Any) -> None:
            raise ValueError("no")

        with raises(ValueError):
            transaction.call(fails, ())
        transaction.rollback()
        assert _keys(store, lease) == []

    def test_several_at_once(self, store: RunStore) -> None:
        """Of one run, beside a checkpoint of it."""
        lease = granted(store).lease
        open_ones = [_begin(store, lease) for _ in range(2)]
        store.perform(Checkpoint(lease, a_step(3, "beside")))
        for seq, transaction in enumerate(open_ones, start=1):
            transaction.call(body, ("done",))
            transaction.commit(a_step(seq, f"step-{seq}"))
        assert _keys(store, lease) == ["step-1", "step-2", "beside"]

    def test_its_threads_call_what_is_submitted(self, store: RunStore) -> None:
        """And hand over what it comes to."""
        lease = granted(store).lease
        transaction = store.transaction(lease, "step", "serializable")
        assert transaction.submit(lambda: "done").result(_WHILE) == "done"
        with raises(ZeroDivisionError):
            transaction.submit(lambda: 1 / 0).result(_WHILE)
        store.perform(Release(lease))


def _begin(store: RunStore, lease: Lease) -> Transaction:
    transaction = store.transaction(lease, "step", "read committed")
    assert transaction.begin(_WHILE)
    return transaction


def _keys(store: RunStore, lease: Lease) -> list[str]:
    """The keys of what is in the journal, as the next owner finds it."""
    store.perform(Release(lease))
    reply = granted(store)
    store.perform(Release(reply.lease))
    return [record.key for record in reply.records]
