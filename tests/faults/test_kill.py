"""A checkout in a process of its own, killed with SIGKILL, and begun again until it is complete.

Whatever the moment: the next life goes on at once (`on_conflict="raise"` would say so if it had to wait for the dead
owner's lease), no step whose checkpoint was acknowledged or committed runs its body again, and every step runs. The
bodies' effects are lines in a file, which no transaction takes back.
"""

from __future__ import annotations

import itertools
import multiprocessing
import os
import random
import secrets
import signal
import statistics
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from multiprocessing import forkserver
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any, Final, NamedTuple

import psycopg
import pytest

from harness.kill_child import END, KEYS, RESULT, Death, Life, Place, live
from harness.programs import limited
from harness.proxy import Link, Moment, Proxy
from harness.support import Database

_HERE: Final = Path(__file__).resolve().parents[1]
_PATIENCE: Final = 60.0  # seconds that a test waits for something that cannot take long: only a bug makes it wait


@pytest.fixture(scope="module")
def processes() -> ForkServerContext:
    """Makes children that have everything imported."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["__main__", "kill_child"])
    with pytest.MonkeyPatch.context() as patch:
        # Python 3.11 does not tell the fork server our sys.path, and a preload that fails fails silently.
        patch.setenv("PYTHONPATH", str(_HERE), prepend=os.pathsep)
        forkserver.ensure_running()
    return context


class Child:
    """One process: one life of a run. It is ready when this returns, and goes when it is told."""

    def __init__(self, processes: ForkServerContext, life: Life) -> None:
        self._pipe, others = processes.Pipe()
        self._process = processes.Process(target=limited, args=(live, life, others))
        self._process.start()
        others.close()
        self._hear()

    def go(self) -> None:
        self._pipe.send("go")

    def has_answered(self) -> bool:
        """Whether it has told its outcome, or has died."""
        return self._pipe.poll()

    def kill(self) -> None:
        pid = self._process.pid
        assert pid is not None
        with suppress(ProcessLookupError):  # it may have ended well before
            os.kill(pid, signal.SIGKILL)

    def outcome(self) -> dict[str, Any] | None:
        """What the run returned; None if the process died before it could say so. It is gone when this returns."""
        try:
            word, answer = self._hear()
        except (EOFError, OSError):
            word, answer = "died", None
        self._process.join()
        exit_code = self._process.exitcode
        self._process.close()
        self._pipe.close()
        assert word != "raised", answer
        assert exit_code == (0 if word == "returned" else -signal.SIGKILL) or (word, exit_code) == ("returned", -9)
        result: dict[str, Any] | None = answer
        return result

    def _hear(self) -> Any:
        if not self._pipe.poll(_PATIENCE):
            self.kill()
            pytest.fail("the child hangs")
        return self._pipe.recv()


class Look(NamedTuple):
    """What was seen between two lives."""

    lines: int  # in the effect log
    records: dict[str, str]  # of steps, in the journal


class Lives:
    """All lives of one run, and the judgement on them."""

    def __init__(
        self,
        processes: ForkServerContext,
        database: Database,
        directory: Path,
        *,
        asynchronous: bool,
        run_id: str = "checkout-123",
    ) -> None:
        self.run_id = run_id
        self.kills = 0
        self._processes = processes
        self._database = database
        self._directory = directory
        self._asynchronous = asynchronous
        self._log = directory / f"{run_id}.effects"
        self._log.touch()
        self._lives = 0
        self._looks: list[Look] = []

    def ready(self, *, death: Death | None = None, url: str | None = None, opened: bool = False) -> Child:
        """The next life, ready to go."""
        self._lives += 1
        life = Life(
            url=url or self._database.url,
            schema=self._database.schema,
            run_id=self.run_id,
            asynchronous=self._asynchronous,
            log=str(self._log),
            owners=str(self._directory),
            death=death,
            opened=opened,
        )
        return Child(self._processes, life)

    def ended(self, child: Child) -> dict[str, Any] | None:
        """What this life returned, and a look at what it left behind."""
        outcome = child.outcome()
        self.kills += outcome is None
        self._looks.append(Look(len(self.lines), self._records()))
        return outcome

    def lived(self, *, death: Death | None = None) -> dict[str, Any] | None:
        """The next life, from beginning to end."""
        child = self.ready(death=death)
        child.go()
        return self.ended(child)

    def await_lines(self, more: int, child: Child) -> None:
        """Look until a life has left so many lines in the effect log, or has ended."""
        enough = self._looks[-1].lines + more if self._looks else more
        until = time.monotonic() + _PATIENCE
        while len(self.lines) < enough and not child.has_answered():
            assert time.monotonic() < until, "the child hangs"
            time.sleep(0.0005)

    @property
    def lines(self) -> list[tuple[str, str]]:
        """The effect log."""
        return [(word, of) for word, _, of in (line.partition(" ") for line in self._log.read_text().splitlines())]

    @property
    def bodies(self) -> Counter[str]:
        """How often each body ran."""
        return Counter(of for word, of in self.lines if word == "body")

    @property
    def recorded(self) -> tuple[str, ...]:
        """The steps in the journal at the last look."""
        return tuple(self._looks[-1].records)

    @property
    def epoch(self) -> int:
        """How often the lease was granted."""
        rows = self._database.execute("SELECT epoch FROM durable_locks WHERE workflow_id = %s", self.run_id)
        return int(rows[0][0]) if rows else 0

    @property
    def status(self) -> str | None:
        return self._database.status(self.run_id)

    def judge(self, result: dict[str, Any] | None) -> None:
        """The run is over with this result: everything that must hold, whatever happened on the way."""
        assert result == RESULT
        assert self.status == "completed"
        journal = self._database.journal(self.run_id)
        assert [(kind, key) for kind, key, _ in journal] == [("step", key) for key in KEYS] + [("result", "result")]
        self._judge_bodies()
        self._judge_epochs()
        for earlier, later in itertools.pairwise(self._looks):
            assert earlier.records.items() <= later.records.items(), "a committed record was lost or changed"

    def _judge_bodies(self) -> None:
        known: set[str] = set()
        looks = iter(self._looks)
        look = next(looks)
        for number, (word, of) in enumerate(self.lines):
            while number >= look.lines:
                known |= look.records.keys()
                look = next(looks)
            if word in ("ack", "replay"):
                known.add(of)
            assert word != "body" or of not in known, f"line {number}: {of} ran again after its checkpoint"
        assert set(self.bodies) == set(KEYS)
        assert max(self.bodies.values()) <= 1 + self.kills

    def _judge_epochs(self) -> None:
        epochs = [int(of) for word, of in self.lines if word == "began"]
        assert all(earlier < later for earlier, later in itertools.pairwise(epochs))
        assert self.epoch == epochs[-1] <= self._lives

    def _records(self) -> dict[str, str]:
        query = "SELECT key, record::text FROM durable_steps WHERE workflow_id = %s AND kind = 'step' ORDER BY seq"
        try:
            return dict(self._database.execute(query, self.run_id))
        except psycopg.errors.UndefinedTable:  # killed before it had made the tables
            return {}


@pytest.fixture(params=[False, True], ids=["sync", "async"])
def lives(request: pytest.FixtureRequest, processes: ForkServerContext, database: Database, tmp_path: Path) -> Lives:
    return Lives(processes, database, tmp_path, asynchronous=request.param)


@pytest.fixture
def proxy(database: Database) -> Iterator[Proxy]:
    with Proxy(database.url) as proxy:
        yield proxy


ONCE: Final = Counter(KEYS)


def killed_at(proxy: Proxy, moment: Moment, marker: str, lives: Lives) -> None:
    """A life that is killed when this statement is at this moment; its connection ends there."""
    child = lives.ready(url=proxy.url)

    def end(link: Link) -> None:
        child.kill()
        link.cut()

    trap = proxy.trap(moment, marker, end)
    child.go()
    assert lives.ended(child) is None
    assert trap.sprung.wait(_PATIENCE)  # it was this that killed it


def before(key: str) -> tuple[str, ...]:
    """The steps before this one."""
    return KEYS[: KEYS.index(key)]


def test_an_undisturbed_run_is_what_the_others_are_compared_with(lives: Lives) -> None:
    lives.judge(lives.lived())

    assert lives.bodies == ONCE
    assert lives.epoch == 1


@pytest.mark.parametrize("key", KEYS)
def test_killed_before_a_body(lives: Lives, key: str) -> None:
    """FAULTS 3."""
    assert lives.lived(death=Death(Place.BEFORE_BODY, key)) is None
    assert lives.recorded == before(key)

    lives.judge(lives.lived())

    assert lives.bodies == ONCE
    assert lives.epoch == 2


@pytest.mark.parametrize("key", KEYS)
def test_killed_after_a_body_before_its_checkpoint(lives: Lives, key: str) -> None:
    """FAULTS 4: the one duplicate that an ordinary step can have."""
    assert lives.lived(death=Death(Place.AFTER_BODY, key)) is None
    assert lives.recorded == before(key)

    lives.judge(lives.lived())

    assert lives.bodies == ONCE + Counter([key])
    assert lives.epoch == 2


@pytest.mark.parametrize("key", KEYS)
def test_killed_with_the_checkpoint_sent_but_not_arrived(lives: Lives, proxy: Proxy, key: str) -> None:
    """FAULTS 5, 41."""
    killed_at(proxy, Moment.SENT, key, lives)
    assert lives.recorded == before(key)

    lives.judge(lives.lived())

    assert lives.bodies == ONCE + Counter([key])
    assert lives.epoch == 2


@pytest.mark.parametrize("key", KEYS)
def test_killed_while_the_server_works_on_the_checkpoint(lives: Lives, proxy: Proxy, key: str) -> None:
    """FAULTS 6: committed or not, and the next life must see which."""
    killed_at(proxy, Moment.FORWARDED, key, lives)

    lives.judge(lives.lived())

    assert lives.bodies in (ONCE, ONCE + Counter([key]))
    assert lives.epoch == 2


@pytest.mark.parametrize("key", KEYS)
def test_killed_with_the_checkpoint_committed_and_its_reply_undelivered(lives: Lives, proxy: Proxy, key: str) -> None:
    """FAULTS 6."""
    killed_at(proxy, Moment.ANSWERED, key, lives)
    assert lives.recorded == (*before(key), key)

    lives.judge(lives.lived())

    assert lives.bodies == ONCE
    assert lives.epoch == 2


@pytest.mark.parametrize("key", KEYS)
def test_killed_when_the_checkpoint_is_acknowledged(lives: Lives, key: str) -> None:
    """FAULTS 7; with the last key also 8."""
    assert lives.lived(death=Death(Place.ACKNOWLEDGED, key)) is None
    assert lives.recorded == (*before(key), key)

    lives.judge(lives.lived())

    assert lives.bodies == ONCE
    assert lives.epoch == 2


@pytest.mark.parametrize("moment", list(Moment))
@pytest.mark.parametrize("marker", ["pg_advisory", "_migrations", "CREATE TABLE", "GENERATED ALWAYS", "INSERT INTO"])
def test_killed_while_the_tables_are_being_made(lives: Lives, proxy: Proxy, moment: Moment, marker: str) -> None:
    """FAULTS 11: the next start makes them whole; no version is half recorded."""
    killed_at(proxy, moment, marker, lives)

    lives.judge(lives.lived())

    assert lives.bodies == ONCE


def test_killed_before_the_claim_arrives(lives: Lives, proxy: Proxy) -> None:
    """FAULTS 1."""
    killed_at(proxy, Moment.SENT, lives.run_id, lives)
    assert lives.epoch == 0

    lives.judge(lives.lived())

    assert lives.epoch == 1


def test_killed_with_the_claim_committed_and_its_reply_undelivered(lives: Lives, proxy: Proxy) -> None:
    """FAULTS 2."""
    killed_at(proxy, Moment.ANSWERED, lives.run_id, lives)
    assert (lives.epoch, lives.status, lives.bodies) == (1, "running", Counter())

    lives.judge(lives.lived())

    assert lives.bodies == ONCE
    assert lives.epoch == 2


def test_killed_before_the_finish(lives: Lives) -> None:
    """FAULTS 8."""
    assert lives.lived(death=Death(Place.RETURNED)) is None
    assert (lives.recorded, lives.status) == (KEYS, "running")

    lives.judge(lives.lived())

    assert lives.bodies == ONCE
    assert lives.epoch == 2


def test_killed_with_the_finish_sent_but_not_arrived(lives: Lives, proxy: Proxy) -> None:
    """FAULTS 8."""
    killed_at(proxy, Moment.SENT, END, lives)
    assert (lives.recorded, lives.status) == (KEYS, "running")

    lives.judge(lives.lived())

    assert lives.bodies == ONCE
    assert lives.epoch == 2


def test_killed_with_the_finish_committed_and_its_reply_undelivered(lives: Lives, proxy: Proxy) -> None:
    """FAULTS 9."""
    killed_at(proxy, Moment.ANSWERED, END, lives)
    assert lives.status == "completed"

    lives.judge(lives.lived())

    assert lives.bodies == ONCE
    assert lives.epoch == 1


def test_killed_after_the_finish(lives: Lives) -> None:
    """FAULTS 9."""
    assert lives.lived(death=Death(Place.COMPLETED)) is None
    assert lives.status == "completed"

    lives.judge(lives.lived())

    assert lives.bodies == ONCE
    assert lives.epoch == 1


@pytest.mark.parametrize("marker", [*KEYS, END])
def test_what_a_dead_owner_had_sent_arrives_after_the_take_over(
    lives: Lives, proxy: Proxy, database: Database, marker: str
) -> None:
    """FAULTS 20, 43; I3: the second life holds the lease, dead as it is, when the first one's write reaches the server.

    It has not written that place of the journal itself, so it is the fence that rejects, not the primary key.
    """
    same_point = Death(Place.RETURNED) if marker == END else Death(Place.BEFORE_BODY, marker)
    child = lives.ready(url=proxy.url)
    taken_over = threading.Event()

    def hold(_: Link) -> None:
        child.kill()
        taken_over.wait(_PATIENCE)

    proxy.trap(Moment.SENT, marker, hold)
    rejected = proxy.trap(Moment.ANSWERED, marker, lambda _: None)
    child.go()
    try:
        assert lives.ended(child) is None
        assert lives.lived(death=same_point) is None
        stored = database.everything()
    finally:
        taken_over.set()
    assert rejected.sprung.wait(_PATIENCE)

    assert database.everything() == stored
    lives.judge(lives.lived())
    assert lives.epoch == 3


# In each of the tests below: 8 × 4 within the run, 2 × 4 from the first connection on. More of them are repetitions: `make nightly` has
# sixty times as many here, and thousands, with every other fault beside them, in `chaos`.
RANDOM_KILLS: Final = int(os.environ.get("DURABLE_KILLS", "4"))
_LINES: Final = 2 + 2 * len(
    KEYS
)  # that a life leaves in its log: that it began, each body and its acknowledgement, that it is complete


@pytest.mark.long(2)
@pytest.mark.parametrize("part", range(10))
def test_killed_at_random_moments(processes: ForkServerContext, database: Database, tmp_path: Path, part: int) -> None:
    """FAULTS 1-9, wherever the moment falls: when a drawn number of lines are in the log, and a drawn time later.

    The time is a part of what one line takes, so that the moments are spread over the whole run on any machine.
    $DURABLE_SEED repeats the moments of a failure (its schedule repeats less).
    """
    seed = os.environ.get("DURABLE_SEED") or secrets.token_hex(4)
    print(f"DURABLE_SEED={seed}")
    chance = random.Random(f"{seed} {part}")
    asynchronous, opened = part % 2 == 1, part < 8
    numbers = itertools.count()

    def next_run() -> Lives:
        run_id = f"checkout-{next(numbers)}"
        return Lives(processes, database, tmp_path, asynchronous=asynchronous, run_id=run_id)

    a_line = statistics.median(undisturbed(next_run(), opened=opened) for _ in range(3)) / _LINES
    hits, inside = 0, 0
    while hits < RANDOM_KILLS:
        lives, outcome = next_run(), None
        while outcome is None:
            child = lives.ready(opened=opened)
            child.go()
            if hits < RANDOM_KILLS:
                # Until one was, not before a step can be recorded: of four moments all may fall before the first.
                lives.await_lines(chance.randrange(0 if inside else 2, _LINES), child)
                time.sleep(chance.uniform(0.0, a_line))
                child.kill()
            outcome = lives.ended(child)
            hits += outcome is None
            inside += outcome is None and len(lives.recorded) > 0
        lives.judge(outcome)
    print(f"{hits} processes killed, {inside} of them with steps recorded; a line takes {a_line * 1e3:.1f} ms")
    assert inside or not opened  # else it was not the run that was killed


def undisturbed(lives: Lives, *, opened: bool) -> float:
    """How many seconds a life takes that nobody kills."""
    child = lives.ready(opened=opened)
    began = time.perf_counter()
    child.go()
    outcome = child.outcome()
    taken = time.perf_counter() - began
    assert outcome == RESULT
    return taken
