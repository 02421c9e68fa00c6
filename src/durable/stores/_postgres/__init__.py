"""The PostgreSQL store.

A change or a question, from the verb to the server and back:

    store, snapshots   the public verbs: of runs; of whole snapshots, which go to the server at once
    requests           what a request comes to: jobs, one after the other                      async_requests
    jobs, job          each job: its verb, its payload, when its answer is due, who waits for it
    verbs              what the writers know of a verb
    writer             commits what waits together; which entries, and what follows a failure: `_engine/batches`
    sender             takes a batch to the server, and each of its jobs to an answer
    statements         a batch as SQL, an answer for each                                      worker_statements
    sql/               the SQL itself, the tables' names, the migrations
    batch_results      what an answer, an error or silence means for each job

What is sent, and what comes back, of

    claims             durable.run: SQL `take_leases`, `open_runs`, `read_runs`, `read_journals`
    starts             durable.start: SQL `enqueue`, `read_started`; that a `dedup` is taken, a unique index says
    polls              a worker that takes what is due: SQL `poll`
    rows               a row of the journal
    lease_checks       whether a lease stands, on a server that has the whole run

A transaction for a step: `transaction`, `transaction_pool`, `room`, `guarded` (what its body gets), `nesting`, `prepared`,
`transaction_errors`.

The ways to the server: `connections`, `session`, `cursors`, `together` (one write for several statements), `conninfo`, `hosts`,
`watchdog`, `listener`, `requirements` and `schema` (may this server be used), `held` and `resources` (all of it, in one
process), `settings` (what the store was told).

Errors: `sqlstates` says what a state means for a batch, `error_messages` which error of ours a user gets for it, whose words
are in `durable.errors`; `dropped_rows` what PostgreSQL accepts and does not keep.
"""
