"""Pages and documents come by index, whatever is stored beside them."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

from harness.support import Database

SNAPSHOTS = 20_000  # a fifth of what benchmarks/many_snapshots.py does, and measures


@pytest.fixture(scope="module")
def benchmark() -> ModuleType:
    path = Path(__file__).resolve().parents[2] / "benchmarks" / "many_snapshots.py"
    spec = importlib.util.spec_from_file_location("many_snapshots", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_no_question_reads_a_whole_table(database: Database, benchmark: ModuleType) -> None:
    """From EXPLAIN of the very statements that the store sends, over 200,000 records."""
    store = database.store()
    benchmark.fill(store, database.url, database.schema, snapshots=SNAPSHOTS)
    for name, ask in benchmark.questions(store).items():
        plan = benchmark.plan(database.url, ask)
        assert "Seq Scan" not in plan, f"{name}:\n{plan}"
        assert "Index" in plan, f"{name}:\n{plan}"
    # The detector detects: a count by status reads everything.
    assert "Seq Scan" in benchmark.plan(database.url, store.stats)


def test_a_page_does_not_sort_what_it_does_not_show(database: Database, benchmark: ModuleType) -> None:
    """The index has the page's order, so that the first hundred are the first hundred of it."""
    store = database.store()
    benchmark.fill(store, database.url, database.schema, snapshots=SNAPSHOTS, records=1)
    questions = benchmark.questions(store)
    for name in ("a page", "a page from the middle", "failed", "completed", "a common prefix"):
        plan = benchmark.plan(database.url, questions[name])
        assert "Sort" not in plan, f"{name}:\n{plan}"
