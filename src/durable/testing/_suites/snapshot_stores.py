"""What every store of snapshots must do: a suite to inherit in your tests.

```python
class TestMyStore(SnapshotStoreSuite):
    @pytest.fixture
    def store(self) -> Iterator[MyStore]:
        with my_empty_store() as store:
            yield store
```
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any, Final

import durable
from durable.errors import ConcurrentExecution, InvalidArgument, LeaseLost, UnreadableRecord
from durable.snapshots import Snapshot
from durable.stores.listing import Listed
from durable.stores.protocol import LeasedStore, RunStore, SnapshotStore
from durable.testing._suites.raising import raises

_AWKWARD: Final = (
    "plain", "two words", " leading", "quo'te", 'double"quote', "semi;--", "per%cent", "under_score", "back\\slash",
    "emoji 🧾", "שלום", "new\nline", "{brace}", "%s", "%(id)s", "x" * 512,
)  # fmt: skip


def a_document(*, status: str = "running", **steps: Any) -> dict[str, Any]:
    """A small document, with these steps' values."""
    return {
        "formatVersion": 1,
        "workflowName": "checkout",
        "steps": {key: {"name": key, "ok": True, "value": value} for key, value in steps.items()},
        "execution": {"status": status, "lastUpdated": "2026-01-15T10:30:00+00:00"},
        "metadata": {"version": 1, "customer": "c-7"},
    }


def a_snapshot(*, status: str = "running", **steps: Any) -> Snapshot:
    """A small snapshot, with these steps' values."""
    return Snapshot.from_document(a_document(status=status, **steps))


def ids(lines: Sequence[Listed]) -> list[str]:
    """The ids of a page."""
    return [line.id for line in lines]


def loaded(store: SnapshotStore | RunStore, id: str) -> Snapshot:
    """The run that is stored, which must be there."""
    snapshot = store.load(id)
    assert snapshot is not None, f"nothing is stored of {id!r}"
    return snapshot


class SnapshotStoreSuite:
    """The five verbs. A fixture `store` gives an empty store; the tests need nothing else."""

    def test_what_was_never_saved_is_none(self, store: SnapshotStore) -> None:
        """`load` returns None, and raises nothing."""
        assert store.load("nothing") is None

    def test_what_is_saved_is_loaded(self, store: SnapshotStore) -> None:
        """All of it: values, failures, input, result, metadata, moments."""
        document = a_document(one={"a": [1, 2.5, None, True, "ü"]}, two=None)
        document["steps"]["three"] = {
            "name": "three",
            "ok": False,
            "error": {"type": "builtins:ValueError", "message": "no", "args": ["no"]},
            "seconds": 0.125,
            "attempt": 2,
            "at": "2026-01-15T10:30:00.000001Z",
            "epoch": 3,
        }
        began = {"epoch": 2, "owner": "app-1:7", "began": "2026-01-15T10:28:00+00:00"}
        document["execution"] |= {
            "startedAt": "2026-01-15T10:28:00+00:00",
            "epoch": 3,
            "owner": "app-2:7",
            "earlier": [began],
        }
        document |= {"input": {"order": 7}, "failure": {"error": {"type": "builtins:ValueError", "message": "no"}}}
        snapshot = Snapshot.from_document(document)
        store.save("run", snapshot)
        assert loaded(store, "run").document() == snapshot.document()

    def test_saving_again_replaces_all(self, store: SnapshotStore) -> None:
        """Nothing of the former snapshot is left."""
        store.save("run", a_snapshot(one=1, two=2))
        store.save("run", a_snapshot(three=3))
        assert set(loaded(store, "run").steps) == {"three"}

    def test_deleting_forgets(self, store: SnapshotStore) -> None:
        """It is neither loaded nor listed; what is beside it is."""
        store.save("run", a_snapshot())
        store.save("other", a_snapshot())
        store.delete("run")
        assert store.load("run") is None
        assert ids(store.list()) == ["other"]

    def test_deleting_nothing_is_quiet(self, store: SnapshotStore) -> None:
        """However often."""
        store.delete("nothing")
        store.delete("nothing")

    def test_the_list_begins_with_the_newest(self, store: SnapshotStore) -> None:
        """By the last save, whatever was saved first."""
        for name in ("a", "b", "c"):
            store.save(name, a_snapshot())
        store.save("a", a_snapshot())
        lines = store.list()
        assert ids(lines) == ["a", "c", "b"]
        moments = [line.updated_at for line in lines]
        assert moments == sorted(moments, reverse=True)
        assert all(moment.utcoffset() == timedelta(0) for moment in moments)

    def test_the_list_has_a_limit(self, store: SnapshotStore) -> None:
        """It keeps the newest."""
        for number in range(5):
            store.save(f"run-{number}", a_snapshot())
        assert ids(store.list(limit=2)) == ["run-4", "run-3"]

    def test_prefixes_are_letters_and_not_patterns(self, store: SnapshotStore) -> None:
        """`_` and `%` mean themselves."""
        for name in ("a_b", "axb", "a%b", "A_b", "a"):
            store.save(name, a_snapshot())
        assert ids(store.list(prefix="a_")) == ["a_b"]
        assert ids(store.list(prefix="a%")) == ["a%b"]
        assert set(ids(store.list(prefix="a"))) == {"a_b", "axb", "a%b", "a"}
        assert store.list(prefix="\\") == []

    def test_ids_are_any_text(self, store: SnapshotStore) -> None:
        """Up to 512 bytes of it; one never stands for another."""
        for number, name in enumerate(_AWKWARD):
            store.save(name, a_snapshot(number=number))
        for number, name in enumerate(_AWKWARD):
            assert loaded(store, name).steps["number"].json == str(number).encode()
        assert sorted(ids(store.list())) == sorted(_AWKWARD)

    def test_a_large_snapshot_comes_back(self, store: SnapshotStore) -> None:
        """A thousand steps of a kilobyte."""
        snapshot = a_snapshot(**{f"step-{number}": "x" * 1000 for number in range(1000)})
        store.save("large", snapshot)
        assert loaded(store, "large").document() == snapshot.document()

    def test_it_is_safe_for_threads(self, store: SnapshotStore) -> None:
        """Eight of them save, load and delete runs of their own."""

        def busy(number: int) -> None:
            for turn in range(10):
                store.save(f"run-{number}", a_snapshot(turn=turn))
                assert loaded(store, f"run-{number}").steps["turn"].json == str(turn).encode()
            store.delete(f"run-{number}")

        with ThreadPoolExecutor(8) as threads:
            list(threads.map(busy, range(8)))
        assert store.list() == []

    def test_a_run_goes_on_from_what_it_saved(self, store: SnapshotStore) -> None:
        """`durable.run` on it: a failure is mended, no settled step runs again, and the result is kept."""
        calls: list[str] = []

        def one() -> dict[str, int]:
            calls.append("one")
            return {"b": 1, "a": 2}

        def two() -> int:
            calls.append("two")
            if calls.count("two") == 1:
                raise OSError(5, "not yet")
            return 2

        def workflow(step: durable.Step, _: None) -> list[Any]:
            return [step("one", one), step("two", two)]

        with raises(OSError):
            durable.run(None, workflow, id="run", store=store)
        assert durable.run(None, workflow, id="run", store=store) == [{"b": 1, "a": 2}, 2]
        assert durable.run(None, workflow, id="run", store=store) == [{"b": 1, "a": 2}, 2]
        assert calls == ["one", "two", "two"]
        assert durable.result(store, "run") == [{"b": 1, "a": 2}, 2]

    def test_closing_twice_is_quiet(self, store: SnapshotStore) -> None:
        """The second close does nothing."""
        store.close()
        store.close()


class LeasedStoreSuite(SnapshotStoreSuite):
    """What a store can do besides that knows its executions. The same fixture."""

    def test_a_run_that_is_being_executed_is_left_alone(self, store: LeasedStore) -> None:
        """It is neither saved over nor deleted nor purged; the run goes on and ends well."""
        refused: list[type[Exception]] = []

        def meddle() -> None:
            attempts: tuple[Callable[[], None], ...] = (
                lambda: store.save("run", a_snapshot()),
                lambda: store.delete("run"),
            )
            for attempt in attempts:
                with raises(ConcurrentExecution) as told:
                    attempt()
                assert "force=True" in str(told.error)
                refused.append(type(told.error))
            assert store.purge(older_than=0, status=None) == 0
            assert store.status("run") == "running"

        def workflow(step: durable.Step, _: None) -> str:
            step("meddle", meddle)
            return "done"

        assert durable.run(None, workflow, id="run", store=store) == "done"
        assert refused == [ConcurrentExecution] * 2
        assert store.status("run") == "completed"

    def test_force_ends_the_execution(self, store: LeasedStore) -> None:
        """The execution can write nothing more, and ends with `LeaseLost` at its next step."""
        verbs: tuple[Callable[[], None], ...] = (
            lambda: store.delete("run", force=True),
            lambda: store.save("run", a_snapshot(), force=True),
        )

        def workflow(step: durable.Step, deps: Any) -> None:
            deps.take_away()
            step("after", lambda: None)

        for verb in verbs:
            with raises(LeaseLost):
                durable.run({"take_away": verb}, workflow, id="run", store=store)
            store.delete("run")

    def test_saving_over_a_run_takes_its_journal_away(self, store: LeasedStore) -> None:
        """What is loaded then is what was saved, and a run goes on from that."""

        def checkout(step: durable.Step, _: None) -> list[Any]:
            return [step("one", lambda: 1), step("two", lambda: 2)]

        durable.run(None, checkout, id="run", store=store)
        store.save("run", a_snapshot(one="saved"))
        assert loaded(store, "run").document() == a_document(one="saved")
        assert store.status("run") == "interrupted"
        assert durable.run(None, checkout, id="run", store=store) == ["saved", 2]

    def test_a_deleted_run_begins_anew(self, store: LeasedStore) -> None:
        """Nothing of it comes back."""
        calls: list[int] = []

        def workflow(step: durable.Step, _: None) -> None:
            step("one", lambda: calls.append(1))

        durable.run(None, workflow, id="run", store=store)
        store.delete("run")
        assert (store.load("run"), store.status("run"), store.list()) == (None, None, [])
        durable.run(None, workflow, id="run", store=store)
        assert len(calls) == 2

    def test_pages_follow_each_other(self, store: LeasedStore) -> None:
        """Each line once, also where a page ends between two of one moment."""
        for number in range(7):
            store.save(f"run-{number}", a_snapshot())
        seen, page = list[Listed](), store.list(limit=3)
        while page:
            seen += page
            page = store.list(limit=3, after=page[-1])
        assert ids(seen) == [f"run-{number}" for number in reversed(range(7))]

    def test_runs_are_listed_by_where_they_stand(self, store: LeasedStore) -> None:
        """Running under a lease, interrupted without one, completed, failed."""

        def running(_: durable.Step, __: None) -> None:
            assert ids(store.list(status="running")) == ["running"]
            assert ids(store.list(status="interrupted")) == ["interrupted"]
            assert store.stats().running == 1
            raise ValueError("failed")

        store.save("interrupted", a_snapshot())
        store.save("completed", a_snapshot(status="completed"))
        with raises(ValueError):
            durable.run(None, running, id="running", store=store)
        assert ids(store.list(status="failed")) == ["running"]
        assert ids(store.list(status="completed")) == ["completed"]
        assert ids(store.list(status="running")) == []
        assert durable.status(store, "interrupted") == "interrupted"
        assert ids(durable.list_pending(store)) == ["interrupted"]
        stats = store.stats()
        assert (stats.running, stats.interrupted, stats.completed, stats.failed) == (0, 1, 1, 1)
        assert stats.runs == 3

    def test_the_old_are_purged(self, store: LeasedStore) -> None:
        """By age and status, with progress; what is younger, or stands elsewhere, stays."""
        for number in range(250):
            store.save(f"done-{number}", a_snapshot(status="completed"))
        store.save("failed", a_snapshot(status="failed"))
        store.save("interrupted", a_snapshot())
        told: list[int] = []
        assert store.purge(older_than=3600, progress=told.append) == 0
        assert store.purge(older_than=0, progress=told.append) == 250
        assert told[-1] == 250
        assert set(ids(store.list())) == {"failed", "interrupted"}
        assert store.purge(older_than=0, status="failed") == 1
        assert store.purge(older_than=0, status=None) == 1
        assert store.list() == []

    def test_questions_are_checked(self, store: LeasedStore) -> None:
        """Each mistake is named before anything is asked or done."""
        wrong: dict[str, Any] = {"limit": 0, "status": "done", "prefix": None, "after": "x"}
        for name, value in wrong.items():
            with raises(InvalidArgument) as told:
                store.list(**{name: value})
            assert name in str(told.error)
        impossible: tuple[dict[str, Any], ...] = (
            {"older_than": -1},
            {"older_than": float("nan")},
            {"older_than": 0, "status": "running"},
        )
        for options in impossible:
            with raises(InvalidArgument):
                store.purge(**options)
        for name in ("", "a\0b", "x" * 513, "\ud800"):
            for verb in (store.load, store.delete, store.status):
                with raises(InvalidArgument):
                    verb(name)
            with raises(InvalidArgument):
                store.save(name, a_snapshot())

    def test_what_is_no_snapshot_is_not_saved(self, store: LeasedStore) -> None:
        """And what was there stays."""
        store.save("run", a_snapshot(one=1))
        unreadable: tuple[dict[str, Any], ...] = (
            {},
            a_document() | {"formatVersion": 2},
            a_document() | {"steps": [1]},
            a_document() | {"execution": {"status": "paused"}},
            a_document() | {"steps": {"x": {"value": 1}}},
        )
        for document in unreadable:
            with raises(UnreadableRecord):
                store.save("run", document)
        for nothing in (None, 7, "text", {"x": object()}):
            with raises(InvalidArgument):
                store.save("run", nothing)  # type: ignore[arg-type]
        assert loaded(store, "run").document() == a_document(one=1)
