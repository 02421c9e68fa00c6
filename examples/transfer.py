"""Money moves between accounts; the process that moves it is killed again and again until all is done.

python examples/transfer.py          kills it and starts it again; each transfer is applied once
python examples/transfer.py once     goes on with the transfers where they stopped
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from typing import Any

import psycopg

import durable
from durable import events
from durable.stores import embedded

NAMES = ("Ada", "Grace", "Edsger")
COUNT = 300
MOST = 90  # transfers that a process records before it is killed, at most


def transfer(
    connection: psycopg.Connection[Any], number: int, payer: str, payee: str, cents: int
) -> str:
    """One transfer, in the transaction in which the step is recorded: it needs no key against doubles."""
    connection.execute(
        "UPDATE demo_accounts SET cents = cents - %s WHERE name = %s", (cents, payer)
    )
    connection.execute(
        "UPDATE demo_accounts SET cents = cents + %s WHERE name = %s", (cents, payee)
    )
    connection.execute("INSERT INTO demo_transfers VALUES (%s)", (number,))
    return f"{payer} -> {payee}: {cents}"


def transfers(step: durable.Step, _: None) -> int:
    """The workflow."""
    for number in range(COUNT):
        payer, payee = NAMES[number % 3], NAMES[(number + 1) % 3]
        step.transaction("transfer", transfer, number, payer, payee, 100 + number)
    return COUNT


def once() -> None:
    """Go on with the transfers where they stopped."""
    with embedded(".durable") as store:
        durable.run(
            None,
            transfers,
            id=os.environ.get("DEMO_RUN", "transfers"),
            store=store,
            on_event=report,
        )


def report(event: events.RunEvent) -> None:
    """Print a line for each transfer that is recorded."""
    if isinstance(event, events.StepRecorded):
        print(event.key, flush=True)


def killed_or_done() -> bool:
    """Let a process go on, and kill it when it has recorded some more; whether it was done before that.

    The number is drawn and at least one, so each process gets further, however slow the machine. What
    the process does meanwhile decides where in a transfer the kill strikes.
    """
    more = random.randint(1, MOST)
    with subprocess.Popen([sys.executable, __file__, "once"], stdout=subprocess.PIPE) as process:
        for recorded, _ in enumerate(process.stdout or (), start=1):
            if recorded == more:
                process.kill()
    return process.returncode == 0


def play() -> None:
    """Kill it, look at the accounts, start it again."""
    os.environ["DEMO_RUN"], kills = f"transfers-{os.getpid()}-{int(time.time())}", 0
    with embedded(".durable") as store, psycopg.connect(store.url, autocommit=True) as connection:
        connection.execute("DROP TABLE IF EXISTS demo_accounts, demo_transfers")
        connection.execute("CREATE TABLE demo_accounts (name text PRIMARY KEY, cents int NOT NULL)")
        connection.execute(
            "CREATE TABLE demo_transfers (number int NOT NULL)"
        )  # nothing in it refuses doubles
        connection.cursor().executemany(
            "INSERT INTO demo_accounts VALUES (%s, 100000)", [(name,) for name in NAMES]
        )
        done = False
        while not done:
            done = killed_or_done()
            kills += not done
            look = (
                "SELECT (SELECT sum(cents) FROM demo_accounts), count(*), count(DISTINCT number) "
                "FROM demo_transfers"
            )
            total, applied, distinct = connection.execute(look).fetchone() or (0, 0, 0)
            print(
                f"{'done  ' if done else 'killed'}  "
                f"sum of the accounts: {total}  transfers applied: {applied}",
                flush=True,
            )
            if total != len(NAMES) * 100_000 or applied != distinct:
                sys.exit("the accounts are wrong")
    print(
        f"\n{COUNT} transfers, {kills} times kill -9: "
        "each was applied once, and the sum never changed."
    )


if __name__ == "__main__":
    once() if sys.argv[1:] == ["once"] else play()
