"""A connection to the model, driven by hand: every statement step by step.

For whoever compares the model with a real server:

```python
database, tables = new_database(clock)
one, two = Session(database, tables), Session(database, tables)
one.begin()
answer = one.run("lock_leases", (["run-1"],))      # done: answer.result, or answer.error with its SQLSTATE
waiting = two.run("checkpoint", (0, "a", "step", 7, "{}", "run-1", "1:x"))
assert waiting.blocked                              # as long as `one` holds the row
one.commit()
assert not waiting.blocked
waiting.proceed()                                   # goes on, and commits, since `two` is in no transaction
waiting.result.rowcount
```

The names and parameters are those of `statements.sql`; rows come back as psycopg gives them, `snapshot::text` as text.
With `stops=True` a statement also stops between its snapshot and each lock, where a server gives no handle.
"""

from __future__ import annotations

from typing import Any

from simulation.database import Database, Progress, Transaction, Victim, Violation, Wait
from simulation.statements import STATEMENTS, Verb
from simulation.tables import Result, Tables

__all__ = ["Refused", "Running", "Session"]


class Refused(Exception):
    """The statement failed with this SQLSTATE; its transaction is rolled back."""

    def __init__(self, sqlstate: str) -> None:
        super().__init__(sqlstate)
        self.sqlstate = sqlstate


class Running:
    """A statement on its way. `wait` is what it waits for; `done` once there is a `result` or an `error`."""

    __slots__ = ("_progress", "_session", "_stops", "done", "error", "result", "wait")

    def __init__(self, session: Session, progress: Progress[Result], *, stops: bool) -> None:
        self._session = session
        self._progress = progress
        self._stops = stops
        self.done = False
        self.wait: Wait | None = None
        self.result = Result([], 0)
        self.error: Refused | None = None

    @property
    def blocked(self) -> bool:
        """Whether it waits for a lock that somebody still has."""
        return self.wait is not None and not self.wait.granted

    def proceed(self) -> bool:
        """Go on as far as it goes: to the end, to a lock that it must wait for, or to a stop. Whether it is done."""
        if self.done or self.blocked:
            return self.done
        self.wait = None
        try:
            while True:
                stop = next(self._progress)
                if type(stop) is Wait:
                    self.wait = stop
                    return False
                if self._stops:
                    return False
        except StopIteration as end:
            self.result = end.value
            self.done = True
            self._session.ended()
        except (Violation, Victim) as problem:
            self.refuse(problem.sqlstate if isinstance(problem, Violation) else "40P01")
        return True

    def refuse(self, sqlstate: str) -> None:
        """End it with an error: that of a victim, where `Database.spares` has spared who closed the circle."""
        self.error = Refused(sqlstate)
        self.done = True
        self._session.fail()


class Session:
    """One connection. `statements` may be another set than the store's own, to plant a bug in it.

    `commits` says whether a statement outside of a transaction commits by itself at its end; where it does not, whoever
    drives the session calls `commit`.
    """

    __slots__ = ("_implicit", "commits", "database", "failed", "statements", "tables", "transaction")

    def __init__(
        self, database: Database, tables: Tables, statements: dict[str, Verb] | None = None, *, commits: bool = True
    ) -> None:
        self.database = database
        self.tables = tables
        self.statements = STATEMENTS if statements is None else statements
        self.commits = commits
        self.transaction: Transaction | None = None
        self.failed = False
        self._implicit = False

    def begin(self) -> None:
        """`BEGIN ISOLATION LEVEL READ COMMITTED`."""
        self.transaction, self._implicit, self.failed = self.database.begin(), False, False

    def run(self, name: str, parameters: Any, *, stops: bool = False) -> Running:
        """Begin a statement, and proceed as far as it goes."""
        running = self.start(name, parameters, stops=stops)
        running.proceed()
        return running

    def start(self, name: str, parameters: Any, *, stops: bool = False) -> Running:
        """Begin a statement: its snapshot is taken, and nothing else has happened."""
        if self.failed:
            raise Refused("25P02")
        if self.transaction is None:
            self.transaction, self._implicit = self.database.begin(), True
        progress = self.statements[name](self.tables, self.transaction.statement(), parameters)
        return Running(self, progress, stops=stops)

    def ended(self) -> None:
        """A statement has come to its end."""
        if self._implicit and self.commits:
            self.commit()

    def commit(self) -> int:
        """`COMMIT`: durable, visible, and all locks let go of. The commit's number; a failed transaction is rolled back."""
        transaction, self.transaction, self._implicit = self.transaction, None, False
        self.failed = False
        return self.database.commits if transaction is None else transaction.commit()

    def roll_back(self) -> None:
        """`ROLLBACK`, or the end of the connection."""
        transaction, self.transaction, self._implicit = self.transaction, None, False
        self.failed = False
        if transaction is not None:
            transaction.roll_back()

    def fail(self) -> None:
        """A statement was refused: what its transaction did is undone, and it refuses everything until its end."""
        explicit = self.transaction is not None and not self._implicit
        self.roll_back()
        self.failed = explicit
