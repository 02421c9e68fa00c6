"""The workflows that are measured, on Absurd (`pip install absurd-sdk absurdctl`; the latter brings its SQL).

As its documentation has it: tasks are spawned and workers claim them. A worker has one connection, which the threads of its
`concurrency=` share; so many workflows are shared by ten workers in one process, which was its best here: measured were
1 × 50, 4 × 12, 10 × 1 and 50 × 1 workers × concurrency.
"""

from __future__ import annotations

import threading
import time
from typing import Any

import absurdctl
import psycopg
from absurd_sdk import Absurd

from lanes import Turns
from limits import VALUE, new_id
from ours import STEPS_EACH

_FOR_EVER = 3600  # seconds that a claim lasts


def install(url: str) -> None:
    """Its schema, as `absurdctl init` does it."""
    with psycopg.connect(url, autocommit=True) as connection:
        (there,) = connection.execute("SELECT to_regnamespace('absurd') IS NOT NULL").fetchone() or (False,)
        if not there:
            connection.execute(absurdctl.BUNDLED_SCHEMA_SQL.encode())


def body() -> dict[str, object]:
    """What every step does."""
    return VALUE


def one_workflow(turns: Turns, url: str, turns_each: int) -> None:
    """W1."""
    app = _app(url)

    @app.register_task(name="one")
    def one(_: Any, context: Any) -> None:
        number = 0
        for size in turns.few(turns_each):
            for _ in range(size):
                number += 1
                context.step(f"step-{number}", body)

    while not turns.over:
        app.spawn("one", {})
        app.work_batch(claim_timeout=_FOR_EVER)
    app.close()


def many_workflows(turns: Turns, url: str, workers: int, concurrency: int = 1) -> None:
    """W2: so many workers in threads, each of which runs so many workflows at once."""
    first = _app(url)
    left, counting = 0, threading.Lock()
    apps: list[Absurd] = []

    def short(_: Any, context: Any) -> None:
        nonlocal left
        for number in range(STEPS_EACH):
            context.step(f"step-{number}", body)
        with counting:
            left -= 1
            if not left:
                for app in apps:
                    app.stop_worker()

    for _ in range(workers):
        apps.append(app := _app(url, first._queue_name))  # noqa: SLF001 -- the one that we gave it
        app.register_task(name="short")(short)

    for size in turns:
        left = size // STEPS_EACH
        for _ in range(left):
            first.spawn("short", {}, queue=first._queue_name)  # noqa: SLF001
        threads = [
            threading.Thread(target=app.start_worker, kwargs={"concurrency": concurrency, "poll_interval": 0.01})
            for app in apps
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()


def resume(turns: Turns, url: str, steps: int) -> None:
    """W5: the second attempt of a task that failed after its last step, from its claim to the replay of that step."""
    app = _app(url)
    began = 0.0
    replaying = False

    @app.register_task(name="long")
    def long(_: Any, context: Any) -> None:
        for number in range(steps):
            context.step(f"step-{number}", body)
        if replaying:
            turns.took(time.perf_counter() - began)
        raise ValueError  # a failed task is tried again

    app.spawn("long", {}, max_attempts=1000)
    app.work_batch(claim_timeout=_FOR_EVER)
    replaying = True
    for _ in turns:
        began = time.perf_counter()
        app.work_batch(claim_timeout=_FOR_EVER)
    app.close()


def _app(url: str, queue: str = "") -> Absurd:
    install(url)
    app = Absurd(url, queue_name=queue or f"q{new_id()}")
    app.create_queue()
    return app
