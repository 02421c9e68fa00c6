-- The verbs over whole snapshots. Whatever deletes or replaces a run takes its lease row first, also one that is not there
-- yet, so that neither an owner nor a claim can write meanwhile; what it deletes is then looked for in a later statement,
-- which sees the owner's last commit.

-- name: load
SELECT seq, key, kind, text, at, epoch
  FROM (SELECT NULL::integer AS seq, '' AS key, 'header' AS kind, snapshot::text AS text, NULL::float8 AS at, 0 AS epoch
          FROM {snapshots}
         WHERE id = %(id)s
         UNION ALL
        SELECT seq, key, kind, record::text, extract(epoch FROM created_at)::float8, epoch
          FROM {steps}
         WHERE workflow_id = %(id)s) AS line
 ORDER BY seq NULLS FIRST

-- name: lock_runs
-- The answer is the runs that were not being executed, or that are taken from their owners. Epochs go on from that of the header
-- that is written, if it comes from elsewhere. A run that a trigger leaves to its owner is not in the answer. What is written anew
-- is no worker's; a run that `stays` goes on as what it is.
WITH ended AS MATERIALIZED (
    SELECT {slot} AS slot FROM {locks} WHERE workflow_id = ANY (%(ids)s::text[]) AND owner_token IS NOT NULL
), {reopened_of_ended}, locked AS (
INSERT INTO {locks} AS lease (workflow_id, epoch, expires_at)
SELECT id, %(epoch)s, clock_timestamp()
  FROM (SELECT DISTINCT id FROM unnest(%(ids)s::text[]) AS asked (id) ORDER BY id) AS asked
ON CONFLICT (workflow_id) DO UPDATE
   SET epoch = GREATEST(lease.epoch + 1, excluded.epoch), owner_token = NULL, expires_at = clock_timestamp(),
       owner = CASE WHEN %(stays)s AND lease.owner_token IS NULL THEN lease.owner END,
       route = CASE WHEN %(stays)s THEN lease.route END,
       due_at = CASE WHEN %(stays)s THEN lease.due_at END
 WHERE lease.owner_token IS NULL OR lease.expires_at <= clock_timestamp() OR %(force)s
RETURNING workflow_id, owner_token
)
SELECT workflow_id FROM locked WHERE owner_token IS NULL

-- name: wait_briefly
-- For the rest of the transaction, where the run is not there: another one that starts it may stay open.
SELECT set_config('lock_timeout', %(wait)s, true) WHERE NOT EXISTS (SELECT FROM {locks} WHERE workflow_id = %(id)s)

-- name: holder
SELECT owner, extract(epoch FROM expires_at - clock_timestamp())::float8
  FROM {locks}
 WHERE workflow_id = %(id)s AND owner_token IS NOT NULL

-- name: write
-- The answer is whether it was: a trigger may leave the row as it is.
INSERT INTO {snapshots} AS run (id, snapshot, updated_at)
VALUES (%(id)s, %(snapshot)s::jsonb, clock_timestamp())
ON CONFLICT (id) DO UPDATE
   SET snapshot = CASE WHEN %(stays)s  -- with what no document has
                       THEN excluded.snapshot || jsonb_strip_nulls(jsonb_build_object(
                                'dedup', run.snapshot->'dedup', 'continued', run.snapshot->'continued',
                                'parent', run.snapshot->'parent'))
                       ELSE excluded.snapshot END,
       updated_at = excluded.updated_at
RETURNING updated_at >= now()

-- name: tell_replaced
-- A child that had not ended, and is saved over, is no child any more: its parent is told as if it was deleted.
INSERT INTO {signals} (workflow_id, name, payload, nonce)
SELECT child.parent->>0, child.parent->>1, '{"status":"deleted"}',
       ('x' || substr(md5(child.parent::text || clock_timestamp()::text || random()::text), 1, 16))::bit(64)::bigint & {below_2_62}
  FROM (SELECT snapshot->'parent' AS parent, snapshot->'execution'->>'status' AS status FROM {snapshots} WHERE id = %(id)s) AS child
 WHERE child.parent IS NOT NULL AND child.status IN ('queued', 'running')
   AND EXISTS (SELECT FROM {snapshots} WHERE id = child.parent->>0)

-- name: write_journal
INSERT INTO {steps} (workflow_id, seq, key, kind, nonce, epoch, record, created_at)
SELECT lease.workflow_id, line.seq, line.key, line.kind, 0, COALESCE(NULLIF(line.epoch, 0), lease.epoch),
       line.record::json, COALESCE(line.at, now())
  FROM (SELECT workflow_id, epoch FROM {locks} WHERE workflow_id = %(id)s OFFSET 0) AS lease
 CROSS JOIN (
       SELECT (told->>0)::integer AS seq, told->>1 AS key, told->>2 AS kind, told->>3 AS record,
              (told->>4)::timestamptz AS at, (told->>5)::bigint AS epoch
         FROM json_array_elements(%(records)s::json) AS told) AS line

-- name: reroute
-- A run that waits for workers of another version now, which it may go on with at once.
UPDATE {locks}
   SET route = regexp_replace(replace(route, E'\t', E'\n'), ',-?[0-9]+\](?=$|\n)', ',' || %(version)s::text || ']'), due_at = clock_timestamp(), owner = NULL
 WHERE workflow_id = %(id)s AND route IS NOT NULL AND due_at IS NOT NULL

-- name: delete_headers
-- As the three below: the answer is whether all that was there went. A trigger may keep a row.
-- A child that had not ended tells its parent.
WITH gone AS (
    DELETE FROM {snapshots} WHERE id = ANY (%(ids)s) RETURNING snapshot
), told AS (
    INSERT INTO {signals} (workflow_id, name, payload, nonce)
    SELECT parent->>0, parent->>1, '{"status":"deleted"}',
           ('x' || substr(md5(parent::text || clock_timestamp()::text || random()::text), 1, 16))::bit(64)::bigint & {below_2_62}
      FROM (SELECT snapshot->'parent' AS parent, snapshot->'execution'->>'status' AS status FROM gone) AS child
     WHERE parent IS NOT NULL AND status IN ('queued', 'running') AND parent->>0 <> ALL (%(ids)s)
       AND EXISTS (SELECT FROM {snapshots} WHERE id = parent->>0)
)
SELECT (SELECT count(*) FROM gone) = (SELECT count(*) FROM {snapshots} WHERE id = ANY (%(ids)s))

-- name: delete_journals
WITH gone AS (DELETE FROM {steps} WHERE workflow_id = ANY (%(ids)s) RETURNING 1)
SELECT (SELECT count(*) FROM gone) = (SELECT count(*) FROM {steps} WHERE workflow_id = ANY (%(ids)s))

-- name: delete_signals
WITH gone AS (DELETE FROM {signals} WHERE workflow_id = ANY (%(ids)s) RETURNING 1)
SELECT (SELECT count(*) FROM gone) = (SELECT count(*) FROM {signals} WHERE workflow_id = ANY (%(ids)s))

-- name: delete_leases
WITH gone AS (DELETE FROM {locks} WHERE workflow_id = ANY (%(ids)s) RETURNING 1)
SELECT (SELECT count(*) FROM gone) = (SELECT count(*) FROM {locks} WHERE workflow_id = ANY (%(ids)s))

-- name: list
SELECT run.id, run.updated_at, NULL, NULL
  FROM {snapshots} AS run
 WHERE {status}
   AND {prefixed}
   AND {after}
 ORDER BY updated_at DESC, id DESC
 LIMIT %(limit)s

-- name: list_by_lease
-- Who holds the lease is told where its owner may be proven dead here, and is not known yet to be dead, or alive.
SELECT run.id, run.updated_at, lease.owner, lease.owner_token
  FROM {snapshots} AS run
  LEFT JOIN LATERAL (
       SELECT owner, owner_token, starts_with(owner, %(host)s) AND owner <> ALL (%(known)s::text[]) AS is_doubtful
         FROM {locks}
        WHERE workflow_id = run.id AND owner_token IS NOT NULL AND expires_at > clock_timestamp()
       OFFSET 0) AS lease ON true
 WHERE {status}
   AND {prefixed}
   AND {after}
 ORDER BY updated_at DESC, id DESC
 LIMIT %(limit)s

-- name: old
SELECT id
  FROM {snapshots} AS run
 WHERE updated_at < %(before)s
   AND {status}
   AND {idle}
   AND {narrowed}
   AND {prefixed}
 ORDER BY updated_at, id
 LIMIT %(limit)s

-- name: still_old
-- Their leases are held, so they stay what they are.
SELECT id FROM {snapshots} AS run WHERE id = ANY (%(ids)s) AND updated_at < %(before)s AND {status}

-- name: moment
SELECT clock_timestamp() - make_interval(secs => %(seconds)s)

-- name: status
SELECT COALESCE(run.snapshot->'execution'->>'status', 'running'), lease.owner_token IS NOT NULL,
       lease.owner_token IS NULL AND starts_with(lease.owner, 'suspended '), lease.owner, lease.owner_token
  FROM {snapshots} AS run
  LEFT JOIN {locks} AS lease
    ON lease.workflow_id = run.id AND (lease.owner_token IS NULL OR lease.expires_at > clock_timestamp())
 WHERE run.id = %(id)s

-- name: why_nothing
-- Of a run that was not there: whether it may be hidden, and whether its journal is there without it. It may have begun since.
SELECT row_security_active({snapshots_text}) OR row_security_active({steps_text}),
       EXISTS (SELECT FROM {steps} WHERE workflow_id = %(id)s) AND NOT EXISTS (SELECT FROM {snapshots} WHERE id = %(id)s)

-- name: counts
-- The leases that last are few, with those of runs that are suspended: they are looked for once, and not for each run. By owner,
-- who may be proven dead.
SELECT COALESCE(run.snapshot->'execution'->>'status', 'running'),
       held.owner_token IS NOT NULL, held.is_suspended IS TRUE, held.owner, min(held.owner_token), count(*)
  FROM {snapshots} AS run
  LEFT JOIN (
       SELECT workflow_id, CASE WHEN owner_token IS NOT NULL THEN owner END AS owner, owner_token,
              owner_token IS NULL AS is_suspended
         FROM {locks}
        WHERE owner_token IS NOT NULL AND expires_at > clock_timestamp()
           OR owner_token IS NULL AND starts_with(owner, 'suspended ')) AS held ON held.workflow_id = run.id
 WHERE {prefixed}
 GROUP BY 1, 2, 3, 4

-- name: unserved
-- The routes of which something is due that no worker has: one step of the recursion a route, however many runs each has.
WITH RECURSIVE known AS (
    (SELECT route FROM {locks} WHERE due_at < 'infinity' AND route >= %(first)s ORDER BY route LIMIT 1)
     UNION ALL
    SELECT (SELECT route FROM {locks} WHERE due_at < 'infinity' AND route > {after_known} ORDER BY route LIMIT 1)
      FROM known
     WHERE starts_with(known.route, %(first)s)
)
SELECT DISTINCT {line}
  FROM known
 WHERE starts_with(route, %(first)s)
   AND EXISTS (
       SELECT FROM {locks} AS lease
        WHERE lease.route = known.route AND lease.due_at < 'infinity' AND lease.due_at <= clock_timestamp()
          AND (lease.owner_token IS NULL OR lease.expires_at <= clock_timestamp()))
   AND NOT EXISTS (
       SELECT FROM {workers} AS worker
        WHERE worker.seen_at > clock_timestamp() - interval '1 minute' AND {line_of_known} = ANY (worker.routes))

-- name: sizes
-- The planner's own estimate of rows, which counts pages that came after the last ANALYZE; and 200 bytes each before any.
SELECT pg_relation_size({steps_text}::regclass),
       (SELECT ceil(CASE WHEN reltuples > 0 AND relpages > 0
                         THEN reltuples / relpages * (pg_relation_size(oid) / current_setting('block_size')::integer)
                         ELSE pg_relation_size(oid) / 200.0 END)::bigint
          FROM pg_class WHERE oid = {steps_text}::regclass),
       pg_total_relation_size({snapshots_text}::regclass) + pg_total_relation_size({steps_text}::regclass)
       + pg_total_relation_size({locks_text}::regclass) + pg_total_relation_size({signals_text}::regclass)

-- name: records
SELECT count(*) FROM {steps} AS run WHERE {prefixed}

-- name: share
-- How many of all runs are those of the prefix, from 0 to 1.
SELECT COALESCE(avg({prefixed}::integer), 1)::float8 FROM {snapshots} AS run

-- name: orphans
-- `journals` are the ids that a journal may have: those of the journals themselves, or of the leases, which are fewer.
SELECT count(*)
  FROM ({journals}) AS run
 WHERE {prefixed}
   AND NOT EXISTS (SELECT FROM {snapshots} WHERE id = run.workflow_id)
   AND EXISTS (SELECT FROM {steps} WHERE workflow_id = run.workflow_id)

-- name: old_orphans
-- Journals that are not being executed, and whose last record is old enough.
SELECT orphan.workflow_id
  FROM (SELECT run.workflow_id
          FROM ({journals}) AS run
         WHERE {prefixed}
           AND NOT EXISTS (SELECT FROM {snapshots} WHERE id = run.workflow_id)
        OFFSET 0) AS orphan
 WHERE NOT EXISTS (
       SELECT FROM {locks}
        WHERE workflow_id = orphan.workflow_id AND owner_token IS NOT NULL AND expires_at > clock_timestamp())
   AND (SELECT max(created_at) FROM {steps} WHERE workflow_id = orphan.workflow_id) < %(before)s
 LIMIT %(limit)s

-- name: still_orphans
SELECT asked.id
  FROM unnest(%(ids)s::text[]) AS asked (id)
 WHERE NOT EXISTS (SELECT FROM {snapshots} WHERE id = asked.id)
