"""Chaos: processes that run workflows against a real PostgreSQL, everything that can break under them, and a judge.

A *round* is some runs of every kind (`programs`), a crew of processes that execute them (`worker`) until all have ended,
and faults that strike meanwhile (`faults`). Two witnesses stand outside the store: a log of effects, to which every process
appends (`effects`), and a second database, which copies what transactions said (`bank`). An audit inside it (`audit`) keeps
who wrote under which lease. `judge` reads all three when the round is over. `figures` adds rounds up in one file, and `page`
makes docs/reliability.md of it. `plants` are bugs that the judge must find.

`fleet` is a part of its own: workers, and what was started for them.

    cd tests && python -m chaos --help
"""
