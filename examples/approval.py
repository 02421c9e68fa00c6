"""Two stages of approval, over several processes, and no customer is charged twice.

python examples/approval.py                      plays it all: an order, two approvals, a kill -9
python examples/approval.py order ID LEDGER      executes the order ID, or goes on with it
python examples/approval.py approve ID NAME      approves its next stage, from whatever process
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from processes import Ledger, finish, kill, open_store, recorded_steps, start, wait_until

import durable


class Bank:
    """Takes money, and writes in its ledger that it did."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger

    def charge(self, what: str, euros: int) -> dict[str, Any]:
        """What must not happen twice."""
        self._ledger.write(f"{what}: {euros} euros")
        return {"charged": euros}


def order(step: durable.Step, bank: Bank) -> list[str]:
    """Wait for a person, charge, wait for another, charge. Hours may pass, and processes."""
    lead = step.wait_for("approved")
    step("charge deposit", bank.charge, "deposit", 100)
    finance = step.wait_for("approved")
    step("charge rest", bank.charge, "rest", 900)
    return [lead["by"], finance["by"]]


def execute(run_id: str, ledger: Path) -> None:
    """Execute the order, from wherever it stands."""
    with open_store() as store:
        approved_by = durable.run(Bank(Ledger(ledger)), order, id=run_id, store=store)
    print(f"    the order is done; approved by {' and '.join(approved_by)}")


def approve(run_id: str, name: str) -> None:
    """A person says yes. It is kept until the order receives it, also while no process executes it."""
    with open_store() as store:
        durable.signal(store, run_id, "approved", {"by": name}, create_later=True)
    print(f"    {name} approves")


def play() -> None:
    """The whole story."""
    with tempfile.TemporaryDirectory() as directory, open_store() as store:
        ledger, run_id = Ledger(Path(directory) / "bank"), f"order-{os.getpid()}-{time.time_ns()}"
        print("An order waits for two approvals, and is charged after each.\n")
        first = start(__file__, "order", run_id, str(ledger.path))
        finish(start(__file__, "approve", run_id, "ada"))
        wait_until(lambda: "charge deposit" in recorded_steps(store, run_id), "the deposit", first)
        kill(first, "while the order waits for its second approval")
        finish(start(__file__, "approve", run_id, "grace"))  # no process executes the order now
        finish(start(__file__, "order", run_id, str(ledger.path)))
        finish(
            start(__file__, "order", run_id, str(ledger.path))
        )  # once more: its stored result comes back
        print("\n  The bank's own ledger, outside the database:")
        for deed, times in ledger.counts().items():
            print(f"    {deed:<20} {times} x")
        if ledger.deeds() != ["deposit: 100 euros", "rest: 900 euros"]:
            sys.exit("  That is not as promised!")
        print("\n  Each charge once, in the order of the approvals.")


if __name__ == "__main__":
    match sys.argv[1:]:
        case []:
            play()
        case ["order", run_id, ledger]:
            execute(run_id, Path(ledger))
        case ["approve", run_id, name]:
            approve(run_id, name)
        case _:
            sys.exit(__doc__)
