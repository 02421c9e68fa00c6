"""Programs and processes that tests start: each has a limit of its own, so that none outlives a test that was given up."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

LIMIT: Final = (
    240  # seconds, below the limit of a test in pyproject.toml: the test can still say what it was waiting for
)
# What is started in the background of a shell ignores Ctrl-C, and so does what it starts.
HEEDING_CTRL_C: Final = (
    sys.executable,
    "-c",
    "import os, signal, sys; signal.signal(signal.SIGINT, signal.SIG_DFL); os.execv(sys.argv[1], sys.argv[1:])",
)


def run_program(
    command: Sequence[str | Path], *, limit: float = LIMIT, check: bool = False, **options: Any
) -> subprocess.CompletedProcess[str]:
    """What a program has said when it has ended; what it has started ends with it, but for what has a session of its own.

    Raises `TimeoutError`, with what it has said so far, when it has not ended after `limit` seconds, and
    `subprocess.CalledProcessError` when `check` is true and it has failed.
    """
    options |= {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, text=True, start_new_session=True, **options) as process:
        try:
            out, err = process.communicate(timeout=limit)
        except subprocess.TimeoutExpired as late:
            raise TimeoutError(f"{command} has not ended after {limit:g} s: {late.stdout!r}, {late.stderr!r}") from None
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
    done = subprocess.CompletedProcess(command, process.returncode, out, err)
    if check:
        done.check_returncode()
    return done


def limited(target: Callable[..., None], *arguments: Any, seconds: int = LIMIT) -> None:
    """Do this in a process of its own, which the kernel ends after so many seconds, whatever it waits for."""
    signal.alarm(seconds)
    target(*arguments)
