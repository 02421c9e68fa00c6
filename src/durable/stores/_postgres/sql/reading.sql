-- What people and tools ask. A question is one statement, in a transaction that only reads and that ends after three seconds.

-- name: patience
SELECT set_config('statement_timeout', %(patience)s::text, true)

-- name: runs
-- A page by index, in its order; what is shown of each run beside its header is looked up for the rows of the page alone. `{joined}`
-- is the lease, where a condition asks for it.
SELECT run.id, run.updated_at, run.workflow, run.version, run.execution,
       lease.held, lease.owner, lease.owner_token, lease.route, lease.due_at, lease.priority, step.key, step.seq,
       run.parent
  FROM (SELECT run.id, run.updated_at, run.snapshot->>'workflowName' AS workflow,
               (run.snapshot->'metadata'->'version')::text AS version, (run.snapshot->'execution')::text AS execution,
               run.snapshot->'parent'->>0 AS parent
          FROM {snapshots} AS run
               {joined}
         WHERE {status}
           AND {wanted}
           AND {after}
         ORDER BY run.updated_at DESC, run.id DESC
         LIMIT %(limit)s) AS run
  LEFT JOIN LATERAL (
       SELECT owner_token IS NOT NULL AND expires_at > clock_timestamp() AS held, owner, owner_token, route,
              extract(epoch FROM due_at)::float8 AS due_at, priority
         FROM {locks}
        WHERE workflow_id = run.id
       OFFSET 0) AS lease ON true
  LEFT JOIN LATERAL (
       SELECT key, seq
         FROM {steps}
        WHERE workflow_id = run.id AND kind IN ('step', 'attempt')
        ORDER BY seq DESC
        LIMIT 1) AS step ON true
 ORDER BY run.updated_at DESC, run.id DESC

-- name: count
SELECT count(*)
  FROM (SELECT
          FROM {snapshots} AS run
               {joined}
         WHERE {status}
           AND {wanted}
         LIMIT %(limit)s) AS found

-- name: header
SELECT snapshot::text FROM {snapshots} WHERE id = %(id)s

-- name: journal
SELECT seq, key, kind, record::text, extract(epoch FROM created_at)::float8, epoch
  FROM {steps}
 WHERE workflow_id = %(id)s AND seq > %(after)s
 ORDER BY seq
 LIMIT %(limit)s

-- name: workers
-- Those that were heard of in the last hour: of one that died, too, the row is there for a day.
SELECT worker.id, worker.owner, worker.routes, worker.idle, worker.leaving, extract(epoch FROM worker.seen_at)::float8,
       COALESCE(held.runs, 0)
  FROM {workers} AS worker
  LEFT JOIN (
       SELECT owner, count(*) AS runs
         FROM {locks}
        WHERE due_at < 'infinity' AND owner_token IS NOT NULL AND expires_at > clock_timestamp() AND {mine}
        GROUP BY owner) AS held ON held.owner = worker.owner
 WHERE worker.seen_at > clock_timestamp() - interval '1 hour'
   AND EXISTS (SELECT FROM unnest(worker.routes) AS one (route) WHERE {ours})
 ORDER BY worker.owner, worker.id

-- name: schedules
-- What starts no workflow is how workers take turns at retention.
SELECT to_json(schedule)::text
  FROM (SELECT * FROM {schedules} WHERE starts_with(id, %(prefix)s) AND start->>'workflow' <> '' ORDER BY id) AS schedule

-- name: signals
SELECT number, name, payload::text, extract(epoch FROM created_at)::float8, nonce
  FROM {signals}
 WHERE workflow_id = %(id)s
 ORDER BY number

-- name: stuck
-- Runs that were left, and that no worker takes up: how many, and for how many seconds the oldest has been so.
SELECT count(*), extract(epoch FROM clock_timestamp() - min(stuck.updated_at))::float8
  FROM (SELECT run.updated_at
          FROM {snapshots} AS run
         WHERE COALESCE(run.snapshot->'execution'->>'status', 'running') = 'running'
           AND starts_with(run.id, %(prefix)s::text)
           AND NOT EXISTS (
               SELECT FROM {locks} AS lease
                WHERE lease.workflow_id = run.id
                  AND (lease.due_at IS NOT NULL OR (lease.owner_token IS NOT NULL AND lease.expires_at > clock_timestamp())))
         ORDER BY run.updated_at
         LIMIT 10001) AS stuck

-- name: ended
-- By the hour, the last one first; the newest hundred thousand changes of a day, and from when on these are.
SELECT floor(extract(epoch FROM clock_timestamp() - day.updated_at) / 3600)::integer AS hours_ago,
       count(*) FILTER (WHERE day.status = 'completed'), count(*) FILTER (WHERE day.status = 'failed'), count(*),
       min(day.updated_at)
  FROM (SELECT run.updated_at, run.snapshot->'execution'->>'status' AS status
          FROM {snapshots} AS run
         WHERE run.updated_at > clock_timestamp() - interval '1 day' AND starts_with(run.id, %(prefix)s::text)
         ORDER BY run.updated_at DESC
         LIMIT %(day)s) AS day
 GROUP BY 1
 ORDER BY 1

-- name: due_longest
-- Of what a worker had, and lost, since its lease ended.
SELECT extract(epoch FROM clock_timestamp() - min(GREATEST(due_at, CASE WHEN owner_token IS NOT NULL THEN expires_at END)))::float8
  FROM {locks}
 WHERE due_at < 'infinity' AND due_at <= clock_timestamp() AND starts_with(route, %(first)s::text)
   AND (owner_token IS NULL OR expires_at <= clock_timestamp())

-- name: connections
SELECT count(*), current_setting('max_connections')::integer
  FROM pg_stat_activity
 WHERE backend_type = 'client backend'

-- name: oldest_transaction
SELECT pid, extract(epoch FROM clock_timestamp() - xact_start)::float8
  FROM pg_stat_activity
 WHERE datname = current_database() AND xact_start IS NOT NULL AND pid <> pg_backend_pid()
   AND backend_type = 'client backend'
 ORDER BY xact_start
 LIMIT 1
