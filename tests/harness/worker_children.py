"""Worker processes that die where a test says so: `python -m harness.worker_children URL SCHEMA`."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any, Final

import durable
from durable.stores import postgres
from harness.ownership_children import leave_trace

PLACES: Final = ("granted", "body", "finish")
_CHILD: Final = "DURABLE_WORKER_CHILD"  # in the environment of a process that was started for this
_TESTS: Final = Path(__file__).resolve().parents[1]


@durable.workflow(name="fragile")
def fragile(step: durable.Step, deps: Any, where: dict[str, str]) -> str:
    """Two steps, whose bodies leave traces in `effects`; its process dies at the `place`, once."""

    def body(name: str) -> None:
        leave_trace(where["effects"], name)
        if name == "two":
            die_once("body", where)

    die_once("granted", where)
    step("one", lambda: body("one"))
    step("two", lambda: body("two"))
    die_once("finish", where)
    return "done"


@durable.workflow(name="waits")
def waits(step: durable.Step, deps: Any, where: dict[str, str]) -> str:
    """One step, whose body says that it has begun, and goes on when its process is told so."""

    def body() -> str:
        leave_trace(where["effects"], "begun")
        if os.environ.get(_CHILD):
            sys.stdin.readline()
        return "done"

    return step("body", body)


def die_once(place: str, where: dict[str, str]) -> None:
    """As by `kill -9`, if this is the place, and nobody has died there."""
    if where["place"] == place:
        try:
            os.close(os.open(where["effects"] + ".died", os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            return
        os.kill(os.getpid(), signal.SIGKILL)


def worker_process(url: str, schema: str) -> subprocess.Popen[str]:
    """A worker in a process of its own."""
    command = [sys.executable, "-m", "harness.worker_children", url, schema]
    return subprocess.Popen(command, cwd=_TESTS, env=os.environ | {_CHILD: "1"}, stdin=subprocess.PIPE, text=True)


if __name__ == "__main__":
    with postgres(sys.argv[1], schema=sys.argv[2]) as store:
        durable.Worker(store, None, [fragile, waits], grace=5).run()
