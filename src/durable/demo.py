"""A checkout that survives kill -9.

python -m durable.demo          kills it in the middle, starts it again, and counts what happened
python -m durable.demo once     runs it to its end

It starts a PostgreSQL, which `pip install 'durable-postgres[embedded]'` brings along. The records stay in the directory
`.durable`. Read `checkout` first: all the rest is the stage around it.
"""

from __future__ import annotations

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
        file = os.open(self.log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        os.write(file, f"{what}\n".encode())
        os.close(file)
        time.sleep(_NO_ANSWER if what == self.stuck else self.seconds)  # the world is slow


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


def play(program: Sequence[str], once: Callable[[], None]) -> None:
    """Run a checkout once, or kill `program`, which does that, in its middle and start it again.

    Exits with 0 if all went as promised.
    """
    if sys.argv[1:] == ["once"]:
        once()
    elif sys.argv[1:]:
        sys.exit(f"usage: python {' '.join(program)} [once]")
    else:
        try:
            with tempfile.TemporaryDirectory() as directory, embedded(DIRECTORY):
                sys.exit(_kill_and_resume(program, Path(directory) / "shop.log"))
        except durable.errors.ServerNotStarted as problem:
            sys.exit(str(problem))


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


if __name__ == "__main__":
    play(["-m", "durable.demo"], once)
