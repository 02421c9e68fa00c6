"""What PostgreSQL allows: loops of prepared INSERTs that do nothing else."""

from __future__ import annotations

import uuid
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Final

import psycopg

from lanes import Turns

# A hundred bytes of JSON, as every step of every row returns them.
VALUE: Final = {
    "id": "u-1234567",
    "tier": "gold member",
    "email": "member-12345@example.com",
    "n": [1, 2, 3, 4, 5],
    "ok": True,
}
TEXT: Final = '{"id":"u-1234567","tier":"gold member","email":"member-12345@example.com","n":[1,2,3,4,5],"ok":true}'
BATCH: Final = 100

_TABLE = "CREATE TABLE IF NOT EXISTS bare (id text, seq int, value json, primary key (id, seq))"
_INSERT = "INSERT INTO bare (id, seq, value) VALUES (%s, %s, %s)"
_BATCH = "INSERT INTO bare (id, seq, value) SELECT * FROM unnest(%s::text[], %s::int[], %s::json[])"


def new_id() -> str:
    """An id of twenty bytes."""
    return uuid.uuid4().hex[:20]


def make_table(url: str) -> None:
    """What the loops insert into."""
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(_TABLE)


def one_connection(turns: Turns, url: str, text: str = TEXT) -> None:
    """One prepared INSERT in autocommit mode after the other."""
    with psycopg.connect(url, autocommit=True, prepare_threshold=0) as connection:
        run_id, seq = new_id(), 0
        connection.execute(_INSERT, (run_id, seq, text))
        for size in turns:
            for _ in range(size):
                seq += 1
                connection.execute(_INSERT, (run_id, seq, text))


def many_connections(turns: Turns, url: str, connections: int) -> None:
    """So many of them at once, each with a thread of its own."""

    def insert(connection: psycopg.Connection, count: int) -> None:
        run_id = new_id()
        for seq in range(count):
            connection.execute(_INSERT, (run_id, seq, TEXT))

    with ExitStack() as stack:
        threads = stack.enter_context(ThreadPoolExecutor(connections))
        opened = [
            stack.enter_context(psycopg.connect(url, autocommit=True, prepare_threshold=0)) for _ in range(connections)
        ]
        list(threads.map(insert, opened, [1] * connections))
        for size in turns:
            list(threads.map(insert, opened, [size // connections] * connections))


def batches(turns: Turns, url: str) -> None:
    """A hundred rows by `unnest` in each statement, on one connection."""
    with psycopg.connect(url, autocommit=True, prepare_threshold=0) as connection:
        for size in turns:
            for _ in range(size // BATCH):
                rows = [new_id()] * BATCH, list(range(BATCH)), [TEXT] * BATCH
                connection.execute(_BATCH, rows)


def reading(turns: Turns, url: str, rows: int) -> None:
    """So many rows of one id read back as text."""
    run_id = new_id()
    with psycopg.connect(url, autocommit=True, prepare_threshold=0) as connection:
        numbers = list(range(rows))
        connection.execute(_BATCH, ([run_id] * rows, numbers, [TEXT] * rows))
        for size in turns:
            for _ in range(size):
                connection.execute("SELECT seq, value::text FROM bare WHERE id = %s ORDER BY seq", (run_id,)).fetchall()
