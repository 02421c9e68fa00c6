"""Deterministic simulation: the real engine, drivers, leases and writer on a modelled database, in virtual time.

`simulated(generated(seed))` lets one history happen and says whether an invariant broke; `shrunk` makes a failing one
small; `to_json` keeps it. The same scenario always gives the same history.
"""

from simulation import tripwire as tripwire  # first: it must know the product before it has imported anything

# isort: split
from simulation.crews import crewed, kindred, limited, ticking, waiting
from simulation.history import SOMETIMES, Broken
from simulation.scenario import FAULTS, Fault, Op, Run, Scenario, Slot, from_json, generated, to_json
from simulation.shrinking import shrunk
from simulation.simulate import Conditions, Outcome, simulated

__all__ = [
    "FAULTS",
    "SOMETIMES",
    "Broken",
    "Conditions",
    "Fault",
    "Op",
    "Outcome",
    "Run",
    "Scenario",
    "Slot",
    "crewed",
    "from_json",
    "generated",
    "kindred",
    "limited",
    "shrunk",
    "simulated",
    "ticking",
    "to_json",
    "waiting",
]
