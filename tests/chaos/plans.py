"""The rounds that are played: what strikes in each, and on what ground."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from typing import Final

from chaos.faults import Weather
from chaos.rounds import Plan
from chaos.servers import Ground, pair, single, small

_WAYS: Final = ("direct", "proxy", "bouncer", "proxy")

GROUNDS: Final[dict[str, Callable[[], AbstractContextManager[Ground]]]] = {
    "one server": single,
    "a server with a small disk": small,
    "a primary and a synchronous standby": partial(pair, synchronous=True),
    "a primary and an asynchronous standby": partial(pair, synchronous=False),
}

KILLS: Final = Plan("kills", Weather(deadly=0.015, kills=6, losses=0.2), workers=6, runs_of_a_kind=20)
PAUSES: Final = Plan(
    "pauses", Weather(stops=4, kills=0.5, terminations=1, slow=0.08), _WAYS, workers=6, runs_of_a_kind=20
)
CUTS: Final = Plan(
    "cuts",
    Weather(cuts=0.15, wire_kills=0.05, terminations=2, kills=0.5),
    ("proxy", "proxy", "proxy", "bouncer"),
    workers=6,
    runs_of_a_kind=20,
)
SERVERS: Final = Plan(
    "servers",
    Weather(server_kills=1.2, kills=1, stops=0.5, slow=0.05),
    ("direct", "proxy"),
    lease=2.0,
    runs_of_a_kind=20,
)
EVERYTHING: Final = Plan(
    "everything",
    Weather(deadly=0.005, kills=2, losses=0.05, stops=1, cuts=0.03, wire_kills=0.01, terminations=1, slow=0.03),
    _WAYS,
    workers=6,
    runs_of_a_kind=20,
)
DISK: Final = Plan("disk", Weather(full_disks=1.5, kills=0.5, slow=0.05), runs_of_a_kind=20)
FAIL_OVER: Final = Plan("fail-over", Weather(promotions=1, kills=1, slow=0.1), lease=2.0, runs_of_a_kind=20)
# Without runs that wait for each other: a signal can be lost while the step that sent it goes on.
FORGETFUL: Final = Plan(
    "forgetful fail-over",
    Weather(promotions=1, kills=1, slow=0.1),
    lease=2.0,
    runs_of_a_kind=20,
    kinds=("fan", "money", "once", "halted", "broken", "moved"),
    forgets=True,
)

PLANS: Final[dict[str, tuple[str, Plan]]] = {
    plan.name: (ground, plan)
    for ground, plan in (
        ("one server", KILLS),
        ("one server", PAUSES),
        ("one server", CUTS),
        ("one server", SERVERS),
        ("one server", EVERYTHING),
        ("a server with a small disk", DISK),
        ("a primary and a synchronous standby", FAIL_OVER),
        ("a primary and an asynchronous standby", FORGETFUL),
    )
}

_STOPS: Final = Weather(stops=4, slow=0.3)
_DEATHS: Final = Weather(deadly=0.02, kills=6)

# For each planted bug what brings it to light.
TRAPS: Final[dict[str, Plan]] = {
    "no fence": Plan("no fence", _STOPS, workers=5, kinds=("halted", "moved", "broken")),
    "no index": Plan("no index", Weather(stops=5, slow=0.5, stop_for=(0.8, 1.3)), workers=6, kinds=("money",)),
    "acknowledged before commit": Plan("acknowledged before commit", _DEATHS),
    "lost reply trusted": Plan("lost reply trusted", Weather(cuts=0.2), ("proxy",), kinds=("moved", "fan")),
    "taken from the living": Plan("taken from the living", Weather(kills=1), kinds=("halted", "patient", "order")),
    "last record overlooked": Plan("last record overlooked", _DEATHS, kinds=("moved",)),
    "transaction in two": Plan("transaction in two", _DEATHS, kinds=("money",)),
    "beginning not recorded": Plan("beginning not recorded", _DEATHS, kinds=("once",), runs_of_a_kind=20),
}
