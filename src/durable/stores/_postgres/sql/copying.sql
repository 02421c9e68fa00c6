-- Runs that are copied: within a store by the server itself, and into one from a file. The text of a record stays what it is, to the byte:
-- through jsonb a float like 1e16 would become another number, and the keys of dicts would change their order.

-- name: copy_lease
-- The lease row before the header before the journal, as everywhere. Nothing is in the answer where there is nothing to copy, or
-- where something is there already. Epochs go on from the run's own.
INSERT INTO {locks} (workflow_id, epoch, expires_at, route, priority, due_at)
SELECT %(to)s::text, COALESCE(lease.epoch, 0), clock_timestamp(), replace(lease.route, E'\t', E'\n'),
       CASE WHEN lease.priority < 0 THEN lease.priority + 10 ELSE lease.priority END,
       CASE WHEN lease.route IS NOT NULL THEN clock_timestamp() END
  FROM (SELECT id FROM {snapshots} WHERE id = %(from)s::text) AS run
  LEFT JOIN {locks} AS lease ON lease.workflow_id = run.id
 WHERE NOT EXISTS (SELECT FROM {snapshots} WHERE id = %(to)s::text)
   AND NOT EXISTS (SELECT FROM {steps} WHERE workflow_id = %(to)s::text)
ON CONFLICT (workflow_id) DO NOTHING
RETURNING route

-- name: copy_header
-- What the run was to others, and how it ended, is not the copy's. A worker's is queued, any other is left for its next call.
INSERT INTO {snapshots} (id, snapshot, updated_at)
SELECT %(to)s::text,
       (run.snapshot - ARRAY['dedup', 'continued', 'parent', 'result'] - %(without)s::text[])
       || jsonb_build_object(
              'nonce', to_jsonb(%(nonce)s::bigint),
              'metadata', (CASE WHEN jsonb_typeof(run.snapshot->'metadata') = 'object' THEN run.snapshot->'metadata' ELSE '{}' END)
                          - 'deadline' || %(metadata)s::jsonb,
              'execution', jsonb_strip_nulls(
                  COALESCE(run.snapshot->'execution', '{}')
                  || jsonb_build_object(
                         'status', %(status)s::text, 'lastUpdated', now(), 'completedAt', NULL, 'currentStepId', NULL,
                         'error', NULL, 'needsDecision', NULL, 'crashes', NULL))),
       clock_timestamp()
  FROM {snapshots} AS run
 WHERE run.id = %(from)s::text
RETURNING 1

-- name: copy_journal
INSERT INTO {steps} (workflow_id, seq, key, kind, nonce, epoch, record, created_at)
SELECT %(to)s::text, seq, key, kind, nonce, epoch, record, created_at
  FROM {steps}
 WHERE workflow_id = %(from)s::text AND (%(keep)s::integer[] IS NULL OR seq = ANY (%(keep)s::integer[]))

-- name: write_records
-- As `write_journal` does, but the epoch is what it was, also where that is 0: of an input that was stored by a start.
INSERT INTO {steps} (workflow_id, seq, key, kind, nonce, epoch, record, created_at)
SELECT lease.workflow_id, line.seq, line.key, line.kind, 0, CASE WHEN line.at IS NULL THEN lease.epoch ELSE line.epoch END,
       line.record::json, COALESCE(line.at, now())
  FROM (SELECT workflow_id, epoch FROM {locks} WHERE workflow_id = %(id)s OFFSET 0) AS lease
 CROSS JOIN (
       SELECT (told->>0)::integer AS seq, told->>1 AS key, told->>2 AS kind, told->>3 AS record,
              (told->>4)::timestamptz AS at, (told->>5)::bigint AS epoch
         FROM json_array_elements(%(records)s::json) AS told) AS line

-- name: was_copied
-- Whether it was this very copy, whose reply was lost.
SELECT snapshot->'nonce' IS NOT DISTINCT FROM to_jsonb(%(nonce)s::bigint) FROM {snapshots} WHERE id = %(to)s::text

-- name: document
SELECT snapshot::text FROM {snapshots} WHERE id = %(id)s

-- name: is_there
SELECT EXISTS (SELECT FROM {snapshots} WHERE id = %(id)s) OR EXISTS (SELECT FROM {steps} WHERE workflow_id = %(id)s)

-- name: restore_header
-- As `write` does, but the moment of the last change is the one that it was: how long a run has taken is read off it, and how old it is.
INSERT INTO {snapshots} AS run (id, snapshot, updated_at)
VALUES (%(id)s, %(snapshot)s::jsonb, COALESCE(%(updated)s::timestamptz, clock_timestamp()))
ON CONFLICT (id) DO UPDATE SET snapshot = excluded.snapshot, updated_at = excluded.updated_at
RETURNING 1

-- name: restore_lease
UPDATE {locks}
   SET route = %(route)s, priority = %(priority)s::smallint,
       due_at = CASE WHEN %(due)s::float8 IS NULL THEN NULL ELSE to_timestamp(%(due)s::float8) END
 WHERE workflow_id = %(id)s

-- name: send_again
INSERT INTO {signals} (workflow_id, name, payload, nonce, created_at, noticed)
VALUES (%(id)s, %(name)s::text, %(payload)s::json, %(nonce)s, to_timestamp(%(at)s::float8), %(name)s::text = '')
RETURNING number

-- name: forget_signals
DELETE FROM {signals} WHERE workflow_id = %(id)s
