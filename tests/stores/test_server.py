"""The embedded server: shared by processes, ended with the last of them however that ends, and its data kept."""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
import pytest

import durable
from durable.stores import embedded
from harness.ownership_children import Child, gone, greet, postmaster, remove_server, use_server, wait_until


def stopped(home: Path, pid: int) -> bool:
    """Whether the server has gone, and has tidied up after itself."""
    return gone(pid) and postmaster(home) is None


@pytest.fixture
def parent() -> Iterator[Path]:
    """A directory that only its owner can enter; afterwards nothing of a server in it is left."""
    parent = Path(tempfile.mkdtemp(prefix="durable-test-"))
    yield parent
    remove_server(parent / "durable")
    shutil.rmtree(parent)


@pytest.fixture
def home(parent: Path) -> Path:
    """A directory for a server."""
    return parent / "durable"


@pytest.fixture
def user(home: Path) -> Iterator[Callable[[], Child]]:
    """A process that uses the server."""
    children: list[Child] = []

    def started() -> Child:
        children.append(Child(use_server, str(home)))
        return children[-1]

    yield started
    for child in children:
        child.end()


def greetings(url: str) -> list[tuple[str, str]]:
    """The completed runs of a server."""
    query = "SELECT id, snapshot->'execution'->>'status' FROM durable_snapshots"
    with psycopg.connect(url) as connection:
        return connection.execute(query).fetchall()


@pytest.mark.parametrize("mode", [0o755, 0o700])
def test_two_processes_share_a_server_that_ends_with_the_last(
    parent: Path, home: Path, user: Callable[[], Child], mode: int
) -> None:
    """The first is killed, the second is killed: the server outlives the one and not the other, and the data both.

    PostgreSQL refuses to be root, so for root it is another account; where that cannot enter, the data lie elsewhere.
    """
    parent.chmod(mode)
    first = user()
    url = first.hear()
    pid = postmaster(home)
    assert pid is not None
    assert Path(f"/proc/{pid}").stat().st_uid != 0
    assert (home / "data").is_symlink() == (mode == 0o700 and os.getuid() == 0)
    assert (home / "data").stat().st_mode & 0o077 == 0
    assert (home / "sockets").stat().st_mode & 0o077 == 0
    second = user()
    assert second.hear() == url
    assert postmaster(home) == pid, "a second server was started"
    first.kill()
    with psycopg.connect(url) as connection:  # the server has had no reason to end
        settings = "SELECT current_setting('fsync'), current_setting('server_encoding'), pg_encoding_to_char(encoding)"
        query = f"{settings} FROM pg_database WHERE datname = current_database()"
        assert connection.execute(query).fetchone() == ("on", "UTF8", "UTF8")
        assert connection.execute("SELECT current_setting('listen_addresses')").fetchone() == ("",)
    assert greetings(url) == [("greeting", "completed")]
    assert not gone(pid)
    second.kill()
    wait_until(lambda: stopped(home, pid), "the server to end with its last user")

    with embedded(home) as store:  # not recovered: it was stopped in good order, and goes on where it was
        assert postmaster(home) not in (None, pid)
        assert greetings(store.url) == [("greeting", "completed")]
        assert durable.run(None, greet, id="greeting", store=store) == "hello"
        again = postmaster(home)
        assert again is not None
    wait_until(lambda: stopped(home, again), "the server to end with its last user")


def test_a_killed_server_is_started_again_by_the_next_user(home: Path, user: Callable[[], Child]) -> None:
    """What was acknowledged is there after kill -9 of the server itself; its supervisor ends with it."""
    first = user()
    first.hear()
    pid = postmaster(home)
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: gone(pid), "the server to go")
    second = user()
    url = second.hear()
    again = postmaster(home)
    assert again not in (None, pid)
    assert greetings(url) == [("greeting", "completed")]
    first.kill()
    assert greetings(url) == [("greeting", "completed")], "the server ended with a user of its predecessor"
    second.say()
    assert second.hear() == "closed"
    assert again is not None
    wait_until(lambda: stopped(home, again), "the server to end with its last user")


def test_users_that_come_and_go_find_a_server(home: Path, user: Callable[[], Child]) -> None:
    """A server that is just ending, because its last user went, is waited for and started again."""
    urls = set()
    for _ in range(3):
        one = user()
        urls.add(one.hear())
        one.kill()
    assert len(urls) == 1
    wait_until(lambda: postmaster(home) is None, "the server to end with its last user")


def test_two_first_users_at_once(home: Path, user: Callable[[], Child]) -> None:
    """One of them makes the cluster, and both use it."""
    both = [user(), user()]
    assert both[0].hear() == both[1].hear()
    pid = postmaster(home)
    assert pid is not None
    for one in both:
        one.say()
        assert one.hear() == "closed"
    wait_until(lambda: stopped(home, pid), "the server to end with its last user")
