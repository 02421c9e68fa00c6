"""What an SQLSTATE says of a batch: whether it was committed, and whether it may be tried again."""

from __future__ import annotations

from typing import Final

from durable._engine.batches import Verdict

_NO_REPLY: Final = ("40003", "57P01", "57P02", "57P03", "57P05", "25P03", "25P04")
_CONFLICTS: Final = ("40001", "40P01")
_UNPREPARED: Final = ("26000", "42P05")
# Of the connection, the statement, or the server: another record would fare no better.
_FINAL: Final = ("0A", "21", "24", "26", "28", "2B", "2D", "34", "3B", "3D", "3F", "42", "72", "F0", "XX")
_BY_CLASS: Final = {
    "22": Verdict.REFUSED,  # data exception
    "23": Verdict.REFUSED,  # integrity constraint
    "54": Verdict.REFUSED,  # program limit exceeded
    "25": Verdict.PASSING,  # read-only, after a fail-over
    "53": Verdict.PASSING,  # no room on the disk, too many connections
    "55": Verdict.PASSING,  # a lock that was not to be had in time
    "57": Verdict.PASSING,  # cancelled by a timeout
    "58": Verdict.UNKNOWN,  # the server's own input and output failed, perhaps in its commit
}


LOCK_NOT_AVAILABLE: Final = "55P03"


def classify(sqlstate: str | None, *, sent: bool = True, waits_briefly: bool = False) -> Verdict:
    """What an error with this SQLSTATE means; None is an error of the wire.

    `waits_briefly`: the statement was not to wait for locks; else the time-out is one that is set for everything.
    """
    if not sent:
        return Verdict.UNREACHED
    if sqlstate is None or sqlstate[:2] == "08" or sqlstate in _NO_REPLY:
        return Verdict.UNKNOWN
    if sqlstate in _CONFLICTS:
        return Verdict.CONFLICT
    if sqlstate in _UNPREPARED:
        return Verdict.UNPREPARED
    if sqlstate == LOCK_NOT_AVAILABLE and waits_briefly:
        return Verdict.LOCKED
    if sqlstate[:2] in _FINAL:
        return Verdict.FINAL
    return _BY_CLASS.get(sqlstate[:2], Verdict.REFUSED)  # a trigger may raise any code of its own
