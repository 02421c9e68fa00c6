"""The numbered cases of faults and abuse: which test names which, and which are answered in words."""

from __future__ import annotations

import re
from collections import defaultdict
from pathlib import Path
from typing import Final

from chaos.figures import ROOT

_NAMED: Final = re.compile(r"FAULTS\s+([^:\"\n]*)")
_NUMBERS: Final = re.compile(r"(\d+)(?:\s*[-–]\s*(\d+))?")
_ANSWER: Final = re.compile(r"^- Case ((?:\d+|, | and )+)", re.MULTILINE)


def named() -> dict[int, list[str]]:
    """For each number the test files that name it in a docstring or heading."""
    found: dict[int, set[str]] = defaultdict(set)
    for file in sorted((ROOT / "tests").rglob("test_*.py")):
        for told in _NAMED.findall(file.read_text("utf-8")):
            for first, last in _NUMBERS.findall(told):
                for number in range(int(first), int(last or first) + 1):
                    found[number].add(file.stem)
    return {number: sorted(files) for number, files in found.items()}


def answered(page: Path = ROOT / "docs" / "guarantees.md") -> set[int]:
    """The numbers that the page on guarantees says something about."""
    text = page.read_text("utf-8")
    return {int(number) for told in _ANSWER.findall(text) for number in re.findall(r"\d+", told)}


def table(*, neighbours: bool) -> str:
    """The cases of what else uses the database and the machine, or all others, in Markdown."""
    tests, words = named(), answered()
    lines = ["| case | what happens | tests |", "| --- | --- | --- |"]
    for number, what in CASES.items():
        if (number in NEIGHBOURS) != neighbours:
            continue
        told = ", ".join(f"`{name}`" for name in tests.get(number, []))
        answer = "[answered](guarantees.md#cases-that-no-test-covers)" if number in words else ""
        lines.append(f"| {number} | {what} | {'; '.join(filter(None, [told, answer])) or '**nothing**'} |")
    return "\n".join(lines)


CASES: Final[dict[int, str]] = {
    1: "killed before the claim is committed",
    2: "killed with the claim committed, nothing loaded",
    3: "killed in a body",
    4: "killed between a body's end and its checkpoint",
    5: "killed with a checkpoint sent, not committed",
    6: "killed with the COMMIT sent, the reply unread",
    7: "killed with the checkpoint acknowledged",
    8: "killed between the last step and the finish",
    9: "killed with the finish committed, the result not returned",
    10: "killed while the lease is given back",
    11: "killed while the tables are being made",
    12: "all workers killed at once",
    13: "a step that always kills its process",
    14: "killed for lack of memory",
    15: "SIGTERM in a long step",
    16: "stopped in a body for longer than the lease",
    17: "stopped between a body's end and its checkpoint",
    18: "stopped between the last look at the lease and a body's first line",
    20: "a former owner's writes after the take-over",
    21: "a body that blocks the event loop for longer than the lease",
    22: "a body that holds the interpreter's lock for longer than the lease",
    23: "a client's clock that is wrong or jumps",
    25: "the machine suspended for longer than the lease",
    26: "a renewal's reply that comes after the lease's end",
    27: "renewals that fail, for less and for more than a lease",
    28: "stopped within a transaction that holds a lease's row",
    29: "leases of impossible lengths",
    30: "two who wake one sleeping run",
    31: "kill -9 of the server under load",
    32: "restarts of the server, fast and immediate",
    33: "backends terminated",
    34: "an asynchronous standby promoted",
    35: "a synchronous standby promoted",
    36: "a synchronous standby that hangs, and a COMMIT that is cancelled while it waits for it",
    37: "the old primary comes back",
    38: "the URL leads to a standby, or a session is read-only",
    40: "the reply to a COMMIT lost",
    41: "the COMMIT itself lost",
    42: "a connection that falls silent",
    43: "a write that arrives after its repetition",
    44: "a slow wire, one byte at a time, a reset in the midst of 50 MB",
    45: "statement_timeout on checkpoints",
    46: "idle_in_transaction_session_timeout shorter than a transaction's body",
    47: "lock_timeout; transaction_timeout, which PostgreSQL 17 and newer have",
    48: "deadlocks",
    50: "no room on the disk",
    51: "too many connections; a pool of one",
    52: "a pool that the user's own work has exhausted",
    53: "PgBouncer",
    54: "the application's own advisory locks",
    55: "synchronous_commit, fsync or full_page_writes off",
    56: "LISTEN that dies, a full NOTIFY queue",
    57: "a transaction open for an hour",
    59: "versions of PostgreSQL, and what only looks like it",
    60: "fail-over of a URL with several hosts during a claim",
    61: "50 threads, one run",
    62: "processes, one run",
    63: "500 tasks, one run, a pool of five",
    64: "100 workers, 10,000 runs",
    65: "1,000 claims a second for ten runs",
    66: "8 processes make the tables at once",
    67: "two versions of the library at once",
    68: "cancel, claim, finish, prune in all orders",
    69: "prune or delete of a run that is being executed",
    70: "one id, another workflow or input",
    71: "100 steps at once in one run",
    72: "two concurrent steps with one key",
    73: "a run that starts itself",
    74: "KeyboardInterrupt, SystemExit, GeneratorExit in a body",
    75: "a task cancelled in a body",
    76: "a task cancelled in a checkpoint",
    77: "an event loop closed under a run",
    79: "the interpreter ends with everything alive",
    80: "signal handlers, uvloop, trio, other interpreters",
    81: "exceptions that cannot be rebuilt",
    83: "values that are no values",
    84: "types that JSON would change",
    85: "numbers that JSON does not have",
    86: "NUL characters",
    87: "lone surrogates",
    88: "nesting 20,000 deep",
    89: "values of 1, 10 and 100 MB",
    90: "100,000 steps in one run",
    91: "10,000 runs in one process",
    93: "steps removed, added, renamed, reordered",
    94: "an order that chance decides",
    95: "an explicit key in a loop",
    96: "a step inside a body",
    97: "stored rows that are damaged",
    98: "what earlier versions have stored",
    100: "ids that look like SQL, or like nothing",
    102: "prefixes with wildcards in them",
    103: "names of tables that need quotes",
    104: "stored rows that would make objects",
    105: "passwords in messages",
    106: "a role with few rights",
    108: "two schemas in one process",
    110: "forged requests to a dashboard",
    111: "a default isolation of REPEATABLE READ or SERIALIZABLE",
    112: "a take-over while a checkpoint is open, with and without the unique index",
    113: "two branches that repeat a key without knowing",
    114: "a failure and a later success, repaired",
    115: "one bad record in a batch of 500",
    116: "a future that no caller waits for any more",
    117: "heartbeats, claims and batches over the same runs",
    118: "a fork with runs in flight",
    119: "a loop closed, a task abandoned, a thread dead",
    120: "enumerations and subclasses",
    121: "a dead owner on this machine; a living one that cannot be seen",
    122: "code that catches everything when the lease is lost",
    123: "a worker killed between a grant and the first step, in a body, before the finish",
    131: "100,000 runs that sleep, and one that is due behind them",
    124: "eight claimers of a queue with a limit, and crashes",
    125: "a partition that is closed while its last run ends",
    126: "a count in the statement that locks",
    127: "an owner that is dead where the limit is reached",
    128: "an end that comes late, after the place was given on",
    129: "a limit lowered, raised; a queue paused, deleted, while runs are held",
    130: "one tenant with many runs, then thousands with one",
    132: "a million runs that have ended, or 100,000 under one open transaction",
    133: "a start in a transaction that stays open",
    134: "two starts in one transaction, against batches of claims of the same ids",
    135: "the same id started again: other input, another workflow, ended, failed, held by `run`",
    136: "one `dedup` from many starts at once; retried when another run has it",
    137: "a notification that is lost, a listener that is cut",
    138: "many idle workers, and starts one after the other",
    139: "a start between a worker's last poll and its word that it is idle",
    140: "runs of a name, a version or a queue that no worker here has",
    141: "old and new code at once; a run that is migrated",
    142: "a run that kills each worker; deaths that are no crashes",
    143: "SIGTERM in each phase of a worker",
    144: "a poll whose reply is lost; SIGTERM before it comes",
    145: "a run that is suspended, a signal and its notice, in all orders",
    146: "a child that ends before, while and after its parent is suspended; cancelled, poisoned, deleted",
    147: "one place, and a parent that waits there for its child",
    148: "a moment in the past or in a hundred years; a server's clock that is set under it",
    150: "processes that share a schedule, and are killed",
    151: "nights in which clocks are moved, by half an hour, one or two; a zone that is gone",
    152: "a schedule whose workers were away for hours",
    153: "another crontab's line or zone, from old and new workers at once; a schedule that is taken away",
    154: "a run of a moment that is deleted; a moment that is begun twice",
    162: "cancel, retry, fork, purge and poll of one run, in all orders of two",
    165: "dependencies that cannot be made",
    166: "a pool of one connection, PgBouncer",
    167: "a worker in a worker, two in one process, a fork",
    170: "a thread that cannot be started, or fails in a turn; log handlers that raise or are slow",
    171: "a journal or value that takes longer on a slow line than the lease",
    172: "a trigger, rule or row-level security that drops or hides rows",
    173: "an exception at every line, a cancellation at every suspension, twice; signals; the end of the stack",
    174: "a body that ends, deletes, cancels, forks or prepares (PREPARE TRANSACTION) what it stands in",
    175: "a wall clock that steps within the life of a process",
    176: "prefixes of which one begins another",
    177: "another role's functions in a schema of the search path",
    178: "rows that name other classes, fields that no class has",
    179: "steps that ran while their workflow failed or was interrupted",
    180: "decorators above a step, methods of every kind, annotations that were copied",
    181: "the application's adapters, and what it sets on its connections",
    182: "the order in which concurrent steps end",
    183: "several hosts, one of them silent; two errors to one statement; leases that could not be given back",
    184: "directories that other accounts can write to: programs of a server, its data, its socket",
}

NEIGHBOURS: Final = frozenset({54, 57, 106, 108, 172, 174, 176, 177, 181, 184})
