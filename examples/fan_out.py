"""A thousand invoices, killed half-way: those that were recorded are not sent again.

python examples/fan_out.py                       plays it all: kill -9 after 500, and a second process
python examples/fan_out.py send ID LEDGER        sends the invoices of the run ID, or those that are missing
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from pathlib import Path

from processes import Ledger, finish, kill, open_store, recorded_steps, start, wait_until

import durable

CUSTOMERS = [f"customer {number}" for number in range(1, 1001)]
AT_ONCE = 16


class Mail:
    """Sends letters, and writes in its ledger that it did."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger

    def send_invoice(self, customer: str) -> str:
        """One letter."""
        self._ledger.write(customer)
        time.sleep(0.002)  # the world is slow
        return f"invoice for {customer}"


def invoices(step: durable.Step, mail: Mail) -> int:
    """Each item is a step of its own, recorded as soon as it has ended."""
    sent = step.map("send invoice", mail.send_invoice, CUSTOMERS, key=str, max_concurrency=AT_ONCE)
    return len(sent)


def send(run_id: str, ledger: Path) -> None:
    """Send them all, or go on."""
    with open_store() as store:
        number = durable.run(Mail(Ledger(ledger)), invoices, id=run_id, store=store)
    print(f"    {number} invoices are sent")


def play() -> None:
    """The whole story."""
    with tempfile.TemporaryDirectory() as directory, open_store() as store:
        ledger, run_id = (
            Ledger(Path(directory) / "mail"),
            f"invoices-{os.getpid()}-{time.time_ns()}",
        )
        print(f"{len(CUSTOMERS)} invoices, {AT_ONCE} at once.\n")
        first = start(__file__, "send", run_id, str(ledger.path))
        wait_until(
            lambda: len(ledger.deeds()) >= len(CUSTOMERS) // 2, "half of the invoices", first
        )
        kill(first, "half-way")
        before = {
            key.removeprefix("send invoice[").removesuffix("]")
            for key in recorded_steps(store, run_id)
        }
        print(f"    {len(ledger.deeds())} were sent, {len(before)} of them are recorded\n")
        finish(start(__file__, "send", run_id, str(ledger.path)))
        twice = {customer for customer, times in ledger.counts().items() if times > 1}
        print("\n  The mail's own ledger, outside the database:")
        print(f"    {len(ledger.counts())} customers got their invoice")
        print(
            f"    {len(twice)} got it twice: "
            "those letters were on their way when the process was killed"
        )
        print(f"    {len(twice & before)} of those that were recorded")
        if set(ledger.counts()) != set(CUSTOMERS) or twice & before or len(twice) > AT_ONCE:
            sys.exit("  That is not as promised!")
        print("\n  Every invoice was sent, and none that was recorded was sent again.")


if __name__ == "__main__":
    match sys.argv[1:]:
        case []:
            play()
        case ["send", run_id, ledger]:
            send(run_id, Path(ledger))
        case _:
            sys.exit(__doc__)
