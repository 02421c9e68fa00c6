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
-- The answer is the runs that nobody was executing, or that are taken from whoever was. Epochs go on to be counted from that of
-- the header that is written, if that comes from elsewhere.
INSERT INTO {locks} AS lease (workflow_id, epoch, expires_at)
SELECT id, %(epoch)s, clock_timestamp()
  FROM (SELECT DISTINCT id FROM unnest(%(ids)s::text[]) AS asked (id) ORDER BY id) AS asked
ON CONFLICT (workflow_id) DO UPDATE
   SET epoch = GREATEST(lease.epoch + 1, excluded.epoch), owner_token = NULL, owner = NULL, expires_at = clock_timestamp()
 WHERE lease.owner_token IS NULL OR lease.expires_at <= clock_timestamp() OR %(force)s
RETURNING workflow_id

-- name: holder
SELECT owner, extract(epoch FROM expires_at - clock_timestamp())::float8
  FROM {locks}
 WHERE workflow_id = %(id)s AND owner_token IS NOT NULL

-- name: write
INSERT INTO {snapshots} (id, snapshot, updated_at)
VALUES (%(id)s, %(snapshot)s::jsonb, clock_timestamp())
ON CONFLICT (id) DO UPDATE SET snapshot = excluded.snapshot, updated_at = excluded.updated_at

-- name: write_journal
INSERT INTO {steps} (workflow_id, seq, key, kind, nonce, epoch, record, created_at)
SELECT lease.workflow_id, line.seq, line.key, line.kind, 0, COALESCE(NULLIF(line.epoch, 0), lease.epoch),
       line.record::json, COALESCE(line.at, now())
  FROM (SELECT workflow_id, epoch FROM {locks} WHERE workflow_id = %(id)s OFFSET 0) AS lease
 CROSS JOIN (
       SELECT (told->>0)::integer AS seq, told->>1 AS key, told->>2 AS kind, told->>3 AS record,
              (told->>4)::timestamptz AS at, (told->>5)::bigint AS epoch
         FROM json_array_elements(%(records)s::json) AS told) AS line

-- name: delete_header
DELETE FROM {snapshots} WHERE id = %(id)s

-- name: delete_journals
DELETE FROM {steps} WHERE workflow_id = ANY (%(ids)s)

-- name: delete_signals
DELETE FROM {signals} WHERE workflow_id = ANY (%(ids)s)

-- name: delete_leases
DELETE FROM {locks} WHERE workflow_id = ANY (%(ids)s)

-- name: list
SELECT id, updated_at
  FROM {snapshots} AS run
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
   AND {prefixed}
 ORDER BY updated_at, id
 LIMIT %(limit)s

-- name: delete_old
DELETE FROM {snapshots} AS run
 WHERE id = ANY (%(ids)s) AND updated_at < %(before)s AND {status}
RETURNING id

-- name: moment
SELECT clock_timestamp() - make_interval(secs => %(seconds)s)

-- name: status
SELECT COALESCE(snapshot->'execution'->>'status', 'running'), {held}
  FROM {snapshots} AS run
 WHERE id = %(id)s

-- name: counts
SELECT COALESCE(snapshot->'execution'->>'status', 'running'), {held}, count(*)
  FROM {snapshots} AS run
 WHERE {prefixed}
 GROUP BY 1, 2

-- name: sizes
SELECT (SELECT GREATEST(reltuples, 0)::bigint FROM pg_class WHERE oid = {steps_text}::regclass),
       pg_total_relation_size({snapshots_text}::regclass) + pg_total_relation_size({steps_text}::regclass)
       + pg_total_relation_size({locks_text}::regclass) + pg_total_relation_size({signals_text}::regclass)
