"""What a benchmark hands on: lines of the table, as JSON keeps them."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any


@dataclass
class Line:
    """A line of the table. `value` is in `unit`; `goal` is a bound with its direction, like "≥ 0.85"; `of` what a ratio is to.

    `cpu`: microseconds apiece of the caller, the writer and the server, and `each`, the time that passed.
    """

    workload: str
    name: str
    value: float
    unit: str
    of: str = ""
    low: float | None = None
    high: float | None = None
    goal: str = ""
    rate: float | None = None
    cpu: dict[str, float] = field(default_factory=dict[str, float])

    @property
    def met(self) -> bool | None:
        """Whether the goal was met; None: there is none."""
        return self._meets(self.value)

    @property
    def settled(self) -> bool:
        """Whether the whole middle half says so."""
        return all(self._meets(value) is self.met for value in (self.low, self.high) if value is not None)

    def _meets(self, value: float) -> bool | None:
        if not self.goal:
            return None
        sign, bound = self.goal.split()
        return value >= float(bound) if sign == "≥" else value <= float(bound)


@dataclass
class Results:
    """One run of the benchmark."""

    machine: dict[str, str]
    lines: list[Line] = field(default_factory=list[Line])
    counts: dict[str, dict[str, float]] = field(default_factory=dict[str, dict[str, float]])
    growth: dict[str, list[tuple[float, float]]] = field(default_factory=dict[str, list[tuple[float, float]]])
    missing: dict[str, str] = field(default_factory=dict[str, str])

    def save(self, path: Path) -> None:
        """As JSON, figures to four places."""
        path.write_text(json.dumps(_round(asdict(self)), indent=1, ensure_ascii=False) + "\n", "utf-8")

    @classmethod
    def load(cls, path: Path) -> Results:
        """From there."""
        raw = json.loads(path.read_text("utf-8"))
        raw["lines"] = [Line(**line) for line in raw["lines"]]
        return cls(**raw)

    def line(self, workload: str, name: str) -> Line | None:
        """The first line of this workload whose name is this."""
        return next((line for line in self.lines if (line.workload, line.name) == (workload, name)), None)


def _round(value: Any) -> Any:
    match value:
        case float():
            return float(f"{value:.4g}")
        case dict():
            return {key: _round(part) for key, part in value.items()}
        case list() | tuple():
            return [_round(part) for part in value]
    return value
