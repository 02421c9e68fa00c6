"""What a round has shown: everything that must hold, held against the three witnesses, and figures to add up."""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from typing import Any, Final

from chaos.audit import Findings
from chaos.effects import Line
from chaos.programs import INPUTS, repeated
from chaos.scene import digest

# Bodies that are meant to run again: they fail, or ask the store for something, which may not be there.
RETRIED: Final = {("order", "charge"), ("order", "tell"), ("order", "halt"), ("broken", "second")}
_AT_MOST_ONCE: Final = {("once", "pay")}
_OFTEN: Final = "…"
_JITTER: Final = 0.02  # seconds by which two readings of two clocks may disagree


@dataclass
class Verdict:
    """`violations` in words; `counts` by name, and `tables` of counts by name and case."""

    violations: list[str] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    tables: dict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))

    def broken(self, law: str, cases: Iterable[object]) -> int:
        """These cases have broken a law."""
        found = list(cases)
        self.violations += [f"{law}: {case}" for case in found[:5]] + [f"{law}: {_OFTEN}"] * (len(found) > 5)
        return len(found)


@dataclass(frozen=True)
class Case:
    """What the judge is given. `forgets`: acknowledged ends at what an asynchronous standby had received."""

    lines: Sequence[Line]
    findings: Findings
    copies: set[tuple[str, str, int]]
    runs: Sequence[str]
    oracle: Mapping[str, str]
    in_time: bool
    forgets: bool = False


def judge(case: Case) -> Verdict:
    """Look at everything."""
    verdict = Verdict()
    verdict.broken("surprise", (line.more for line in case.lines if line.word == "surprise"))
    _ends(case, verdict)
    _acknowledgements(case, verdict)
    _bodies(case, verdict)
    _transactions(case, verdict)
    _writes(case, verdict)
    _leases(case, verdict)
    _faults(case, verdict)
    _recoveries(case, verdict)
    return verdict


def _ends(case: Case, verdict: Verdict) -> None:
    snapshots = case.findings.snapshots
    stands = {run: snapshots[run].execution.status if run in snapshots else "absent" for run in case.runs}
    verdict.counts["runs"] += len(case.runs)
    verdict.counts["runs not ended"] += verdict.broken(
        "a run has not ended", (f"{run} is {status}" for run, status in stands.items() if status != "completed")
    )
    if not case.in_time:
        verdict.broken("not in time", ["the workers were still at it when patience ended"])
    results = [line for line in case.lines if line.word == "result"]
    verdict.counts["results"] += len(results)
    verdict.counts["results unlike the oracle's"] += verdict.broken(
        "a result is not the oracle's",
        (f"{line.run}: {line.more}" for line in results if line.more != case.oracle.get(question(line.run), line.more)),
    )


def _acknowledgements(case: Case, verdict: Verdict) -> None:
    acks = [line for line in case.lines if line.word == "ack"]
    kept = {
        (run, key): digest(step.json)
        for run, snapshot in case.findings.snapshots.items()
        for key, step in snapshot.steps.items()
        if step.ok
    }
    lost = [line for line in acks if kept.get((line.run, _key(line))) != line.more]
    if case.forgets:
        verdict.counts["acknowledged before a fail-over without a synchronous standby"] += len(acks)
        verdict.counts["of these lost with it"] += len(lost)
        return
    verdict.counts["acknowledged steps"] += len(acks)
    verdict.counts["acknowledged steps lost"] += verdict.broken("an acknowledged step was lost or changed", lost)
    replays = [line for line in case.lines if line.word == "replay"]
    verdict.counts["replays"] += len(replays)
    verdict.counts["replays unlike the record"] += verdict.broken(
        "a replay gave another value", (line for line in replays if kept.get((line.run, _key(line))) != line.more)
    )


def _bodies(case: Case, verdict: Verdict) -> None:
    acknowledged: dict[tuple[str, str], int] = {}
    bodies: Counter[tuple[str, str]] = Counter()
    under: Counter[tuple[str, str, int]] = Counter()
    again, late = list[Line](), 0
    for line in case.lines:
        key = (line.run, _key(line))
        if line.word == "ack":
            acknowledged[key] = min(line.epoch, acknowledged.get(key, line.epoch))
        elif line.word == "body":
            bodies[key] += 1
            under[*key, line.epoch] += 1
            if key in acknowledged:
                if line.epoch >= acknowledged[key]:
                    again.append(line)
                else:
                    late += 1
    ordinary = {key: n for key, n in bodies.items() if not _is(key, RETRIED | _AT_MOST_ONCE) and key[0][:5] != "money"}
    verdict.counts["bodies"] += bodies.total()
    verdict.counts["ordinary steps"] += len(ordinary)
    verdict.counts["ordinary steps whose body ran more than once"] += sum(n > 1 for n in ordinary.values())
    for (run, _), n in ordinary.items():
        if n > 1:
            verdict.tables["ordinary bodies that ran more than once, by the kind of run"][run.partition("-")[0]] += 1
    single = {key: n for key, n in bodies.items() if _is(key, _AT_MOST_ONCE)}
    verdict.counts["at-most-once steps"] += len(single)
    if not case.forgets:
        verdict.counts["acknowledged bodies run again by a lease holder"] += verdict.broken(
            "the body of an acknowledged step ran again under a current lease", again
        )
        verdict.counts["acknowledged bodies begun late by a zombie"] += late
        verdict.counts["at-most-once bodies run again"] += verdict.broken(
            "an at-most-once body ran again", (key for key, n in single.items() if n > 1)
        )
        verdict.broken(
            "a body ran twice under one lease",
            (key for key, n in under.items() if n > 1 and key[:2] in ordinary),
        )


def _transactions(case: Case, verdict: Verdict) -> None:
    ledger = case.findings.ledger
    applied = Counter((line.run, line.key) for line in ledger)
    expected = {(run, f"transfer-{i}") for run in case.runs if run.startswith("money") for i in range(3)}
    verdict.counts["transactional steps"] += len(expected)
    verdict.counts["transactional effects doubled"] += verdict.broken(
        "a transaction's effect was doubled", (key for key, n in applied.items() if n > 1)
    )
    if case.in_time:
        verdict.broken("a transaction's effect is missing", expected - applied.keys())
    moved = sum(line.cents for line in ledger)
    sums = {side: sum(cents for name, cents in case.findings.balances.items() if name.endswith(side)) for side in "ab"}
    if sums != {"a": -moved, "b": moved}:
        verdict.broken("the accounts are not what the ledger says", [(sums, moved)])
    if not case.forgets:
        verdict.counts["copies in the second database"] += len(case.copies)
        verdict.broken(
            "the second database knows a transaction that is not there",
            case.copies - {(line.run, line.key, line.number) for line in ledger},
        )


def _writes(case: Case, verdict: Verdict) -> None:
    writes = case.findings.writes
    inserted = [write for write in writes if write.operation == "INSERT"]
    removed = {(write.xact, write.run, write.epoch) for write in writes if write.operation == "DELETE"}
    verdict.counts["audited writes"] += len(inserted)
    verdict.counts["writes under a stale lease"] += verdict.broken(
        "a record was written under a lease that was not its writer's",
        (write for write in inserted if not _by_its_owner(write, removed)),
    )
    verdict.broken(
        "a record was changed or removed",
        (write for write in writes if write.operation != "INSERT" and not write.run.startswith("moved")),
    )
    verdict.broken(
        "a completed run was written",
        (head for head in case.findings.headers if not (head.run.startswith("moved") and head.new == "completed")),
    )


def _by_its_owner(write: Any, removed: AbstractSet[tuple[str, str, int]]) -> bool:
    """Whether a row's writer had the lease; a row's epoch is that under which its record was made.

    A migration replaces a journal in one transaction, under a lease that it takes and gives back in it: records keep the
    epochs that they had there, and no other.
    """
    if (write.xact, write.run, write.epoch) in removed:
        return bool(write.ended) and write.epoch < write.lease
    if write.lease != write.epoch:
        return False
    return bool(write.ended) or (write.owner or "").rpartition(":")[2] == write.writer[1:]


def _leases(case: Case, verdict: Verdict) -> None:
    wall = time.time() - time.monotonic()  # the store's moments are the clock's on the wall, of this same machine
    died: dict[str, float] = {}
    for line in case.lines:
        if line.word in ("kill", "worker over"):
            died.setdefault(str(line.pid), line.at + wall - _JITTER)
    early, wrong = list[Any](), list[Any]()
    for change in case.findings.leases:
        owner = (change.owner or "").rpartition(":")[2]
        if not owner.isdigit():  # it was free
            continue
        if change.token is None and change.new == change.old:
            if change.heir != "cancelled" and change.taken_by != f"w{owner}":
                wrong.append(change)
        elif (
            change.left_of.total_seconds() > 0 and change.taken_by != f"w{owner}"
        ):  # what it could not give back it takes
            early.append(change)
    stolen = [
        change for change in early if change.at.timestamp() < died.get(change.owner.rpartition(":")[2], float("inf"))
    ]
    verdict.counts["leases taken"] += sum(change.token is not None for change in case.findings.leases)
    verdict.counts["of these from a dead owner, before their end"] += len(early) - len(stolen)
    verdict.broken("a lease was given back by somebody else", wrong)
    verdict.broken("a lease was taken from a living owner before its end", stolen)
    began = Counter((line.run, line.epoch) for line in case.lines if line.word == "began")
    if not case.forgets:
        verdict.broken("an epoch was granted twice", (key for key, n in began.items() if n > 1))
    verdict.counts["executions"] += began.total()


def _faults(case: Case, verdict: Verdict) -> None:
    killed: set[int] = set()
    awake: set[int] = set()
    for place, line in enumerate(case.lines):
        match line.word:
            case "worker over":
                killed.add(line.pid)  # it cannot be any more
            case "kill" if line.pid not in killed:
                killed.add(line.pid)
                awake.discard(line.pid)
                verdict.tables["SIGKILL"][line.more] += 1
            case "stop":
                verdict.counts["SIGSTOP"] += 1
            case "wake":
                awake.add(line.pid)
            case "terminated":
                verdict.counts["backends terminated"] += 1
            case "server down":
                verdict.tables["servers ended"][line.more] += 1
            case "promoted":
                verdict.tables["promotions"][line.more] += 1
            case "disk full":
                verdict.counts["disks full"] += 1
            case "error":
                verdict.tables["told to callers"][line.more] += 1
                verdict.counts["zombies rejected"] += line.more == "LeaseLost" and line.pid in awake
            case "cut":
                for run in line.key.split():
                    verdict.tables[f"{line.more}"][_outcome(case.lines, place, run)] += 1
                verdict.counts["commits cut off" if line.more.startswith("write") else "claims cut off"] += 1
            case _:
                pass
    verdict.counts["processes"] += sum(line.word == "worker" for line in case.lines)
    noticed = [line for line in case.lines if line.word == "error" and line.more == "RecordsLost"]
    verdict.counts["holes noticed"] += len(noticed)
    if not case.forgets:
        verdict.broken("records were missed that nothing can have lost", noticed)


_OUTCOMES: Final = {
    "ack": "acknowledged",
    "failed": "acknowledged",
    "completed": "acknowledged",
    "began": "lease granted",
    "result": "result returned",
    "surprise": "surprise",
}


def _outcome(lines: Sequence[Line], place: int, run: str) -> str:
    """What the process whose write was cut off heard of it in the end."""
    pid = lines[place].pid
    for line in lines[place + 1 :]:
        if line.pid == pid and line.word == "kill":
            return "killed before it knew"
        if (
            line.pid == pid
            and line.run == run
            and (said := _OUTCOMES.get(line.word) or (line.word == "error" and line.more))
        ):
            return said
    return "refused, or an attempt's record"


def _recoveries(case: Case, verdict: Verdict) -> None:
    """From a fault to the moment when what it had struck goes on, in milliseconds."""
    holders: dict[str, int] = {}
    orphans: dict[str, tuple[str, float]] = {}
    since: tuple[str, float] | None = None
    for line in case.lines:
        if line.word == "began":
            if line.run in orphans:
                fault, at = orphans.pop(line.run)
                verdict.tables[f"recovery after {fault}"][_rounded(line.at - at)] += 1
            holders[line.run] = line.pid
        elif line.word in ("completed", "error") and holders.get(line.run) == line.pid:
            del holders[line.run]
        elif line.word in ("kill", "stop"):
            fault = {"kill": "SIGKILL of the owner", "stop": "SIGSTOP of the owner"}[line.word]
            orphans |= {run: (fault, line.at) for run, pid in holders.items() if pid == line.pid and run not in orphans}
        elif line.word == "wake":  # it has not been taken over
            orphans = {run: each for run, each in orphans.items() if holders.get(run) != line.pid}
        elif line.word in ("server down", "primary killed"):
            since = since or (line.word, line.at)
        elif line.word == "ack" and since is not None:
            verdict.tables[f"recovery after {since[0]}"][_rounded(line.at - since[1])] += 1
            since = None


def _rounded(seconds: float) -> str:
    """Milliseconds, of which two digits count."""
    return f"{float(f'{seconds * 1e3:.1e}'):g}"


def question(run: str) -> str:
    """What a run was asked: its kind and its input."""
    kind, _, number = run.partition("-")
    return f"{kind} {int(number) % INPUTS}"


def _key(line: Line) -> str:
    return repeated(line.key) if line.run.startswith("moved") else line.key


def _is(key: tuple[str, str], kinds: set[tuple[str, str]]) -> bool:
    return (key[0].partition("-")[0], key[1]) in kinds
