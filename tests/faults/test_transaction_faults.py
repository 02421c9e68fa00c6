"""What can go wrong between BEGIN and the acknowledged COMMIT of a `step.transaction`, one thing at a time."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from typing import Any, TypeAlias

import psycopg
import pytest
import tenacity
from psycopg_pool import ConnectionPool

import durable
from durable.errors import (
    AsyncMismatch,
    InvalidArgument,
    LeaseLost,
    NestedStep,
    RunCancelled,
    StepTimeout,
    StoreUnavailable,
    TransactionMisused,
)
from durable.stores import memory
from harness.ownership_children import PATIENCE, wait_until
from harness.pgbouncer import bouncer
from harness.proxy import Count, Link, Moment, Proxy
from harness.shelves import Shelf
from harness.support import Database, needs, needs_pgbouncer

Body: TypeAlias = Callable[..., Any]
Run: TypeAlias = Callable[..., Any]


class Table:
    """The user's table, and bodies that write to it."""

    def __init__(self, database: Database) -> None:
        self.name = f"{database.schema}.booked"
        self.calls = 0
        self._database = database

    @property
    def rows(self) -> list[str]:
        return [what for (what,) in self._database.execute("SELECT what FROM booked ORDER BY what")]

    def book(self, connection: psycopg.Connection[Any], what: str = "a line") -> str:
        self.calls += 1
        connection.execute(f"INSERT INTO {self.name} VALUES (%s)", (what,))
        return what

    def and_then(self, *actions: Callable[[Any], object]) -> Body:
        """A body that books, and at its n-th call does the n-th of these, at later ones nothing."""

        def body(connection: psycopg.Connection[Any]) -> str:
            done = self.book(connection)
            if self.calls <= len(actions):
                actions[self.calls - 1](connection)
            return done

        return body


@pytest.fixture
def table(database: Database) -> Table:
    database.store().list()  # makes the tables
    database.execute("CREATE TABLE booked (what text)")
    return Table(database)


@pytest.fixture(params=["sync", "async"])
def run(request: pytest.FixtureRequest) -> Run:
    """Run a workflow of one transactional step, in either colour."""

    def one(step: durable.Step, deps: Any) -> Any:
        return step.transaction("book", deps.body, *deps.args, **deps.terms)

    async def one_async(step: durable.AsyncStep, deps: Any) -> Any:
        return await step.transaction("book", deps.body, *deps.args, **deps.terms)

    def run(store: Any, body: Body, *args: Any, id: str = "run", options: Any = None, **terms: Any) -> Any:
        deps = {"body": body, "args": args, "terms": terms}
        if request.param == "sync":
            return durable.run(deps, one, id=id, store=store, **(options or {}))
        return asyncio.run(durable.run(deps, one_async, id=id, store=store, **(options or {})))

    return run


@pytest.fixture
def proxy(database: Database) -> Iterator[Proxy]:
    with Proxy(database.url) as proxy:
        yield proxy


def recorded(database: Database) -> list[bool]:
    return [record["ok"] for kind, _, record in database.journal("run") if kind == "step"]


# -- what a body may not do -----------------------------------------------------------------------------------------


def _leave_pipeline_open(connection: Any) -> None:
    connection.left_open = connection.pipeline()
    connection.left_open.__enter__()


def _swallow(connection: Any) -> None:
    with pytest.raises(psycopg.errors.DivisionByZero):
        connection.execute("SELECT 1 / 0")


MISUSES = {
    "commit": (lambda c: c.commit(), "may not use commit"),
    "rollback": (lambda c: c.rollback(), "may not use rollback"),
    "close": (lambda c: c.close(), "may not use close"),
    "autocommit": (lambda c: setattr(c, "autocommit", True), "may not use autocommit"),
    "set_autocommit": (lambda c: c.set_autocommit(True), "may not use autocommit"),
    "with connection": (lambda c: c.__enter__(), "which commits and closes"),
    "cursor's connection": (lambda c: c.cursor().connection.commit(), "may not use commit"),
    "ROLLBACK": (lambda c: c.execute("ROLLBACK"), "ended the transaction"),
    "ROLLBACK in a cursor": (lambda c: c.cursor().execute("/* */ abort"), "ended the transaction"),
    "ROLLBACK, BEGIN": (lambda c: c.execute("ROLLBACK; BEGIN"), "ended the transaction"),
    "AND CHAIN": (lambda c: c.execute("ROLLBACK AND CHAIN"), "ended the transaction"),
    "ROLLBACK and an error": (lambda c: c.execute("ROLLBACK; SELECT 1 / 0"), "ended the transaction"),
    "read only": (lambda c: c.execute("SET TRANSACTION READ ONLY"), "made its transaction read-only"),
    "swallowed error": (_swallow, "went on after an SQL error"),
    "pipeline": (_leave_pipeline_open, "with a pipeline still open"),
}


@pytest.mark.parametrize("what", MISUSES)
def test_a_body_cannot_end_its_transaction(database: Database, table: Table, run: Run, what: str) -> None:
    """It is an error of ours, recorded like any failure of a body; what it had done is undone, and others are not harmed."""
    action, words = MISUSES[what]
    store = database.store()
    with pytest.raises(TransactionMisused, match=words):
        run(store, table.and_then(action))
    assert (table.rows, recorded(database)) == ([], [False])
    assert run(store, table.and_then()) == "a line"
    assert (table.rows, recorded(database)) == (["a line"], [False, True])


@pytest.mark.parametrize(
    "sql", ["COMMIT", "END", "COMMIT; BEGIN", "COMMIT AND CHAIN", "SELECT 1; COMMIT; SELECT 1 / 0"]
)
def test_a_commit_as_text_is_not_silent(database: Database, table: Table, run: Run, sql: str) -> None:
    """What was committed by it is there, nothing after it is, and the step says so."""

    def body(connection: Any) -> None:
        table.book(connection, "before")
        try:
            connection.execute(sql)
            table.book(connection, "after")
        except Exception:  # whatever a body catches
            with pytest.raises(TransactionMisused):
                table.book(connection, "much later")

    with pytest.raises(TransactionMisused, match="ended the transaction"):
        run(database.store(), body)
    assert (table.rows, recorded(database)) == (["before"], [False])


def test_a_refused_commit_that_is_swallowed_changes_nothing(database: Database, table: Table, run: Run) -> None:
    def body(connection: Any) -> str:
        table.book(connection)
        for refused in (connection.commit, connection.rollback, connection.close):
            with pytest.raises(TransactionMisused):
                refused()
        return "done"

    assert run(database.store(), body) == "done"
    assert (table.rows, recorded(database)) == (["a line"], [True])


def test_savepoints_are_fine(database: Database, table: Table, run: Run) -> None:
    def body(connection: Any) -> None:
        with connection.transaction():
            table.book(connection, "kept")
        with connection.transaction(force_rollback=True):
            table.book(connection, "given up")
        with pytest.raises(psycopg.errors.DivisionByZero), connection.transaction():
            connection.execute("SELECT 1 / 0")
        with connection.pipeline(), connection.cursor() as cursor:
            cursor.execute(f"INSERT INTO {table.name} VALUES ('pipelined')")
        with connection.cursor() as cursor, cursor.copy(f"COPY {table.name} FROM STDIN") as copy:
            copy.write_row(("copied",))

    run(database.store(), body)
    assert table.rows == ["copied", "kept", "pipelined"]


def test_a_connection_that_was_kept_is_of_no_use(database: Database, table: Table, run: Run) -> None:
    """Nor are cursors that were made from it, nor a thread that the body started; the next transaction is not disturbed."""
    kept: list[Any] = []
    refusals: list[BaseException] = []
    next_one, threads = threading.Event(), list[threading.Thread]()

    def stray(connection: Any) -> None:
        next_one.wait(PATIENCE)
        try:
            table.book(connection, "from a thread")
        except TransactionMisused as refusal:
            refusals.append(refusal)

    def first(connection: Any) -> None:
        kept.extend([connection, connection.cursor()])
        threads.append(threading.Thread(target=stray, args=(connection,)))
        threads[0].start()
        table.book(connection, "first")

    def second(connection: Any) -> None:
        next_one.set()
        threads[0].join()
        for old in kept:
            with pytest.raises(TransactionMisused, match="after the body had returned"):
                old.execute(f"INSERT INTO {table.name} VALUES ('kept')")
        table.book(connection, "second")

    store = database.store()
    run(store, first, id="first")
    run(store, second, id="second")
    assert table.rows == ["first", "second"]
    assert len(refusals) == 1


def test_what_a_body_sets_is_gone_with_it(database: Database, table: Table, run: Run) -> None:
    """The record is written under the settings of the beginning, and the next body finds the connection as new."""

    def first(connection: Any) -> int:
        connection.execute("CREATE TEMP TABLE mine (x int)")
        connection.execute("SET search_path TO pg_catalog")
        connection.execute("SET statement_timeout TO '60s'")
        connection.execute("SET LOCAL synchronous_commit TO off")
        connection.execute("SET ROLE pg_monitor")
        return int(connection.info.backend_pid)

    def second(connection: Any) -> list[Any]:
        query = "SELECT current_setting('search_path'), current_setting('statement_timeout'), current_setting('role')"
        settings = connection.execute(f"{query}, to_regclass('mine') IS NULL").fetchone()
        return [connection.info.backend_pid, *settings]

    store = database.store()
    pid = run(store, first, id="first")
    with psycopg.connect(database.url) as fresh:
        path = fresh.execute("SHOW search_path").fetchone()
        assert path is not None
    assert run(store, second, id="second") == [pid, path[0], "0", "none", True]


# -- what may be given ----------------------------------------------------------------------------------------------


async def _awaits(connection: Any) -> None:
    """Not here."""


def test_bad_calls_are_errors_of_ours(database: Database, table: Table, run: Run) -> None:
    """FAULTS 96 among them."""
    store = database.store()
    with pytest.raises(InvalidArgument, match="isolation must be one of read committed, repeatable read, serializable"):
        run(store, table.book, id="a", isolation="read uncommitted")
    with pytest.raises(AsyncMismatch, match="define it with `def`"):
        run(store, _awaits, id="b")
    with pytest.raises(AsyncMismatch, match="returned something to await"):
        run(store, lambda connection: _awaits(connection), id="c")
    with pytest.raises(InvalidArgument, match="leave out at_most_once"):
        run(store, durable.step(at_most_once=True)(table.book), id="d")
    with pytest.raises(InvalidArgument, match="not a function"):
        run(store, "book", id="e")
    assert table.rows == []


@durable.step
def plain() -> str:
    return "plain"


def test_a_step_in_the_body_is_refused(database: Database, table: Table) -> None:
    """FAULTS 96, in both colours; a decorated function is a plain call there."""
    store = database.store()

    def refused(connection: Any, step: Any) -> None:
        assert plain() == "plain"
        inside: list[Body] = [lambda: step("inner", plain), lambda: step.transaction("inner", table.book)]
        for inner in inside:
            with pytest.raises(NestedStep, match="inside the body of step 'book'"):
                inner()
        table.book(connection)

    def nested(step: durable.Step, _: Any) -> None:
        step.transaction("book", lambda connection: refused(connection, step))

    async def nested_async(step: durable.AsyncStep, _: Any) -> None:
        await step.transaction("book", lambda connection: refused(connection, step))

    durable.run({}, nested, id="sync", store=store)
    asyncio.run(durable.run({}, nested_async, id="async", store=store))
    assert table.rows == ["a line", "a line"]


def test_stores_without_a_database_say_what_to_use(run: Run) -> None:
    """The run is left as it is, and can go on in a store that has one."""
    with memory() as store, pytest.raises(InvalidArgument, match=r"'book'.* needs the database .* embedded\(\) starts"):
        run(store, lambda connection: None)
    with pytest.raises(InvalidArgument, match=r"Shelf, a store of five verbs, cannot perform .*postgres\(url\)"):
        run(Shelf(), lambda connection: None)


@pytest.mark.parametrize("isolation", ["read committed", "repeatable read", "serializable"])
@pytest.mark.parametrize("default", ["read committed", "serializable"])
def test_isolation_is_stated(database: Database, run: Run, isolation: str, default: str) -> None:
    """FAULTS 111: whatever the role's default; and a renewal meanwhile is no conflict."""
    name = database.execute("SELECT current_database()")[0][0]
    database.execute(f"ALTER DATABASE {name} SET default_transaction_isolation TO '{default}'")
    try:
        shown = run(
            database.store(),
            lambda connection: connection.execute("SHOW transaction_isolation").fetchone()[0],
            isolation=isolation,
        )
    finally:
        database.execute(f"ALTER DATABASE {name} RESET default_transaction_isolation")
    assert shown == isolation


# -- conflicts, and a database that is lost -------------------------------------------------------------------------


def test_victims_of_a_deadlock_are_tried_again(database: Database, table: Table) -> None:
    """FAULTS 48: two transactions that lock two rows crosswise; both end, and neither error surfaces."""
    database.execute("INSERT INTO booked VALUES ('a'), ('b')")
    both_hold, calls = threading.Barrier(2), list[str]()

    def crosswise(connection: Any, *order: str) -> None:
        calls.append(order[0])
        for n, what in enumerate(order):
            connection.execute(f"UPDATE {table.name} SET what = what || '!' WHERE what LIKE %s", (f"{what}%",))
            if n == 0 and len(calls) <= 2:
                both_hold.wait(PATIENCE)

    async def both(step: durable.AsyncStep, _: Any) -> None:
        await asyncio.gather(
            step.transaction("there", crosswise, "a", "b"), step.transaction("back", crosswise, "b", "a")
        )

    asyncio.run(durable.run({}, both, id="run", store=database.store()))
    assert len(calls) == 3
    assert table.rows == ["a!!", "b!!"]
    assert [seq for (seq,) in database.execute("SELECT seq FROM durable_steps ORDER BY seq")] == [0, 1, 2]


def test_serialization_failures_are_tried_again(database: Database, table: Table, run: Run) -> None:
    """FAULTS 48: at a statement, and again where only the COMMIT finds out; nothing but the last attempt is there."""
    database.execute("INSERT INTO booked VALUES ('seen')")
    seen = f"SELECT count(*) FROM {table.name}"

    def update_beside(connection: Any) -> None:
        database.execute("UPDATE booked SET what = 'seen' WHERE what = 'seen'")
        connection.execute(f"UPDATE {table.name} SET what = 'seen' WHERE what = 'seen'")

    def skew(connection: Any) -> None:
        connection.execute(seen)
        with psycopg.connect(database.url) as other:
            other.isolation_level = psycopg.IsolationLevel.SERIALIZABLE
            other.execute(seen)
            other.execute(f"INSERT INTO {table.name} VALUES ('beside')")

    body = table.and_then(update_beside, skew)

    def snapshot_first(connection: Any) -> Any:
        connection.execute(seen)
        return body(connection)

    assert run(database.store(), snapshot_first, isolation="serializable") == "a line"
    assert table.calls == 3
    assert table.rows == ["a line", "beside", "seen"]
    assert recorded(database) == [True]


def test_one_that_always_is_the_victim_fails_with_that(
    database: Database, table: Table, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is tried for ever: the conflict becomes the body's failure, which a policy may try again."""
    monkeypatch.setattr("durable._engine.steps.backoff", lambda *_: 0.0)

    def body(connection: Any) -> None:
        table.book(connection)
        raise psycopg.errors.DeadlockDetected("always")

    retry = tenacity.Retrying(stop=tenacity.stop_after_attempt(2))
    with pytest.raises(psycopg.errors.DeadlockDetected, match="always"):
        run(database.store(), body, retry=retry)
    assert table.calls == 40
    assert table.rows == []
    assert [kind for kind, _, _ in database.journal("run")] == ["attempt", "step", "failure"]


def test_a_server_that_is_out_of_something_is_no_failure_of_the_bodys(
    database: Database, table: Table, run: Run
) -> None:
    """FAULTS 50: a disk that is full under the body's own statement. The run can be resumed, and is not failed."""
    full = "DO $$ BEGIN RAISE EXCEPTION 'no space left' USING ERRCODE = '53100'; END $$"
    fails = table.and_then(*[lambda connection: connection.execute(full)] * 2)
    assert run(database.store(), fails) == "a line"
    assert table.rows == ["a line"]
    always = table.and_then(*[lambda connection: connection.execute(full)] * 100)
    with pytest.raises(StoreUnavailable, match="SQLSTATE 53100"):
        run(database.store(), always, id="always")
    assert database.status("always") == "running"


def test_what_is_deferred_to_the_commit_is_the_bodys_failure(database: Database, table: Table, run: Run) -> None:
    database.execute(
        "CREATE TABLE accounts (id int PRIMARY KEY);"
        "CREATE TABLE entries (account int REFERENCES accounts DEFERRABLE INITIALLY DEFERRED)"
    )

    def body(connection: Any) -> None:
        table.book(connection)
        connection.execute(f"INSERT INTO {database.schema}.entries VALUES (7)")

    store = database.store()
    with pytest.raises(psycopg.errors.ForeignKeyViolation, match="insert or update on table"):
        run(store, body)
    assert (table.rows, recorded(database)) == ([], [False])
    database.execute("INSERT INTO accounts VALUES (7)")
    run(store, body)
    assert (table.rows, recorded(database)) == (["a line"], [False, True])
    assert [seq for (seq,) in database.execute("SELECT seq FROM durable_steps ORDER BY seq")] == [0, 1, 2, 3]


@pytest.mark.parametrize("moment", list(Moment), ids=lambda moment: moment.value)
@pytest.mark.parametrize(
    "marker", ["client_connection_check_interval", "a line", "the-key"], ids=["begin", "body", "commit"]
)
def test_a_cut_connection(
    database: Database, table: Table, proxy: Proxy, run: Run, marker: str, moment: Moment
) -> None:
    """FAULTS 40, 41: what is committed is not done again, what is not is done anew."""
    with database.store(proxy.url) as store:
        trap = proxy.trap(moment, marker, Link.cut)
        assert run(store, table.and_then(), key="the-key") == "a line"
    assert trap.sprung.is_set()
    assert (table.rows, recorded(database)) == (["a line"], [True])
    once = marker == "client_connection_check_interval" or (marker == "the-key" and moment is Moment.ANSWERED)
    if moment is not Moment.FORWARDED:  # then the reply may be faster than the cut
        assert table.calls == (1 if once else 2)
    assert [epoch for (epoch,) in database.execute("SELECT epoch FROM durable_locks")] == [1]


def test_a_body_that_idles_too_long(database: Database, table: Table, run: Run) -> None:
    """FAULTS 46: the server ends the session. Nothing is visible, it is tried again, and the last word is the database's."""

    def idle(connection: Any) -> None:
        wait_until(lambda: _gone(database, connection), "the server to end the idle transaction")

    store = database.store()
    name = database.execute("SELECT current_database()")[0][0]
    database.execute(f"ALTER DATABASE {name} SET idle_in_transaction_session_timeout TO '50ms'")
    try:
        assert run(store, table.and_then(idle), id="once") == "a line"
        assert (table.calls, table.rows) == (2, ["a line"])
        with pytest.raises(StoreUnavailable, match="idle for as long as the lease lasts, 30 s"):
            run(store, table.and_then(*[idle] * 100))
    finally:
        database.execute(f"ALTER DATABASE {name} RESET idle_in_transaction_session_timeout")
    assert table.calls == 7
    assert (table.rows, recorded(database)) == (["a line"], [])


@pytest.mark.parametrize("waits_in", ["the body", "a statement"])
def test_a_transaction_that_takes_too_long(database: Database, table: Table, run: Run, waits_in: str) -> None:
    """FAULTS 47: `transaction_timeout` ends the session. As if the body had been idle: nothing is visible, it is tried again."""
    needs(database, "transaction_timeout", 17)

    def slow(connection: Any) -> None:
        if waits_in == "the body":
            wait_until(lambda: _gone(database, connection), "the server to end the transaction")
        else:
            connection.execute("SELECT pg_sleep(60)")

    store = database.store()
    store.list()  # the tables are there: what makes them has more to do
    name = database.execute("SELECT current_database()")[0][0]
    database.execute(f"ALTER DATABASE {name} SET transaction_timeout TO '300ms'")
    try:
        assert run(store, table.and_then(slow), id="once") == "a line"
        assert (table.calls, table.rows) == (2, ["a line"])
        if waits_in == "the body":
            with pytest.raises(StoreUnavailable, match="take as long as its transaction_timeout"):
                run(store, table.and_then(*[slow] * 100))
    finally:
        database.execute(f"ALTER DATABASE {name} RESET transaction_timeout")
    assert (table.rows, recorded(database)) == (["a line"], [])


def _gone(database: Database, connection: Any) -> bool:
    query = "SELECT 1 FROM pg_stat_activity WHERE pid = %s"
    return not database.execute(query, connection.info.backend_pid)


@pytest.mark.parametrize("end", ["pg_terminate_backend", "pg_cancel_backend"])
def test_an_ended_session_and_an_ended_statement(database: Database, table: Table, run: Run, end: str) -> None:
    """FAULTS 33: a lost connection is nobody's failure. A statement that was cancelled is the body's."""

    def killed(connection: Any) -> None:
        pid = connection.info.backend_pid
        ending = threading.Thread(
            target=lambda: wait_until(
                lambda: database.execute(
                    f"SELECT {end}(pid) FROM pg_stat_activity WHERE pid = %s AND query LIKE '%%pg_sleep%%'", pid
                ),
                "the body to sleep",
            )
        )
        ending.start()
        try:
            connection.execute("SELECT pg_sleep(60)")
        finally:
            ending.join()

    store = database.store()
    if end == "pg_terminate_backend":
        assert run(store, table.and_then(killed)) == "a line"
        assert (table.calls, table.rows) == (2, ["a line"])
    else:
        with pytest.raises(psycopg.errors.QueryCanceled, match="due to user request"):
            run(store, table.and_then(killed))
        assert (table.calls, table.rows, recorded(database)) == (1, [], [False])


def test_a_timeout_of_the_bodys_own_statements_is_its_failure(database: Database, table: Table, run: Run) -> None:
    """FAULTS 45, 47: `statement_timeout`, `lock_timeout`. The record and the COMMIT are under those of the beginning."""
    slow = lambda connection: connection.execute("SET LOCAL statement_timeout TO '10ms'; SELECT pg_sleep(10)")  # noqa: E731
    with pytest.raises(psycopg.errors.QueryCanceled, match="due to statement timeout"):
        run(database.store(), table.and_then(slow), id="slow")
    with psycopg.connect(database.url) as other:
        other.execute(f"LOCK TABLE {table.name}")

        def body(connection: Any) -> None:
            connection.execute("SET LOCAL lock_timeout TO '10ms'")
            table.book(connection)

        with pytest.raises(psycopg.errors.LockNotAvailable, match="due to lock timeout"):
            run(database.store(), body, id="locked")
    assert table.rows == []


# -- leases, stops, timeouts ----------------------------------------------------------------------------------------


def test_the_lease_is_lost_before_the_transaction_begins(database: Database, table: Table, run: Run) -> None:
    """FAULTS 20: the fence comes first, so the body is not even called."""

    store = database.store()
    transaction = store.transaction

    def late(*args: Any) -> Any:
        database.execute("UPDATE durable_locks SET epoch = 2, owner_token = '2:thief'")
        return transaction(*args)

    store.transaction = late  # type: ignore[method-assign, assignment]
    with pytest.raises(LeaseLost, match="taken it over"):
        run(store, table.book)
    assert (table.calls, table.rows, recorded(database)) == (0, [], [])


def test_nobody_takes_over_between_begin_and_commit(database: Database, table: Table, run: Run) -> None:
    """The row is locked: whoever would take the lease waits for the end, and then finds the record."""

    def body(connection: Any) -> str:
        with psycopg.connect(database.url, options="-c lock_timeout=100ms") as thief:
            with pytest.raises(psycopg.errors.LockNotAvailable):
                thief.execute(f"UPDATE {database.schema}.durable_locks SET epoch = 2, owner_token = '2:thief'")
            thief.rollback()
            thief.execute(f"UPDATE {database.schema}.durable_locks SET expires_at = expires_at")  # a heartbeat passes
        return table.book(connection)

    assert run(database.store(), body) == "a line"
    assert table.rows == ["a line"]


def test_cancelled_while_the_body_works(database: Database, table: Table) -> None:
    """The cancellation waits for the transaction, which it does not undo; meanwhile other runs go on."""
    store, cancelled = database.store(), list[bool]()

    def body(connection: Any) -> str:
        cancelling = threading.Thread(target=lambda: cancelled.append(durable.cancel(store, "run", force=True)))
        cancelling.start()
        wait_until(
            lambda: database.execute("SELECT 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock'"), "it to wait"
        )
        assert durable.run({}, lambda step, _: step("other", lambda: 1), id="other", store=store) == 1
        threads.append(cancelling)
        return table.book(connection)

    threads: list[threading.Thread] = []

    def then_more(connection: Any) -> None:
        raise AssertionError

    def two(step: durable.Step, _: Any) -> None:
        step.transaction("book", body)
        threads[0].join()
        step.transaction("more", then_more)

    with pytest.raises(RunCancelled):
        durable.run({}, two, id="run", store=store)
    assert (cancelled, table.rows, recorded(database)) == ([True], ["a line"], [True])


def test_a_body_that_takes_too_long_is_undone(database: Database, table: Table, run: Run) -> None:
    """Its thread goes on, its connection does not; the next attempt is not in its way."""
    over, late = threading.Event(), list[BaseException]()

    def slow(connection: Any) -> None:
        over.wait(PATIENCE)
        try:
            table.book(connection, "too late")
        except BaseException as problem:
            late.append(problem)
            raise

    retry = tenacity.Retrying(stop=tenacity.stop_after_attempt(2), retry=tenacity.retry_if_exception_type(StepTimeout))
    assert run(database.store(), table.and_then(slow), timeout=0.3, retry=retry) == "a line"
    assert table.rows == ["a line"]
    over.set()
    wait_until(lambda: late, "the first attempt to go on")
    assert isinstance(late[0], TransactionMisused)
    assert table.rows == ["a line"]


def test_a_statement_that_takes_too_long_is_ended_on_the_server(database: Database, table: Table, run: Run) -> None:
    """Which looks for the client every second, so that the row is free again."""
    needs(database, "client_connection_check_interval", 14)
    sleeping = table.and_then(lambda connection: connection.execute("SELECT pg_sleep(60)"))
    with pytest.raises(StepTimeout):
        run(database.store(), sleeping, timeout=0.3)
    assert database.status("run") == "failed"
    query = "SELECT 1 FROM pg_stat_activity WHERE query LIKE 'SELECT pg_sleep(60)%%' AND state = 'active'"
    wait_until(lambda: not database.execute(query), "the server to notice")
    assert table.rows == []


@pytest.mark.parametrize("where", ["in the body", "in its SQL", "before the commit"])
def test_a_cancelled_task_undoes_its_transaction(database: Database, table: Table, where: str) -> None:
    """FAULTS 75: nothing of it is there, the lease is given back, and the next run does it."""
    store, leave = database.store(), threading.Event()

    async def workflow(step: durable.AsyncStep, deps: Any) -> str:
        return await step.transaction("book", deps.body)

    async def cancelled() -> None:
        loop = asyncio.get_running_loop()

        def cancel() -> None:
            if where == "before the commit":  # the loop stands still: the body has returned, and nobody has heard of it
                wait_until(lambda: store._held.resources.transactions.daemons._threads == 0, "the body's thread to end")
            running.cancel()

        def body(connection: Any) -> str:
            table.book(connection)
            loop.call_soon_threadsafe(cancel)
            if where == "in the body":
                leave.wait(PATIENCE)
            elif where == "in its SQL":
                connection.execute("SELECT pg_sleep(60)")
            return "done"

        running = asyncio.ensure_future(durable.run({"body": body}, workflow, id="run", store=store))
        with pytest.raises(asyncio.CancelledError):
            await running
        leave.set()

    asyncio.run(cancelled())
    wait_until(
        lambda: database.execute("SELECT 1 FROM durable_locks WHERE owner_token IS NULL"), "the lease to be free"
    )
    assert (table.rows, recorded(database)) == ([], [])
    assert asyncio.run(durable.run({"body": table.book}, workflow, id="run", store=store)) == "a line"
    assert table.rows == ["a line"]
    assert store._held.resources.transactions.room.left == 8


def test_a_task_cancelled_while_it_commits(database: Database, table: Table, proxy: Proxy) -> None:
    """FAULTS 76: the commit goes its way, and the next run finds it."""

    async def workflow(step: durable.AsyncStep, deps: Any) -> str:
        return await step.transaction("book", deps.body, key="the-key")

    async def cancelled() -> None:
        loop, committing = asyncio.get_running_loop(), asyncio.Event()
        running = asyncio.ensure_future(durable.run({"body": table.and_then()}, workflow, id="run", store=store))
        go_on = threading.Event()

        def hold(_: Link) -> None:
            loop.call_soon_threadsafe(committing.set)
            go_on.wait(PATIENCE)

        proxy.trap(Moment.SENT, "the-key", hold)
        await committing.wait()
        running.cancel()
        await asyncio.sleep(0)
        go_on.set()
        with pytest.raises(asyncio.CancelledError):
            await running

    with database.store(proxy.url) as store:
        asyncio.run(cancelled())
        assert (table.rows, recorded(database)) == (["a line"], [True])
        assert asyncio.run(durable.run({"body": table.book}, workflow, id="run", store=store)) == "a line"
    assert table.calls == 1


def test_an_interrupt_in_the_body(database: Database, table: Table, run: Run) -> None:
    """FAULTS 74: no outcome, nothing there, the lease given back."""

    class Pulled(BaseException):
        pass

    def pulled(connection: Any) -> None:
        raise Pulled

    store = database.store()
    with pytest.raises(Pulled):
        run(store, table.and_then(pulled))
    assert (table.rows, recorded(database)) == ([], [])
    assert run(store, table.and_then()) == "a line"
    assert table.rows == ["a line"]


# -- connections ----------------------------------------------------------------------------------------------------


def test_round_trips(database: Database, table: Table, proxy: Proxy, run: Run) -> None:
    """One for BEGIN and the fence, the body's own, one for the record and the COMMIT."""
    laps: list[Count] = []

    def body(connection: Any) -> None:
        laps.append(proxy.count())
        connection.execute(f"INSERT INTO {table.name} VALUES ('x')")
        laps.append(proxy.count())

    with database.store(proxy.url) as store:
        run(store, body, id="warm-up")
        run(store, body, id="warm again")
        laps.clear()
        started = proxy.count()
        run(store, body, options={"lease": 600.0})
        ended = proxy.count()
    assert laps[0].since(started)[:2] == (2, 2)  # the claim, the beginning
    assert laps[1].since(laps[0])[:2] == (1, 1)
    assert ended.since(laps[1])[:3] == (2, 2, 2)  # the record and COMMIT, the finish


def test_connections_are_bounded_kept_and_used_again(database: Database, table: Table) -> None:
    pids: list[int] = []
    working, most = threading.Semaphore(3), list[bool]()

    def body(connection: Any, number: int) -> None:
        most.append(working.acquire(blocking=False))
        pids.append(connection.info.backend_pid)
        table.book(connection, str(number))
        working.release()

    async def many(step: durable.AsyncStep, _: Any) -> None:
        await asyncio.gather(*(step.transaction("book", body, n, key=str(n)) for n in range(40)))

    def many_more(step: durable.Step, _: Any) -> None:
        threads = [
            threading.Thread(target=step.transaction, args=("book", body, n), kwargs={"key": str(n)}) for n in range(20)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    store = database.store(max_transactions=3)
    asyncio.run(durable.run({}, many, id="async", store=store))
    durable.run({}, many_more, id="sync", store=store)
    assert len(table.rows) == 60
    assert all(most)
    assert len(set(pids)) <= 3
    for bad in (0, -1, True, 2.5, "many"):
        with pytest.raises(InvalidArgument, match="max_transactions must be a number of at least 1"):
            database.store(max_transactions=bad)


def test_a_body_that_was_given_up_keeps_no_room_from_others(database: Database, table: Table, run: Run) -> None:
    """However long its thread goes on."""
    over, store = threading.Event(), database.store(max_transactions=1)
    with pytest.raises(StepTimeout):
        run(store, lambda _: over.wait(PATIENCE), id="slow", timeout=0.2)
    assert run(store, table.book, id="next", options={"deadline": 5.0}) == "a line"
    over.set()
    wait_until(lambda: store._held.resources.transactions.room.left == 1, "the room to be what it was")
    assert run(store, table.book, id="last", options={"deadline": 5.0}) == "a line"
    assert store._held.resources.transactions.room.left == 1


@pytest.mark.parametrize("size", [1, 2, 4])
def test_a_pool_that_transactions_use_up(database: Database, table: Table, size: int) -> None:
    """FAULTS 52: the heartbeat renews all the same, and nothing is stuck; the pool has its connections back as they were."""

    def body(connection: Any, number: int) -> None:
        table.book(connection, str(number))
        renewed = _expires(database)
        wait_until(lambda: _expires(database) > renewed, "a renewal")

    async def many(step: durable.AsyncStep, _: Any) -> None:
        await asyncio.gather(*(step.transaction("book", body, n, key=str(n)) for n in range(4)))

    with ConnectionPool(database.url, min_size=1, max_size=size) as pool:
        with durable.stores.postgres(pool=pool, schema=database.schema) as store:
            asyncio.run(durable.run({}, many, id="run", store=store, lease=0.5))
        with pool.connection() as connection:
            assert not connection.autocommit
    assert table.rows == ["0", "1", "2", "3"]


def _expires(database: Database) -> Any:
    return database.execute("SELECT expires_at FROM durable_locks WHERE workflow_id = 'run'")[0][0]


@needs_pgbouncer
def test_through_pgbouncer(database: Database, table: Table, run: Run) -> None:
    """FAULTS 53: in transaction mode, many at once, one of them losing its session."""
    with bouncer(database.url) as started, database.store(started.url) as store:

        def many(step: durable.Step, _: Any) -> None:
            def book(connection: Any, number: int) -> None:
                table.book(connection, f"{number:02}")
                pid = connection.execute("SELECT pg_backend_pid()").fetchone()[0]
                if number == 7 and not ended:
                    ended.append(pid)
                    database.execute("SELECT pg_terminate_backend(%s)", pid)
                    connection.execute("SELECT 1")

            ended: list[int] = []
            step.map("nothing", lambda n: n, range(3))
            for number in range(12):
                step.transaction("book", book, number)

        durable.run({}, many, id="many", store=store)
        assert run(store, table.and_then()) == "a line"
    assert table.rows == [f"{number:02}" for number in range(12)] + ["a line"]


# -- threads of the body's own --------------------------------------------------------------------------------------


def test_a_statement_that_another_thread_has_under_way(
    database: Database, table: Table, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is waited for, but not for ever; then its connection is ended, and nothing is committed."""
    needs(database, "client_connection_check_interval", 14)
    monkeypatch.setattr("durable.stores._postgres.guarded._MAX_WAIT", 0.1)
    ended: list[BaseException] = []

    def sleep(connection: Any) -> None:
        try:
            connection.execute("SELECT pg_sleep(60)")
        except psycopg.Error as problem:
            ended.append(problem)

    def body(connection: Any) -> None:
        table.book(connection)
        threads.append(threading.Thread(target=sleep, args=(connection,)))
        threads[0].start()
        wait_until(lambda: connection.pgconn.transaction_status == psycopg.pq.TransactionStatus.ACTIVE, "it to sleep")

    threads: list[threading.Thread] = []
    with pytest.raises(TransactionMisused, match="still under way"):
        run(database.store(), body)
    threads[0].join(PATIENCE)
    assert len(ended) == 1
    assert table.rows == []


def test_a_cancel_that_comes_too_late_hits_nobody_else(database: Database, table: Table, run: Run) -> None:
    kept: list[Any] = []

    def second(connection: Any) -> None:
        sleeping = threading.Thread(target=connection.execute, args=("SELECT pg_sleep(0.3)",))
        sleeping.start()
        wait_until(lambda: connection.pgconn.transaction_status == psycopg.pq.TransactionStatus.ACTIVE, "it to sleep")
        kept[0].cancel()
        kept[0].cancel_safe()
        sleeping.join()
        table.book(connection)

    store = database.store()
    run(store, kept.append, id="first")
    run(store, second, id="second")
    assert table.rows == ["a line"]


@pytest.mark.parametrize("room", [1, 2])
def test_one_begun_inside_another_never_waits_for_it(database: Database, table: Table, run: Run, room: int) -> None:
    """By way of a run of its own, which is the only way."""
    store = database.store(max_transactions=room)

    def body(connection: Any) -> None:
        run(store, table.book, id="inner")

    if room == 1:
        with pytest.raises(InvalidArgument, match="inside the body of another one"):
            run(store, body, id="outer")
    else:
        run(store, body, id="outer")
    assert len(table.rows) == room - 1
