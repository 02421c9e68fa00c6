"""An agent that calls tools: a restart repeats no call that was paid for, and books no second table.

python examples/agent.py                         plays it all: kill -9 in the middle of a booking
python examples/agent.py answer ID LEDGER        lets the agent work on the run ID, or go on with it
python examples/agent.py answer ID LEDGER silent the same; the restaurant books, and does not confirm

The model is a stand-in that follows a script, so that this needs no network and no key.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

from processes import Ledger, finish, kill, open_store, start, wait_until

import durable

Message: TypeAlias = dict[str, Any]

_SILENCE = 300.0  # seconds, which no process in this story lives to see
QUESTION = "Book a table for two where the pasta is best, and tell me what it will cost."


class Model:
    """What a model would say. Each call costs money, which the ledger shows."""

    SCRIPT: tuple[Message, ...] = (
        {"tool": "search", "arguments": {"query": "best pasta"}},
        {"tool": "book", "arguments": {"place": "Da Enzo", "people": 2}},
        {"tool": "add", "arguments": {"amounts": [14, 16, 9]}},
        {"answer": "A table for two at Da Enzo is booked; it will be about 39 euros."},
    )

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger

    def reply(self, conversation: list[Message]) -> Message:
        """The next thing to do, or the answer."""
        number = sum("tool" in message for message in conversation)
        self._ledger.write(f"model call {number + 1}, paid")
        return self.SCRIPT[number]


class Tools:
    """What the agent can do in the world."""

    def __init__(self, ledger: Ledger, *, silent: bool) -> None:
        self._ledger = ledger
        self._silent = silent

    def search(self, query: str) -> list[str]:
        """Look something up."""
        self._ledger.write(f"search for {query}")
        return ["Da Enzo", "Roma"]

    def book(self, place: str, people: int) -> str:
        """Book a table. The restaurant knows a booking by its key: the same key is not another booking."""
        booking = f"table for {people} at {place}, {durable.idempotency_key()}"
        self._ledger.write("asks for a table")
        if f"booked: {booking}" not in self._ledger.deeds():
            self._ledger.write(f"booked: {booking}")
            if self._silent:
                time.sleep(_SILENCE)  # this is when the process is killed
        return booking

    def add(self, amounts: list[int]) -> int:
        """What everybody's pasta costs."""
        return sum(amounts)


def agent(step: durable.Step, deps: dict[str, Any], question: str) -> str:
    """Ask the model, do what it says, tell it what came of that, until it answers. Each call is a step."""
    conversation: list[Message] = [{"user": question}]
    while True:
        reply = step("model", deps["model"].reply, conversation)
        if "answer" in reply:
            answer: str = reply["answer"]
            return answer
        tool: Callable[..., Any] = getattr(deps["tools"], reply["tool"])
        outcome = step(reply["tool"], tool, *reply["arguments"].values())
        conversation = [*conversation, reply, {"outcome": outcome}]


def answer(run_id: str, path: Path, *, silent: bool = False) -> None:
    """Let the agent work until it has its answer."""
    ledger = Ledger(path)
    deps = {"model": Model(ledger), "tools": Tools(ledger, silent=silent)}
    with open_store() as store:
        print(f"    {durable.run(deps, agent, id=run_id, store=store, input=QUESTION)}")


def play() -> None:
    """The whole story."""
    with tempfile.TemporaryDirectory() as directory, open_store():
        ledger, run_id = Ledger(Path(directory) / "world"), f"agent-{os.getpid()}-{time.time_ns()}"
        print(f"{QUESTION}\n")
        first = start(__file__, "answer", run_id, str(ledger.path), "silent")
        wait_until(
            lambda: any(deed.startswith("booked") for deed in ledger.deeds()), "a booking", first
        )
        kill(first, "before the restaurant had confirmed the table")
        finish(start(__file__, "answer", run_id, str(ledger.path)))
        print("\n  What the world saw:")
        for deed, times in ledger.counts().items():
            print(f"    {deed.partition(', ')[0] if 'booked' in deed else deed:<32} {times} x")
        counts = ledger.counts()
        asked = counts.pop("asks for a table")
        paid = sum("paid" in deed for deed in counts)
        if asked == 1 or set(counts.values()) != {1} or paid != len(Model.SCRIPT):
            sys.exit("  That is not as promised!")
        print(
            "\n  No call to the model was paid for twice. "
            "The table was asked for twice, with one key, and booked once."
        )


if __name__ == "__main__":
    match sys.argv[1:]:
        case []:
            play()
        case ["answer", run_id, ledger]:
            answer(run_id, Path(ledger))
        case ["answer", run_id, ledger, "silent"]:
            answer(run_id, Path(ledger), silent=True)
        case _:
            sys.exit(__doc__)
