-- A run that was started belongs to the workers: `route` says to which (store's prefix, queue, workflow and version, as JSON), and
-- `due_at` when the next of them may take it. While it is held, that is the end of its lease, or earlier than that; once it has
-- ended, NULL. `priority` is ten less once it was begun: it goes on before others begin. All three are NULL for what `durable.run`
-- executes itself, which is in no index here. (Five columns and three: one more would make each row of eight bytes longer that has a
-- NULL.)
ALTER TABLE {locks} ADD COLUMN route text, ADD COLUMN priority smallint, ADD COLUMN due_at timestamptz;
CREATE INDEX {due_index} ON {locks} (route, priority, due_at) WHERE due_at < 'infinity';

-- Of a queue and a `dedup` one run that has not ended.
CREATE UNIQUE INDEX {dedup_index} ON {snapshots} ((snapshot->'dedup'))
 WHERE snapshot->'dedup' IS NOT NULL AND snapshot->'execution'->>'status' IN ('queued', 'running');

-- The workers that are at work, or were a moment ago: one that is idle is woken by the start of what it can execute, and what none
-- of them has is told. A row is a hint: without it a run is found by the next poll. The death of one that is `leaving` is no crash.
CREATE TABLE {workers} (
    id      text PRIMARY KEY,
    routes  text[] NOT NULL,
    owner   text NOT NULL,
    idle    boolean NOT NULL,
    leaving boolean NOT NULL DEFAULT false,
    seen_at timestamptz NOT NULL
) WITH (fillfactor = 50);
