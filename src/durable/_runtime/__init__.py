"""Performs what the engine decides, in two forms: for blocking workflows and for async ones.

A run, told by the files:

    run        durable.run: claims the run, calls the workflow, keeps the lease, says how it ended
    plan       one call of durable.run, checked: nothing has been asked of the store yet
    versions   a run that another version of the workflow has begun
    workflow   @durable.workflow, and the name by which a function is known
    deps       the dependencies as the workflow sees them: their steps are called through the run

A step, inside it:

    handles    Step and AsyncStep, which a workflow holds
    steps      performs each decision of `_engine.steps`, blocking and async
    driver     what both forms share: the call, its record, its events
    bodies     what there is to execute: a function, a sleep, a wait, a transaction; on a thread where it has a timeout
    mapping    step.map
    options    how often, how long, at most once                policies   which failures are retried, and when
    decorator  @durable.step; whose code is running

And beside them: `control` and `state` (cancel, signal, retry, result, status, list_pending, in both forms), `stack` (is there
room for what must not fail half-way), `shielded` (waiting that no cancellation cuts short).

The rule: nothing here decides. A driver tells the engine what happened and performs the answer, a `match` closed by
`assert_never`. If a feature wants an `if` here, a decision is missing there.
"""
