"""`durable worker`: runs the worker that a module has, in one process or in several."""

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
from typing import Final, NoReturn

from durable._commands.loading import load_worker
from durable._commands.processes import Processes
from durable._commands.settings import configured_worker
from durable._common.checks import check_count
from durable.errors import DurableError, InvalidArgument

MISTAKE: Final = 2  # the exit status of what another try does not mend

_log = logging.getLogger("durable")


def main(arguments: Sequence[str]) -> int:
    """Do what the command line says; the exit status. A mistake in it ends with status 2."""
    return _perform(make_parser().parse_args(arguments))


def make_parser() -> argparse.ArgumentParser:
    """The command's options."""
    parser = argparse.ArgumentParser(
        prog="durable worker",
        description=(
            "Execute runs that were started, until SIGTERM or Ctrl-C: then no new ones are taken, and those at work go on "
            "elsewhere at their next step. A second signal ends it at once."
        ),
        epilog="Exit status: 0 if it left in good order, 1 if a process did not, 2 for a mistake, which is said in one line.",
    )
    parser.add_argument(
        "target",
        nargs="?",
        metavar="MODULE:WORKER",
        help="a durable.Worker, or a function that returns one (by default pyproject.toml's [tool.durable] worker)",
    )
    parser.add_argument("--processes", type=int, default=1, metavar="N", help="so many processes, one per core (1)")
    parser.add_argument("--grace", type=float, metavar="SECONDS", help="instead of the worker's own grace= (20)")
    parser.add_argument("--lifeline", type=int, help=argparse.SUPPRESS)  # of a child: the socket to its parent
    return parser


def _perform(given: argparse.Namespace) -> int:
    try:
        target = given.target or configured_worker()
        if target is None:
            raise InvalidArgument(
                'which worker? Name one, like shop.flows:worker, or write [tool.durable] worker = "…" into pyproject.toml'
            )
        if check_count("--processes", given.processes) > 1:
            grace = [] if given.grace is None else ["--grace", str(given.grace)]
            return Processes(_child_command(target, grace), given.processes, MISTAKE).run()
        _run(target, given.grace, given.lifeline)
    except DurableError as problem:
        sys.stderr.write(f"durable worker: {' '.join(str(problem).split())}\n")
        return MISTAKE
    return 0


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
