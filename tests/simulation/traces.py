"""Traces of seeds: what can be seen of a history from outside, in its order, with its moments.

Code that was changed without changing what it does leaves them equal. A line for each request that reaches the
server, each row that a commit changes, each event that a run emits, and what each caller gets. What depends on the
code's place is left out (the tracebacks in records), and what depends on the process (the numbers in tokens).

`tests/golden/traces.txt` has a digest of each seed's. `python -m simulation --trace 7` prints a trace, to be compared
with that of another commit; where names of events or statements have changed, through `sed`. `python -m simulation
--renew-traces` writes the file anew.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from hashlib import sha256
from pathlib import Path
from typing import Any, Final

from simulation.database import Change
from simulation.scenario import Scenario, generated
from simulation.server import Request, Server
from simulation.simulate import Conditions, simulated
from simulation.tables import Header, Lease, Step

__all__ = ["GOLDEN", "SEEDS", "differing", "golden", "renew", "trace"]

GOLDEN: Final = Path(__file__).resolve().parent.parent / "golden" / "traces.txt"
SEEDS: Final = range(201)

_TRACEBACK: Final = re.compile(r'"traceback":"(?:[^"\\]|\\.)*"')
_TOKEN: Final = re.compile(r"(:p\d+l\d+)\.\d+")


class _Lines:
    """See `simulate.Witness`."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def starts(self, server: Server) -> None:
        """Listen to its requests and commits."""
        audit = server.database.audit

        def committed(number: int, changes: list[Change]) -> None:
            for change in changes:
                self.saw(server.timeline.now, f"commit {change.table.name} {_row(change.after)}")
            if audit is not None:
                audit(number, changes)

        def requested(backend: int, items: Request) -> None:
            self.saw(server.timeline.now, f"request {backend} {' '.join(name for name, _ in items)}")

        server.database.audit, server.on_request = committed, requested

    def saw(self, now: float, what: str) -> None:
        """A line."""
        seen = _TOKEN.sub(r"\1", what)
        self.lines.append(f"{now:.9f} {seen}")


def _row(row: Any) -> str:
    if isinstance(row, Lease):
        return f"{row.workflow_id} epoch {row.epoch} of {row.owner} until {row.expires_at:.9f}"
    if isinstance(row, Header):
        return f"{row.id} is {row.status}"
    if isinstance(row, Step):
        return repr(row._replace(record=_TRACEBACK.sub("", row.record)))
    return repr(row)


def trace(seed: int, conditions: Conditions | None = None) -> list[str]:
    """The lines of a seed; the last says whether an invariant broke."""
    return traced(generated(seed), conditions)


def traced(scenario: Scenario, conditions: Conditions | None = None) -> list[str]:
    """The same of any scenario."""
    witness = _Lines()
    outcome = simulated(scenario, conditions or Conditions(), witness)
    return [*witness.lines, f"broken: {outcome.broken}"]


def golden() -> dict[int, str]:
    """The digest of each seed's trace."""
    lines = [line.split() for line in GOLDEN.read_text("utf-8").splitlines()]
    return {int(seed): digest for seed, digest in lines}


def differing(seeds: Iterable[int]) -> list[int]:
    """Those whose trace is not the golden one."""
    digests = golden()
    return [seed for seed in seeds if digests.get(seed) != _digest(trace(seed))]


def renew() -> None:
    """Write the golden file as things are now."""
    GOLDEN.write_text("".join(f"{seed} {_digest(trace(seed))}\n" for seed in SEEDS), "utf-8")


def _digest(lines: list[str]) -> str:
    if lines[-1] != "broken: None":  # that is nothing to be equal to
        raise AssertionError(lines[-1])
    return sha256("\n".join(lines).encode()).hexdigest()[:16]
