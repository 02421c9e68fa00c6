"""A service is stuck at night: what is typed, and what is seen, until it is mended. Each command is real, on a real store.

The transcript is `tests/golden/session.txt`; `python tests/operate/test_session.py` has no way to renew it, since it wants the server of a test:
`DURABLE_RENEW=1 pytest tests/operate/test_session.py` does, and then it is read.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any, Final

import pytest

import durable
from durable.stores import PostgresStore
from durable.testing import replay
from harness.commands import CommandLine
from harness.support import Database

GOLDEN: Final = Path(__file__).resolve().parents[1] / "golden" / "session.txt"


class Courier:
    """Answers nobody until it is mended."""

    def __init__(self) -> None:
        self.is_up = False
        self.booked: list[int] = []

    def book(self, order: int) -> str:
        if not self.is_up:
            raise ConnectionRefusedError("courier.example refused the connection")
        self.booked.append(order)
        return f"parcel-{order}"


@durable.workflow(name="checkout", queue="orders")
def checkout(step: durable.Step, courier: Courier, order: int) -> dict[str, Any]:
    payment = step("charge", lambda: {"payment": f"p-{order}", "token": "tok_secret"})
    parcel = step("book courier", courier.book, order)
    return {"payment": payment["payment"], "parcel": parcel}


class Session:
    """What is typed and seen, with what differs from night to night put in brackets."""

    def __init__(self, database: Database) -> None:
        self.stores: dict[str, PostgresStore] = {"": database.store(), "desk": database.store(table="desk")}
        self.lines: list[str] = []

    def say(self, text: str) -> None:
        self.lines.append(f"# {text}")

    def type(self, *arguments: str, at: str = "", typed: str | None = None, width: int | None = 100) -> str:
        """A command at a terminal of a hundred columns, or at the developer's desk."""
        shown = " ".join(f"'{word}'" if " " in word else word for word in arguments)
        said = CommandLine(self.stores[at])(*arguments, width=width, typed=typed)
        place = f"{at}$" if at else "$"
        self.lines += [
            f"{place} durable {shown}",
            *said.out.rstrip("\n").split("\n"),
            *said.err.rstrip("\n").split("\n"),
        ]
        if said.status:
            self.lines.append(f"(exit {said.status})")
        self.lines.append("")
        return said.out

    @property
    def text(self) -> str:
        text = "\n".join(line for line in self.lines)
        for pattern, instead in (
            (r"(?m)^ +0 s.*$", "[ruler]"),
            (r"at=\S+", "at=[moment]"),
            (r"who=\S+", "who=[me]"),
            (r"started [\d:]+", "started [time]"),
            (r"\d{4}-\d\d-\d\dT[\d:.+]+", "[moment]"),
            (r"\d+(\.\d+)? (ms|s|min|h)( \d+ (s|min))?( ago)?\b", "[time]"),
            (r"/\S+/(tests/\S+)", r"\1"),
            (r"(?m)^(  Traceback .*)\n(?:    ?.*\n)+", r"\1\n    […]\n"),
            (r"[█▓╌·░│][█▓╌·░│ ]*", "[bars] "),
            (r"took \[time\] \(\[time\] waiting\)", "took [time]"),
            # All are retried at once, so in no order; the commands themselves say which.
            (r"(?m)^((?!desk\$|\$).*)$", lambda line: re.sub(r"checkout-\d", "checkout-n", line[1])),
            (r" +", " "),
            (r"(?m) +$", ""),
        ):
            text = re.sub(pattern, instead, text)
        return text + "\n"


@pytest.mark.long(8)
def test_a_session_of_somebody_whose_service_is_stuck(database: Database, tmp_path: Path) -> None:
    """List what failed, show why, mend, retry them all, watch it end; export one, import it elsewhere, replay it with changed code."""
    night = Session(database)
    store, courier = night.stores[""], Courier()
    for order in range(1, 4):
        durable.start(checkout, order, store=store, id=f"checkout-{order}", metadata={"tenant": f"t{order}"})
    night.say("a worker is at work, and customers wait")
    worker = durable.Worker(store, courier, [checkout], concurrency=1)
    worker.run_until_idle()
    night.type("list", "--columns", "status,run,where")
    night.type("show", "checkout-2")
    night.type("show", "checkout-2", "--step", "book courier")

    night.say("the courier has moved; it is told, and the rest is retried, but a look comes first")
    night.type("retry", "--where", "status:failed error:ConnectionRefusedError", "--dry-run")
    courier.is_up = True
    night.type("retry", "--where", "status:failed error:ConnectionRefusedError", typed="n\n")
    night.type("retry", "--where", "status:failed error:ConnectionRefusedError", typed="y\n")
    night.type("list", "--columns", "status,run,where")
    durable.Worker(store, courier, [checkout], concurrency=1).run_until_idle()
    night.type("watch", "workflow:checkout", width=None)
    night.type("wait", "checkout-2")
    assert sorted(courier.booked) == [1, 2, 3], night.text

    night.say("one is taken to a desk, as a bug report")
    file = tmp_path / "checkout-2.jsonl"
    night.type("export", "checkout-2", "-o", str(file))
    night.type("import", str(file), at="desk")
    night.type("show", "checkout-2", "--no-steps", at="desk")
    again = tmp_path / "again.jsonl"
    night.type("export", "checkout-2", "-o", str(again), at="desk")
    assert again.read_bytes() == file.read_bytes()

    night.say("changed code is tried on it: the courier is asked for a price first")

    @durable.workflow(name="checkout", queue="orders")
    def changed(step: durable.Step, courier: Courier, order: int) -> Any:
        step("charge", lambda: None)
        step("ask for a price", lambda: 5)
        return step("book courier", courier.book, order)

    saved = night.stores["desk"].load("checkout-2")
    assert saved is not None
    same, other = replay(courier, checkout, saved), replay(courier, changed, saved)
    assert (same.drift, same.ended) == (None, True)
    assert isinstance(other.drift, durable.WorkflowDrift)
    night.lines.append(f"replayed with the same code: {same.drift}\nreplayed with changed code: {other.drift}\n")
    night.type("fork", "checkout-2", "--from-step", "book courier", "--new-id", "checkout-2b", at="desk")
    night.type("list", "--columns", "status,run,where", at="desk")
    text = night.text.replace(str(tmp_path), "[desk]").replace("tmp_path", "")
    assert "tok_secret" not in text
    if os.environ.get("DURABLE_RENEW"):
        GOLDEN.write_text(text, "utf-8")
    assert text == GOLDEN.read_text("utf-8")
