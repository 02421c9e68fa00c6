"""Processes that own runs, and can be stopped, woken and killed: what the tests of ownership send into the field.

They are forked from a server that has imported everything already, so that each costs some 30 ms.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from multiprocessing import forkserver
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Final

import durable
from durable.stores import PostgresStore, embedded, postgres
from durable.stores._postgres.sql.loader import load_migrations, load_statements
from durable.stores._postgres.sql.names import Names
from durable.stores.requests import Checkpoint
from harness.programs import limited

load_migrations(Names())  # read before the fork, and not by each child
load_statements(Names())

PATIENCE: Final = 30.0  # seconds until a test that waits for something gives up; never what a test measures

_CONTEXT: Final = multiprocessing.get_context("forkserver")


@dataclass(frozen=True)
class Orders:
    """What a process is to do: which run, where it waits for the test, and how it asks for the run."""

    url: str
    schema: str
    effects: str
    run_id: str = "contested"
    who: str = "old"
    waits_in: str = ""  # "body": in the second body; "checkpoint": between its end and its checkpoint
    fails: bool = False
    lease: float = 60.0
    on_conflict: str = "raise"
    wait_timeout: float | None = None

    def by(self, who: str, **changes: Any) -> Orders:
        """The same orders for somebody else."""
        return replace(self, who=who, **changes)


class Scene:
    """The workflow's dependencies: bodies that leave a trace, and meet the test at one place."""

    def __init__(self, orders: Orders, meet: Callable[[str], object] = lambda _: None) -> None:
        self.orders = orders
        self.meet = meet

    def body(self, key: str) -> str:
        """The body of every step."""
        leave_trace(self.orders.effects, f"{key} by {self.orders.who}")
        if key == "two":
            if self.orders.waits_in == "body":
                self.meet("body")
            if self.orders.fails:
                raise ValueError("two is out of order")
        return f"{key} by {self.orders.who}"


def stubborn(step: durable.Step, scene: Scene) -> list[str | None]:
    """Three steps, and a workflow that will not hear of failure: only what is no `Exception` gets past it."""
    values: list[str | None] = []
    for key in ("one", "two", "three"):
        try:
            values.append(step(key, scene.body, key, key=key))
        except Exception as problem:
            if scene.orders.fails:
                raise
            leave_trace(scene.orders.effects, f"swallowed {type(problem).__name__}")
            values.append(None)
    return values


def leave_trace(effects: str | Path, line: str) -> None:
    """Append a line to the log of effects, whole whoever else writes."""
    file = os.open(effects, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    try:
        os.write(file, f"{line}\n".encode())
    finally:
        os.close(file)


def traces(effects: str | Path) -> list[str]:
    """The log of effects."""
    return Path(effects).read_text("utf-8").splitlines() if Path(effects).exists() else []


def execute(orders: Orders, store: PostgresStore, scene: Scene, **options: Any) -> list[str | None]:
    """Run the workflow as ordered."""
    result: list[str | None] = durable.run(
        scene,
        stubborn,
        id=orders.run_id,
        store=store,
        lease=orders.lease,
        on_conflict=orders.on_conflict,  # type: ignore[call-overload]
        wait_timeout=orders.wait_timeout,
        **options,
    )
    return result


# -- in the child ---------------------------------------------------------------------------------------------------


def run_as_ordered(pipe: Connection, orders: Orders) -> None:
    """A process that runs the workflow, and tells the test how that went."""

    def meet(where: str) -> None:
        pipe.send(where)
        pipe.recv()

    store = postgres(orders.url, schema=orders.schema)
    if orders.waits_in == "checkpoint":
        _pause_before_second_checkpoint(store, meet)
    if orders.on_conflict == "wait":
        _tell_of_first_refusal(store, pipe)
    try:
        value = execute(orders, store, Scene(orders, meet))
    except BaseException as error:
        pipe.send((type(error).__name__, str(error)))
    else:
        pipe.send(("returned", value))
    store.close()


def use_server(pipe: Connection, path: str) -> None:
    """A process that uses an embedded server until it is told to stop, or killed."""
    store = embedded(path)
    durable.run(None, greet, id="greeting", store=store, on_conflict="wait")
    pipe.send(store.url)
    pipe.recv()
    store.close()
    pipe.send("closed")


def greet(step: durable.Step, _: None) -> str:
    """The smallest workflow."""
    return step("greet", lambda: "hello")


def _pause_before_second_checkpoint(store: PostgresStore, meet: Callable[[str], object]) -> None:
    perform = store.perform

    def paused(request: Any, on_late_reply: Any = None) -> Any:
        if isinstance(request, Checkpoint) and request.record.key == "two":
            meet("checkpoint")
        return perform(request, on_late_reply)

    store.perform = paused  # type: ignore[method-assign]


def _tell_of_first_refusal(store: PostgresStore, pipe: Connection) -> None:
    perform, told = store.perform, False

    def telling(request: Any, on_late_reply: Any = None) -> Any:
        nonlocal told
        reply = perform(request, on_late_reply)
        if type(reply).__name__ == "Refused" and not told:
            told = True
            pipe.send("refused")
        return reply

    store.perform = telling  # type: ignore[method-assign]


# -- in the test ----------------------------------------------------------------------------------------------------


class Child:
    """A process of the test's own."""

    def __init__(self, target: Callable[..., None], *arguments: Any) -> None:
        start_forkserver(__name__)
        self._pipe, theirs = _CONTEXT.Pipe()
        self.process = _CONTEXT.Process(target=limited, args=(target, theirs, *arguments), daemon=True)
        self.process.start()
        theirs.close()

    def hear(self) -> Any:
        """What it says next."""
        assert self._pipe.poll(PATIENCE), f"nothing was heard of {self.process.name} for {PATIENCE:g} s"
        return self._pipe.recv()

    def say(self, word: str = "go on") -> None:
        """Let it go on from where it waits."""
        self._pipe.send(word)

    @contextlib.contextmanager
    def stopped(self) -> Iterator[None]:
        """Its every thread stands still in here."""
        self._signal(signal.SIGSTOP)
        wait_until(lambda: self._state() == "T", "the process to stand still")
        try:
            yield
        finally:
            self._signal(signal.SIGCONT)

    def kill(self) -> None:
        """End it without a chance to tidy up, and wait until it is gone."""
        with contextlib.suppress(ProcessLookupError):  # it ended by itself meanwhile
            self._signal(signal.SIGKILL)
        self.process.join(PATIENCE)

    def end(self) -> None:
        """Let go of it, whatever state it is in."""
        if self.process.is_alive():
            self.kill()
        self.process.close()
        self._pipe.close()

    def _signal(self, number: int) -> None:
        assert self.process.pid is not None
        os.kill(self.process.pid, number)

    def _state(self) -> str:
        return Path(f"/proc/{self.process.pid}/stat").read_text("ascii").rpartition(")")[2].split()[0]


def process_of(store: PostgresStore) -> Any:
    """What this process holds of a store: `owner`, `heartbeat`, `connections`. The one place that knows where they are."""
    return store._held.made


def wait_until(condition: Callable[[], object], what: str) -> None:
    """Look until something is so."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, f"waited in vain for {what}"
        time.sleep(0.005)


def postmaster(home: Path) -> int | None:
    """The server's process, while its data directory says that there is one."""
    try:
        return int((home / "data" / "postmaster.pid").read_bytes().split(b"\n", 1)[0])
    except (FileNotFoundError, ValueError):
        return None


def gone(pid: int) -> bool:
    """Whether a process is no more; a zombie, which only waits to be counted, is none either."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text("ascii").rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return True
    return state in ("Z", "X")


def remove_server(home: Path) -> None:
    """Wait until the embedded server in a directory has ended, and remove what it has put elsewhere."""
    wait_until(lambda: (pid := postmaster(home)) is None or gone(pid), "the server to end with its last user")
    for link, depth in ((home / "data", 1), (home / "sockets", 0)):
        if link.is_symlink():
            target = link.readlink()
            shutil.rmtree([target, *target.parents][depth], ignore_errors=True)


def start_forkserver(preloaded: str) -> None:
    """Have it import this module. Before 3.13 it does not learn our `sys.path`, and would skip what it cannot import."""
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, sys.path))
    try:
        _CONTEXT.set_forkserver_preload([preloaded])
        forkserver.ensure_running()
    finally:
        if before is None:
            del os.environ["PYTHONPATH"]
        else:
            os.environ["PYTHONPATH"] = before
