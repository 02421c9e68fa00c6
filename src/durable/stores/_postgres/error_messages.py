"""What an error of the connection, or of the server, means to a user.

It quotes no value and no password. A server's own words may: those of a function, such as a trigger's `RAISE`, say whatever
its author wanted, and those about data quote the data. Of these only the SQLSTATE is told.
"""

from __future__ import annotations

import re
from typing import Final

import psycopg

from durable._engine.batches import Verdict
from durable.errors import AccessDenied, DurableError, StoreUnavailable, UnsuitableServer
from durable.stores._postgres import requirements
from durable.stores._postgres.hosts import NoHost
from durable.stores._postgres.sqlstates import classify

# While connecting there is no SQLSTATE, only the server's last words: a refusal, unless they say "not now".
_SIGNS_OF_ABSENCE: Final = (
    "the database system is",
    "terminating connection",
    "too many",
    "remaining connection slots",
    "FATAL:  could not ",  # write or read a file of its own, as on a full disk; fork
    "out of memory",
    "out of shared memory",
)
_SIGNS_OF_REFUSAL: Final = (
    "FATAL:",
    "no password supplied",
    "does not support SSL",
    "certificate",
    "sslmode value",
    "invalid connection option",
    "authentication method requirement",
    "channel binding required",
)
# An objection to the options themselves. It begins like this where no server was asked; otherwise it names a server.
_UNREAD: Final = "connection is bad:"
_SIGN_OF_A_SERVER: Final = "connection to server"
_SIGNS_OF_OPTIONS: Final = ("for connection option", "could not match")
_OPTIONS: Final = "Correct that in the URL, in the environment ($PG...) or in the service file."
_NO_DATABASE: Final = re.compile(r'FATAL:.*database ".*" does not exist')
# SQLSTATE classes in which PostgreSQL itself speaks only of names, times and limits: connections, what it cannot do (as with a
# table that has rules), read-only transactions, authorization, catalogs and schemas, conflicts, names and rights, resources,
# locks, operators, its machine.
_WITHOUT_VALUES: Final = ("08", "0A", "25", "28", "3D", "3F", "40", "42", "53", "55", "57", "58")
_UNKNOWN_NAME: Final = ("42P01", "42703", "42883", "42704")
_OF_OTHERS: Final = "A trigger, rule, policy or constraint on our tables may say so that is not ours."
_NOT_THERE: Final = "Our tables were dropped or renamed, or the search_path leads elsewhere: postgres(url, schema=...)."
_NO_SCHEMA: Final = "Name one in which the role may create tables: postgres(url, schema=...), or its search_path."


def explain(problem: psycopg.Error, where: str) -> DurableError:
    """Our error, in the server's words where they are safe. `StoreUnavailable` only for what may pass by itself."""
    if isinstance(problem, NoHost):
        explained = [explain(one, where) for one in problem.problems]
        # One host that may yet answer is reason enough to try again.
        refused = all(isinstance(one, AccessDenied) for one in explained)
        return explained[0] if refused else StoreUnavailable(where, str(problem))
    state, text = problem.sqlstate, describe(problem)
    if state is None:
        return _explain_without_state(problem, where, text)
    if state.startswith("28"):
        return AccessDenied(where, text)
    if state == "3D000":
        return AccessDenied(where, text, "Create the database, or correct its name in the URL.")
    if state == "3F000":
        return AccessDenied(where, text, _NO_SCHEMA)
    if state == "25006":
        return UnsuitableServer(where, text, requirements.ANOTHER_SERVER)
    if state == "42501":
        return AccessDenied(where, text, "Grant the role what it lacks, or let another one create the tables.")
    if state in _UNKNOWN_NAME:
        return AccessDenied(where, text, _NOT_THERE)
    if classify(state) is Verdict.REFUSED or state.startswith("0A"):
        return AccessDenied(where, text, _OF_OTHERS)
    return StoreUnavailable(where, text)


def describe(problem: psycopg.Error) -> str:
    """What may be told of an error: the server's own words where they cannot quote a value, else its SQLSTATE."""
    state, said = problem.sqlstate, problem.diag
    if state is None:
        return str(problem).strip().split("\n", 1)[0]
    if said.message_primary and not said.context and state.startswith(_WITHOUT_VALUES):
        return said.message_primary
    names = () if said.context else (("table", said.table_name), ("constraint", said.constraint_name))
    told = "".join(f", {what} {name}" for what, name in names if name)
    return f"SQLSTATE {state} ({type(problem).__name__}{told})"


def _explain_without_state(problem: psycopg.Error, where: str, text: str) -> DurableError:
    if _NO_DATABASE.search(text):
        return AccessDenied(where, text, "Create the database, or correct its name in the URL.")
    said = str(problem)
    if _is_about_options(problem, said):
        return AccessDenied(where, text, _OPTIONS)
    if any(sign in said for sign in _SIGNS_OF_REFUSAL) and not any(sign in said for sign in _SIGNS_OF_ABSENCE):
        return AccessDenied(where, text)
    return StoreUnavailable(where, text)


def _is_about_options(problem: psycopg.Error, said: str) -> bool:
    """Whether the options could not be read, or contradict each other: another try would fail alike."""
    if isinstance(problem, psycopg.ProgrammingError) or any(sign in said for sign in _SIGNS_OF_OPTIONS):
        return True
    is_unread = said.startswith(_UNREAD) and _SIGN_OF_A_SERVER not in said
    return is_unread and not any(sign in said for sign in _SIGNS_OF_ABSENCE)
