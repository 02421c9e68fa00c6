"""The pytest plugin, as it is installed: in tests of its own, run by a pytest of their own."""

from __future__ import annotations

import sys
from pathlib import Path
from textwrap import dedent
from typing import Final

import pytest

from harness.programs import run_program

ROOT: Final = Path(__file__).resolve().parents[2]


def said_of(directory: Path, text: str, *options: str) -> str:
    """What pytest says of a file of tests."""
    (directory / "test_it.py").write_text(dedent(text))
    command = [
        sys.executable,
        "-W",
        "error",
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "-p",
        "no:xdist",
        *options,
    ]
    return run_program(command, cwd=directory).stdout


def test_pytest_starts_without_durable_and_durable_without_pytest() -> None:
    """Whoever has it installed pays for it when he uses it."""
    program = """if True:
        import sys, pytest_durable
        assert not [name for name in sys.modules if name.split(".")[0] in ("durable", "psycopg", "tenacity")]
        for name in [name for name in sys.modules if "pytest" in name]:
            del sys.modules[name]
        import durable, durable.testing
        assert not [name for name in sys.modules if "pytest" in name]
    """
    run_program([sys.executable, "-W", "error", "-c", program], check=True)


_TESTS: Final = """
    import pytest
    import durable
    from durable.stores import MemoryStore, PostgresStore

    def order(step, deps):
        step.sleep("cool down", 3600)
        return step("charge", deps["charge"])

    def test_in_memory(rehearsal, durable_store):
        assert isinstance(durable_store, MemoryStore)
        with rehearsal.crash_at("after body", "charge"):
            durable.run({"charge": lambda: 42}, order, id="order-1", store=rehearsal)
        assert durable.run({"charge": lambda: 42}, order, id="order-1", store=rehearsal) == 42
        assert durable.result(durable_store, "order-1") == 42

    @pytest.mark.durable(store="embedded")
    @pytest.mark.parametrize("time", [1, 2])
    def test_in_a_schema_of_its_own(rehearsal, durable_store, time):
        assert isinstance(durable_store, PostgresStore)
        assert durable.run({"charge": lambda: time}, order, id="order-1", store=rehearsal) == time

    @pytest.mark.durable(always_replay=True)
    def test_replays(rehearsal):
        times = []
        def forgetful(step, deps):
            times.append(None)
            step("charge", int, len(times))
            step("ship", lambda: None)
        with pytest.raises(durable.WorkflowDrift):
            durable.run({}, forgetful, id="order-1", store=rehearsal)
"""


def test_the_fixtures_work(tmp_path: Path) -> None:
    """In memory, in PostgreSQL, and with everything replayed; each test with an empty store."""
    (tmp_path / "pytest.ini").write_text(
        f"[pytest]\ndurable_path = {ROOT / '.durable-tests'}\naddopts = --strict-markers\n"
    )
    assert "4 passed" in said_of(tmp_path, _TESTS)


def test_a_script_that_was_never_played_fails_its_test(tmp_path: Path) -> None:
    """With the steps that were called beside it."""
    said = said_of(
        tmp_path,
        """
        import durable

        def test_it(rehearsal):
            rehearsal.script("chrage", 42)
            durable.run({}, lambda step, deps: step("charge", lambda: 1), id="order-1", store=rehearsal)
        """,
    )
    assert "scripted, and never called: chrage (called were: charge)" in said


@pytest.mark.long(5)
def test_options_reach_every_test_and_are_checked(tmp_path: Path) -> None:
    """On the command line, and in a marker."""
    text = """
        import pytest

        def test_it(rehearsal):
            assert rehearsal.always_replay

        @pytest.mark.durable(stoer="memory")
        def test_that(durable_store): ...
    """
    said = said_of(tmp_path, text, "--durable-always-replay")
    assert "1 passed" in said
    assert "takes store= and always_replay=" in said
    said = said_of(tmp_path, text, "--durable-store=memroy", "-k", "test_it")
    assert "is memory, embedded or the URL of a PostgreSQL, not 'memroy'" in said
