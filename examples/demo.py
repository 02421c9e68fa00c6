"""The stage around the checkout examples: starts them, kills them, starts them again, and counts what happened."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from durable import events

STEPS = ("fetch user", "reserve stock", "charge card", "create order", "send receipt")
STRUCK = "create order"  # the step in whose middle the process is killed


def play(file: str, once: Callable[[], None]) -> None:
    """Run the example once, or kill it in its middle and start it again."""
    if sys.argv[1:] == ["once"]:
        once()
    elif sys.argv[1:]:
        sys.exit(f"usage: python {Path(file).name} [once]")
    else:
        with tempfile.TemporaryDirectory() as directory:
            sys.exit(_kill_and_resume(file, Path(directory) / "shop.log"))


def setting() -> tuple[str, Path]:
    """The run's id and the shop's log: what the two processes have in common."""
    return os.environ.get("DEMO_RUN", "checkout-123"), Path(os.environ.get("DEMO_LOG", "shop.log"))


def narrate(event: events.RunEvent) -> None:
    """Print what a step does, a line each."""
    match event:
        case events.StepReplayed(name=name):
            print(f"    {name:<14} remembered, not run again", flush=True)
        case events.StepBegan(name=name):
            print(f"    {name:<14} runs", flush=True)
        case events.StepRecorded(name=name):
            print(f"    {name:<14} is recorded", flush=True)
        case events.RunReturned():
            print("    the checkout was completed before; its result is returned", flush=True)
        case _:
            pass


def _kill_and_resume(file: str, log: Path) -> int:
    os.environ.update(DEMO_LOG=str(log), DEMO_RUN=f"checkout-{os.getpid()}-{int(time.time())}")
    log.touch()
    print("A checkout in five steps, each recorded in PostgreSQL. The first process gets kill -9.\n")
    process = _started(file)
    while STRUCK not in log.read_text() and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    print(f"    kill -9 in the middle of {STRUCK!r}: nothing was cleaned up\n")
    if _started(file).wait() != 0:
        return 1
    runs = Counter(log.read_text().splitlines())
    print("\n  The shop's own log, outside the database, says how often each step really ran:")
    for step in STEPS:
        print(f"    {step:<14} {runs[step]} x{'  (the one that was killed)' if step == STRUCK else ''}")
    as_promised = all(runs[step] == (2 if step == STRUCK else 1) for step in STEPS)
    print(
        "\n  Every step ran, and none that was recorded ran again." if as_promised else "\n  That is not as promised!"
    )
    return 0 if as_promised else 1


def _started(file: str) -> subprocess.Popen[bytes]:
    process = subprocess.Popen([sys.executable, file, "once"])
    print(f"  process {process.pid}: durable.run(shop, checkout, id=…, store=…)", flush=True)
    return process
