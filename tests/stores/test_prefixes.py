"""FAULTS 176: stores that share tables keep to their prefixes, also where one prefix begins like another."""

from __future__ import annotations

from typing import Any, get_args

import pytest

import durable
from durable.errors import InvalidArgument
from durable.stores import PostgresStore, memory, postgres
from durable.stores.listing import RunStatus
from durable.stores.requests import PutSchedules
from harness.support import Database

NEIGHBOURS = [("t1:", "t10:"), ("t/", "t2/"), ("a:b:", "a:bc:"), ("A_", "a_"), ("ü:", "ü1:"), ("x-", "x.")]


def work(step: durable.Step, _: None) -> str:
    return step("secret", lambda: "mine")


def interrupted(step: durable.Step, _: None) -> None:
    step("secret", lambda: "mine")
    raise KeyboardInterrupt


def looks(store: PostgresStore) -> list[Any]:
    """All that can be asked of a store without an id."""
    pages = [[line.id for line in store.list(status=status)] for status in (None, *get_args(RunStatus))]
    stats = store.stats()
    return [*pages, stats._replace(bytes=0), [line.id for line in durable.list_pending(store)]]


@pytest.mark.parametrize("prefix", ["tenant1", "t", "1", "a:b", "a/b", "ü", "a:\u00b7", "a: "])
def test_a_prefix_that_other_prefixes_begin_with_is_refused(prefix: str) -> None:
    """It names the separator to write, and the neighbour that would have been seen."""
    with pytest.raises(InvalidArgument, match="separator") as told:
        postgres("postgresql://localhost/mydb", prefix=prefix)
    assert repr(f"{prefix}:") in str(told.value)
    assert repr(f"{prefix}0") in str(told.value)


@pytest.mark.parametrize(("one", "two"), NEIGHBOURS)
def test_no_verb_of_a_prefix_reaches_another(database: Database, one: str, two: str) -> None:
    """Whatever the store of one does, that of the other stands as it stood."""
    first, second = database.store(prefix=one), database.store(prefix=two)
    assert looks(first) == looks(second)
    nothing = looks(first)
    for store in (second, second, first):
        durable.run(None, work, id="done", store=store)
    with pytest.raises(KeyboardInterrupt):
        durable.run(None, interrupted, id="open", store=second)
    durable.signal(second, "open", "approved", "for the second")
    before = looks(second)
    kept = [second.load(name) for name in ("done", "open")]
    beyond = two[len(one) :] if two.startswith(one) else f"{two}"
    for name in ("open", f"{beyond}open", f"{two}open"):
        assert first.load(name) is None
        assert first.status(name) is None
        assert not durable.cancel(first, name)
        first.delete(name, force=True)
        durable.signal(first, name, "approved", "for the first", create_later=True)
    assert [line.id for line in first.list()] == ["done"]
    assert [line.id for line in first.list(prefix=beyond)] == []
    assert first.stats().runs == 1
    assert first.stats().records == 2
    assert first.purge(older_than=0, status=None) == 1
    assert first.purge(older_than=0) == 0
    assert looks(first) == nothing
    assert looks(second) == before
    assert [second.load(name) for name in ("done", "open")] == kept

    def hearing(step: durable.Step, _: None) -> Any:
        return step.wait_for("approved", timeout=0.01)

    second.delete("done")
    durable.signal(second, "done", "approved", "for the second", create_later=True)
    assert durable.run(None, hearing, id="done", store=second) == "for the second"


@pytest.mark.parametrize("lock", [True, False, "leases"])
def test_the_lease_of_one_is_not_the_others(database: Database, lock: Any) -> None:
    """Equal ids under two prefixes are executed at the same time."""
    first, second = database.store(prefix="t1:", lock=lock), database.store(prefix="t10:", lock=lock)

    def outer(step: durable.Step, _: None) -> str:
        inner = durable.run(None, work, id="same", store=first)
        return inner + step("outer", lambda: " and theirs")

    assert durable.run(None, outer, id="same", store=second) == "mine and theirs"


def test_what_lies_below_a_prefix_is_one_tree(database: Database) -> None:
    """`a:b:` is below `a:`, and everything is below none: as SECURITY.md says."""
    root, upper, lower = (database.store(prefix=prefix) for prefix in ("", "a:", "a:b:"))
    durable.run(None, work, id="x", store=lower)
    assert [[line.id for line in store.list()] for store in (root, upper, lower)] == [["a:b:x"], ["b:x"], ["x"]]
    assert [store.stats().runs for store in (root, upper, lower)] == [1, 1, 1]
    assert durable.result(upper, "b:x") == "mine"
    assert upper.purge(older_than=0) == 1
    assert lower.list() == []


@pytest.mark.parametrize(("one", "other"), NEIGHBOURS)
def test_schedules_of_one_name_are_each_store_s_own(database: Database, one: str, other: str) -> None:
    """Paused, deleted and listed in one, the other's stays what it is."""
    stores = [database.store(prefix=prefix) for prefix in (one, other)]
    scheduled = durable.Schedule("s", every=60, workflow="work").encode(stores[0].codec)
    for store in stores:
        store.perform(PutSchedules([scheduled]))
    durable.schedule(stores[0], "s").pause()
    assert [[(line.name, line.paused) for line in store.schedules()] for store in stores] == [
        [("s", True)],
        [("s", False)],
    ]
    durable.schedule(stores[0], "s").delete()
    assert [[line.name for line in store.schedules()] for store in stores] == [[], ["s"]]


def test_a_search_may_end_anywhere(database: Database) -> None:
    """`list(prefix=)` is the user's search, and nobody's border: in PostgreSQL and in memory alike."""
    with memory() as kept:
        for store in (database.store(prefix="t:"), kept):
            for name in ("tenant1", "tenant10", "other", "t%"):
                durable.run(None, work, id=name, store=store)
            assert sorted(line.id for line in store.list(prefix="tenant1")) == ["tenant1", "tenant10"]
            assert [line.id for line in store.list(prefix="t%")] == ["t%"]
