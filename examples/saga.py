"""A trip that is undone: a process is killed while it gives back what it booked, and the next goes on.

    python examples/saga.py

It takes $DATABASE_URL, or starts a PostgreSQL of its own.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import durable
from durable.stores import PostgresStore, embedded, postgres

WHAT = ("flight", "hotel", "car")


class Agency:
    """Writes down what it does, where each process finds it. It dies where it is told to."""

    def __init__(self, book: Path, dies_at: str) -> None:
        self.book = book
        self.dies_at = dies_at

    def write(self, line: str) -> None:
        """A line; or the end."""
        if line == self.dies_at:
            os.kill(os.getpid(), signal.SIGKILL)
        with self.book.open("a") as book:
            print(line, file=book)

    def reserve(self, what: str) -> str:
        """Book one thing."""
        if what == "car" and self.dies_at:
            raise LookupError("no car left")
        self.write(f"reserve {what}")
        return what

    def release(self, what: str) -> None:
        """Give it back."""
        self.write(f"release {what}")


def trip(step: durable.Step, agency: Agency) -> str:
    for what in WHAT:
        step("reserve", agency.reserve, what, key=f"reserve-{what}", undo=agency.release)
    return "booked"


def perform(store: PostgresStore, book: Path, dies_at: str = "") -> Any:
    return durable.run(Agency(book, dies_at), trip, id="trip-7", store=store)


def main() -> None:
    if len(sys.argv) > 1:
        with postgres(sys.argv[1]) as store:
            perform(store, Path(sys.argv[2]), "release flight")
        return
    url = os.environ.get("DATABASE_URL")
    with contextlib.ExitStack() as stack:
        place = stack.enter_context(tempfile.TemporaryDirectory())
        if url is None:
            url = stack.enter_context(embedded()).url
        store = stack.enter_context(postgres(url))
        book = Path(place) / "book"
        store.delete("trip-7")  # of an earlier time
        child = subprocess.run([sys.executable, __file__, url, str(book)], check=False)
        print(f"kill -9 in the midst of the closing: exit {child.returncode}")
        try:
            perform(store, book, "nowhere")
        except LookupError as problem:
            print(f"the next process undid the rest: {problem}")
        print("a car came back:", perform(store, book))
        told = book.read_text().split("\n")
        once = told.count("release hotel") == told.count("release flight") == 1
        if not once or told[-4:-1] != [f"reserve {what}" for what in WHAT]:
            raise SystemExit(told)
        print("Each was undone once, and reserved anew.")


if __name__ == "__main__":
    main()
