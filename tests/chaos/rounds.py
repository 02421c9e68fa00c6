"""One round: runs, a crew, faults, and the judge's word on it."""

from __future__ import annotations

import random
import secrets
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

from chaos import audit, bank
from chaos.crew import Crew
from chaos.effects import Log, lines
from chaos.faults import Faults, Weather
from chaos.judge import Case, Verdict, judge
from chaos.programs import INPUTS, KINDS
from chaos.servers import Ground
from chaos.wire import HostileProxy
from chaos.worker import Orders
from harness.pgbouncer import bouncer

PATIENCE: Final = 60.0  # seconds after the last fault, which only a bug can take
PATIENCE_WITH_PLANTS: Final = 3.0
# What a planted bug may lead to, and does not prove it: only the witnesses do.
_AWKWARD: Final = ("not in time", "a run has not ended", "surprise")


@dataclass(frozen=True)
class Plan:
    """What a round is to be like. `ways`: how workers reach the server, in turns: "direct", "proxy", "bouncer"."""

    name: str
    weather: Weather = field(default_factory=Weather)
    ways: Sequence[str] = ("direct",)
    workers: int = 4
    runs_of_a_kind: int = INPUTS
    kinds: Sequence[str] = tuple(KINDS)
    lease: float = 1.0
    seconds: float = 30.0  # of faults, at most
    plant: str = ""
    forgets: bool = False


def play(plan: Plan, seed: str, ground: Ground, oracle: Mapping[str, str]) -> Verdict:
    """Play a round. What it leaves behind is kept if a law was broken, and the verdict says where."""
    directory = Path(tempfile.mkdtemp(prefix="durable-round-"))
    schema = f"chaos_{secrets.token_hex(4)}"
    chance = random.Random(f"{seed} {plan.name}")
    runs = tuple(f"{kind}-{n}" for kind in plan.kinds for n in range(plan.runs_of_a_kind))
    bank.create(directory / "bank")
    audit.install(ground.admin, schema)
    if plan.plant == "no index":
        audit.drop_index(ground.admin, schema)
    log = Log(directory / "effects")
    with ExitStack() as stack:
        urls = {"direct": ground.url}
        proxies = []
        if "bouncer" in plan.ways:
            urls["bouncer"] = stack.enter_context(bouncer(ground.url, servers=16)).url
        if "proxy" in plan.ways:
            cuts, kills = plan.weather.cuts, plan.weather.wire_kills
            proxies.append(stack.enter_context(HostileProxy(ground.url, log, chance, cuts=cuts, kills=kills)))
            urls["proxy"] = proxies[0].url
        orders = [
            Orders(
                url=urls[plan.ways[n % len(plan.ways)]],
                schema=schema,
                directory=str(directory),
                runs=runs,
                seed=seed,
                asynchronous=n % 2 == 1,
                version=1 if n % 4 == 3 else 2,
                lease=plan.lease,
                deadly=plan.weather.deadly,
                slow=plan.weather.slow,
                plant=plan.plant,
            )
            for n in range(plan.workers)
        ]
        crew = Crew(orders, log)
        stack.callback(crew.end)
        faults = Faults(plan.weather, seed, crew, ground, log, plan.lease)
        try:
            over = crew.lead(plan.seconds)
        finally:
            faults.end()
        for proxy in proxies:
            proxy.calm = True
        if (
            plan.forgets and over
        ):  # what a worker has seen the end of, and the standby has not, is nobody's business any more
            calm = [replace(each, deadly=0.0, slow=0.0) for each in orders[:2]]
            crew = Crew(calm, log)
            stack.callback(crew.end)
            over = crew.lead(PATIENCE)
        in_time = over or crew.lead(PATIENCE_WITH_PLANTS if plan.plant else PATIENCE)
    log.close()
    if plan.plant == "no index":
        audit.restore_index(ground.admin, schema)
    found = audit.findings(ground.admin, schema, runs)
    said = lines(directory / "effects")
    case = Case(said, found, bank.copies(directory / "bank"), runs, oracle, in_time, plan.forgets)
    verdict = judge(case)
    verdict.counts["seconds"] += round(said[-1].at - said[0].at)
    if verdict.violations and not plan.plant:
        verdict.violations.append(f"kept: seed {seed}, schema {schema}, {directory}")
    else:
        audit.remove(ground.admin, schema)
        shutil.rmtree(directory)
    return verdict


def caught(plan: Plan, plant: str, seed: str, ground: Ground, rounds: int) -> tuple[int, str]:
    """How many rounds it took until a law was broken with this bug planted (0: it never was), and which law."""
    for number in range(1, rounds + 1):
        verdict = play(replace(plan, plant=plant, seconds=8.0), f"{seed} {number}", ground, {})
        told = [violation for violation in verdict.violations if not violation.startswith(_AWKWARD)]
        if told:
            return number, told[0].partition(":")[0]
    return 0, ""


def undisturbed(seed: str, ground: Ground) -> tuple[Verdict, dict[str, str]]:
    """A round without faults, and with it the oracle: the result of each question."""
    results: dict[str, str] = {}

    class Recorder(dict[str, str]):
        def get(self, key: str, default: str | None = None) -> str | None:  # type: ignore[override]
            return results.setdefault(key, default or "")

    verdict = play(Plan("undisturbed"), seed, ground, Recorder())
    again = verdict.tables["ordinary bodies that ran more than once, by the kind of run"]
    verdict.broken("a body ran more than once without a fault", again.keys() - {"halted"})  # that one was cancelled
    if len(results) != len(KINDS) * INPUTS:
        verdict.broken("the oracle is not whole", list(results))
    return verdict, results
