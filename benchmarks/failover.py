"""Three hosts, the first stopped, the primary killed, its standby promoted after a while: when is the next step acknowledged?

    .venv/bin/python benchmarks/failover.py [SECONDS]

Runs follow one another in one process, which goes on as users do: it calls again. FAULTS 183.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).resolve().parent.parent / "tests"))

import psycopg
from psycopg.conninfo import make_conninfo

import durable
from durable.stores import postgres
from durable.stores._embedded import server as servers
from harness.machine import Machine


def standby_of(url: str, base: Path) -> servers.Server:
    """A standby that streams from it."""
    base.mkdir()
    account = servers._account()  # noqa: SLF001
    data = servers._data_directory(base, account)  # noqa: SLF001
    data.mkdir(0o700)
    account.take(data)
    program = servers._binaries(data) / "pg_basebackup"  # noqa: SLF001
    command = [str(program), "-D", str(data), "-R", "-X", "stream", "-c", "fast", "-d", url]
    subprocess.run(command, check=True, capture_output=True, cwd="/", **account.options)
    return servers.Server(base)


def main(seconds: float) -> None:
    """Prints how long after the promotion the first step was acknowledged, and what was said in between."""
    acknowledged: list[float] = []
    said: dict[str, int] = {}
    over = threading.Event()

    def workflow(step: durable.Step, _: None) -> None:
        for _number in range(200):
            step("step", lambda: 1)
            acknowledged.append(time.monotonic())
            time.sleep(0.02)

    with tempfile.TemporaryDirectory(dir="/tmp") as directory:
        os.chmod(directory, 0o755)  # noqa: PTH101, S103
        primary = Machine(Path(directory, "primary"))
        replica = standby_of(primary.url, Path(directory, "standby"))
        with socket.create_server(("127.0.0.1", 0)) as stopped:
            sockets = [str(servers.Server(Path(directory, "primary")).socket_directory), str(replica.socket_directory)]
            url = make_conninfo(
                primary.url,
                host=",".join(["127.0.0.1", *sockets]),
                port=f"{stopped.getsockname()[1]},5432,5432",
            )
            with postgres(url) as store:

                def work() -> None:
                    number = 0
                    while not over.is_set():
                        try:
                            durable.run(None, workflow, id=f"run-{number}", store=store)
                            number += 1
                        except durable.DurableError as problem:
                            said[type(problem).__name__] = said.get(type(problem).__name__, 0) + 1
                            time.sleep(0.2)

                worker = threading.Thread(target=work)
                worker.start()
                time.sleep(3)
                primary.down(signal.SIGKILL)
                killed = time.monotonic()
                time.sleep(seconds)
                with psycopg.connect(replica.url, autocommit=True) as connection:
                    connection.execute("SELECT pg_promote(true, 60)")
                promoted = time.monotonic()
                time.sleep(10)
                over.set()
                worker.join()
        replica.close()
        primary.close()
    first = next(moment for moment in acknowledged if moment > killed + 1)
    print(f"promoted after {promoted - killed:.1f} s; first acknowledgement {first - promoted:.2f} s later; {said}")


if __name__ == "__main__":
    values: Any = sys.argv[1:]
    main(float(values[0]) if values else 20.0)
