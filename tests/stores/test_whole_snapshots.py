"""A store of five verbs, brought along by a user: durable.run goes on with what it loads."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import pytest

import durable
from durable._runtime import async_runs
from durable.stores import Listed, memory
from durable.testing import replay
from harness.shelves import AsyncShelf, Shelf
from harness.support import POISONS


def test_a_run_is_resumed_and_its_result_kept() -> None:
    shelf, called, broken = Shelf(), list[str](), [True]

    def workflow(step: durable.Step, _: None) -> list[int]:
        def first() -> int:
            called.append("one")
            return 1

        def second() -> int:
            called.append("two")
            if broken[0]:
                raise OSError("not yet")
            return 2

        return [step("one", first), step("two", second)]

    with pytest.raises(OSError, match="not yet"):
        durable.run(None, workflow, id="x", store=shelf)
    assert durable.status(shelf, "x") == "failed"
    broken[0] = False
    assert durable.run(None, workflow, id="x", store=shelf) == [1, 2]
    assert called == ["one", "two", "two"]
    assert durable.run(None, workflow, id="x", store=shelf) == [1, 2]
    assert durable.result(shelf, "x") == [1, 2]


def test_a_snapshot_of_a_queued_run_is_gone_on_with() -> None:
    """On a store that has no workers nothing else can be meant."""
    shelf = Shelf()

    @durable.workflow(name="one")
    def one(step: durable.Step, _: None) -> int:
        return step("one", lambda: 1)

    with memory() as store:
        durable.start(one, store=store, id="x")
        queued = store.load("x")
    assert queued is not None
    assert durable.Workflow("one", None).run(one, resume_state=queued) == 1
    assert replay(None, one, queued).check().next == ("one",)
    shelf.save("x", queued)
    assert durable.run(None, one, id="x", store=shelf) == 1


def test_concurrent_calls_are_told_apart_and_async_runs_work() -> None:
    shelf = Shelf()

    async def workflow(step: durable.AsyncStep, _: None) -> list[int]:
        async def square(n: int) -> int:
            return n * n

        return await asyncio.gather(*(step("square", square, n, key=f"s{n}") for n in range(20)))

    async def main() -> list[list[int]]:
        return await asyncio.gather(
            *(durable.run(None, workflow, id="x", store=shelf, on_conflict="wait") for _ in range(3))
        )

    assert asyncio.run(main()) == [[n * n for n in range(20)]] * 3


def test_the_low_level_flow() -> None:
    collector, shelf, called = durable.ResumeStateCollector(), Shelf(), list[str]()

    def first() -> int:
        called.append("one")
        return 1

    def checkout(step: durable.Step, _: None) -> list[int]:
        one = step("one", first)
        if len(called) < 2:
            called.append("broken")
            raise KeyboardInterrupt
        return [one, step("two", lambda: 2)]

    workflow = durable.Workflow("checkout", None, on_event=collector.handle_event)
    with contextlib.suppress(KeyboardInterrupt):
        workflow.run(checkout)
    shelf.save("c", collector.resume_state())
    assert workflow.run(checkout, resume_state=shelf.load("c")) == [1, 2]
    shelf.save("c", collector.resume_state())
    assert called == ["one", "broken"]
    assert workflow.run(checkout, resume_state=shelf.load("c")) == [1, 2]

    async def checkout_async(step: durable.AsyncStep, _: None) -> int:
        return await step("one", lambda: 5)

    assert asyncio.run(workflow.run(checkout_async, resume_state=shelf.load("c"))) == 1


async def squares(step: durable.AsyncStep, _: None) -> list[int]:
    async def square(n: int) -> int:
        return n * n

    return await asyncio.gather(*(step("square", square, n, key=f"s{n}") for n in range(20)))


def test_awaited_saves_of_one_run_follow_each_other() -> None:
    """Or an older snapshot could come to lie over a newer one."""
    shelf = AsyncShelf()
    assert asyncio.run(durable.run(None, squares, id="x", store=shelf)) == [n * n for n in range(20)]
    assert shelf.together == 1
    assert len(shelf.shelf.load("x").steps) == 20  # type: ignore[union-attr]


def test_runs_of_a_coroutine_store_wait_for_no_other_id() -> None:
    """A load that never comes back costs its own run only."""
    shelf, others = AsyncShelf(), asyncio.Event()

    class Stuck(AsyncShelf):
        async def load(self, id: str) -> durable.Snapshot | None:
            if id == "stuck":
                await others.wait()
            return await super().load(id)

    async def main() -> None:
        store = Stuck()
        stuck = asyncio.ensure_future(durable.run(None, squares, id="stuck", store=store))
        for number in range(3):
            await durable.run(None, squares, id=f"x{number}", store=store)
        others.set()
        await stuck

    asyncio.run(main())
    assert shelf.inside == 0


def test_a_cancelled_run_on_a_coroutine_store_can_go_on() -> None:
    """Cancelled inside a save: what was under way is saved, and the id is free again."""
    shelf, saving = AsyncShelf(), asyncio.Event()

    class Slow(AsyncShelf):
        async def save(self, id: str, snapshot: durable.Snapshot) -> None:
            if "one" in snapshot.steps:
                saving.set()
                await asyncio.sleep(0.01)
            await super().save(id, snapshot)

    async def counted() -> int:
        called.append(1)
        return len(called)

    async def two() -> int:
        return 2

    async def workflow(step: durable.AsyncStep, _: None) -> list[int]:
        return [await step("one", counted), await step("two", two)]

    async def main() -> list[int]:
        store = Slow()
        running = asyncio.ensure_future(durable.run(None, workflow, id="x", store=store))
        await saving.wait()
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        return await durable.run(None, workflow, id="x", store=store)

    called: list[int] = []
    assert asyncio.run(main()) == [1, 2]
    assert called == [1]
    assert shelf.inside == 0


def test_verbs_of_two_colours_are_refused() -> None:
    """Each by its name."""

    class Mixed(AsyncShelf):
        def load(self, id: str) -> durable.Snapshot | None:  # type: ignore[override]
            return self.shelf.load(id)

    with pytest.raises(durable.InvalidArgument, match="save, delete, list of Mixed are coroutines, and load"):
        asyncio.run(durable.run(None, squares, id="x", store=Mixed()))  # type: ignore[call-overload]


def test_a_verb_that_returns_an_awaitable_unannounced_is_refused() -> None:
    """It would be taken for what it returns, and never be awaited."""

    class Hidden(Shelf):
        def load(self, id: str) -> durable.Snapshot | None:
            async def loaded() -> None: ...

            return loaded()  # type: ignore[return-value]

    with pytest.raises(durable.errors.AsyncMismatch, match="Hidden returned an awaitable"):
        durable.run(None, lambda step, _: None, id="x", store=Hidden())


def test_the_aio_face_of_a_store_is_not_the_store() -> None:
    """A mistake that is easy to make."""
    with durable.stores.memory() as store, pytest.raises(durable.InvalidArgument, match="pass the store itself"):
        face: Any = store.aio
        durable.run(None, lambda step, _: None, id="x", store=face)


def test_what_only_begins_like_a_store_is_refused() -> None:
    """An engine of SQLAlchemy has a `begin` as well."""

    class Engine:
        def begin(self) -> None: ...

    with pytest.raises(durable.InvalidArgument, match="verbs save, load, delete, list, close, not Engine"):
        durable.run(None, lambda step, _: None, id="x", store=Engine())  # type: ignore[call-overload]


def test_another_version_is_migrated_on_a_coroutine_store() -> None:
    """By an async function as well; only over what it was shown."""
    shelf, asked = AsyncShelf(), list[int]()

    async def migrate(snapshot: durable.Snapshot, version: int) -> durable.Snapshot:
        asked.append(version)
        if len(asked) == 1:  # somebody saves it meanwhile
            await shelf.save(
                "x", durable.Snapshot.from_document(snapshot.document() | {"metadata": {"version": 1, "n": 2}})
            )
        document = snapshot.document() | {"execution": {"status": "running"}}
        del document["result"]
        return durable.Snapshot.from_document(document)

    async def main() -> list[int]:
        await durable.run(None, squares, id="x", store=shelf)
        with pytest.raises(durable.VersionMismatch):
            await durable.run(None, squares, id="x", store=shelf, version=2)
        return await durable.run(None, squares, id="x", store=shelf, version=2, on_version_mismatch=migrate)

    assert asyncio.run(main()) == [n * n for n in range(20)]
    assert asked == [1, 1]
    assert shelf.shelf.load("x").metadata == {"version": 2, "n": 2}  # type: ignore[union-attr]


@pytest.mark.parametrize("verb", ["load", "save"])
def test_a_run_that_is_cancelled_while_it_begins_leaves_its_id_free(verb: str) -> None:
    """In the load, or in the save of the claim."""
    waiting, go_on = asyncio.Event(), asyncio.Event()

    class Slow(AsyncShelf):
        async def load(self, id: str) -> durable.Snapshot | None:
            await self._slowly("load")
            return await super().load(id)

        async def save(self, id: str, snapshot: durable.Snapshot) -> None:
            await self._slowly("save")
            await super().save(id, snapshot)

        async def _slowly(self, what: str) -> None:
            if what == verb and not waiting.is_set():
                waiting.set()
                await go_on.wait()

    async def main() -> list[int]:
        store = Slow()
        running = asyncio.ensure_future(durable.run(None, squares, id="x", store=store))
        await waiting.wait()
        running.cancel()
        go_on.set()
        with pytest.raises(asyncio.CancelledError):
            await running
        return await durable.run(None, squares, id="x", store=store)

    assert asyncio.run(main()) == [n * n for n in range(20)]


def test_a_run_that_is_cancelled_while_it_ends_has_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    """The save of its result goes on, however long the run waits for it."""
    monkeypatch.setattr(async_runs, "LEAVE_TIMEOUT", 0.1)
    ending, go_on, saved = asyncio.Event(), asyncio.Event(), asyncio.Event()

    class Slow(AsyncShelf):
        async def save(self, id: str, snapshot: durable.Snapshot) -> None:
            if snapshot.execution.status == "completed":
                ending.set()
                await go_on.wait()
            await super().save(id, snapshot)
            if snapshot.execution.status == "completed":
                saved.set()

    async def main() -> None:
        store = Slow()
        running = asyncio.ensure_future(durable.run(None, squares, id="x", store=store))
        await ending.wait()
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        go_on.set()
        await asyncio.wait_for(saved.wait(), 20)
        assert await durable.aio.status(store, "x") == "completed"

    asyncio.run(main())


@pytest.mark.parametrize("colour", ["sync", "async"])
def test_a_claim_that_could_not_be_saved_leaves_its_id_free(colour: str) -> None:
    """The next call goes on at once."""

    class Once(Shelf):
        def save(self, id: str, snapshot: durable.Snapshot) -> None:
            super().save(id, snapshot)
            if self.saves == 1:
                raise OSError("the disk is full")

    def workflow(step: durable.Step, _: None) -> list[int]:
        return [step("one", lambda: 1)]

    shelf, awaited = Once(), AsyncShelf()
    awaited.shelf = shelf

    def run() -> list[int]:
        if colour == "sync":
            return durable.run(None, workflow, id="x", store=shelf)
        return asyncio.run(durable.run(None, squares, id="x", store=awaited))

    with pytest.raises(durable.OutcomeUnknown, match="the claim"):
        run()
    assert run()


@pytest.mark.parametrize("id", ["x", "another"])
def test_whatever_interrupts_a_claim_does_not_wait_for_itself(id: str) -> None:
    """FAULTS 80: a signal handler runs a workflow on the thread that is just beginning one, of this id or of another."""

    class Interrupted(Shelf):
        def save(self, name: str, snapshot: durable.Snapshot) -> None:
            super().save(name, snapshot)
            if self.saves == 1:
                try:
                    told.append(durable.run(None, workflow, id=id, store=self))
                except durable.ConcurrentExecution as refusal:
                    told.append(str(refusal))

    def workflow(step: durable.Step, _: None) -> int:
        return step("one", lambda: 1)

    told: list[Any] = []
    assert durable.run(None, workflow, id="x", store=Interrupted()) == 1
    if id == "x":
        assert "this very thread" in told[0]
    else:
        assert told == [1]


@pytest.mark.parametrize("colour", ["blocking", "awaited"])
def test_a_record_that_cannot_be_saved_spoils_no_other(colour: str) -> None:
    """What waits behind it is saved without it."""

    class Picky(Shelf):
        def save(self, id: str, snapshot: durable.Snapshot) -> None:
            if "bad" in snapshot.steps:
                raise OSError("too large")
            super().save(id, snapshot)

    shelf, awaited = Picky(), AsyncShelf()
    awaited.shelf = shelf

    async def workflow(step: durable.AsyncStep, _: None) -> None:
        async def body() -> int:
            return 1

        await asyncio.gather(step("bad", body), step("good", body))

    store: Any = awaited if colour == "awaited" else shelf
    with pytest.raises(durable.OutcomeUnknown, match="'bad'"):
        asyncio.run(durable.run(None, workflow, id="x", store=store))
    loaded = shelf.load("x")
    assert loaded is not None
    assert set(loaded.steps) == {"good"}


def test_a_store_with_slots_can_be_run_on() -> None:
    """It cannot be watched by a weak reference."""

    class Slotted(Shelf):
        __slots__ = ("saves", "texts")

    class Bare:
        __slots__ = ("shelf",)

        def __init__(self) -> None:
            self.shelf = Shelf()

        def save(self, id: str, snapshot: durable.Snapshot) -> None:
            self.shelf.save(id, snapshot)

        def load(self, id: str) -> durable.Snapshot | None:
            return self.shelf.load(id)

        def delete(self, id: str) -> None:
            self.shelf.delete(id)

        def list(self, *, prefix: str = "", limit: int = 100) -> Sequence[Listed]:
            return self.shelf.list(prefix=prefix, limit=limit)

        def close(self) -> None: ...

    for store in (Slotted(), Bare()):
        assert durable.run(None, lambda step, _: step("one", lambda: 1), id="x", store=store) == 1


GOOD = durable.Snapshot(workflow_name="checkout", metadata={"version": 1}).to_json()
NOT_EVEN_JSON = (b"", GOOD[: len(GOOD) // 2], GOOD[:-1], b"\xff\xfe" + GOOD, b"\x80\x04N.", GOOD + b"}")


@pytest.mark.parametrize("poison", [*(text.encode() for text in POISONS), *NOT_EVEN_JSON])
def test_a_poisoned_document_is_never_a_fresh_start(poison: bytes) -> None:
    """FAULTS 97: in both colours. Its run is refused with the reason, each time; it stays as it is, and others go on."""
    shelf, called = Shelf(), list[str]()
    shelf.texts["bad"] = datetime.now(UTC), poison

    def counted() -> int:
        called.append("one")
        return len(called)

    async def counted_async() -> int:
        return counted()

    def checkout(step: durable.Step, _: None) -> int:
        return step("one", counted)

    async def checkout_async(step: durable.AsyncStep, _: None) -> int:
        return await step("one", counted_async)

    checkout_async.__name__ = "checkout"
    awaited = AsyncShelf()
    awaited.shelf = shelf
    for _ in range(2):
        with pytest.raises(durable.errors.UnreadableRecord, match="'bad'"):
            durable.run(None, checkout, id="bad", store=shelf)
        with pytest.raises(durable.errors.UnreadableRecord, match="'bad'"):
            asyncio.run(durable.run(None, checkout_async, id="bad", store=awaited))
    assert called == []
    assert shelf.texts["bad"][1] == poison
    assert durable.run(None, checkout, id="good", store=shelf) == 1
    assert "bad" in {line.id for line in shelf.list()}
    durable.delete_state(shelf, "bad")
    assert durable.run(None, checkout, id="bad", store=shelf) == 2


def test_what_cannot_be_read_is_pending_and_does_not_hide_the_others() -> None:
    """FAULTS 97: whoever looks for work finds it, and is told what is wrong with it when he takes it up."""
    shelf = Shelf()
    for name, text in (
        ("cut", GOOD[:-1]),
        ("newer", GOOD.replace(b'"formatVersion":1', b'"formatVersion":2')),
        ("good", GOOD),
    ):
        shelf.texts[name] = datetime.now(UTC), text
    awaited = AsyncShelf()
    awaited.shelf = shelf
    pending = {line.id for line in durable.list_pending(shelf)}
    assert pending == {"cut", "newer", "good"}
    assert {line.id for line in asyncio.run(durable.aio.list_pending(awaited))} == pending
    assert {line.id for line in asyncio.run(durable.aio.list_pending(shelf))} == pending
    for ask in (durable.status, durable.result):
        with pytest.raises(durable.errors.UnreadableRecord, match=r"'newer'.*format is 2"):
            ask(shelf, "newer")
