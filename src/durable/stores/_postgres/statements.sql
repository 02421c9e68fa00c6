-- name: take_lease
-- Take the lease if nobody holds it and the run is one that this claim may execute (the same conditions as
-- `runs.executable`). The first look locks nothing, so that polling does not disturb a holder; what it let through is
-- checked again under the row lock. Time is the server's, read after any waiting.
INSERT INTO {locks} AS lease (workflow_id, epoch, owner_token, owner, expires_at)
SELECT %(id)s, 1, '1:' || %(random)s, %(owner)s, clock_timestamp() + make_interval(secs => %(seconds)s)
 WHERE NOT EXISTS (
           SELECT FROM {locks} AS held
            WHERE held.workflow_id = %(id)s
              AND held.owner_token IS DISTINCT FROM %(dead)s
              AND held.expires_at > clock_timestamp())
   AND COALESCE((
           SELECT run.snapshot->'formatVersion' = '1'
                  AND run.snapshot->>'workflowName' = %(workflow)s
                  AND COALESCE(run.snapshot->'metadata'->'version', to_jsonb(%(version)s::bigint))
                      = to_jsonb(%(version)s::bigint)
                  AND (%(input_hash)s::text IS NULL
                       OR run.snapshot->'metadata'->>'inputHash' IS NOT DISTINCT FROM %(input_hash)s)
                  AND run.snapshot->'execution'->>'status' IS DISTINCT FROM 'completed'
                  AND (%(after_failure)s OR run.snapshot->'execution'->>'status' IS DISTINCT FROM 'failed')
             FROM {snapshots} AS run
            WHERE run.id = %(id)s), %(create)s)
ON CONFLICT (workflow_id) DO UPDATE
   SET epoch = lease.epoch + 1,
       owner_token = (lease.epoch + 1) || ':' || %(random)s,
       owner = excluded.owner,
       expires_at = clock_timestamp() + make_interval(secs => %(seconds)s)
 WHERE lease.expires_at <= clock_timestamp() OR lease.owner_token = %(dead)s

-- name: open_run
-- If the lease is now ours: write the header and input of a new run, or mark an old one as running.
WITH mine AS (
    SELECT workflow_id, epoch FROM {locks} WHERE workflow_id = %(id)s AND owner_token = epoch || ':' || %(random)s
), fresh AS (
    INSERT INTO {snapshots} (id, snapshot, updated_at)
    SELECT workflow_id, jsonb_set(%(header)s::jsonb, ARRAY['execution', 'lastUpdated'], to_jsonb(now())), now() FROM mine
    ON CONFLICT (id) DO NOTHING
    RETURNING id
), again AS (
    UPDATE {snapshots} AS run
       SET snapshot = run.snapshot || jsonb_build_object(
               'execution', jsonb_build_object('status', 'running', 'lastUpdated', now())),
           updated_at = now()
      FROM mine
     WHERE run.id = mine.workflow_id AND run.snapshot->'execution'->>'status' IS DISTINCT FROM 'completed'
)
INSERT INTO {steps} (workflow_id, seq, key, kind, nonce, epoch, record)
SELECT fresh.id, 0, 'input', 'input', 0, mine.epoch, %(input)s::json
  FROM fresh, mine
 WHERE %(input)s::text IS NOT NULL

-- name: read_run
SELECT lease.epoch, lease.owner_token, lease.owner,
       extract(epoch FROM lease.expires_at - clock_timestamp())::float8 AS expires_in,
       run.snapshot::text
  FROM (SELECT %(id)s::text AS id) AS asked
  LEFT JOIN {locks} AS lease ON lease.workflow_id = asked.id
  LEFT JOIN {snapshots} AS run ON run.id = asked.id

-- name: read_journal
-- The whole journal for its holder; for others only how the run ended.
SELECT seq, key, kind, record::text
  FROM {steps}
 WHERE workflow_id = %(id)s
   AND (kind IN ('result', 'failure')
        OR EXISTS (SELECT FROM {locks} WHERE workflow_id = %(id)s AND owner_token = epoch || ':' || %(random)s))
 ORDER BY seq

-- name: checkpoint
-- One round trip, one commit. The key-share lock is the fence: it waits for whoever is changing the token, and then looks
-- at the token again.
WITH lease AS (
    SELECT workflow_id, epoch FROM {locks} WHERE workflow_id = %s AND owner_token = %s FOR KEY SHARE
)
INSERT INTO {steps} (workflow_id, seq, key, kind, nonce, epoch, record)
SELECT workflow_id, %s, %s, %s, %s, epoch, %s::json FROM lease
ON CONFLICT (workflow_id, seq) DO NOTHING

-- name: finish
-- The lease row before the header before the journal, as everywhere.
WITH lease AS (
    UPDATE {locks}
       SET owner_token = NULL, owner = NULL, expires_at = clock_timestamp()
     WHERE workflow_id = %(id)s AND owner_token = %(token)s
    RETURNING workflow_id, epoch
), header AS (
    UPDATE {snapshots} AS run
       SET snapshot = run.snapshot || jsonb_build_object('execution', jsonb_strip_nulls(jsonb_build_object(
               'status', %(status)s::text,
               'lastUpdated', now(),
               'completedAt', CASE WHEN %(status)s = 'completed' THEN now() END))),
           updated_at = now()
      FROM lease
     WHERE run.id = lease.workflow_id
    RETURNING run.id, lease.epoch
)
INSERT INTO {steps} (workflow_id, seq, key, kind, nonce, epoch, record)
SELECT id, %(seq)s, %(key)s, %(kind)s, %(nonce)s, epoch, %(record)s::json FROM header

-- name: release
UPDATE {locks}
   SET owner_token = NULL, owner = NULL, expires_at = clock_timestamp()
 WHERE workflow_id = %s AND owner_token = %s

-- name: renew
-- All leases of a process at once, locked in the order of their ids. FOR NO KEY UPDATE lets checkpoints pass.
WITH kept AS MATERIALIZED (
    SELECT lease.workflow_id, lease.owner_token, asked.seconds
      FROM {locks} AS lease
      JOIN unnest(%s::text[], %s::text[], %s::float8[]) AS asked (id, token, seconds)
        ON lease.workflow_id = asked.id AND lease.owner_token = asked.token
     ORDER BY lease.workflow_id
       FOR NO KEY UPDATE OF lease
)
UPDATE {locks} AS lease
   SET expires_at = clock_timestamp() + make_interval(secs => kept.seconds)
  FROM kept
 WHERE lease.workflow_id = kept.workflow_id
RETURNING lease.owner_token

-- name: columns
SELECT asked.name, attribute.attname, format_type(attribute.atttypid, attribute.atttypmod)
  FROM unnest(%(tables)s::text[]) AS asked (name)
  JOIN pg_attribute AS attribute ON attribute.attrelid = to_regclass(asked.name)
 WHERE attribute.attnum > 0 AND NOT attribute.attisdropped

-- name: fence_index
-- Whether some index makes owner_token a key column: unique, immediate, valid, over plain columns and all rows.
SELECT EXISTS (
    SELECT FROM pg_index AS index
      JOIN pg_attribute AS attribute ON attribute.attrelid = index.indrelid AND attribute.attname = 'owner_token'
     WHERE index.indrelid = to_regclass(%(locks)s)
       AND index.indisunique AND index.indimmediate AND index.indisvalid
       AND index.indpred IS NULL AND index.indexprs IS NULL
       AND attribute.attnum = ANY ((index.indkey::int2[])[0:index.indnkeyatts - 1]))

-- name: version
SELECT max(version) FROM {migrations}

-- name: migrations_exist
SELECT to_regclass(%(migrations)s) IS NOT NULL

-- name: create_migrations
CREATE TABLE IF NOT EXISTS {migrations} (
    version    integer PRIMARY KEY,
    applied_at timestamptz NOT NULL DEFAULT now()
)

-- name: record_migration
INSERT INTO {migrations} (version) VALUES (%(version)s)
