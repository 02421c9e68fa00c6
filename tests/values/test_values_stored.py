"""Values in a real PostgreSQL: read by SQL, sealed by another codec, refused in time, and of any size that is allowed."""

from __future__ import annotations

import asyncio
import dataclasses
import datetime as dt
import logging
from collections.abc import Callable
from decimal import Decimal
from typing import Any

import pytest
from cryptography.fernet import Fernet
from encrypted import EncryptedCodec

import durable
from durable.codecs import CodecSet, JsonCodec
from durable.stores import memory, postgres
from harness.support import Database
from harness.value_kinds import RECEIPT, Colour, Line, Plain, alike, cyclic, nested

SECRET = "pl4nted"
KEY, OTHER_KEY = Fernet.generate_key(), Fernet.generate_key()


@dataclasses.dataclass
class Order:
    """A class whose fields SQL asks for."""

    total: int
    paid: dt.datetime
    lines: list[Line]


ORDER = Order(12, dt.datetime(2031, 5, 1, 12, tzinfo=dt.UTC), [Line("tea", Decimal("3.50"))])


class Stop(BaseException):
    """Leaves the run unfinished, as a crash does."""


def stopped(store: Any, id: str, *values: Any) -> list[Any]:
    """What steps that return these values hand out, in a run that then stops."""
    seen: list[Any] = []

    def workflow(step: durable.Step, _: Any) -> None:
        for number, value in enumerate(values):
            try:
                seen.append(step("make", lambda value=value: value, key=f"make-{number}"))  # type: ignore[misc]
            except Exception as problem:
                seen.append(problem)
        raise Stop

    with pytest.raises(Stop):
        durable.run(None, workflow, id=id, store=store)
    return seen


# -- read by SQL ----------------------------------------------------------------------------------------------------


def test_sql_reads_plain_values_and_data_classes_alike(database: Database) -> None:
    """Without knowing anything of tags, and the tagged parts by one step more."""
    stopped(database.store(), "r", {"total": 12}, ORDER)
    rows = database.execute("SELECT record->'value'->>'total' FROM durable_steps WHERE kind = 'step' ORDER BY seq")
    assert rows == [("12",), ("12",)]
    one = "SELECT {} FROM durable_steps WHERE key = 'make-1'"
    (row,) = database.execute(one.format("(record->'value'->'paid'->>'value')::timestamptz"))
    assert row == (ORDER.paid,)
    (row,) = database.execute(
        one.format("record->'value'->'lines'->0->>'name', record->'value'->'lines'->0->'price'->>'value'")
    )
    assert row == ("tea", "3.50")


def test_sql_reads_durations(database: Database) -> None:
    """A timedelta's text is an interval."""
    stopped(database.store(), "r", dt.timedelta(days=-1, seconds=3, microseconds=5))
    (row,) = database.execute("SELECT (record->'value'->>'value')::interval FROM durable_steps WHERE kind = 'step'")
    assert row == (dt.timedelta(days=-1, seconds=3, microseconds=5),)


def test_inputs_results_and_steps_come_back_from_postgresql(database: Database) -> None:
    """Each of the three kinds of record that hold a value, in both colours."""

    def workflow(step: durable.Step, _: Any, given: Order) -> Any:
        return {Colour.RED: (given, step("same", lambda: RECEIPT))}

    async def async_workflow(step: durable.AsyncStep, _: Any, given: Order) -> Any:
        return {Colour.RED: (given, await step("same", lambda: RECEIPT))}

    store = database.store()
    first = durable.run(None, workflow, id="r", input=ORDER, store=store)
    assert alike(first, {Colour.RED: (ORDER, RECEIPT)})
    assert alike(durable.run(None, workflow, id="r", store=store), first)
    for _ in range(2):
        assert alike(asyncio.run(durable.run(None, async_workflow, id="a", input=ORDER, store=store)), first)
    with pytest.raises(durable.RunMismatch):
        durable.run(None, workflow, id="r", input=dataclasses.replace(ORDER, total=13), store=store)


def test_a_record_of_a_class_that_is_not_there_is_left_as_it_is(database: Database) -> None:
    """FAULTS 97: the run is not started afresh."""
    store = database.store()
    stopped(store, "r", ORDER)
    database.execute("UPDATE durable_steps SET record = replace(record::text, ':Order', ':Bestellung')::json")
    before = database.everything()[1]
    (problem,) = stopped(store, "r", ORDER)
    assert isinstance(problem, durable.errors.UnreadableRecord)
    assert "durable.alias" in str(problem)
    assert database.everything()[1] == before


# -- refused --------------------------------------------------------------------------------------------------------


def test_what_cannot_come_back_is_refused_before_it_counts_and_poisons_nothing(database: Database) -> None:
    """FAULTS 83, 85, 86, 87, 88: the step is not recorded; the next one is, and the run goes on."""
    bad = [float("nan"), "a\0b", "\ud800", Plain(), cyclic(), nested(20_000), (n for n in [1]), {"k\0": 1}, 10**5000]
    store = database.store()
    *refused, fine = stopped(store, "r", *bad, "fine")
    assert [type(problem) for problem in refused] == [durable.UnstorableValue] * len(bad)
    assert all("The body did run" in str(problem) for problem in refused)
    assert fine == "fine"
    assert [key for _, key, _ in database.journal("r")] == [f"make-{len(bad)}"]


def test_no_payload_in_errors_reprs_and_logs(database: Database, caplog: pytest.LogCaptureFixture) -> None:
    """I10: neither of a value that is refused, nor of one that is stored, nor of one that cannot be read."""
    caplog.set_level(logging.DEBUG)
    told: list[str] = []
    store = database.store()

    def listen(event: Any) -> None:
        told.append(repr(event) + repr(getattr(event, "record", "")))

    def workflow(step: durable.Step, _: Any) -> None:
        for value in ({"a": SECRET, SECRET + "\0": 1}, [SECRET, Plain()], {(SECRET, 1): Plain()}):
            with pytest.raises(durable.UnstorableValue) as it:
                step("refused", lambda value=value: value)  # type: ignore[misc]
            told.append(str(it.value) + repr(it.value))
        step("fine", lambda: {"a": SECRET, "b": Line(SECRET, Decimal(1))})
        raise Stop

    with pytest.raises(Stop):
        durable.run(None, workflow, id="r", store=store, on_event=listen)
    for mangled in (
        f'{{"$type":"{SECRET}","x":1}}',
        f'{{"$type":"date","value":"{SECRET}"}}',
        f'{{"$type":"codec","name":"{SECRET}',
    ):
        with pytest.raises(durable.errors.UnreadableRecord) as it:
            JsonCodec().decode(mangled.encode(), run_id="r", where="here")
        told.append(str(it.value) + repr(it.value))
    assert len(told) >= 8
    assert SECRET not in "".join(told) + caplog.text


# -- sizes ----------------------------------------------------------------------------------------------------------


@pytest.mark.long(5)
@pytest.mark.parametrize("megabytes", [1, 10, 100])
def test_large_results_come_back(database: Database, megabytes: int) -> None:
    """FAULTS 89: up to `max_payload`, under a lease that is kept alive meanwhile."""
    text = "x" * (megabytes * 1_000_000)
    store = database.store()
    (live,) = stopped(store, "r", text)
    assert live == text
    (replayed,) = stopped(store, "r", "not called")
    assert replayed == text


def test_above_max_payload_is_refused_before_it_is_sent(database: Database) -> None:
    """FAULTS 89: by its size, with the way out; tagged and plain alike."""
    store = database.store(codec=JsonCodec(max_payload=1000))
    *refused, fine = stopped(store, "r", "x" * 1000, [ORDER] * 10, {"a": b"x" * 1000}, "x" * 900)
    assert [type(problem) for problem in refused] == [durable.UnstorableValue] * 3
    assert "1,002 bytes, and max_payload is 1,000" in str(refused[0])
    assert fine == "x" * 900
    assert len(database.journal("r")) == 1


@pytest.mark.parametrize("size", [0, -1, 1.5, True, "1", 268_435_456])
def test_a_max_payload_that_cannot_be(size: Any) -> None:
    """PostgreSQL's own limit is above all."""
    with pytest.raises(durable.InvalidArgument, match="max_payload"):
        JsonCodec(max_payload=size)


# -- other codecs ---------------------------------------------------------------------------------------------------


def encrypted(*keys: bytes) -> EncryptedCodec:
    return EncryptedCodec(keys or [KEY], salt=b"salt")


def failing(step: durable.Step, _: Any, given: Any) -> Any:
    """A workflow with everything in it that is recorded."""
    step("fine", lambda: (given, Colour.RED), key="fine")

    def fails() -> None:
        problem = ValueError(SECRET)
        problem.add_note(SECRET)
        problem.__cause__ = KeyError(SECRET)
        raise problem

    try:
        step("fails", fails)
    except ValueError as problem:
        assert (problem.args, problem.__notes__, repr(problem.__cause__)) == (
            (SECRET,),
            [SECRET],
            f"KeyError('{SECRET}')",
        )
    step("fails in the end", fails)


def test_an_encrypting_codec_leaves_nothing_to_read(database: Database) -> None:
    """Neither values, nor the input, nor what exceptions say; and all of it comes back."""
    store = database.store(codec=encrypted())
    for _ in range(2):
        with pytest.raises(ValueError, match=SECRET):
            durable.run(None, failing, id="r", input={"card": SECRET}, store=store)
    assert durable.run(None, lambda step, deps: SECRET, id="fine", store=store) == SECRET
    assert durable.run(None, lambda step, deps: "other", id="fine", store=store) == SECRET
    stored = str(database.everything())
    assert SECRET not in stored
    assert "tests.test_values" not in stored.replace(f"'workflowFunction': '{__name__}", "")
    assert stored.count("fernet") >= 5


def test_old_records_stay_readable_under_a_new_codec_and_a_new_key(database: Database) -> None:
    """The name in each record decides. JSON is always read; a codec that is not there is named."""
    (plain,) = stopped(database.store(), "r", ORDER)
    (same,) = stopped(database.store(codec=encrypted()), "r", "not called")
    assert alike(plain, same)
    stopped(database.store(codec=encrypted()), "r", "not called", "sealed")
    seen = stopped(database.store(codec=encrypted(OTHER_KEY, KEY)), "r", "not called", "not called", "new key")
    assert seen[1:] == ["sealed", "new key"]
    seen = stopped(database.store(codec=[JsonCodec(), encrypted(OTHER_KEY, KEY)]), "r", 0, 0, 0, "plain again")
    assert seen[1:] == ["sealed", "new key", "plain again"]
    before = database.everything()[1]
    seen = stopped(database.store(), "r", "not called", "not called")
    assert isinstance(seen[1], durable.errors.UnreadableRecord)
    assert "codec 'fernet'" in str(seen[1])
    seen = stopped(database.store(codec=encrypted(OTHER_KEY)), "r", "not called", "not called")
    assert isinstance(seen[1], durable.errors.UnreadableRecord)
    assert "failed with InvalidToken" in str(seen[1])
    assert database.everything()[1] == before


class Broken:
    """A codec of somebody's that fails."""

    name = "broken"

    def encode(self, value: Any, *, what: str, annotation: Any = None) -> bytes:
        if value == "not JSON":
            return b"{"
        raise RuntimeError(SECRET)

    def decode(self, text: bytes, *, run_id: str, where: str, annotation: Any = None) -> Any:
        raise RuntimeError(SECRET)

    def fingerprint(self, value: Any, *, what: str) -> str:
        raise RuntimeError(SECRET)


def test_what_a_codec_raises_becomes_ours_without_its_text() -> None:
    """Its text might have a part of a value in it."""
    codec = CodecSet([Broken()])
    calls: list[Callable[[], Any]] = [
        lambda: codec.encode(1, what="it"),
        lambda: codec.encode("not JSON", what="it"),
        lambda: codec.fingerprint(1, what="it"),
        lambda: codec.decode(b'{"$type":"codec","name":"broken","value":1}', run_id="r", where="here"),
    ]
    for call in calls:
        with pytest.raises((durable.UnstorableValue, durable.errors.UnreadableRecord), match=r"(the|its) codec") as it:
            call()
        assert SECRET not in str(it.value)
    store = memory(codec=Broken())
    (problem,) = stopped(store, "r", 1)
    assert isinstance(problem, durable.UnstorableValue)
    assert "The body did run" in str(problem)

    def fails(step: durable.Step, _: Any) -> None:
        step("fails", lambda: 1 / 0)

    with pytest.raises(durable.StepFailed, match="could not write its text"):
        durable.run(None, fails, id="f", store=store)
    store.close()


def test_a_codec_that_is_none_is_refused() -> None:
    """When the store is made."""
    for codec in ("json", object(), [], [JsonCodec(), JsonCodec(max_payload=5)], JsonCodec):
        with pytest.raises(durable.InvalidArgument, match="codec"):
            postgres("postgresql://localhost/x", codec=codec)  # type: ignore[arg-type]


def test_a_value_that_looks_like_another_codecs_is_not_taken_for_it(database: Database) -> None:
    """A dict with the key `$type` is written as pairs, whatever it says."""
    lookalikes = [{"$type": "codec", "name": "fernet", "value": "x"}, {"$type": "date", "value": "2031-05-01"}]
    for codec in (None, encrypted()):
        store = database.store(codec=codec)
        assert stopped(store, f"r-{codec is None}", *lookalikes) == lookalikes
        assert stopped(store, f"r-{codec is None}", *lookalikes) == lookalikes
