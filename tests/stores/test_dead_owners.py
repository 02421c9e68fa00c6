"""Who asks where runs stand sees an owner that has died on this machine at once, and never takes a live one for dead."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import pytest

import durable
from durable._engine.decisions import Granted
from durable.stores import Listed, PostgresStore, _owner, embedded
from durable.stores._postgres import snapshots
from durable.stores.requests import Begin
from durable.testing._suites.run_stores import a_claim
from harness.support import Database

DAY: Final = 24 * 3600.0  # seconds

CHILD = """
import sys, durable, os
from durable.stores import postgres
from durable.stores.requests import Begin
def waits(step, _):
    step("one", lambda: 1)
    print("waiting", flush=True)
    step("two", lambda: sys.stdin.read())
with postgres(sys.argv[1], schema=sys.argv[2] or None) as store:
    durable.run(None, waits, id=sys.argv[3], store=store, lease=3600)
"""


@pytest.fixture
def start() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Processes that execute a run until they are killed."""
    children: list[subprocess.Popen[str]] = []

    def started(url: str, schema: str, name: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", CHILD, url, schema, name]
        child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        children.append(child)
        assert child.stdout is not None
        assert child.stdout.readline() == "waiting\n"
        return child

    yield started
    for child in children:
        child.kill()
        child.communicate()


def told(store: PostgresStore, name: str) -> set[str]:
    """What each way of asking says: of the run, whether it is listed as running, and as interrupted, and the counts."""

    async def awaited() -> tuple[Any, ...]:
        return (
            await durable.aio.status(store, name),
            [line.id for line in await store.aio.list(status="running")],
            [line.id for line in await durable.aio.list_pending(store)],
            (await store.aio.stats())[:2],
        )

    blocking = (
        durable.status(store, name),
        [line.id for line in store.list(status="running")],
        [line.id for line in durable.list_pending(store)],
        store.stats()[:2],
    )
    return {str(blocking), str(asyncio.run(awaited()))}


def test_a_killed_owner_is_seen_at_once(database: Database, start: Callable[..., subprocess.Popen[str]]) -> None:
    """In both colours; another that lives goes on running, also when it stands still."""
    dead, alive = (start(database.url, database.schema, name) for name in ("dead", "alive"))
    store = database.store()
    assert told(store, "dead") == {str(("running", ["alive", "dead"], [], (2, 0)))}
    dead.kill()
    dead.wait()
    assert told(store, "dead") == {str(("interrupted", ["alive"], ["dead"], (1, 1)))}
    assert durable.status(store, "alive") == "running"
    assert told(database.store(take_over_dead=False), "dead") == {str(("running", ["alive", "dead"], [], (2, 0)))}
    os.kill(alive.pid, 19)  # SIGSTOP
    assert told(store, "dead") == {str(("interrupted", ["alive"], ["dead"], (1, 1)))}


def test_embedded_sees_it_too(tmp_path: Path, start: Callable[..., subprocess.Popen[str]]) -> None:
    """The server is one for all its users, of whom one is killed."""
    with embedded(tmp_path) as store:
        child = start(store.url, "", "x")
        assert told(store, "x") == {str(("running", ["x"], [], (1, 0)))}
        child.kill()
        child.wait()
        assert told(store, "x") == {str(("interrupted", [], ["x"], (0, 1)))}


def hold(store: PostgresStore, *names: str) -> None:
    """Take leases that nobody gives back."""
    for name in names:
        assert isinstance(store.perform(Begin(a_claim(name), lambda: True)), Granted)


def end(store: PostgresStore) -> None:
    """As the kernel does it when a process is gone: the lock goes, the file stays."""
    owner = store._held.resources.owner
    assert owner._lock is not None
    os.close(owner._lock)
    if owner._kept is not None:  # the mapping, which holds it as well
        owner._kept.close()
    owner._lock = owner._kept = None


@pytest.fixture
def owner_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Owner files of this test alone."""
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))


@pytest.mark.usefixtures("owner_files")
def test_pages_are_whole_and_each_owner_is_looked_at_once(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sixty runs of six owners, three of them dead: page by page nothing is left out, and few files are opened."""
    looked: list[str] = []

    def looking(owner: str | None, token: str | None) -> bool:
        looked.append(str(owner))
        return real(owner, token)

    real = _owner.is_dead
    owners = [database.store() for _ in range(6)]
    for number in range(60):
        hold(owners[number % 6], f"run-{number:02}")
    for owner in owners[:3]:
        end(owner)
    database.execute("UPDATE durable_locks SET owner = 'elsewhere' || owner WHERE workflow_id IN ('run-00', 'run-03')")
    database.execute("UPDATE durable_locks SET expires_at = now() WHERE workflow_id = 'run-05'")
    store = database.store()
    monkeypatch.setattr(snapshots, "is_dead", looking)
    gone = {f"run-{number:02}" for number in range(60) if number % 6 < 3 and number != 0} | {"run-05"}
    for status, expected in (("interrupted", gone), ("running", {f"run-{n:02}" for n in range(60)} - gone)):
        for limit in (1, 7, 100):
            seen, pages = list[str](), 0
            last: Listed | None = None
            while page := store.list(status=status, limit=limit, after=last):  # type: ignore[arg-type]
                pages += 1
                assert len(page) == min(limit, len(expected) - len(seen))
                seen += [line.id for line in page]
                last = page[-1]
            assert sorted(seen) == sorted(expected)
            assert len(looked) <= (pages + 1) * 6, "each owner at most once a page"
            looked.clear()
    assert store.stats()[:2] == (60 - len(gone), len(gone))
    assert len(looked) <= 6
    looked.clear()
    for other in (None, "completed", "failed", "cancelled"):
        store.list(status=other)
    assert looked == []


@pytest.mark.usefixtures("owner_files")
def test_an_owner_of_ones_own_is_alive(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another store of this process, and this store itself: their locks are held here, and nobody lets go of them."""
    one, two = database.store(), database.store()
    hold(one, "a")
    hold(two, "b")
    for store in (one, two, database.store()):
        for _ in range(3):
            assert [line.id for line in store.list(status="running")] == ["b", "a"]
            assert store.list(status="interrupted") == []
            assert (store.status("a"), store.status("b")) == ("running", "running")
    # Without an owner's file there is no proof, and a lease is waited for.
    monkeypatch.setattr(snapshots, "is_dead", lambda *_: False)
    end(one)
    assert database.store().status("a") == "running"


def week_old(directory: Path, name: str) -> Path:
    """The file of an owner that nobody asks about any more."""
    file = directory / f"{name}.owner"
    file.touch(0o600)
    os.utime(file, (time.time() - 8 * DAY,) * 2)
    return file


@pytest.mark.usefixtures("owner_files")
@pytest.mark.parametrize("elapsed", [2 * DAY, -2 * DAY], ids=["two days on", "the clock was set back by two days"])
def test_files_of_long_dead_owners_are_looked_through_once_a_day(tmp_path: Path, elapsed: float) -> None:
    """Many killed processes leave many files, and each start would look at each of them."""
    _owner.Owner().close()
    directory = tmp_path / f"durable-{os.getuid()}"
    early = week_old(directory, "early")
    live = _owner.Owner()
    assert early.exists(), "looked through twice within a day"
    assert live._path is not None
    os.utime(live._path, (time.time() - 8 * DAY,) * 2)
    os.utime(directory / "swept", (time.time() - elapsed,) * 2)
    _owner.Owner().close()
    assert not early.exists()
    assert live._path.exists(), "a live owner's file was taken away"
    live.close()
    assert sorted(file.name for file in directory.iterdir()) == ["swept"]
