"""`python -m durable worker`, in real processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import pytest

import durable
from durable._commands.loading import load_worker
from durable._commands.processes import MAX_PAUSE, _Place
from durable.errors import InvalidArgument
from durable.stores import PostgresStore
from harness.ownership_children import gone
from harness.programs import run_program
from harness.support import Database

WITHIN: Final = 120.0  # seconds, for what happens at once: on a busy machine each interpreter takes ten to begin

FLOWS: Final = """
    import os, pathlib, time
    import durable
    from durable.stores import postgres

    store = postgres(os.environ["TEST_URL"], schema=os.environ["TEST_SCHEMA"])

    @durable.workflow(name="held")
    def held(step, deps, directory):
        def hold():
            place = pathlib.Path(directory)
            (place / str(os.getpid())).touch()
            while not (place / "go").exists():
                time.sleep(0.01)
            return os.getpid()
        return [step("hold", hold), step("last", os.getpid)]

    worker = durable.Worker(store, None, [held], concurrency=1)
"""


def wait_until(condition: Callable[[], object], what: str) -> None:
    """Look until something is so."""
    deadline = time.monotonic() + WITHIN
    while not condition():
        assert time.monotonic() < deadline, f"waited in vain for {what}"
        time.sleep(0.01)


class Command:
    """The command at work, and who executes the runs that it has taken."""

    def __init__(self, directory: Path, database: Database) -> None:
        (directory / "flows.py").write_text(textwrap.dedent(FLOWS))
        self.directory = directory
        self._runs = directory / "runs"
        self._runs.mkdir()
        self._environment = {**os.environ, "TEST_URL": database.url, "TEST_SCHEMA": database.schema}
        self.process: subprocess.Popen[str] | None = None

    def begin(self, *options: str) -> subprocess.Popen[str]:
        """Start it."""
        command = [sys.executable, "-m", "durable", "worker", "flows:worker", *options]
        self.process = subprocess.Popen(
            command, cwd=self.directory, env=self._environment, stderr=subprocess.PIPE, text=True
        )
        return self.process

    def start_runs(self, store: PostgresStore, count: int) -> list[durable.RunHandle[Any]]:
        """Runs that stand in their first step until `let_go`."""
        return [durable.start("held", str(self._runs), store=store, id=f"held-{n}") for n in range(count)]

    def holders(self) -> set[int]:
        """The processes that have begun a body."""
        return {int(file.name) for file in self._runs.iterdir() if file.name.isdecimal()}

    def let_go(self) -> None:
        """Let all bodies return."""
        (self._runs / "go").touch()

    def wait_for_holders(self, count: int) -> set[int]:
        """Until so many have."""
        wait_until(lambda: len(self.holders()) >= count, f"{count} processes in a body")
        return self.holders()

    def end(self) -> str:
        """Whatever it does; what it has said."""
        assert self.process is not None
        self.process.kill()
        return self.process.communicate(timeout=WITHIN)[1]


@pytest.fixture
def store(database: Database) -> PostgresStore:
    made = database.store()
    made.list()  # its tables are there
    return made


@pytest.fixture
def command(tmp_path: Path, database: Database) -> Iterator[Command]:
    made = Command(tmp_path, database)
    yield made
    made.let_go()
    made.end()


@pytest.mark.long(4)
def test_sigterm_drains_and_the_status_is_0(command: Command, store: PostgresStore) -> None:
    (run,) = command.start_runs(store, 1)
    process = command.begin("--grace", "60")
    (holder,) = command.wait_for_holders(1)
    assert holder == process.pid
    process.send_signal(signal.SIGTERM)
    command.let_go()
    assert process.wait(WITHIN) == 0
    snapshot = store.load(run.id)
    assert snapshot is not None
    assert set(snapshot.steps) <= {"hold", "last"}
    assert "has left" in command.end()


@pytest.mark.long(4)
def test_a_second_signal_ends_it_at_once(command: Command, store: PostgresStore, database: Database) -> None:
    """What it holds is given back, and due at once."""
    (run,) = command.start_runs(store, 1)
    process = command.begin("--grace", "600")
    command.wait_for_holders(1)

    def is_given_back() -> bool:
        process.send_signal(signal.SIGTERM)
        time.sleep(0.1)  # a second one counts where it is another request
        return database.execute("SELECT 1 FROM durable_locks WHERE owner_token IS NOT NULL") == []

    wait_until(is_given_back, "the end of the lease")
    assert process.wait(WITHIN) in (0, -signal.SIGTERM)  # the last of them may have met an interpreter that ends
    assert run.status() != "completed"
    command.let_go()
    with loaded_here(command) as worker:
        worker.run_until_idle()
    assert run.result(WITHIN) == [os.getpid()] * 2


@contextmanager
def loaded_here(command: Command) -> Iterator[durable.Worker]:
    """The same worker, in this process. Its store is closed afterwards."""
    os.environ |= {name: command._environment[name] for name in ("TEST_URL", "TEST_SCHEMA")}
    sys.path.insert(0, str(command.directory))
    try:
        sys.modules.pop("flows", None)
        yield load_worker("flows:worker")
    finally:
        sys.path.pop(0)
        sys.modules.pop("flows").store.close()


@pytest.mark.long(8)
def test_of_several_processes_one_that_is_killed_is_replaced_and_its_run_goes_on(
    command: Command, store: PostgresStore
) -> None:
    runs = command.start_runs(store, 2)
    process = command.begin("--processes", "2")
    first = command.wait_for_holders(2)
    assert process.pid not in first
    killed = min(first)
    os.kill(killed, signal.SIGKILL)
    (replacement,) = command.wait_for_holders(3) - first
    command.let_go()
    survivor = max(first)
    bodies = [run.result(WITHIN)[0] for run in runs]
    assert sorted(bodies) == sorted([survivor, replacement])
    process.send_signal(signal.SIGINT)
    assert process.wait(WITHIN) == 0
    assert gone(survivor)
    assert gone(replacement)
    assert "a process was ended by SIGKILL; another one begins in 0.5 s" in command.end()


@pytest.mark.long(6)
def test_when_the_parent_is_killed_its_processes_leave(command: Command, store: PostgresStore) -> None:
    command.start_runs(store, 2)
    process = command.begin("--processes", "2")
    holders = command.wait_for_holders(2)
    process.kill()
    process.wait(WITHIN)
    command.let_go()
    for holder in holders:
        wait_until(lambda holder=holder: gone(holder), "the end of its processes")  # type: ignore[misc]


def test_pauses_grow_while_deaths_come_in_a_row() -> None:
    place = _Place()
    place._began_at = time.monotonic()
    assert [place.put_off() for _ in range(8)] == [0.5, 1, 2, 4, 8, 16, MAX_PAUSE, MAX_PAUSE]
    place._began_at -= 1000
    assert place.put_off() == 0.5


# -- mistakes ---------------------------------------------------------------------------------------------------------------

MISTAKES: Final = """
    import durable
    from durable.stores import memory

    @durable.workflow(name="a")
    def a(step, deps): ...

    store = memory()
    worker = durable.Worker(store, None, [a])
    def make(): return durable.Worker(store, None, [a])
    def nothing(): pass
    def wants(argument): pass
    def fails(): raise OSError("no\\nnet")
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a module with them, in the current directory."""
    name = f"mistakes_{tmp_path.name}"
    (tmp_path / f"{name}.py").write_text(textwrap.dedent(MISTAKES))
    (tmp_path / f"{name}_broken.py").write_text("import nowhere_to_be_found")
    (tmp_path / f"{name}_zero.py").write_text("\n1 / 0")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    return name


def test_the_module_lies_in_the_current_directory(module: str) -> None:
    assert isinstance(load_worker(f"{module}:worker"), durable.Worker)
    assert isinstance(load_worker(f"{module}:make"), durable.Worker)


@pytest.mark.parametrize(
    ("target", "says"),
    [
        (lambda m: m, "names no worker: say MODULE:WORKER"),
        (lambda m: f"{m}:", "names no worker: say MODULE:WORKER"),
        (lambda m: f"nowhere.{m}:worker", "no module 'nowhere' in /.*: run the command in the directory"),
        (lambda m: f"{m}:workr", "has no 'workr': it has worker$"),
        (lambda m: f"{m}:store", r"is no worker \(of type MemoryStore\)"),
        (lambda m: f"{m}:wants", r"is no worker \(a function of \(argument\)\)"),
        (lambda m: f"{m}:nothing", r"returned no worker \(None\)"),
        (lambda m: f"{m}:fails", r"failed: OSError: no net \(.*, line 13\)"),
        (lambda m: f"{m}_zero:worker", r"failed: ZeroDivisionError: division by zero \(.*, line 2\)"),
        (lambda m: f"{m}_broken:worker", r"failed: ModuleNotFoundError: .*nowhere_to_be_found.* `python -c 'import"),
    ],
)
def test_a_mistake_is_named_with_its_way_out(module: str, target: Callable[[str], str], says: str) -> None:
    with pytest.raises(InvalidArgument, match=says) as caught:
        load_worker(target(module))
    assert "\n" not in str(caught.value)


@pytest.mark.long(4)
@pytest.mark.parametrize("options", [[], ["--processes", "3"]], ids=["one", "three"])
def test_a_mistake_is_one_line_and_status_2(tmp_path: Path, options: list[str]) -> None:
    """Also of several processes, which would all say it."""
    told = run_program([sys.executable, "-m", "durable", "worker", "nowhere:worker", *options], cwd=tmp_path)
    assert (told.returncode, told.stdout) == (2, "")
    (line,) = told.stderr.splitlines()
    assert line.startswith("durable worker: there is no module 'nowhere'")


@pytest.mark.long(2)
def test_a_database_that_cannot_serve_is_a_mistake_too(command: Command, database: Database) -> None:
    """Status 2: what starts the process again comes to the same."""
    command._environment["TEST_URL"] = database.url.replace("dbname=", "dbname=not_")
    process = command.begin()
    assert process.wait(WITHIN) == 2
    (line,) = (line for line in command.end().splitlines() if line.startswith("durable worker: "))
    assert line.startswith("durable worker: PostgreSQL at")
    assert "Create the database" in line
