"""What was played, added up: one file of parts, each with the code, the machine and the command that it came from."""

from __future__ import annotations

import fcntl
import json
import os
import platform
import subprocess
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import psycopg

from chaos.judge import Verdict

ROOT = Path(__file__).resolve().parents[2]


@dataclass
class Part:
    """One call of the runner. `caught` is, for each planted bug, by which law and in how many rounds; "" if it was not."""

    command: str
    seed: str
    commit: str
    versions: dict[str, str]
    machine: str
    rounds: Counter[str] = field(default_factory=Counter)
    counts: Counter[str] = field(default_factory=Counter)
    tables: dict[str, Counter[str]] = field(default_factory=dict)
    caught: dict[str, str] = field(default_factory=dict)
    violations: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    hours: list[dict[str, Any]] = field(default_factory=list)

    def add(self, name: str, verdict: Verdict) -> None:
        """A round more."""
        self.rounds[name] += 1
        self.counts.update(verdict.counts)
        for table, counts in verdict.tables.items():
            self.tables[table] = self.tables.get(table, Counter()) + counts
        self.violations += [f"{name}: {violation}" for violation in verdict.violations]


def begun(command: str, seed: str, server: str | None = None) -> Part:
    """A part without any round yet; without a server where there is none in it."""
    versions = {
        "durable": metadata.version("durable-postgres"),
        "Python": platform.python_version(),
        "psycopg": psycopg.__version__,
    }
    if server is not None:
        with psycopg.connect(server) as connection:
            version = connection.info.server_version
        versions["PostgreSQL"] = f"{version // 10000}.{version % 10000}"
    machine = f"{platform.system()} {platform.release()}, {platform.machine()}, {os.cpu_count()} cores"
    return Part(command, seed, _commit(), versions, machine)


def keep(path: Path, part: Part) -> None:
    """Write it to the others. Two may end at once, each with its own."""
    with path.open("a", encoding="utf-8") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        parts = ",\n".join(json.dumps(vars(each), ensure_ascii=False) for each in [*kept(path), part])
        path.write_text(f"[\n{parts}\n]\n", "utf-8")


def kept(path: Path) -> list[Part]:
    """All parts."""
    text = path.read_text("utf-8") if path.exists() else ""
    return [_part(each) for each in json.loads(text or "[]")]


def summed(parts: list[Part]) -> tuple[Counter[str], dict[str, Counter[str]]]:
    """The counts and tables of all of them."""
    counts: Counter[str] = Counter()
    tables: dict[str, Counter[str]] = defaultdict(Counter)
    for part in parts:
        counts.update(part.counts)
        for name, table in part.tables.items():
            tables[name].update(table)
    return counts, tables


def _part(told: dict[str, Any]) -> Part:
    counters = {name: Counter(told[name]) for name in ("rounds", "counts")}
    return Part(**{**told, **counters, "tables": {name: Counter(table) for name, table in told["tables"].items()}})


def _commit() -> str:
    """The commit that is checked out, and whether something else was played."""
    answer = subprocess.run(
        ["git", "describe", "--always", "--dirty", "--abbrev=12"], check=False, capture_output=True, text=True, cwd=ROOT
    )
    return answer.stdout.strip() or "unknown"
