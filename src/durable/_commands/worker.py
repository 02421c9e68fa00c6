"""`python -m durable worker`: runs the worker that a module has, in one process or in several."""

from __future__ import annotations

import argparse
import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import Sequence
from types import FrameType
from typing import Any, Final, NoReturn

from durable._commands.loading import load_worker
from durable._commands.processes import Processes
from durable._common.checks import check_count
from durable.errors import DurableError

MISTAKE: Final = 2  # the exit status of what another try does not mend

_log = logging.getLogger("durable")


def add_to(commands: Any) -> None:
    """Declare the command and its options."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "worker",
        help="execute runs that were started",
        description=(
            "Execute runs that were started, until SIGTERM or Ctrl-C: then no new ones are taken, and those at work go on "
            "elsewhere at their next step. A second signal ends it at once."
        ),
        epilog="Exit status: 0 if it left in good order, 1 if a process did not, 2 for a mistake, which is said in one line.",
    )
    parser.add_argument("target", metavar="MODULE:WORKER", help="a durable.Worker, or a function that returns one")
    parser.add_argument("--processes", type=int, default=1, metavar="N", help="so many processes, one per core (1)")
    parser.add_argument("--grace", type=float, metavar="SECONDS", help="instead of the worker's own grace= (20)")
    parser.add_argument("--lifeline", type=int, help=argparse.SUPPRESS)  # of a child: the socket to its parent
    parser.set_defaults(perform=_perform)


def _perform(given: argparse.Namespace) -> NoReturn:
    try:
        if check_count("--processes", given.processes) > 1:
            grace = [] if given.grace is None else ["--grace", str(given.grace)]
            sys.exit(Processes(_child_command(given.target, grace), given.processes, MISTAKE).run())
        _run(given.target, given.grace, given.lifeline)
    except DurableError as problem:
        sys.stderr.write(f"python -m durable worker: {' '.join(str(problem).split())}\n")
        sys.exit(MISTAKE)
    sys.exit(0)


def _run(target: str, grace: float | None, lifeline: int | None) -> None:
    for number in (signal.SIGTERM, signal.SIGINT):  # before it works, and after it has left: nothing is held
        signal.signal(number, _leave)
    worker = load_worker(target)
    if grace is not None:
        worker.set_grace(grace)
    if lifeline is not None:
        _hold_on(socket.socket(fileno=lifeline))
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")  # unless the module has
    _log.info("process %d: %r is at work", os.getpid(), worker)
    worker.run()
    _log.info("process %d: %r has left", os.getpid(), worker)


def _leave(_: int, __: FrameType | None) -> NoReturn:
    sys.exit(0)


def _child_command(target: str, options: Sequence[str]) -> list[str]:
    return [sys.executable, "-m", "durable", "worker", target, *options]


def _hold_on(line: socket.socket) -> None:
    """Tell the parent that the worker is loaded, and drain when the parent has died."""
    line.sendall(b".")

    def wait() -> None:
        line.recv(1)  # nothing ever comes but the end
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=wait, name="durable-lifeline", daemon=True).start()
