"""What earlier versions wrote, kept as it is and replayed for ever: journals in tests/golden/*.json, whole snapshots in documents/.

There is no release before 0.1.0, so there is no older library yet that could read what this one writes. A file is never
changed. A new format gets a file of its own, written once by `python tests/values/test_golden.py NAME` (paths taken out of it).
"""

from __future__ import annotations

import dataclasses
import datetime as dt
import enum
import json
import re
import sys
import time
import uuid
from decimal import Decimal
from pathlib import Path
from typing import Any, NamedTuple
from zoneinfo import ZoneInfo

import msgspec
import pytest
import tenacity

import durable
from durable.stores import memory
from durable.stores._owner import this_process
from harness.shelves import Shelf
from harness.support import Database
from harness.value_kinds import alike

GOLDEN = Path(__file__).resolve().parents[1] / "golden"
DOCUMENTS = GOLDEN / "documents"


@durable.alias("golden:Colour")  # wherever this file may come to stand
class Colour(enum.Enum):
    RED = "red"


@durable.alias("golden:Right")
class Right(enum.Flag):
    READ = 1
    WRITE = 2


@durable.alias("golden:Point")
class Point(NamedTuple):
    x: int
    y: float


@durable.alias("golden:Line")
@dataclasses.dataclass
class Line:
    name: str
    price: Decimal


@durable.alias("golden:Order")
@dataclasses.dataclass(frozen=True)
class Order:
    number: int
    paid: dt.datetime
    lines: list[Line]
    colour: Colour = Colour.RED


VALUES: dict[str, Any] = {
    "nothing": None,
    "numbers": [0, -1, 2**70, 1.5, -0.0, 1e300, True],
    "texts": ["", "é\n\u2028🦉", '"quoted"\\', "\\u0000"],
    "nested": {"b": 1, "a": [None, {"x": []}], "": {}},
    "moments": [
        dt.datetime(2031, 5, 1, 12, 0, 0, 5),
        dt.datetime(2031, 5, 1, 12, tzinfo=dt.UTC),
        dt.datetime(2031, 5, 1, 12, tzinfo=dt.timezone(dt.timedelta(hours=5, minutes=30))),
        dt.datetime(2031, 5, 1, 12, tzinfo=dt.timezone(dt.timedelta(hours=2), "CEST")),
        dt.datetime(2031, 10, 26, 2, 30, tzinfo=ZoneInfo("Europe/Berlin"), fold=1),
        dt.date(2031, 5, 1),
        dt.time(12, 30, tzinfo=ZoneInfo("Europe/Berlin")),
        dt.timedelta(days=-1, seconds=3, microseconds=5),
    ],
    "exact": [Decimal("12.50"), Decimal("-0E+3"), uuid.UUID(int=7), b"\x00\xff", b""],
    "containers": [(1, "a"), (), {1, 2}, frozenset({"a", (1,)}), {1: "a", (2,): "b"}, {"$type": "date", "value": "x"}],
    "classes": [Order(7, dt.datetime(2031, 5, 1, tzinfo=dt.UTC), [Line("tea", Decimal("3.50"))]), Point(1, 2.0)],
    "members": [Colour.RED, Right.READ, Right.READ | Right.WRITE],
}
# What is another each time: moments, how long a body took, who executed, and where the code stood that failed.
PASSING = ("at", "began", "due", "lastUpdated", "startedAt", "owner", "traceback")


def failing() -> None:
    """A step that fails: class, arguments, note, cause and members are recorded."""
    problem = ExceptionGroup("several", [ValueError("bad", 3), KeyError("k")])
    problem.add_note("a note")
    problem.__cause__ = OSError(2, "no", "file")
    raise problem


class Flaky:
    """A body that fails at its first attempt, and takes its time for the second: a retry and a duration are recorded."""

    def __init__(self) -> None:
        self.attempts = 0

    def __call__(self) -> str:
        self.attempts += 1
        if self.attempts == 1:
            raise ConnectionError("not yet")
        until = time.perf_counter() + 0.002
        while time.perf_counter() < until:
            pass
        return "at last"


class Stop(BaseException):
    """Leaves the run unfinished."""


def workflow_of(seen: dict[str, Any], *, replays: bool, stops: bool = False) -> Any:
    """One step per value, by function and argument where there is a fingerprint to be kept."""

    def body(value: Any) -> Any:
        assert not replays, "a recorded step ran again"
        return value

    flaky = failing if replays else Flaky()

    @durable.workflow(name="golden")  # its module depends on how this file is run
    def golden(step: durable.Step, _: Any, given: Any) -> Any:
        seen["input"] = given
        for key, value in VALUES.items():
            seen[key] = step("value", body, value, key=key)
        seen["thunk"] = step("thunk", lambda: body("thunk"))
        seen["flaky"] = step("flaky", flaky, retry=tenacity.Retrying(stop=tenacity.stop_after_attempt(2)))
        try:
            step("fails", failing)
        except Exception as problem:
            seen["error"] = problem
        if stops:
            raise Stop
        return "done"

    return golden


@pytest.mark.parametrize("path", sorted(GOLDEN.glob("*.json")), ids=lambda path: path.stem)
def test_a_golden_journal_is_replayed(path: Path, database: Database) -> None:
    """FAULTS 98: equal values of equal types, no body runs, no fingerprint has changed, and failures are what they were."""
    golden = json.loads(path.read_text("utf-8"))
    store, seen = database.store(), dict[str, Any]()
    durable.run(None, lambda step, deps: None, id="other", store=store)  # the tables are made at first use
    database.execute("INSERT INTO durable_snapshots (id, snapshot) VALUES ('golden', %s)", json.dumps(golden["header"]))
    for seq, (kind, key, text, at, epoch) in enumerate(golden["journal"]):
        database.execute(
            "INSERT INTO durable_steps (workflow_id, seq, key, kind, nonce, record, created_at, epoch)"
            " VALUES ('golden', %s, %s, %s, 0, %s, %s, %s)",
            seq, key, kind, text, at, epoch,
        )  # fmt: skip
    workflow = workflow_of(seen, replays=True)
    assert durable.run(None, workflow, id="golden", input=VALUES, store=store) == "done"
    assert (seen.pop("thunk"), seen.pop("flaky")) == ("thunk", "at last")
    error = seen.pop("error")
    assert alike(seen, {"input": VALUES, **VALUES})
    assert repr(error) == "ExceptionGroup('several', [ValueError('bad', 3), KeyError('k')])"
    assert (error.__notes__, repr(error.__cause__)) == (["a note"], "FileNotFoundError(2, 'no')")


@pytest.mark.parametrize("path", sorted(GOLDEN.glob("*.json"))[-1:], ids=lambda path: path.stem)
def test_the_present_format_is_the_last_golden_one(path: Path) -> None:
    """Whoever changes how values are written adds a file; what is another each time may differ."""
    golden = json.loads(path.read_text("utf-8"))
    assert _comparable(recorded()) == _comparable(golden)


@pytest.mark.parametrize("path", sorted(DOCUMENTS.glob("*.json")), ids=lambda path: path.stem)
def test_a_golden_document_is_replayed(path: Path) -> None:
    """FAULTS 98, for a whole snapshot: on a store of five verbs, and saved to one of ours, byte for byte as it was written."""
    shelf = Shelf()
    shelf.texts["golden"] = dt.datetime.now(dt.UTC), path.read_bytes().strip()
    with memory() as store:
        store.save("golden", shelf.load("golden"))  # type: ignore[arg-type]
        for place in (shelf, store):
            seen = dict[str, Any]()
            workflow = workflow_of(seen, replays=True)
            assert durable.run(None, workflow, id="golden", input=VALUES, store=place) == "done"
            assert (seen.pop("thunk"), seen.pop("flaky")) == ("thunk", "at last")
            assert repr(seen.pop("error")) == "ExceptionGroup('several', [ValueError('bad', 3), KeyError('k')])"
            assert alike(seen, {"input": VALUES, **VALUES})


@pytest.mark.parametrize("path", sorted(DOCUMENTS.glob("*.json")), ids=lambda path: path.stem)
def test_a_golden_document_is_kept_as_it_is(path: Path) -> None:
    """FAULTS 98: read and written again it is the same, to the byte; so an older version can read it as well."""
    text = path.read_bytes().strip()
    assert durable.Snapshot.from_json(text).to_json() == text


@pytest.mark.parametrize("path", sorted(DOCUMENTS.glob("*.json"))[-1:], ids=lambda path: path.stem)
def test_the_present_document_is_the_last_golden_one(path: Path) -> None:
    """Whoever changes the format adds a file; what is another each time may differ."""
    assert _comparable(json.loads(written())) == _comparable(json.loads(path.read_bytes()))


@pytest.mark.parametrize("path", sorted(GOLDEN.rglob("*.json")), ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_a_golden_file_says_nothing_of_the_machine_that_wrote_it(path: Path) -> None:
    """Its tracebacks name files as they stand in the repository."""
    files = re.findall(r'File \\+"([^"\\]+)', path.read_text("utf-8"))
    assert files
    assert [file for file in files if not file.startswith(("src/durable/", "tests/"))] == []


def written() -> bytes:
    """What this version saves to a store of five verbs."""
    shelf = Shelf()
    executed_twice(shelf)
    return shelf.texts["golden"][1]


def recorded() -> dict[str, Any]:
    """What this version writes."""
    store = memory()
    executed_twice(store)
    run = store._runs["golden"]
    store.close()
    assert run.header is not None
    journal = [[r.kind, r.key, r.text, r.at and r.at.isoformat(), r.epoch] for _, r in sorted(run.records.items())]
    return {"header": json.loads(msgspec.json.encode(run.header)), "journal": journal}


def executed_twice(store: Any) -> None:
    """The run, and what it is once it was taken up again."""
    for replays in (False, True):
        with pytest.raises(Stop):
            durable.run(None, workflow_of({}, replays=replays, stops=True), id="golden", input=VALUES, store=store)


def _comparable(part: Any) -> Any:
    """A document, or a header and a journal, without what is another each time; but whether it is there is compared."""
    if isinstance(part, list) and len(part) == 5 and part[0] in ("input", "attempt", "step"):
        kind, key, text, at, epoch = part
        return [kind, key, _comparable(json.loads(text)), at is not None, epoch]
    if isinstance(part, list):
        return [_comparable(each) for each in part]
    if isinstance(part, dict):
        # A body that takes less than half a millisecond has no duration, and how long each takes is chance but for one.
        known = {name: each for name, each in part.items() if name != "seconds" or part.get("name") == "flaky"}
        known |= {"seconds": part["seconds"] >= 0.002} if "seconds" in known else {}
        return {name: name if name in PASSING else _comparable(each) for name, each in known.items()}
    return part


def _without_place(text: str) -> str:
    """Paths in tracebacks as they are seen from the top of the repository, and no name of a machine."""
    return text.replace(f"{GOLDEN.parent.parent}/", "").replace(this_process(), "host:1")


if __name__ == "__main__":
    (DOCUMENTS / f"{sys.argv[1]}.json").write_text(_without_place(written().decode()) + "\n", "utf-8")
    journal = json.dumps(recorded(), indent=1)
    (GOLDEN / f"{sys.argv[1]}.json").write_text(_without_place(journal) + "\n", "utf-8")
