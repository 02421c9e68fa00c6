"""The simulation's model of PostgreSQL against PostgreSQL: the same statements, interleaved, say and leave the same."""

from __future__ import annotations

import json
import math
import os
import random
from collections import Counter
from typing import Any, Final

import pytest

from harness.differential import Both, Comparison, compared
from harness.support import Database

# Repetitions: `make nightly` has 5000. There were 150 here, the costliest test of all; each kind of `OCCURS` is waited for all the same.
SCENARIOS: Final = int(os.environ.get("DURABLE_DIFFERENTIAL", "60"))
MOST: Final = 25  # times as many, until everything has occurred
LONG: Final = 1000.0  # seconds: a lease that will not end; or has long been over
IDS: Final = ("a", "b")
STARTS: Final = ("c", "d", "e")  # runs that are started here, beside those
WORKERS: Final = ("v", "w")
CLAIM: Final = ("take_leases", "open_runs", "read_runs", "read_journals")

DOCUMENTS: Final[tuple[dict[str, Any], ...]] = (
    *[{"formatVersion": 1, "workflowName": "w", "steps": {}, "execution": {"status": "running"}, "metadata": {}}] * 9,
    {"formatVersion": 1, "steps": {}, "execution": {"status": "running"}},
    {"formatVersion": 1, "workflowName": "", "steps": {}, "execution": {"status": "completed"}, "metadata": {"of": 1}},
    {"formatVersion": 1, "workflowName": "w", "steps": {}, "execution": {"status": "failed"}, "metadata": None},
    {"formatVersion": 1, "workflowName": "w", "steps": {}, "execution": {"status": "failed", "needsDecision": True}},
    {"formatVersion": 1, "workflowName": "w", "execution": {"status": "cancelled"}, "metadata": {"inputHash": "h"}},
    {
        "formatVersion": 1,
        "workflowName": "w",
        "execution": {"status": "failed"},
        "metadata": {"workflowFunction": "m:f", "version": 1},
    },
    {"formatVersion": 1, "execution": {"status": "running"}, "metadata": {"workflowFunction": "n:f"}},
    {"formatVersion": 1, "workflowName": "w", "execution": {"status": "running"}, "metadata": {"version": 2}},
    {"formatVersion": 1, "workflowName": "other", "execution": {"status": "running"}},
    {"formatVersion": 1, "workflowName": "w", "execution": {"status": 7}},
    {"formatVersion": 2, "workflowName": "w", "execution": {"status": "running"}},
    {"kind": "ResumeState", "steps": [], "execution": {"status": "running"}},
    {
        "formatVersion": 1,
        "workflowName": "a",
        "execution": {"status": "running"},
        "metadata": {"stepOrder": [], "of": 1},
    },
    {"formatVersion": 1, "workflowName": "b", "execution": {"status": "completed"}, "metadata": {"stepArgs": [None]}},
    {"formatVersion": 1, "workflowName": "w", "execution": {"status": "failed"}, "metadata": {"lastStepKey": "x"}},
)

ENDS: Final = (
    ("completed", "result", '{"x": 1}'),
    ("failed", "failure", '{"x": 1}'),
    ("failed", "failure", '{"undecided": ["k0"]}'),
    ("running", "aside", '{"seqs": [0], "undecided": []}'),
)

WORK: Final = ("enqueue", "enqueue", "poll", "poll", "say_idle", "wake", "leave", "recall", "held_near", "expire")

WAITS: Final = [
    "recall",
    "expire",
    "take_leases",
    "checkpoint",
    "checkpoint_batch",
    "finish_batch",
    "release_batch",
    "lock_leases",
    "cancel_batch",
    "transaction_fence",
    "transaction_record",
    "move",
    "effect",
]
EITHER: Final = ["enqueue", "take_leases", "checkpoint", "finish_batch", "cancel_batch"]
REPLIES: Final = [
    "enqueue",
    "read_started",
    "poll",
    "wake",
    "leave",
    "recall",
    "held_near",
    "expire",
    "wake_suspended",
    "wake_awaiting",
    "take_leases",
    "checkpoint",
    "checkpoint_batch",
    "finish_batch",
    "release_batch",
    "lock_leases",
    "read_leases",
    "read_nonces",
    "renew",
    "cancelled",
    "ask_batch",
    "cancel_batch",
    "receive_batch",
    "transaction_fence",
    "read_journals",
]
OCCURS: Final = frozenset(
    [f"{name}: {what}" for name in REPLIES for what in ("something", "nothing")]
    + [f"{name}: something, after a wait" for name in WAITS]
    + [f"{name}: nothing, after a wait" for name in EITHER]
    + ["transaction_settings: something", "restore_settings: something", "move: something", "move: nothing"]
    + ["40P01", "23505", "23505, after a wait", "23502", "25P02"]
    + [
        "skipped",
        "one of several was let in",
        "COMMIT",
        "ROLLBACK",
        "read_runs: something",
        "open_runs: something",
        "say_idle: something",
        "three wait or hold",
    ]
)
"""What must have been compared: each statement with either answer, granted and refused after a wait, and each error."""


class Script:
    """What the connections do, by chance."""

    def __init__(self, comparison: Comparison, seed: int) -> None:
        self.comparison = comparison
        self.chance = random.Random(seed)
        self.seed = seed
        self.claims = 0
        self.plans: dict[Both, list[tuple[str, Any]]] = {}

    def perform(self, steps: int) -> None:
        """A short history, and then the end of everything that is open."""
        chance, comparison = self.chance, self.comparison
        documents = {run_id: chance.choice(DOCUMENTS) for run_id in IDS if chance.random() < 0.6}
        leases = {run_id: chance.choice((LONG, -LONG)) for run_id in IDS if chance.random() < 0.7}
        due = {run_id: chance.choice((None, LONG, -LONG, -LONG)) for run_id in leases if chance.random() < 0.4}
        comparison.start(self.seed, chance.choice((2, 3)), documents, leases, due)
        self.plans = {both: [] for both in comparison.connections}
        for _ in range(steps):
            self._step(chance.choice([both for both in self.plans if not both.busy]))
        while any(self.plans.values()):
            self._step(chance.choice([both for both, plan in self.plans.items() if plan and not both.busy]), ends=True)

    def _step(self, both: Both, *, ends: bool = False) -> None:
        plan = self.plans[both]
        if not plan and not ends:
            plan.extend(self._plan(both))
        what, values = plan.pop(0)
        if what == "BEGIN":
            self.comparison.begin(both)
        elif values is None:
            self.comparison.seen[what] += 1
            self.comparison.end(both, what)
        else:
            self.comparison.run(both, what, self._values(what) if values is ... else values)
        active = [other for other in self.plans if other.busy or other.model.transaction is not None]
        self.comparison.seen["three wait or hold"] += len(active) == 3

    def _plan(self, both: Both) -> list[tuple[str, Any]]:
        chance = self.chance
        end = (chance.choice(("COMMIT", "COMMIT", "ROLLBACK")), None)
        what = chance.choice(
            ("claim", "claim", "settle", "transaction", "transaction", "open", "open", "alone", "alone", "race", "ask")
            if chance.random() < 0.7
            else ("start", "work", "work", "notice", "suspend", "suspend")
        )
        if what == "start":
            values = self._starts()
            return [("BEGIN", ...), ("enqueue", values), ("read_started", values), end, *self._waking()]
        if what == "work" and chance.random() < 0.4:  # the reply to a poll is lost
            values = self._work([], []) | {
                "count": 1,
                "seconds": LONG,
                "routes": [self._named("q"), self._named("r")],
                "route_queues": ["none", "none"],
                "schedules": list[str](),
            }
            polled = [("BEGIN", ...), ("poll", values | {"random": f"{values['name']}.1"}), ("COMMIT", None)]
            return [*polled, ("BEGIN", ...), ("recall", values), end, ("poll", values | {"random": "again.1"})]
        if what == "notice":
            return [("BEGIN", ...), ("notice", ...), ("wake_suspended", ...), end]
        if what == "suspend":  # the lease is locked, and looked at by a later statement
            ids = chance.sample([self._named(run_id) for run_id in IDS], chance.choice((1, 2)))
            tokens, told = [self._token(run_id) for run_id in ids], json.dumps([{"name": "s", "taken": []}])
            columns = (
                ids,
                tokens,
                [None for _ in ids],
                [math.inf for _ in ids],
                ['suspended ["s"]' for _ in ids],
                [told for _ in ids],
            )
            rows = [{"n": 0, "id": ids[0], "name": "s", "payload": '"hi"', "nonce": chance.randrange(3), "later": True}]
            suspended = [("BEGIN", ...), ("lock_leases", (ids,)), ("release_batch", columns), end]
            signalled = [("signal_batch", (json.dumps(rows),))]
            woken = [("BEGIN", ...), ("wake_awaiting", (json.dumps(rows),)), end]
            noticed = [("BEGIN", ...), ("notice", ...), ("wake_suspended", ...), end]
            return chance.choice(
                ([*signalled, *suspended], [*suspended, *signalled, *woken], [*suspended, *signalled, *noticed])
            )
        if what == "ask":
            values = self._values("ask_batch")
            ids = [row["id"] for row in json.loads(values[0])]
            return [("BEGIN", ...), ("lock_leases", (ids,)), ("ask_batch", values), end]
        if what == "work":
            return [("BEGIN", ...), *((name, ...) for name in chance.sample(WORK, chance.choice((1, 2, 3)))), end]
        if what == "claim":
            values = self._claim()
            return [("BEGIN", ...), *((name, values) for name in CLAIM), end]
        idle = [other for other, plan in self.plans.items() if other is not both and not plan and not other.busy]
        if what == "race" and idle:  # a run ends while it is being cancelled
            self.plans[idle[0]].extend(
                [
                    ("BEGIN", ...),
                    ("cancel_batch", ([*map(self._named, IDS)], [False for _ in IDS], [None for _ in IDS])),
                    end,
                ]
            )
            return [("BEGIN", ...), ("finish_batch", ...), ("COMMIT", None)]
        if what == "settle":
            return [("BEGIN", ...), ("lock_leases", ...), ("read_nonces", ...), end]
        if what == "transaction":
            run_id = self._id()
            fence, record = ("transaction_fence", (run_id,)), ("transaction_record", self._record(run_id))
            if chance.random() < 0.5:  # short, so that others come upon its record
                return [("BEGIN", ...), fence, record, end]
            settings = ("transaction_settings", (LONG, f"{LONG * 1000:.0f}"))
            restore = ("restore_settings", ("public", "none", "off", "0"))
            return [("BEGIN", ...), settings, fence, *self._body(run_id), restore, record, end]
        # Of three, one that committed by itself as soon as it was let in would hide who came first.
        active = (other.busy or other.model.transaction is not None for other in self.plans)
        if what == "alone" and (len(self.plans) == 2 or not any(active)):
            return [(chance.choice(ALONE), ...)]
        return [("BEGIN", ...), *((chance.choice(ALONE), ...) for _ in range(chance.randint(1, 3))), end]

    def _values(self, name: str) -> Any:
        chance = self.chance
        ids = chance.sample([self._named(run_id) for run_id in IDS], chance.choice((1, 2)))
        tokens = [self._token(run_id) for run_id in ids]
        match name:
            case "checkpoint":
                return (*self._step_row(), ids[0], tokens[0])
            case "checkpoint_batch":
                rows = [
                    {"n": n, **self._row(run_id, token)}
                    for n, (run_id, token) in enumerate(zip(ids, tokens, strict=True))
                ]
                rows.append({"n": len(rows), **self._row(ids[0], self._token(ids[0])), "nonce": 5})  # its own, as ever
                return (json.dumps(rows),)
            case "finish_batch":
                status, kind, record = chance.choice(ENDS)
                end = {"status": status, "record": record, "kind": kind, "due_in": chance.choice((0.0, LONG))}
                rows = [self._row(run_id, token) for run_id, token in zip(ids, tokens, strict=True)]
                records = chance.choice((0, 0, 0, 2))
                return (json.dumps([{**row, **end, "seq": row["seq"] + 1, "records": records} for row in rows]),)
            case "release_batch":
                statuses = [chance.choice((None, None, "failed", "queued", "cancelled")) for _ in ids]
                return self._releases(ids, tokens, statuses)
            case "renew":
                return ids, tokens, [chance.choice((LONG, LONG, -LONG)) for _ in ids]
            case "cancel_batch":
                return ids, [chance.random() < 0.3 for _ in ids], [chance.choice((None, "why")) for _ in ids]
            case "ask_batch":
                reasons = [chance.choice((None, "why")) for _ in ids]
                return (
                    json.dumps(
                        [
                            {
                                "id": run_id,
                                "force": chance.random() < 0.2,
                                "reason": reason,
                                "nonce": chance.randrange(2),
                            }
                            | {"below": chance.random() < 0.3}
                            for run_id, reason in zip(ids, reasons, strict=True)
                        ]
                    ),
                )
            case "wake_awaiting":
                return (
                    json.dumps(
                        [{"id": run_id, "name": chance.choice("sst"), "nonce": chance.randrange(3)} for run_id in ids]
                    ),
                )
            case "notice" | "wake_suspended":
                return None
            case "signal_batch":
                rows = [{"n": n, "id": run_id, **self._signal()} for n, run_id in enumerate([*ids, ids[0]])]
                return (json.dumps(rows),)
            case "receive_batch":
                numbers = range(max(0, self.comparison.tables.numbers[0] - 3), self.comparison.tables.numbers[0] + 1)
                taken = [number for number in numbers if chance.random() < 0.2]
                return (
                    json.dumps(
                        [{"n": 0, "id": ids[0], "names": list(chance.choice(("s", "t", "st"))), "taken": taken}]
                    ),
                )
            case "enqueue":
                return self._starts()
            case "wake":
                return {"routes": self._routes(), "count": chance.choice((1, 2))}
            case "poll" | "say_idle" | "leave" | "recall" | "held_near" | "expire":
                return self._work(ids, tokens)
            case "read_nonces":
                return ids, [chance.randrange(3) for _ in ids]
            case _:  # lock_leases, read_leases, count_records, cancelled, find_below
                return (ids,)

    def _releases(self, ids: list[str], tokens: list[str], statuses: list[str | None]) -> Any:
        chance, few = (
            self.chance,
            range(max(0, self.comparison.tables.numbers[0] - 2), self.comparison.tables.numbers[0] + 1),
        )
        suspended, awaits = list[str | None](), list[str | None]()
        for _ in ids:
            names = chance.sample("st", chance.choice((0, 1, 2)))
            asked = [{"name": name, "taken": [n for n in few if chance.random() < 0.3]} for name in names]
            is_suspended = chance.random() < 0.7
            suspended.append(f"suspended {json.dumps(names)}" if is_suspended else None)
            awaits.append(json.dumps(asked) if is_suspended and asked else None)
        return ids, tokens, statuses, [chance.choice((0.0, LONG, math.inf)) for _ in ids], suspended, awaits

    def _waking(self) -> list[tuple[str, Any]]:
        return [("BEGIN", ...), ("wake", ...), ("COMMIT", None)] if self.chance.random() < 0.5 else []

    def _routes(self) -> list[str]:
        return self.chance.sample([self._named("q"), self._named("r")], self.chance.choice((1, 2)))

    def _starts(self) -> dict[str, Any]:
        """Runs that are started together, some of them twice, some instead of each other."""
        chance = self.chance
        rows: list[dict[str, Any]] = []
        for n, run_id in enumerate(chance.choices([*IDS, *STARTS, *STARTS], k=chance.choice((1, 1, 2)))):
            header: dict[str, Any] = {"workflowName": "w", "formatVersion": 1, "steps": {}, "metadata": {"version": 1}}
            header["execution"] = {"status": "queued"}
            if run_id in STARTS and chance.random() < 0.5:
                header["dedup"] = [self._named("q"), "x"]
            row = {"n": n, "id": self._named(run_id), "route": self._routes()[0], "priority": chance.choice((0, 5))}
            row |= {"at": chance.choice((None, "1969-01-01T00:00:00+00:00", "2999-01-01T00:00:00+00:00"))}
            nonce, given = chance.randrange(3), chance.choice((None, '{"b": 1, "a": 2.0}'))
            if given is None:
                header["nonce"] = nonce
            row |= {"delay": chance.choice((0.0, LONG)), "header": header, "nonce": nonce}
            rows.append({**row, "input": given})
        return {"runs": json.dumps(rows)}

    def _work(self, ids: list[str], tokens: list[str]) -> dict[str, Any]:
        chance = self.chance
        self.claims += 1
        poll = f"p{chance.choice((self.claims, max(1, self.claims - 1)))}"
        # Of several that are due at one moment, which is first is the server's choice.
        return {
            "routes": (routes := self._routes()),
            "serves": routes,
            "route_queues": ["none"] * len(routes),
            "schedules": list[str](),
            "worker": self._named(chance.choice(WORKERS)),
            "count": chance.choice((1, 10, 10)),
            "name": poll,
            "random": f"q{self.claims}.1",
            "sending": chance.choice((1, 2, 2)),
            "owner": chance.choice(("me", "you")),
            "seconds": chance.choice((LONG, LONG, 2 * LONG, -LONG)),
            "host": chance.choice(("", "m", "m", "nowhere")),
            "dead_ids": ids[:1],
            "dead": tokens[:1],
            "floor": chance.choice((None, 0.0)),
            "asks_floor": False,  # it tells a moment, and the clocks are not the same
        }

    def _claim(self) -> dict[str, Any]:
        chance = self.chance
        claims: list[dict[str, Any]] = []
        for run_id in chance.sample([self._named(run_id) for run_id in IDS], chance.choice((1, 2))):
            self.claims += 1
            header = {"workflowName": "w", "execution": {"status": "running"}, "formatVersion": 1, "steps": {}}
            claim = {
                "id": run_id,
                "random": f"x.{self.claims}",
                "owner": chance.choice(("me", "you")),
                "seconds": chance.choice((LONG, -LONG)),
                "dead": self._token(run_id) if chance.random() < 0.3 else None,
                "workflow": "w",
                "function": chance.choice((None, None, "m:f", "n:f")),
                "version": 1,
                "input_hash": chance.choice((None, None, "h", "other")),
                "after_failure": chance.random() < 0.8,
                "may_create": chance.random() < 0.8,
                "amends": chance.random() < 0.2,
                "header": {**header, "metadata": {"version": 1}},
                "input": chance.choice((None, '{"b": 1, "a": 2.0}')),
            }
            claims.append(claim)
        return {
            "claims": json.dumps(claims),
            "openings": json.dumps(claims),
            "dead": [claim["dead"] for claim in claims if claim["dead"]],
            "ids": [claim["id"] for claim in claims],
            "randoms": [claim["random"] for claim in claims],
            "places": [chance.choice((-(2**31), 0, 1)) for _ in claims],
            "most": chance.choice((0, 1000)),
            "rows": chance.choice((1, 1000)),
        }

    def _body(self, run_id: str) -> list[tuple[str, Any]]:
        execution = 10 * self.seed + self.chance.randrange(3)
        moves = [("move", (1, self._named("a"))), ("move", (-1, self._named(self.chance.choice(("b", "b", "nobody")))))]
        return self.chance.sample([*moves, ("effect", (execution, run_id, 7, "1:x"))], 3)

    def _record(self, run_id: str) -> list[Any]:
        seq, key, kind, nonce, record = self._step_row()
        return [run_id, seq, key, kind, nonce, record, int(self.chance.random() < 0.8), 1]  # 0: another transaction's

    def _step_row(self) -> tuple[int, str, str, int, str]:
        seq = self.chance.randrange(3)
        return seq, f"k{seq}", "step", self.chance.randrange(5), self.chance.choice(('{"b": 1.0, "a": 1e3}', "null"))

    def _row(self, run_id: str, token: str) -> dict[str, Any]:
        seq, key, kind, nonce, _ = self._step_row()
        return {"id": run_id, "token": token, "seq": seq, "key": key, "kind": kind, "nonce": nonce, "record": {"x": 1}}

    def _signal(self) -> dict[str, Any]:
        nonce, later = self.chance.randrange(3), self.chance.random() < 0.7
        return {"name": self.chance.choice("sst"), "payload": '"hi"', "nonce": nonce, "later": later}

    def _token(self, run_id: str) -> str:
        """The token that stands there, or will; or another."""
        row = self.comparison.tables.locks.rows.get(run_id)
        known = [] if row is None else [values.owner_token for _, values in [*row.versions, *row.pending]]
        tokens = [token for token in known if token]
        if not tokens or self.chance.random() < 0.1:
            return "1:nobody's"
        return tokens[-1] if self.chance.random() < 0.8 else self.chance.choice(tokens)

    def _id(self) -> str:
        return self._named(self.chance.choice(IDS))

    def _named(self, run_id: str) -> str:
        return self.comparison.prefix + run_id


ALONE: Final = [
    "checkpoint",
    "checkpoint",
    "checkpoint_batch",
    "finish_batch",
    "finish_batch",
    "release_batch",
    "renew",
    "cancel_batch",
    "cancel_batch",
    "signal_batch",
    "signal_batch",
    "receive_batch",
    "receive_batch",
    "lock_leases",
    "read_leases",
    "count_records",
    "read_nonces",
    "cancelled",
    "wake_awaiting",
]


@pytest.mark.long(3)
def test_the_model_and_postgresql_say_and_leave_the_same(database: Database) -> None:
    """Two and three connections, interleaved, until all that `OCCURS` has been compared."""
    with compared(database, 3) as comparison:
        for seed in range(SCENARIOS * MOST):
            if seed >= SCENARIOS and not missing(comparison.seen):
                break
            Script(comparison, seed).perform(25)
        assert not missing(comparison.seen), (missing(comparison.seen), comparison.seen)


def test_numbers_that_were_drawn_at_once_are_the_servers_choice(database: Database) -> None:
    """Three that wait for one signal go on at once, and each draws a number for its next one (5,000 scenarios met two)."""
    with compared(database, 4) as comparison:
        for seed in range(1000):
            if comparison.seen["numbered by the server"] >= 10:
                break
            comparison.start(seed, 4, {}, {})
            first, *others = comparison.connections
            comparison.begin(first)
            comparison.run(first, "signal_batch", _signals(seed, 0))
            for n, other in enumerate(others, 1):
                comparison.run(other, "signal_batch", _signals(seed, 0, n))
            comparison.end(first, "COMMIT")
        assert comparison.seen["numbered by the server"]


def _signals(seed: int, *nonces: int) -> tuple[str]:
    signal = {"id": f"{seed}-a", "name": "s", "payload": "1", "later": True}
    return (json.dumps([{"n": n, **signal, "nonce": nonce} for n, nonce in enumerate(nonces)]),)


def missing(seen: Counter[str]) -> set[str]:
    """What has not occurred yet."""
    return {what for what in OCCURS if not seen[what]}
