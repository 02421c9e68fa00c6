"""A checkout that survives kill -9, alone and among workers.

python -m durable.demo          kills it in the middle, starts it again, and counts what happened; then the same to a worker
python -m durable.demo once     runs it to its end
python -m durable.demo look     shows what was done, in a browser; it needs the extras cli and web

It starts a PostgreSQL, which `pip install 'durable-postgres[embedded]'` brings along. The records stay in the directory
`.durable`. Read `checkout` first: all the rest is the stage around it.
"""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple

import durable
from durable import events
from durable.stores import embedded

DIRECTORY: Final = ".durable"
STEPS: Final = ("fetch user", "reserve stock", "charge card", "create order", "send receipt")
STRUCK: Final = "create order"  # the process is killed in the middle of this step, which gets no answer
_NO_ANSWER: Final = 300.0  # seconds
RUNS: Final = 10  # of the second act
WORKERS: Final = 3
_PATIENCE: Final = 60.0  # seconds for what takes one or two


@durable.workflow(name="checkout")
def checkout(step: durable.Step, shop: Shop) -> dict[str, Any]:
    """Five steps, in plain Python. Each is recorded in PostgreSQL as soon as it has returned."""
    user = step("fetch user", shop.fetch_user, "u-1")
    reservation = step("reserve stock", shop.reserve_stock, ["mug", "tea"])
    payment = step("charge card", shop.charge_card, user["card"], 42)
    order = step("create order", shop.create_order, user["id"], reservation, payment)
    step("send receipt", shop.send_receipt, user["email"], order)
    return order


def once() -> None:
    """Run the checkout, or go on with it where it stopped: the call is the same."""
    given = read_setting()
    with embedded(DIRECTORY) as store:
        durable.run(Shop(given.log, given.stuck), checkout, id=given.run_id, store=store, on_event=narrate)


@dataclass
class Shop:
    """A shop whose every deed leaves a line in a log, by which the demo is judged.

    `log` lies outside the database and is only appended to. Each deed takes `seconds`; the one named by `stuck` gets no
    answer until its process is killed.
    """

    log: Path
    stuck: str = ""
    seconds: float = 0.15

    def fetch_user(self, user_id: str) -> dict[str, Any]:
        """Look a customer up."""
        self._log("fetch user")
        return {"id": user_id, "card": "card-7", "email": "customer@example.com"}

    def reserve_stock(self, items: list[str]) -> dict[str, Any]:
        """Put the goods aside."""
        self._log("reserve stock")
        return {"reservation": "r-1", "items": items}

    def charge_card(self, card: str, euros: int) -> dict[str, Any]:
        """Take the money: what must not happen twice."""
        self._log("charge card")
        return {"payment": "p-1", "card": card, "euros": euros}

    def create_order(self, user_id: str, reservation: dict[str, Any], payment: dict[str, Any]) -> dict[str, Any]:
        """Write the order."""
        self._log("create order")
        return {"order": "o-1", "user": user_id, "items": reservation["items"], "payment": payment["payment"]}

    def send_receipt(self, email: str, order: dict[str, Any]) -> str:
        """Tell the customer."""
        self._log("send receipt")
        return f"receipt for {order['order']} sent to {email}"

    def _log(self, what: str) -> None:
        append(self.log, self._line(what))
        time.sleep(_NO_ANSWER if what == self.stuck else self.seconds)  # the world is slow

    def _line(self, what: str) -> str:
        return what


def append(log: Path, line: str) -> None:
    """Add a line to a log that several processes write."""
    file = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    os.write(file, f"{line}\n".encode())
    os.close(file)


class Setting(NamedTuple):
    """The run's id and the shop's log, which both processes share, and the deed that gets no answer in this one."""

    run_id: str
    log: Path
    stuck: str


def read_setting() -> Setting:
    """The setting that the parent process passed in the environment."""
    log = Path(os.environ.get("DEMO_LOG", "shop.log"))
    return Setting(os.environ.get("DEMO_RUN", "checkout-123"), log, os.environ.get("DEMO_STUCK", ""))


def narrate(event: events.RunEvent) -> None:
    """Print a line for each thing that a step does."""
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


def play(program: Sequence[str], once: Callable[[], None], then: Callable[[Path], int] | None = None) -> None:
    """Run a checkout once, or kill `program`, which does that, in its middle and start it again; `then` the second act.

    Exits with 0 if all went as promised.
    """
    if sys.argv[1:] == ["once"]:
        once()
    elif sys.argv[1:2] == ["look"]:
        sys.exit(look(*sys.argv[2:]))
    elif sys.argv[1:]:
        sys.exit(f"usage: python {' '.join(program)} [once | look]")
    else:
        try:
            with tempfile.TemporaryDirectory() as directory, embedded(DIRECTORY):
                status = _kill_and_resume(program, Path(directory) / "shop.log")
                status = status or (then(Path(directory) / "deeds.log") if then is not None else 0)
                if not status:
                    print(f"\nLook at it in a browser:  {Path(sys.executable)} {' '.join(program)} look --open")
                sys.exit(status)
        except durable.errors.ServerNotStarted as problem:
            sys.exit(str(problem))


def look(*options: str) -> int:
    """Serve the page on what the demo has done, until Ctrl-C; the exit status."""
    with embedded(DIRECTORY) as store:
        command = [sys.executable, "-m", "durable", "web", "--url", store.url, *options]
        try:
            return subprocess.run(command, check=False).returncode  # noqa: S603 -- our own
        except KeyboardInterrupt:
            return 0


def _kill_and_resume(program: Sequence[str], log: Path) -> int:
    os.environ.update(DEMO_LOG=str(log), DEMO_RUN=f"checkout-{os.getpid()}-{int(time.time())}")
    log.touch()
    print("A checkout in five steps, each recorded in PostgreSQL. The first process gets kill -9.\n")
    process = _start(program, DEMO_STUCK=STRUCK)
    while STRUCK not in log.read_text() and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    print(f"    kill -9 in the middle of {STRUCK!r}: nothing was cleaned up\n")
    if _start(program, DEMO_STUCK="").wait() != 0:
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


def _start(program: Sequence[str], **environment: str) -> subprocess.Popen[bytes]:
    process = subprocess.Popen([sys.executable, *program, "once"], env={**os.environ, **environment})  # noqa: S603
    print(f"  process {process.pid}: durable.run(shop, checkout, id=…, store=…)", flush=True)
    return process


# -- the second act: workers ------------------------------------------------------------------------------------------------


def make_worker() -> durable.Worker:
    """What each worker process runs: `durable worker durable.demo:make_worker`."""
    logging.getLogger().addHandler(logging.NullHandler())  # the demo tells the story
    log = read_setting().log  # in a directory of this demo's, whose name is that of its queue
    append(log, Deed(time.time(), os.getpid(), "-", "is there").line())
    return durable.Worker(embedded(DIRECTORY), BusyShop(log), [checkout], queues=[log.parent.name], concurrency=2)


class Deed(NamedTuple):
    """A line of the busy shop's log: when, which process, for which run, and what."""

    at: float
    process: int
    run: str
    what: str

    def line(self) -> str:
        """As a line of the log."""
        return " ".join(map(str, self))


def read_deeds(log: Path) -> list[Deed]:
    """All of them so far, in order."""
    lines = [line.split(" ", 3) for line in log.read_text().splitlines()]
    return [Deed(float(at), int(process), run, what) for at, process, run, what in lines]


class BusyShop(Shop):
    """The same shop, whose log says more."""

    def _line(self, what: str) -> str:
        current = durable.current()
        return Deed(time.time(), os.getpid(), current.id if current else "-", what).line()


def kill_a_worker(log: Path) -> int:
    """Start ten checkouts and three workers, kill one of these in the middle, and see who goes on; the exit status."""
    log.touch()
    os.environ.update(DEMO_LOG=str(log))
    command = [sys.executable, "-m", "durable", "worker", "durable.demo:make_worker"]
    print(
        f"\nSecond act: {RUNS} checkouts, executed by {WORKERS} workers. One of the workers gets kill -9.\n", flush=True
    )
    workers = [subprocess.Popen(command) for _ in range(WORKERS)]  # noqa: S603
    names = {worker.pid: f"process {worker.pid}" for worker in workers}
    print(f"  {', '.join(names.values())}: durable worker durable.demo:make_worker", flush=True)
    try:
        with embedded(DIRECTORY) as store:
            _wait_until(lambda: len({deed.process for deed in read_deeds(log)}) == WORKERS, workers)
            began = time.time()
            handles = [
                durable.start(checkout, store=store, id=f"{os.getpid()}-{int(began)}-{n}", queue=log.parent.name)
                for n in range(1, RUNS + 1)
            ]
            print(f"  {time.time() - began:5.2f} s  {RUNS} runs are started: durable.start(checkout, id=…, store=…)")
            victim = _struck(workers, log)
            killed = time.time() - began
            print(f"  {killed:5.2f} s  kill -9 for process {victim.pid}: nothing was cleaned up", flush=True)
            for handle in handles:
                handle.result(timeout=_PATIENCE)
            print(f"  {time.time() - began:5.2f} s  all {RUNS} are completed", flush=True)
    finally:
        for worker in workers:
            worker.terminate()
        well = [worker.wait(_PATIENCE) == 0 for worker in workers].count(True)
    return _judge(read_deeds(log), [handle.id for handle in handles], victim.pid, began + killed) or int(
        well < WORKERS - 1
    )


def _struck(workers: Sequence[subprocess.Popen[bytes]], log: Path) -> subprocess.Popen[bytes]:
    """Kill the worker that is the first one to charge a card; which it was."""

    def charging() -> list[int]:
        return [deed.process for deed in read_deeds(log) if deed.what == "charge card"]

    _wait_until(charging, workers)
    (victim,) = (worker for worker in workers if worker.pid == charging()[0])
    victim.send_signal(signal.SIGKILL)
    victim.wait()
    return victim


def _judge(deeds: Sequence[Deed], runs: Sequence[str], victim: int, killed_at: float) -> int:
    """Tell who executed what, and count; 0 if it is as promised."""
    first = min(deed.at for deed in deeds if deed.what == STEPS[0])
    print("\n  The shop's own log says who executed what:")
    as_promised, again = True, 0
    for number, run in enumerate(runs, start=1):
        mine = [deed for deed in deeds if deed.run == run]
        before = [deed.what for deed in mine if deed.process == victim]
        after = [deed for deed in mine if deed.process != victim]
        counts = Counter(deed.what for deed in mine)
        doubled = [step for step in STEPS if counts[step] == 2 and before and step == before[-1] == after[0].what]  # noqa: PLR2004
        as_promised &= all(counts[step] == 1 + (step in doubled) for step in STEPS)
        again += len(doubled)
        who = f"process {mine[0].process}"
        if before and after:
            pause = after[0].at - killed_at
            who += f"; went on in process {after[0].process}, {pause:.2f} s after the kill, with {after[0].what!r}"
        print(f"    checkout {number:>2}  from {mine[0].at - first:4.2f} to {mine[-1].at - first:4.2f} s  {who}")
    all_steps = len(STEPS) * RUNS
    twice = f", and {again} twice: the process was killed while {'it' if again == 1 else 'they'} ran" if again else ""
    print(f"\n  Of {all_steps} steps {all_steps - again} ran once{twice}.")
    if not as_promised:
        print("  That is not as promised!")
    return 0 if as_promised else 1


def _wait_until(is_so: Callable[[], object], workers: Sequence[subprocess.Popen[bytes]]) -> None:
    deadline = time.monotonic() + _PATIENCE
    while not is_so():
        if time.monotonic() > deadline or any(worker.poll() is not None for worker in workers):
            sys.exit("a worker did not do its part")
        time.sleep(0.01)


if __name__ == "__main__":
    play(["-m", "durable.demo"], once, kill_a_worker)
