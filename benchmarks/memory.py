"""What a run of a hundred thousand steps keeps in memory."""

from __future__ import annotations

import contextlib
import gc
import os
from pathlib import Path
from typing import Any, Final

import durable
from durable.stores import postgres
from lanes import Turns
from limits import TEXT, new_id
from ours import Stop, body

_WARM: Final = 1000  # steps, of another run: what is imported and allocated once is there before the count begins
PAYLOAD: Final = len(TEXT)  # bytes a step


def one_long_run(turns: Turns, url: str) -> None:
    """Two turns: the steps, and then all of them again from the journal, each in a run of its own.

    Notes bytes: how far the resident set had grown when the last step was done.
    """

    def workflow(step: durable.Step, _: Any, steps: int) -> None:
        for number in range(steps):
            step("step", body, key=f"step-{number}")
        grown.append(_resident() - before)
        raise Stop

    with postgres(url) as store:
        run_id, grown, before = new_id(), list[int](), 0
        with contextlib.suppress(Stop):
            durable.run({}, workflow, id=new_id(), store=store, input=_WARM)
        for size in turns:
            gc.collect()
            before = _resident()
            with contextlib.suppress(Stop):
                durable.run({}, workflow, id=run_id, store=store, input=size)
            turns.note(grown=grown[-1])


def _resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
