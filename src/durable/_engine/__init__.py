"""The pure room: every decision about a run, and no effect.

Nothing here reads a clock, draws a random number, starts a thread, awaits or touches a database. The engine is told what
happened (an *outcome*) and answers with what to do next (a *decision*); a *driver* outside performs it and comes back
with the next outcome. So the same code runs under a blocking driver, an asyncio driver, and a test's driver that dies
between any two decisions.

A step, told as a conversation:

    driver                              engine
    ------                              ------
    call(name, key, …)              →   draws the key, checks it against the journal
    Asked()                         →   Replay(record)       the journal has it: hand it out
                                        Join()               it is running: wait, then ask again
                                        Raise(error)         this call is wrong
                                        Abort(error)         this run must not go on
                                        Leave(interruption)  the process is being left: begin nothing
                                        Attempt()            call the body
    Returned(value) | Raised(error) →   WriteRecord(record)  make it durable
    Acknowledged()                  →   Replay(record)       a fresh value takes the road of a replayed one

A run, around it: `Claim` → `runs.admit` → execute → `runs.conclude_…` → `EndRun` or `GiveBack`.

Where what lives, from the top down:

    runs            how an execution is admitted, and how it is concluded
    workers         what a worker does next, and what it makes of a run that it has got
    steps           the machine of one execution: what each of its steps does next
    closing         what a run does between the end of its workflow and its own: undos, and what is done in any case
    lines           which steps started after which, and what a cut takes with it
    retry_cut       what a run forgets when it is taken up from an earlier step
    journal_writes  what a call adds to the journal
    journal         keys, replay, drift
    stalls          which bodies have been silent for too long
    waits           when a wait is over, whatever the wall clock is set to
    headers         the run's header, at each change of its state
    calls           a call of a step, and how far it has come
    drawn           moments, UUIDs and numbers that a workflow has drawn, and which records hold them
    decisions       the vocabulary: decisions, and the outcomes that answer them
    step_kinds      what a call is: plain, a sleep, a wait for a signal, a transaction
    starts          a run that is started: where it waits, and what its id means when it is there (a `dedup`: each store)
    batches         what is committed together, and what follows when that goes wrong
    leases          how long an execution may write
    causes          which failures led to a failure, and what is in flight at a call
    backoff         how long *we* wait before the next try; a step's own back-off is its policy's

A new kind of step is a class in `step_kinds`; a `match` in `steps` says how it begins, and the type checker names the place.

Three rules carry the rest:

1. *A record is handed out only after it is acknowledged.* Until then the step has no value, not even for a concurrent
   second call of its key, which joins.
2. *A body starts only while the lease certainly holds*, by a deadline counted from the moment when the lease was asked
   for: an execution that was paused beyond it stops before the next body, whatever the store believes.
3. *An abort is for good.* Once a run must not go on, every further step says so again, and no return value or
   exception of the workflow counts any more.
"""
