"""Performs what the engine decides, in two forms: for blocking workflows and for async ones.

A file here performs what the engine's file of the same name decides (`worker_service` what `workers` decides); `async_` before
its name is the async form.

A run, from the call to its end:

    run               durable.run: its signature, and which form of a run performs it
    run_options       what it was given besides what to run
    plan              the call, checked: nothing has been asked of the store yet
    versions          a run that another version of the workflow has begun
    runs              claims the run, calls the workflow, keeps the lease, records the end     async_runs
    run_base          what both forms share
    workflow_outcome  how a workflow function ended, and what that means for its run
    workflow          @durable.workflow: the name, the version, the queue of a function
    deps              the dependencies as the workflow sees them: their steps are called through the run

A run that is started and let go of:

    starts            durable.start, start_many: what is left to workers
    run_handles       what can be asked of it: RunHandle, AsyncRunHandle
    workers           durable.Worker: what users make and run
    worker_service    a worker at work: polls, executes, leaves
    worker_setup      its workflows, what they get, what it asks for
    held_runs         the runs that it holds, each on a thread or as a task
    granted           the plan of one of them

A step, inside it:

    signatures        the functions that a workflow can be, to a type checker
    handles           Step and AsyncStep: what a workflow holds, and all of it
    steps             performs each decision about a step                                      async_steps
    driver            what both forms share: the call, its record, its events
    bodies            a function, a sleep, a wait, a transaction
    awaitables        values that are to be awaited, and the errors where nothing awaits them
    timeouts          calls a body within its timeout, on a thread where it blocks
    mapping           step.map
    step_options      retry, timeout, at_most_once, cleanup
    policies          which failures are retried, and when
    decorator         @durable.step
    definitions       what it left on a function
    context           whose code is running
    values            moments, UUIDs and random numbers that a workflow draws

Beside them: `control` and `state` (cancel, signal, retry, result, status, list_pending), each written once for both forms, by
`sync_bridge`; `stack` (is there room for what must not fail half-way), `shielded` (waiting that no cancellation cuts short).

The rule: nothing here decides, but for a user's own policy (`policies`). A driver tells the engine what happened and performs
the answer, a `match` closed by `assert_never`. If a feature wants an `if` here, a decision is missing there.
"""

from durable._runtime import ticks as ticks  # what runs may have as their input, and return
