"""What every store with leases must do: a suite to inherit in your tests."""

from __future__ import annotations

import asyncio
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from threading import Barrier
from typing import Any, TypeVar

from msgspec.structs import replace

from durable._engine.decisions import Claim, ClaimReply, Granted, Refused
from durable._engine.leases import MIN_LEASE
from durable.errors import LeaseLost
from durable.records import FailureRecord, Kind, Record, Status, StepRecord, parse
from durable.stores.protocol import RunStore
from durable.stores.requests import Begin, Checkpoint, Finish, Release
from durable.testing._suites.raising import raises
from durable.testing._suites.snapshot_stores import loaded

R = TypeVar("R", Granted, Refused)

_PATIENCE = 20.0  # seconds, in which a lease of half a second has surely ended


def a_claim(run_id: str = "run", **changes: Any) -> Claim:
    """A claim of a run of the workflow `checkout`."""
    return replace(Claim(run_id=run_id, workflow="checkout", version=1, seconds=30.0), **changes)


def a_step(seq: int, key: str, value: str = "1") -> Record:
    """The record of a step that settled with this JSON."""
    return Record(seq, key, Kind.STEP, f'{{"name":"{key}","ok":true,"value":{value}}}')


RESULT = Record(99, Kind.RESULT, Kind.RESULT, '"done"')
FAILURE = Record(99, Kind.FAILURE, Kind.FAILURE, '{"error":{"type":"builtins:ValueError","message":"no"}}')


def expect(reply: ClaimReply, kind: type[R]) -> R:
    """The reply, which must be of this kind."""
    assert isinstance(reply, kind), reply
    return reply


def granted(store: RunStore, **changes: Any) -> Granted:
    """The reply to a claim with these changes, which must be a grant."""
    return expect(store.perform(Begin(a_claim(**changes), alive)), Granted)


def refused(store: RunStore, **changes: Any) -> Refused:
    """The reply to a claim with these changes, which must be a refusal."""
    return expect(store.perform(Begin(a_claim(**changes), alive)), Refused)


def alive() -> bool:
    """The driver is at work."""
    return True


class RunStoreSuite:
    """The verbs of `RunStore`. A fixture `store` gives an empty store; the tests need nothing else."""

    def test_a_new_run_is_granted(self, store: RunStore) -> None:
        """With its header and its input; epochs count from one."""
        reply = granted(store, input=b'{"b":1,"a":2}', input_hash="h", metadata={"customer": "c-7"})
        assert (reply.lease.run_id, reply.lease.epoch) == ("run", 1)
        assert (reply.header.workflow_name, reply.header.execution.status) == ("checkout", Status.RUNNING)
        assert reply.header.metadata == {"customer": "c-7", "version": 1, "inputHash": "h"}
        assert [(record.kind, record.text) for record in reply.records] == [(Kind.INPUT, '{"b":1,"a":2}')]
        store.perform(Release(reply.lease))

    def test_a_run_that_is_held_is_refused(self, store: RunStore) -> None:
        """The refusal names the holder and how long its lease lasts."""
        lease = granted(store).lease
        reply = refused(store)
        assert reply.owner
        assert 0 < (reply.expires_in or 0) <= 30
        store.perform(Release(lease))

    def test_a_released_run_goes_on_with_what_was_written(self, store: RunStore) -> None:
        """Under the next epoch and another token."""
        first = granted(store).lease
        store.perform(Checkpoint(first, a_step(1, "one", '{"b":1,"a":1e16}')))
        store.perform(Checkpoint(first, a_step(2, "two")))
        store.perform(Release(first))
        reply = granted(store)
        assert reply.lease.epoch == 2
        assert reply.lease.token != first.token
        assert [record.key for record in reply.records] == ["one", "two"]
        step = parse(reply.records[0].text, StepRecord, run_id="run", where="one")
        assert step.json == b'{"b":1,"a":1e16}'
        store.perform(Release(reply.lease))

    def test_who_lost_the_lease_writes_nothing(self, store: RunStore) -> None:
        """Neither a step nor an end; and its release takes nothing from the new owner."""
        stale = granted(store).lease
        store.perform(Release(stale))
        current = granted(store).lease
        with raises(LeaseLost):
            store.perform(Checkpoint(stale, a_step(1, "stale")))
        with raises(LeaseLost):
            store.perform(Finish(stale, Status.COMPLETED, RESULT))
        store.perform(Release(stale, Status.FAILED))
        refused(store)
        store.perform(Checkpoint(current, a_step(1, "current")))
        store.perform(Release(current))
        reply = granted(store)
        assert [record.key for record in reply.records] == ["current"]
        assert reply.header.execution.status == Status.RUNNING
        store.perform(Release(reply.lease))

    def test_a_lease_whose_driver_is_gone_ends(self, store: RunStore) -> None:
        """Then another is granted the run, and the first can write no more."""
        gone = expect(store.perform(Begin(a_claim(seconds=MIN_LEASE), lambda: False)), Granted).lease
        until = time.monotonic() + _PATIENCE
        while isinstance(reply := store.perform(Begin(a_claim(), alive)), Refused):
            assert time.monotonic() < until
            time.sleep(0.05)
        with raises(LeaseLost):
            store.perform(Checkpoint(gone, a_step(1, "gone")))
        store.perform(Release(reply.lease))

    def test_a_lease_is_kept_while_its_driver_lives(self, store: RunStore) -> None:
        """The store renews it by itself: twice its length later it is still refused to others."""
        lease = granted(store, seconds=MIN_LEASE).lease
        until = time.monotonic() + 2 * MIN_LEASE
        while time.monotonic() < until:
            refused(store)
            time.sleep(0.05)
        store.perform(Finish(lease, Status.COMPLETED, RESULT))

    def test_a_completed_run_is_refused_with_its_result(self, store: RunStore) -> None:
        """For ever; and it cannot be written any more."""
        lease = granted(store).lease
        store.perform(Checkpoint(lease, a_step(1, "one")))
        store.perform(Finish(lease, Status.COMPLETED, RESULT))
        reply = refused(store)
        assert reply.header is not None
        assert reply.header.execution.status == Status.COMPLETED
        assert (reply.owner, reply.expires_in) == (None, None)
        assert [(record.kind, record.text) for record in reply.records] == [(Kind.RESULT, '"done"')]
        with raises(LeaseLost):
            store.perform(Checkpoint(lease, a_step(100, "late")))

    def test_a_failed_run_is_taken_up_by_who_asks_for_it(self, store: RunStore) -> None:
        """And refused, with its failure, to a claim that only waited."""
        store.perform(Finish(granted(store).lease, Status.FAILED, FAILURE))
        waited = refused(store, after_failure=False)
        assert waited.header is not None
        assert waited.header.execution.status == Status.FAILED
        (failure,) = waited.records
        assert parse(failure.text, FailureRecord, run_id="run", where="failure").error.message == "no"
        reply = granted(store)
        assert reply.header.execution.status == Status.RUNNING
        store.perform(Release(reply.lease, Status.FAILED))
        refused(store, after_failure=False)

    def test_a_failure_that_needs_a_decision_is_taken_up_by_who_amends_it(self, store: RunStore) -> None:
        """Any other claim is refused, with the failure; one that amends finds the header as it was, and leaves it so."""
        text = FAILURE.text[:-1] + ',"undecided":["refund"]}'
        store.perform(Finish(granted(store).lease, Status.FAILED, FAILURE._replace(text=text)))
        reply = refused(store)
        assert reply.header is not None
        assert (reply.header.execution.status, reply.header.execution.needs_decision) == (Status.FAILED, True)
        assert reply.owner is None
        amended = granted(store, amends=True, create=False)
        assert amended.header == reply.header
        refused(store)
        store.perform(Release(amended.lease))
        assert refused(store).header == reply.header

        lease = granted(store, amends=True, create=False).lease
        store.perform(Finish(lease, Status.RUNNING, Record(100, Kind.ASIDE, Kind.ASIDE, '{"seqs":[]}')))
        again = granted(store)
        assert not again.header.execution.needs_decision
        assert again.header.execution.error is None
        store.perform(Release(again.lease))

    def test_another_run_under_the_same_id_is_refused(self, store: RunStore) -> None:
        """Another workflow, function, version or input; nothing is changed by it."""
        store.perform(Release(granted(store, function="shop:checkout", input=b"1", input_hash="h").lease))
        changes: tuple[dict[str, Any], ...] = (
            {"workflow": "other"},
            {"function": "library:checkout"},
            {"version": 2},
            {"input": b"2", "input_hash": "i"},
        )
        for change in changes:
            reply = refused(store, **change)
            assert reply.header is not None
            assert reply.header.workflow_name == "checkout"
        lease = granted(store).lease  # of a workflow whose name was given
        assert lease.epoch == 2
        store.perform(Release(lease))
        assert granted(store, function="shop:checkout").lease.epoch == 3

    def test_a_claim_that_may_not_create_creates_nothing(self, store: RunStore) -> None:
        """It is refused without a header."""
        assert refused(store, create=False).header is None
        assert granted(store).lease.epoch == 1

    def test_of_many_claims_one_is_granted(self, store: RunStore) -> None:
        """Sixteen threads at a barrier."""
        barrier = Barrier(16)

        def begin(_: int) -> ClaimReply:
            barrier.wait()
            return store.perform(Begin(a_claim(), alive))

        with ThreadPoolExecutor(16) as threads:
            replies = list(threads.map(begin, range(16)))
        (grant,) = [reply for reply in replies if isinstance(reply, Granted)]
        store.perform(Release(grant.lease))

    def test_steps_of_one_run_are_written_side_by_side(self, store: RunStore) -> None:
        """From eight threads, each record once, in the order of their numbers."""
        lease = granted(store).lease

        def write(seq: int) -> None:
            store.perform(Checkpoint(lease, a_step(seq, f"step-{seq}")))

        with ThreadPoolExecutor(8) as threads:
            list(threads.map(write, range(1, 101)))
        store.perform(Release(lease))
        reply = granted(store)
        assert [record.seq for record in reply.records] == list(range(1, 101))
        store.perform(Release(reply.lease))

    def test_a_record_that_is_read_says_when_and_under_which_lease_it_was_stored(self, store: RunStore) -> None:
        """By the store's clock, in the order in which they were written, and by counted leases."""
        first = granted(store, input=b"7", input_hash="h").lease
        store.perform(Checkpoint(first, a_step(1, "one")))
        store.perform(Release(first))
        second = granted(store)
        store.perform(Checkpoint(second.lease, a_step(2, "two")))
        store.perform(Finish(second.lease, Status.FAILED, FAILURE))
        third = granted(store)
        store.perform(Release(third.lease))
        records, epochs = third.records, (first.epoch, second.lease.epoch)
        assert [(record.key, record.epoch) for record in records] == [
            ("input", epochs[0]),
            ("one", epochs[0]),
            ("two", epochs[1]),
            ("failure", epochs[1]),
        ]
        assert epochs[0] < epochs[1] < third.lease.epoch
        moments = [record.at for record in records if record.at is not None]
        assert len(moments) == len(records)
        assert moments == sorted(moments)
        assert all(moment.utcoffset() == timedelta(0) for moment in moments)

    def test_a_run_is_replaced_while_it_is_what_was_loaded(self, store: RunStore) -> None:
        """Not once it has been written, nor while it is being executed; and its replacement is what is granted next."""
        first = granted(store, input=b"7", input_hash="h").lease
        store.perform(Checkpoint(first, a_step(1, "one")))
        held = loaded(store, "run")
        assert not store.replace("run", held, held)
        store.perform(Checkpoint(first, a_step(2, "two")))
        store.perform(Release(first))
        assert not store.replace("run", held, held)
        written = loaded(store, "run")
        assert list(written.steps) == ["one", "two"]
        assert store.replace("run", written, held)
        assert not store.replace("run", written, held)
        assert store.load("no such run") is None
        assert not store.replace("no such run", written, held)
        reply = granted(store)
        assert [record.key for record in reply.records] == ["input", "one"]
        store.perform(Release(reply.lease))

    def test_asyncio_has_the_same_verbs(self, store: RunStore) -> None:
        """Begin, checkpoint, finish and release, with the same answers."""

        async def run() -> ClaimReply:
            first = expect(await store.aio.submit(Begin(a_claim(), alive)), Granted).lease
            await asyncio.gather(
                *(store.aio.submit(Checkpoint(first, a_step(seq, f"step-{seq}"))) for seq in range(1, 21))
            )
            await store.aio.submit(Release(first))
            try:
                await store.aio.submit(Checkpoint(first, a_step(21, "late")))
            except LeaseLost:
                pass
            else:
                raise AssertionError("a lease that was given back could write")
            second = expect(await store.aio.submit(Begin(a_claim(), alive)), Granted)
            assert [record.seq for record in second.records] == list(range(1, 21))
            await store.aio.submit(Finish(second.lease, Status.COMPLETED, RESULT))
            return await store.aio.submit(Begin(a_claim(), alive))

        assert [record.text for record in expect(asyncio.run(run()), Refused).records] == ['"done"']
